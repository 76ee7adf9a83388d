"""Sample whole series from a model's prior, without any observed value."""

from dataclasses import dataclass, replace

import pandas as pd
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


def table(draws: PriorSamples, channels: tuple[str, ...]) -> pd.DataFrame:
    """Return a row for each point: series, time, and the value of each channel."""
    series, place = draws.there.nonzero(as_tuple=True)
    columns = {"series": series.numpy(), "time": draws.times[series, place].numpy()}
    values = pd.DataFrame(draws.values[series, place].numpy(), columns=list(channels))
    return pd.concat([pd.DataFrame(columns), values], axis=1)


def draw(model, count: int, seed: int, points: int | None = None) -> PriorSamples:
    """Draw `count` series over a typical training window, as a function of the model and the arguments alone.

    A step model feeds its own draws back. A point process draws the times too, from the same latent as the values.
    """
    query = prior_query(model.scale, count, points)
    with model.fixed_noise(seed):
        query = query.to(model.device)
        if getattr(model, "point_process", False):
            event_times = model.draw_times(query.window[0], count)
            query = _at(query, pad_sequence([*event_times, event_times[0].new_empty(1)], True, torch.nan)[:-1])
        prediction = model.predict(query, 1)
    tensors = (query.times, query.counts, prediction.paths[0], prediction.density.mean[0])
    return PriorSamples(*(tensor.cpu() for tensor in tensors))


def prior_query(scale: Scale, count: int, points: int | None = None) -> TimeSeries:
    """Build a query of `count` series at even times over a typical training window, with no observed value.

    Covariates take their training means. By default the points are as dense as in a training series; where training
    series are single points, so are these.
    """
    clock = scale.clock.cpu() if scale.longest > 0 else scale.clock.new_zeros(()).cpu()
    usual = 1 if not clock else min(round((scale.clock / scale.gap).item()) + 1, MOST_POINTS)
    share = torch.linspace(0, 1, points or usual, dtype=torch.float64)
    times = (scale.start.cpu() + clock * share).repeat(count, 1)
    scored = torch.ones(*times.shape, scale.dim, dtype=torch.bool)
    return TimeSeries(
        times=times,
        values=torch.zeros(scored.shape, dtype=torch.float64),
        seen=~scored,
        scored=scored,
        window=torch.stack([times[:, 0], times[:, 0] + clock], 1),
        ids=torch.arange(count),
        covariates=scale.covariate_mean.cpu().expand(*times.shape, -1) if scale.given_covariates else None,
    )


def _at(query: TimeSeries, times: Float64[Tensor, "series place"]) -> TimeSeries:
    """Return the query at other times; NaN marks padding, which is moved to the window's end."""
    there = ~times.isnan()
    scored = there[..., None].expand(-1, -1, query.values.shape[-1])
    return replace(
        query,
        times=torch.where(there, times, query.window[:, 1:]),
        values=torch.zeros_like(scored, dtype=query.values.dtype),
        seen=torch.zeros_like(scored),
        scored=scored,
    )
