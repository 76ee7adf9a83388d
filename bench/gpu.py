"""Measure the models on a GPU: steps per second against the batch size, the compiled step, and bf16."""

import statistics
from collections.abc import Callable, Iterator

import torch

from bench import ours
from bench.harness import OPTIONS, Row, against, alternate, row
from bench.vrnn import batch_of, scale_of
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.base import SequenceModel

MODELS, BATCHES, TIME, DIM = ("latent_ode", "vrnn"), (32, 128, 512, 2048, 8192), 100, 2


def compiled(model: SequenceModel, batch: TimeSeries) -> Callable[[], object]:
    """Return a compiled step, forward and backward, with as few kernel launches as torch.compile reaches."""
    loss_of = torch.compile(lambda: ours.loss_of(model.loss_terms(batch), batch), mode="reduce-overhead")

    def step() -> None:
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        loss_of().backward()

    return step


def halved(model: SequenceModel, batch: TimeSeries) -> Callable[[], object]:
    """Return a step, forward and backward, in bf16 where autocast considers that safe."""

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = ours.loss_of(model.loss_terms(batch), batch)
        loss.backward()

    return step


def model_rows(name: str) -> Iterator[Row]:
    parts = ours.parts_of(f"model={name}", "trainer=gpu", scale=scale_of(TIME, DIM, "real"))
    for size in BATCHES:
        step = ours.step_of(parts.model, batch_of(size, TIME, DIM, binary=False))
        seconds = statistics.median(each.wall for each in alternate({"ours": step})["ours"])
        yield row(f"{name}, batch {size}: steps a second", 1 / seconds, None, "none", "1/s")
    for size, way, target in ((64, compiled, 5.0), (8192, halved, None)):
        batch = batch_of(size, TIME, DIM, binary=False)
        eager = ours.backward_of(parts.model, batch)
        yield against(f"{name}, batch {size}: {way.__name__} step", way(parts.model, batch), eager, "eager", target)


def rows(quick: bool = False) -> Iterator[Row]:
    if OPTIONS.device != "cuda":
        yield row("a GPU's rows", None, None, "none", "1/s", note="no GPU here")
        return
    for name in MODELS:
        yield from model_rows(name)
