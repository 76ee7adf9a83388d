"""Our models as a run builds them, on the device that is measured, and their training step."""

from collections.abc import Callable

import torch

from bench.harness import OPTIONS
from vrnn_lab.config.compose import compose
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.runs.build import Parts, assemble


def parts_of(*overrides: str, scale: Scale | None = None) -> Parts:
    """What a run with these overrides trains; with a scale its data set is not read."""
    parts = assemble(compose(list(overrides)), scale)
    parts.model.to(OPTIONS.device).train()
    return parts


def loss_of(terms: LossTerms, batch: TimeSeries) -> torch.Tensor:
    """That of a training step."""
    return (terms.nll.sum() + terms.kl.sum()) / batch.scored.sum()


def backward_of(model: SequenceModel, batch: TimeSeries) -> Callable[[], torch.Tensor]:
    """Forward and backward."""

    def step() -> torch.Tensor:
        model.zero_grad()
        loss = loss_of(model.loss_terms(batch), batch)
        loss.backward()
        return loss

    return step


def step_of(model: SequenceModel, batch: TimeSeries) -> Callable[[], None]:
    """A training step: forward, backward, optimizer."""
    backward, optimizer = backward_of(model, batch), model.recipe.optim(model.parameters())

    def step() -> None:
        backward()
        optimizer.step()

    return step
