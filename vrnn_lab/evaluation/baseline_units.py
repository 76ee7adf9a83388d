"""Convert between the units of a table and those in which baselines are computed."""

from collections.abc import Callable
from dataclasses import replace

from vrnn_lab.core.densities import Bernoulli, Gaussian
from vrnn_lab.core.log_density import LogDensity, log_array, logs_of
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.supports import COUNTS, POSITIVE, REAL
from vrnn_lab.data.base import Ragged
from vrnn_lab.evaluation.scores import Plain

Predictor = Callable[[TimeSeries], Plain | Bernoulli]


def as_real(scale: Scale) -> Scale:
    """Return the scale by which baselines take positive values and counts: as real ones, with their mean and std."""
    if scale.support not in (POSITIVE, COUNTS):
        return scale
    return replace(scale, support=REAL, mean=scale.std, std=scale.score_std, value_std=None)


def series_on_log_scale(series: Ragged, scale: Scale) -> Ragged:
    """Return series with the logarithms of the values of the channels that are modelled by them."""
    if not scale.log:
        return series
    values = log_array(series.points.values, scale.log_channels.numpy())
    return replace(series, points=replace(series.points, values=values))


def on_log_scale(batch: TimeSeries, scale: Scale) -> TimeSeries:
    """Return a batch with the logarithms of the values of the channels that are modelled by them."""
    return replace(batch, values=logs_of(batch.values, scale.log_channels)) if scale.log else batch


def in_units(predict: Callable[[TimeSeries], Gaussian], scale: Scale) -> Predictor:
    """Return a predictor of values from one of their logarithms, where channels are modelled by those."""
    if not scale.log:
        return predict
    return lambda batch: LogDensity(predict(on_log_scale(batch, scale)), scale.log_channels)
