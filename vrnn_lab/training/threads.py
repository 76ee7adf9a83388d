"""Choose the number of threads of a fit by timing a few training steps, and record it for a resumed run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from vrnn_lab.core import run_files
from vrnn_lab.core.files import read_json, write_json
from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.base import SequenceModel

ROUNDS = 20  # timed steps for each number of threads
BUDGET = 1.5  # seconds after which no further round begins
GAIN = 0.95  # several threads must take at most this fraction of one thread's time
HOPELESS = 3  # several threads that take so many times as long as one are not timed again


def training_step(model: SequenceModel, batch: TimeSeries, device: torch.device) -> Callable[[], None]:
    """Return a function that computes a training step's loss and gradients on a copy of the model.

    It changes neither the model's weights, gradients and noise nor the global random state.
    """
    probe = deepcopy(model).to(device).train()
    probe.noise, batch = Noise(), batch.to(device)

    def step() -> None:
        with torch.random.fork_rng():
            probe.noise.seed(0, device=device)
            probe.zero_grad()
            terms = probe.loss_terms(batch)
            ((terms.nll.sum() + terms.kl.sum()) / batch.scored.sum().clamp(min=1)).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return step


def fastest(step: Callable[[], None], several: int) -> tuple[int, float]:
    """Time a step with one thread and with several, in turn; return the faster number and its seconds per step.

    With several=1 the step is timed as it is. The first round is a warm-up.
    """
    times: dict[int, list[float]] = {count: [] for count in (1, several)}
    began, before = perf_counter(), torch.get_num_threads()
    try:
        for turn in range(1 + ROUNDS):
            for count in list(times):
                torch.set_num_threads(count)
                started = perf_counter()
                step()
                times[count].append(perf_counter() - started)
            if turn and min(times.get(several, [0.0])[1:] or [0.0]) > HOPELESS * min(times[1][1:]):
                times.pop(several)
            if perf_counter() - began > BUDGET:
                break
    finally:
        torch.set_num_threads(before)
    typical = {count: median(seconds[1:] or seconds) for count, seconds in times.items()}
    chosen = several if several in typical and typical[several] <= GAIN * typical[1] else 1
    return chosen, typical[chosen]


def typical(step: Callable[[], None], threads: int) -> float:
    """Return the median seconds of a step with a number of threads."""
    with restored():
        torch.set_num_threads(threads)
        times, began = list[float](), perf_counter()
        while len(times) < 4 and perf_counter() - began < BUDGET:
            started = perf_counter()
            step()
            times.append(perf_counter() - started)
    return median(times[1:] or times)


def free_to_choose() -> bool:
    """Return whether nobody has set a number of threads: not the user, and not the launcher of a sweep."""
    return "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 1


def recorded(folder: Path) -> int | None:
    """Return the number of threads that a run folder's fit began with, None where none was recorded."""
    file = folder / run_files.THREADS
    cure = "Remove the file; the number of threads is then chosen anew, and sums may differ in the last digits."
    return read_json(file, cure).get("threads") if file.is_file() else None


def record(folder: Path, threads: int) -> None:
    """Write the number of threads of a fit to its run folder."""
    write_json(folder / run_files.THREADS, {"threads": threads})


@contextmanager
def restored() -> Iterator[None]:
    """Restore torch's number of threads after the block, which may change it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
