"""What a job of a sweep costs beside its training and its scores, after its worker's first job."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.harness import Row, within

JOBS, TARGET = 4, 2.0  # jobs a worker; seconds
CALL = ["model=rnn", "data=ou", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=4"]
LAUNCHERS = {"basic": 1, "joblib": 2}  # workers


def swept(launcher: str, workers: int, folder: Path, each: int = JOBS) -> dict[str, float]:
    """Medians, in seconds, of a job's parts; `beside` is all that is neither training nor scores."""
    seeds = ",".join(map(str, range(workers * each)))
    call = [sys.executable, "-m", "vrnn_lab.run", "-m", *CALL, f"sweep={folder}", f"seed={seeds}"]
    call += [f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
    call += [f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []
    subprocess.run(call, check=True, capture_output=True)
    files = sorted(folder.glob("*/metrics.json"), key=lambda file: file.stat().st_mtime)
    ended = [file.stat().st_mtime for file in files]
    found = [json.loads(file.read_text()) for file in files][workers:]
    apart = [(late - early) for early, late in zip(ended[:-workers], ended[workers:], strict=True)]
    parts = {key: statistics.median(each[f"{key}/seconds"] for each in found) for key in ("fit", "score")}
    return parts | {"job": statistics.median(apart), "beside": statistics.median(apart) - sum(parts.values())}


def rows(quick: bool = False) -> Iterator[Row]:
    for launcher, workers in LAUNCHERS.items():
        with tempfile.TemporaryDirectory() as folder:
            parts = swept(launcher, workers, Path(folder), 2 if quick else JOBS)
        beside = parts.pop("beside")
        name = f"a sweep's job beside fit and scores, {launcher}: s"
        yield within(name, beside, TARGET, "s", workers=workers, **parts)
