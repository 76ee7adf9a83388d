"""Measure whole commands: time to the first step, to the help, and to a target error; the overhead of the Trainer."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench import ours, trainer
from bench.harness import OPTIONS, Row, row, spread, within

COMMAND = (sys.executable, "-m", "vrnn_lab.run")
GOAL = 1e-3  # interpolation MSE on `periodic`
PATIENCE = 120  # seconds within which a run must take its first step


def environment() -> dict[str, str]:
    """Return our environment, in which commands import this checkout from any working directory."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (os.getcwd(), os.environ.get("PYTHONPATH")) if p)}


def first_step() -> float:
    """Return the seconds from the command to the checkpoint of its first step; the run is then ended."""
    with tempfile.TemporaryDirectory() as folder:
        keys = ("trainer.max_steps=1", "trainer=cpu", f"hydra.run.dir={folder}/run")
        checkpoint, started = Path(folder, "run", "checkpoints", "last.ckpt"), time.time()
        null = subprocess.DEVNULL
        run = subprocess.Popen([*COMMAND, *keys], env=environment(), stdout=null, stderr=null)
        try:
            while not checkpoint.exists():
                if run.poll() is not None or time.time() - started > PATIENCE:
                    raise RuntimeError(
                        f"a run with `{' '.join(keys)}` took no first step; run it in a terminal to see why."
                    )
                time.sleep(0.02)
            return checkpoint.stat().st_mtime - started
        finally:
            run.kill()
            run.wait()


def help_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], env=environment(), check=True, capture_output=True)
    return time.perf_counter() - started


def commands(quick: bool) -> Iterator[Row]:
    for name, measured, limit in (
        ("run: from the command to its first step", first_step, 6.0),
        ("run --help", help_seconds, 1.0),
    ):
        taken = [measured() for _ in range(1 if quick else 6)]
        taken = taken[1:] or taken  # the first one reads files from disk
        details = {"repeats": len(taken), "spread": round(spread(taken), 3)}
        yield within(f"{name}: s", statistics.median(taken), limit, "s", **details)


def reached() -> Row:
    """Measure the seconds of training on `periodic` until the interpolation MSE of a validation reaches GOAL."""
    from lightning.pytorch.callbacks import Callback

    from vrnn_lab.evaluation.evaluate import evaluate
    from vrnn_lab.training.fit import trainer_of

    class Goal(Callback):
        """Score every validation, whose time does not count, and end the fit at the goal."""

        def __init__(self):
            self.scoring, self.history = 0.0, []

        def on_validation_start(self, trainer, pl_module) -> None:
            self.began = time.perf_counter()

        def on_validation_end(self, trainer, pl_module) -> None:
            scores = evaluate(parts.model, parts.data, "val", protocol, parts.config.seed)
            self.scoring += time.perf_counter() - self.began
            mse = scores["val/interpolation/mse"]
            self.history.append((time.perf_counter() - started - self.scoring, trainer.global_step, mse))
            trainer.should_stop = mse <= GOAL

    goal, parts = (
        Goal(),
        ours.parts_of("experiment=periodic", f"trainer={'cpu' if OPTIONS.device == 'cpu' else 'gpu'}"),
    )
    protocol = replace(parts.protocol, samples=1, draws=9)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trainer_of(parts, Path(folder), watching=[goal]).fit(parts.model, datamodule=parts.data, weights_only=True)
    seconds, steps, mse = goal.history[-1]
    name = f"periodic: training until interpolation MSE {GOAL:g}"
    if mse > GOAL:
        return row(name, None, None, "none", "s", note=f"not reached: {mse:.2g} after {steps} steps, {seconds:.0f} s")
    return row(name, seconds, None, "none", "s", fit_steps=steps, mse=mse)


def rows(quick: bool = False) -> Iterator[Row]:
    yield from commands(quick)
    yield from trainer.rows(quick)
    if OPTIONS.slow:
        yield reached()
