"""Measure the memory, open files and threads of a process that works for long, and how they grow."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Held:
    """Holds a measurement of this process: resident memory in MB, open file descriptors, threads."""

    memory: float
    files: int
    threads: int


def held() -> Held:
    """Collect garbage, then measure this process (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threading.active_count())


def slope(values: Sequence[float]) -> float:
    """Return the slope of a series per step, by a straight line through it (least squares)."""
    return float(np.polyfit(np.arange(len(values)), np.asarray(values), 1)[0])


def growth(seen: Sequence[Held], steps: int, warm: float) -> tuple[float, int, int]:
    """(MB for each step, files, threads more at the end than after warm-up) of measurements `steps` apart."""
    after = seen[int(len(seen) * warm) :]
    memory = slope([each.memory for each in after]) / steps
    return memory, after[-1].files - after[0].files, after[-1].threads - after[0].threads


def measured(what: str, count: int, folder: Path, overrides: Sequence[str]) -> list[Held]:
    """What a process of its own, whose calls are not checked as in tests, held while it did so many of a thing."""
    words = [sys.executable, __file__, what, str(count), str(folder), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [Held(**each) for each in json.loads(done.stdout.splitlines()[-1])]


def jobs(count: int, folder: Path, overrides: Sequence[str]) -> list[Held]:
    """So many runs in this process, and what it held after each."""
    from vrnn_lab.config.compose import compose
    from vrnn_lab.training import fit

    seen = []
    for seed in range(count):
        fit.run(compose([*overrides, "trainer.max_epochs=1", f"seed={seed}"]), folder / str(seed))
        fit.release()
        seen.append(held())
    return seen


def epochs(count: int, folder: Path, overrides: Sequence[str]) -> list[Held]:
    """A fit of so many epochs in this process, and what it held after each tenth."""
    from lightning.pytorch.callbacks import Callback

    from vrnn_lab.config.compose import compose
    from vrnn_lab.training import fit

    seen = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            if trainer.current_epoch % 10 == 0:
                seen.append(held())

    fit.run(compose([*overrides, f"trainer.max_epochs={count}"]), folder, watching=[Watch()])
    return seen


if __name__ == "__main__":
    from vrnn_lab.cli.arguments import configure_logging
    from vrnn_lab.figures import model_figures

    configure_logging()
    model_figures.figures = lambda *a, **k: {}  # they take most of so small a run
    found = {"jobs": jobs, "epochs": epochs}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    print(json.dumps([asdict(each) for each in found]))
