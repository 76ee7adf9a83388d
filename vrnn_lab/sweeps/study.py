"""Share a search between many processes: an Optuna study, its trials, and who works on them.

All trials are put into the study beforehand, as waiting; a worker takes one at a time, so that their number is kept
however many workers there are. A trial whose process died is resumed in its own folder: on the same machine as soon
as its lock is released, on another once its heartbeat times out.
"""

import hashlib
import json
import logging
import re
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.runs.folder import SCORE
from vrnn_lab.sweeps.search_space import Space

log = logging.getLogger("vrnn_lab")
HEARTBEAT, GRACE = 15, 60  # seconds between heartbeats, and without one until another worker may take a trial
ATTEMPTS = 6  # a trial has failed once so many processes died on it
SAMPLERS, PRUNERS = ("tpe", "random"), ("median", "none")


@dataclass(frozen=True)
class SearchPlan:
    """Hold what a worker needs to know, in plain values, so that any launcher can send it."""

    study: str
    storage: str
    folder: Path
    trials: int
    failures: int
    seeds: int
    sampler: str
    pruner: str
    startup: int
    warmup: int
    fixed: tuple[str, ...]
    dirs: tuple[str, ...]
    space: Space
    seed: int
    bar: bool
    since: datetime


@contextmanager
def _unwarned() -> Iterator[None]:
    """Silence Optuna's warnings that features such as heartbeats are experimental; a test checks what we need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@cache  # since opening takes a quarter of a second
def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open the database of a search, creating missing tables; raise ConfigError where it does not open."""
    try:
        try:
            return _opened(url)
        except optuna.exceptions.StorageInternalError:  # workers that start together may create the same tables
            time.sleep(2)
            return _opened(url)
    except Exception as error:  # from SQLAlchemy, or from the database's own driver
        raise ConfigError(
            f"storage={shown(url)} cannot be opened ({str(error).splitlines()[0]}); expected a database that can be "
            "written, such as sqlite:///file.db or postgresql://user:password@machine/name."
        ) from error


def _opened(url: str) -> optuna.storages.RDBStorage:
    """Open a database: with SQLite workers write in turn, and a server's connection is tested before use."""
    how = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with _unwarned():
        return optuna.storages.RDBStorage(url, engine_kwargs=how, heartbeat_interval=HEARTBEAT, grace_period=GRACE)


def shown(url: str) -> str:
    """Return a storage's address without its password."""
    return re.sub(r"://([^:/@]+):[^@]+@", r"://\1:***@", url)


def open_study(plan: SearchPlan) -> optuna.Study:
    """Load the study of a plan, with its pruner."""
    pruner = optuna.pruners.MedianPruner(plan.startup, plan.warmup) if plan.pruner == "median" else None
    return optuna.load_study(
        study_name=plan.study, storage=open_storage(plan.storage), pruner=pruner or optuna.pruners.NopPruner()
    )


