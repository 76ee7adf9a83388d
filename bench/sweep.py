"""Measure what a job of a sweep costs in addition to training and scores, after its worker's first job."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.harness import Row, within

JOBS, TARGET = 4, 2.0  # jobs per worker; seconds
CALL = ["model=rnn", "data=ou", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=4"]
LAUNCHERS = {"basic": 1, "joblib": 2}  # workers


def sweep_costs(launcher: str, workers: int, folder: Path, jobs: int = JOBS) -> dict[str, float]:
    """Return medians, in seconds, of a job's parts; `overhead` is all that is neither training nor scores."""
    seeds = ",".join(map(str, range(workers * jobs)))
    call = [sys.executable, "-m", "vrnn_lab.run", "-m", *CALL, f"sweep={folder}", f"seed={seeds}"]
    call += [f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
    call += [f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []
    subprocess.run(call, check=True, capture_output=True)
    files = sorted(folder.glob("*/metrics.json"), key=lambda file: file.stat().st_mtime)
    ended = [file.stat().st_mtime for file in files]
    metrics = [json.loads(file.read_text()) for file in files][workers:]
    durations = [(late - early) for early, late in zip(ended[:-workers], ended[workers:], strict=True)]
    parts = {key: statistics.median(run[f"{key}/seconds"] for run in metrics) for key in ("fit", "score")}
    return parts | {
        "job": statistics.median(durations),
        "overhead": statistics.median(durations) - sum(parts.values()),
    }


def rows(quick: bool = False) -> Iterator[Row]:
    for launcher, workers in LAUNCHERS.items():
        with tempfile.TemporaryDirectory() as folder:
            parts = sweep_costs(launcher, workers, Path(folder), 2 if quick else JOBS)
        overhead = parts.pop("overhead")
        name = f"a sweep's job beside fit and scores, {launcher}: s"
        yield within(name, overhead, TARGET, "s", workers=workers, **parts)
