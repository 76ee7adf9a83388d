"""Build our models as a run does, on the device that is measured, and their training steps."""

from collections.abc import Callable

import torch

from bench.harness import OPTIONS
from vrnn_lab.config.compose import compose
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.runs.build import Parts, assemble

APART = 1e-4


def parts_of(*overrides: str, scale: Scale | None = None) -> Parts:
    """Return the parts of a run with these overrides; with a scale given, its data set is not read."""
    parts = assemble(compose(list(overrides)), scale)
    parts.model.to(OPTIONS.device).train()
    return parts


def loss_of(terms: LossTerms, batch: TimeSeries) -> torch.Tensor:
    """Return the loss of a training step, per scored value."""
    return (terms.nll.sum() + terms.kl.sum()) / batch.scored.sum()


def check_losses(name: str, own: float, theirs: float) -> None:
    """Raise RuntimeError where two losses that should be one function differ by more than APART, relative."""
    if abs(own - theirs) > APART * abs(theirs):
        raise RuntimeError(f"{name}: our loss is {own}, the peer's is {theirs}; expected equal ones")


def backward_of(model: SequenceModel, batch: TimeSeries) -> Callable[[], torch.Tensor]:
    """Return a step of forward and backward pass."""

    def step() -> torch.Tensor:
        model.zero_grad()
        loss = loss_of(model.loss_terms(batch), batch)
        loss.backward()
        return loss

    return step


def step_of(model: SequenceModel, batch: TimeSeries) -> Callable[[], None]:
    """Return a training step: forward, backward, optimizer."""
    backward, optimizer = backward_of(model, batch), model.recipe.optim(model.parameters())

    def step() -> None:
        backward()
        optimizer.step()

    return step
