"""Measure what a training step keeps for its backward pass, and its peak memory, against length, batch and nodes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import ours
from bench.harness import OPTIONS, Row, row
from bench.vrnn import batch_of, scale_of
from vrnn_lab.models.fused.tape import fused_disabled
from vrnn_lab.models.layers import VectorField
from vrnn_lab.models.ode import Solver

MODELS = ("rnn", "vrnn", "latent_ode")
LENGTHS, BATCHES, DIM = (100, 1000, 10_000), (16, 64, 256), 2
MB = 2**20


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that operations within the context keep for backward: each storage once, without weights."""

    def __init__(self, weights):
        self.sizes: dict[int, int] = {}
        known = {w.untyped_storage().data_ptr() for w in weights}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                self.sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def most_resident() -> int:
    """Return the peak resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak() -> int:
    return torch.cuda.max_memory_allocated() if OPTIONS.device == "cuda" else most_resident()


def step_costs(name: str, time: int, batch: int) -> dict[str, float]:
    """Return the MB of one training step: kept for backward, and the peak beyond what the process held before."""
    model = ours.parts_of(f"model={name}", "trainer=cpu", scale=scale_of(time, DIM, "real")).model
    series = batch_of(batch, time, DIM, binary=False)
    before = peak()
    kept = Kept(model.parameters())
    with kept:
        loss = ours.loss_of(model.loss_terms(series), series)
    loss.backward()
    return {"kept": kept.total / MB, "peak": (peak() - before) / MB}


def in_own_process(name: str, time: int, batch: int) -> dict[str, float]:
    """Return `step_costs` from a process of its own, since the peak is that of a whole process."""
    call = [sys.executable, "-m", "bench.memory", name, str(time), str(batch), OPTIONS.device]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def lengths(quick: bool) -> Iterator[Row]:
    """Measure growth with the length: a step ten times as long may keep ten times as much, plus 5 % for rounding."""
    for name in MODELS:
        costs = {time: in_own_process(name, time, BATCHES[0]) for time in LENGTHS[: 2 if quick else 3]}
        for time in list(costs)[1:]:
            what = f"{name}: batch {BATCHES[0]}, T {time}"
            yield grown(f"{what} over {time // 10}", costs[time], costs[time // 10], 10.5)
            yield row(f"{what}: peak", costs[time]["peak"], None, "none", "MB")


def batches(quick: bool) -> Iterator[Row]:
    """Measure growth with the batch size, which should be linear too."""
    for name in MODELS:
        costs = {size: in_own_process(name, LENGTHS[0], size) for size in BATCHES[: 2 if quick else 3]}
        for few, many in zip(BATCHES, list(costs)[1:], strict=False):
            yield grown(f"{name}: T {LENGTHS[0]}, batch {many} over {few}", costs[many], costs[few], 4.2)


def grown(name: str, many: dict[str, float], few: dict[str, float], target: float) -> Row:
    details = {"peak_mb": [round(many["peak"], 1), round(few["peak"], 1)]}
    return row(f"{name}: kept for backward", many["kept"], few["kept"], "the smaller", "MB", target, "<=", **details)


def kept_by(nodes: int, batch: int = 2000, latent: int = 10) -> int:
    """Return the bytes that a solve keeps for its backward pass."""
    torch.manual_seed(0)
    field = VectorField(latent, 100, 2, "tanh", 5.0).to(OPTIONS.device)
    start = torch.randn(1, batch, latent, device=OPTIONS.device, requires_grad=True)
    kept = Kept(field.parameters())
    with kept:
        path = Solver().path(field, start, 1 / nodes, nodes, 0)
    del path
    return kept.total


def solves() -> Iterator[Row]:
    """Measure what each further node adds to the memory of a solve with too long a tape, relative to autograd.

    The path itself, the state and slope of each node, is 20 of some 840 numbers per row: a ratio below 0.05 means
    that hardly anything but the path is kept.
    """
    few, many = 80, 320
    with fused_disabled():
        plain = kept_by(few), kept_by(many)
    own = kept_by(few), kept_by(many)
    per_node = [(b - a) / (many - few) / 1024 for a, b in (own, plain)]
    details = {"kept_mb": [round(x / MB, 1) for x in (*own, *plain)], "sizes": f"batch 2000, {few} and {many} nodes"}
    name = "a solve: kept for each more node"
    yield row(name, *per_node, "autograd", "KB", 0.05, "<=", **details)


def rows(quick: bool = False) -> Iterator[Row]:
    yield from solves()
    yield from lengths(quick)
    yield from batches(quick)


if __name__ == "__main__":
    OPTIONS.device = sys.argv[4]
    print(json.dumps(step_costs(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