def prepare(plan: SearchPlan, facts: dict[str, Any], first: dict[str, Any]) -> optuna.Study:
    """Return the study with as many trials as planned, created if missing.

    facts: identify the search. Raise ConfigError where the study belongs to another one. first: the values of trial
    0.
    """
    with suppress(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(study_name=plan.study, storage=open_storage(plan.storage))
    study = open_study(plan)
    with _unwarned():
        study.set_metric_names([SCORE])
    for key, value in facts.items():
        _same(study, key, json.loads(json.dumps(value)))
    study.set_user_attr("first", first)
    for _ in range(len(slots(study.get_trials(deepcopy=False))), plan.trials):
        # Workers that start together may queue more than the total; `planned_trials` drops the rest.
        study.enqueue_trial({})
    return study


def _same(study: optuna.Study, key: str, now: Any) -> None:
    before = study.user_attrs.get(key)
    if before is None:
        study.set_user_attr(key, now)
    elif before != now:
        both = before if isinstance(before, dict) else {key: before}, now if isinstance(now, dict) else {key: now}
        differ = [k for k in sorted({*both[0], *both[1]}) if both[0].get(k) != both[1].get(k)]
        differences = "; ".join(f"{k} is {both[0].get(k)} there and {both[1].get(k)} here" for k in differ)
        raise ConfigError(
            f"the study {study.study_name} is another search ({key}: {differences}). Choose another name, "
            f"study={study.study_name}-2, or give the settings of that search."
        )


# ---- trials and who works on them ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialSlot:
    """Hold a trial of the total with all attempts at it: a process that dies leaves one behind."""

    number: int
    attempts: tuple[FrozenTrial, ...]

    @property
    def end(self) -> FrozenTrial | None:
        """Return the attempt that ended the trial, if any: one that did not die, or the last of ATTEMPTS that did."""
        ended = [a for a in self.attempts if a.state.is_finished() and not _died(a)]
        last = self.attempts[-1:] if len(self.attempts) >= ATTEMPTS and all(map(_died, self.attempts)) else ()
        return next(iter([*ended, *last]), None)

    @property
    def current(self) -> FrozenTrial:
        return next((a for a in self.attempts if not a.state.is_finished()), self.attempts[-1])


def _died(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


def reason(trial: FrozenTrial) -> str:
    """Return why a trial failed."""
    return trial.user_attrs.get("reason", f"its process died {ATTEMPTS} times")


def slots(trials: list[FrozenTrial]) -> list[TrialSlot]:
    """Group attempts into trials, in the order of their numbers; a later attempt names the trial that it resumes."""
    attempts_at: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        attempts_at.setdefault(trial.user_attrs.get("goes_on_with", trial.number), []).append(trial)
    return [TrialSlot(number, tuple(attempts)) for number, attempts in sorted(attempts_at.items())]


def planned_trials(study: optuna.Study, plan: SearchPlan) -> list[TrialSlot]:
    """Return the planned trials of a study; more may have been queued."""
    return slots(study.get_trials(deepcopy=False))[: plan.trials]


def failures_in_a_row(study: optuna.Study, plan: SearchPlan) -> list[FrozenTrial]:
    """Return the failed trials since the last that did not fail, of those that ended since this command began."""
    ends = [slot.end for slot in planned_trials(study, plan)]
    since = [e for e in ends if e and e.datetime_complete and e.datetime_complete >= plan.since]
    row: list[FrozenTrial] = []
    for end in sorted(since, key=lambda e: e.datetime_complete or plan.since):
        row = [*row, end] if end.state == TrialState.FAIL else []
    return row


@contextmanager
def claimed(study: optuna.Study, plan: SearchPlan) -> Iterator[tuple[int, optuna.Trial] | None]:
    """Yield a trial to work on with its number, held by a lock in the search's folder; None if all are taken."""
    with _unwarned():
        optuna.storages.fail_stale_trials(study)
    for slot in planned_trials(study, plan):
        if slot.end or _elsewhere(slot.current):
            continue
        lock = FileLock(plan.folder / ".locks" / str(slot.number), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            if trial := _take(study, plan, slot.number):
                with _heartbeats(study, trial):
                    yield slot.number, trial
                return
        finally:
            lock.release()
    yield None


def _elsewhere(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and trial.user_attrs.get("host") != socket.gethostname()


def _take(study: optuna.Study, plan: SearchPlan, number: int) -> optuna.Trial | None:
    """Start a trial whose lock this process holds; None where it has ended or another machine was first.

    Since the lock is held, an attempt recorded as running on this machine has died.
    """
    find = lambda: next(s for s in planned_trials(study, plan) if s.number == number)
    slot = find()
    if slot.current.state == TrialState.RUNNING and not _elsewhere(slot.current):
        study.tell(slot.current.number, state=TrialState.FAIL, skip_if_finished=True)
        slot = find()
    if _died(slot.current) and not slot.end:
        _queue_again(study, slot)
        slot = find()
    waiting = slot.current
    if slot.end or waiting.state != TrialState.WAITING:
        return None
    if number == 0:  # set here and not when queued, since several workers may have queued a first trial
        study._storage.set_trial_system_attr(waiting._trial_id, "fixed_params", study.user_attrs.get("first", {}))
    _heartbeat(study, waiting._trial_id)  # a first heartbeat, so that the time-out works if we die before the next
    if not study._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
        return None  # a worker on another machine was first
    study.sampler = sampler_of(plan, number)
    trial = optuna.Trial(study, waiting._trial_id)
    trial.set_user_attr("host", socket.gethostname())
    return trial


def _queue_again(study: optuna.Study, slot: TrialSlot) -> None:
    dead = slot.attempts[-1]
    again = optuna.create_trial(
        state=TrialState.WAITING,
        params=dead.params,
        distributions=dead.distributions,
        user_attrs={**dead.user_attrs, "goes_on_with": slot.number},
        system_attrs=dead.system_attrs,
        intermediate_values=dead.intermediate_values,
    )
    study.add_trial(again)
    log.info("trial %d was interrupted; it is resumed", slot.number)


def sampler_of(plan: SearchPlan, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler seeded by the trial's number, so that no worker or resumed search repeats the same draws."""
    seed = int(hashlib.sha256(f"{plan.seed} {number}".encode()).hexdigest()[:8], 16)
    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    with _unwarned():
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _heartbeat(study: optuna.Study, trial_id: int) -> None:
    storage: Any = study._storage  # only Optuna's database storages have heartbeats
    storage.record_heartbeat(trial_id)


@contextmanager
def _heartbeats(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Send heartbeats while a trial is at work, as only Study.optimize would by itself."""
    over = Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            try:
                _heartbeat(study, trial._trial_id)
            except Exception as error:  # a database that is busy now may accept the next heartbeat
                log.debug("the heartbeat failed: %s", error)

    heart = Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
