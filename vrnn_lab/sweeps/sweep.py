"""Run a sweep: each combination is a job in its own folder, resumed where it was left; a table shows the results."""

import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isnan
from pathlib import Path
from time import sleep
from typing import ClassVar

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins import sweeper
from omegaconf import DictConfig
from rich.table import Table

from vrnn_lab.cli.shown_text import terminal_cell
from vrnn_lab.cli.terminal import Terminal
from vrnn_lab.config.compose import composer, job_id, jobs_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check
from vrnn_lab.runs.folder import SCORE, metrics_of, record_failure, status
from vrnn_lab.runs.provenance import changes

log = logging.getLogger("vrnn_lab")
LONGEST = 120  # bytes of the readable part of a folder's name
SHOWN = 10  # the best jobs that the table shows
STANDING = {"new": "not started", "running": "running elsewhere"}


class SweepFailed(Exception):
    """Signal that some jobs of a sweep have no result; the printed table names them and the reasons."""


@dataclass(frozen=True, eq=False)
class Job:
    """Hold one job of a sweep."""

    overrides: tuple[str, ...]
    config: DictConfig
    title: str  # the choices in which it differs from the other jobs
    id: str  # a hash of its config alone, independent of the rest of the sweep


@cache
def plan(overrides: tuple[str, ...], config_dirs: tuple[str, ...] = ()) -> list[Job]:
    """Return the distinct jobs of a sweep, each checked; raise ConfigError for the first that cannot work."""
    combinations = jobs_of(list(overrides))
    names_jobs = lambda values: len(set(values)) > 1 or values[0].startswith("seed=")
    varying = [i for i, values in enumerate(zip(*combinations, strict=True)) if names_jobs(values)]
    jobs: dict[str, Job] = {}
    compose = composer(config_dirs)
    for combination in combinations:
        title = ",".join(combination[i] for i in varying)
        try:
            config = compose(combination)
            check(config)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the job {title})" if title else str(error)) from error
        job = Job(tuple(combination), config, title, job_id(config))
        jobs.setdefault(job.id, job)
    if len(jobs) < len(combinations):
        log.info(
            "         of %d combinations, %d make the same config as another",
            len(combinations),
            len(combinations) - len(jobs),
        )
    return list(jobs.values())


def folders(jobs: Iterable[Job], root: Path) -> dict[Job, Path]:
    """Return the folder of each job: the one that it was begun in, however the sweep was called then."""
    known = {path.name.rpartition("-")[2]: path for path in root.iterdir()} if root.is_dir() else {}
    return {job: known.get(job.id, root / _name(job)) for job in jobs}


def _name(job: Job) -> str:
    title = job.title.replace("[", "").replace("]", "")
    plain = re.sub(r"[^\w.=,+@-]", "_", re.sub(r"(?<=\w),(?=\w+(,|$))", "+", title))
    return "-".join(filter(None, [plain.encode()[:LONGEST].decode(errors="ignore"), job.id]))


