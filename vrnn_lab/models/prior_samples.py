"""Sample whole series from a model's prior, without any observed value."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vrnn_lab.core.series import Scale, TimeSeries

MOST_POINTS = 1000  # default limit per series


@dataclass(frozen=True)
class PriorSamples:
    """Hold series from a model's prior, in the data's units."""

    times: Float64[Tensor, "series place"]
    there: Bool[Tensor, "series place"]  # the others are padding
    values: Float[Tensor, "series place dim"]
    curve: Float[Tensor, "series place dim"]  # the mean of each point given its path, without observation noise


def draw(model, count: int, seed: int, points: int | None = None) -> PriorSamples:
    """Draw `count` series over a typical training window, as a function of the model and the arguments alone.

    A step model feeds its own draws back. A point process draws the times too, from the same latent as the values.
    """
    asked = question(model.scale, count, points)
    with model.fixed_noise(seed):
        asked = asked.to(model.device)
        if getattr(model, "point_process", False):
            found = model.draw_times(asked.window[0], count)
            asked = _at(asked, pad_sequence([*found, found[0].new_empty(1)], True, torch.nan)[:-1])
        found = model.predict(asked, 1)
    tensors = (asked.times, asked.counts, found.paths[0], found.density.mean[0])
    return PriorSamples(*(tensor.cpu() for tensor in tensors))


def question(scale: Scale, count: int, points: int | None = None) -> TimeSeries:
    """Build a query of `count` series at even times over a typical training window, with no observed value.

    Covariates take their training means. By default the points are as dense as in a training series; where training
    series are single points, so are these.
    """
    clock = scale.clock.cpu() if scale.longest > 0 else scale.clock.new_zeros(()).cpu()
    usual = 1 if not clock else min(round((scale.clock / scale.gap).item()) + 1, MOST_POINTS)
    share = torch.linspace(0, 1, points or usual, dtype=torch.float64)
    times = (scale.start.cpu() + clock * share).repeat(count, 1)
    asked = torch.ones(*times.shape, scale.dim, dtype=torch.bool)
    return TimeSeries(
        times=times,
        values=torch.zeros(asked.shape, dtype=torch.float64),
        seen=~asked,
        scored=asked,
        window=torch.stack([times[:, 0], times[:, 0] + clock], 1),
        ids=torch.arange(count),
        covariates=scale.covariate_mean.cpu().expand(*times.shape, -1) if scale.given_covariates else None,
    )


def _at(asked: TimeSeries, times: Float64[Tensor, "series place"]) -> TimeSeries:
    """Return the query at other times; NaN marks padding, which is moved to the window's end."""
    there = ~times.isnan()
    scored = there[..., None].expand(-1, -1, asked.values.shape[-1])
    return replace(
        asked,
        times=torch.where(there, times, asked.window[:, 1:]),
        values=torch.zeros_like(scored, dtype=asked.values.dtype),
        seen=torch.zeros_like(scored),
        scored=scored,
    )