class Sweeper(sweeper.Sweeper):
    """Run a grid of jobs as Hydra's sweeper, by any of its launchers; only jobs without a result are launched.

    request: the sweep's overrides and folders of configs. Hydra itself gets none of them: it would compose what all
    jobs share with the default model, which need not have those keys.
    """

    request: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]]

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None):
        self.at_once, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.root, self.name, self.retry = Path(config.hydra.sweep.dir), str(config.sweep), config.retry == "failed"
        self.run_all = Plugins.instance().instantiate_launcher(hydra_context, task_function, config).launch
        self.all_at_once = config.hydra.launcher._target_.endswith("submitit_launcher.LocalLauncher")

    def sweep(self, arguments: list[str]) -> None:
        jobs = plan(*self.request)
        self.folders = folders(jobs, self.root)
        self._announce(jobs)
        try:
            self._launch([job for job in jobs if self._is_open(job)])
        finally:
            self._conclude(jobs)
        if bad := [job for job in jobs if self._status(job) != "completed"]:
            raise SweepFailed(f"{len(bad)} of {len(jobs)} jobs of this sweep have no result.")

    def _status(self, job: Job) -> str:
        return status(self.folders[job])

    def _is_open(self, job: Job) -> bool:
        """Return whether a job is still to be run; a failed one only with retry=failed."""
        return self._status(job) not in (("completed",) if self.retry else ("completed", "failed"))

    def _announce(self, jobs: list[Job]) -> None:
        count = Counter(map(self._status, jobs))
        known = ", ".join(f"{n} {what}" for what, n in count.items() if what != "new")
        log.info("sweep    %s: %d jobs%s", self.root, len(jobs), f", of which {known}" if known else "")
        if count["failed"] and not self.retry:
            log.info("         failed jobs are not run again; retry=failed runs them again")
        differ = Counter(w for job in jobs for w in changes(self.folders[job], job.config))
        for what, n in differ.items():
            log.warning(
                "         %s after %d of these jobs started. Their recorded results are kept; to run them again use "
                "sweep=<another name>.",
                what,
                n,
            )

    # ---- running

    def _launch(self, todo: list[Job]) -> None:
        """Launch the jobs; where a died process broke the launcher, go on without the jobs that were interrupted.

        The launcher may have taken other jobs down with the one that died, so each of them is then tried alone.
        """
        suspects: list[Job] = []
        while todo or suspects:
            alone = not todo
            batch = [suspects.pop(0)] if alone else sorted(todo, key=lambda job: self._status(job) == "running")
            try:
                for first in range(0, len(batch), self.at_once or len(batch)):
                    self._launch_all(batch[first : first + (self.at_once or len(batch))])
                todo = []
            except Exception as error:
                sleep(1)  # a killed process may still hold its lock when the launcher notices
                cut = [job for job in batch if self._status(job) == "interrupted"]
                if not cut:
                    raise
                if alone:
                    self._mark_failed(cut[0], error)
                    continue
                suspects += cut
                todo = [job for job in todo if job not in suspects and self._is_open(job)]

    def _launch_all(self, jobs: Sequence[Job]) -> None:
        if self.all_at_once:
            _share_cores(len(jobs))
        calls = [[*job.overrides, f"hydra.sweep.subdir='{self.folders[job].name}'"] for job in jobs]
        for job, done in zip(jobs, self.run_all(calls, initial_job_idx=0), strict=True):
            # A job records its own failure, unless it died before it could.
            if done.status == JobStatus.FAILED and self._status(job) in ("new", "interrupted"):
                record_failure(self.folders[job], done._return_value, job.config)

    def _mark_failed(self, job: Job, error: Exception) -> None:
        why = RuntimeError(f"its process was killed twice; did it run out of memory? ({type(error).__name__})")
        record_failure(self.folders[job], why, job.config)

    # ---- results

    def _conclude(self, jobs: list[Job]) -> None:
        console = Terminal()
        states = {job: self._status(job) for job in jobs}
        count = Counter(states.values())
        ended = {job: metrics_of(self.folders[job]) for job in jobs}
        order = lambda job: (isnan(ended[job][SCORE]), ended[job][SCORE])
        best = sorted((job for job in jobs if states[job] == "completed"), key=order)
        if len(best) > 1:
            rows = [(f"{ended[job][SCORE]:.4g}", f"{ended[job]['fit/seconds']:.0f}", job.title) for job in best]
            title = "jobs by val/loss, best first" + (f" ({SHOWN} of {len(best)})" if len(best) > SHOWN else "")
            console.print(_table(title, (SCORE, "fit s", ""), rows[:SHOWN]))
        why = lambda job: ended[job].get("error") or _standing(states[job])
        bad = [(job.title or job.id, why(job)) for job in jobs if job not in best]
        if bad:
            console.print(_table("jobs without a result", ("", ""), bad))
        summary = ", ".join(f"{n} {_standing(what)}" for what, n in count.items())
        console.print(f"sweep    {self.root}: {summary}", soft_wrap=True)
        if count["failed"]:
            console.print("         the same command with retry=failed runs the failed jobs again", soft_wrap=True)
        if set(count) - {"completed", "failed"}:
            again = f"         the same command with sweep={shlex.quote(self.name)} resumes the sweep"
            console.print(again, soft_wrap=True)


def _standing(status: str) -> str:
    return STANDING.get(status, status)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    shown = Table(title=title, title_justify="left", box=None)
    for column in columns:
        shown.add_column(column, justify="right" if column else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(terminal_cell, row))
    return shown


def _share_cores(jobs: int) -> None:
    """Set the number of threads of each of so many processes that start at once, so that they share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
