"""Guess which channels of a table are better modelled by their logarithms."""

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.supports import REAL
from vrnn_lab.data.table.dataset import Table

LEAST = 0.05  # nats a value by which the logarithm must be better


def positive_channels(table: Table) -> tuple[str, ...]:
    """Return the channels whose values are all above zero."""
    values = np.asarray(table.whole().points.values)
    return tuple(name for name, column in zip(table.channels, values.T, strict=True) if np.nanmin(column) > 0)


def log_channels(table: Table) -> tuple[str, ...]:
    """Return the channels of positive values that a cheap forecast of the logarithm describes better.

    The forecast is that of `Variation.residual`, with Gaussian errors of one std a channel, on the training values.
    With the residuals r of the values and s of their logarithms, the logarithm is better by
    log r - log s - mean log x nats a value, the last term being the Jacobian.
    """
    train = table.splits["train"]
    above = np.nanmin(np.asarray(train.values), 0) > 0  # also with the noise of rounding
    positive = tuple(name for name in positive_channels(table) if above[table.channels.index(name)])
    if not positive:
        return ()
    place = [table.channels.index(name) for name in positive]
    plain, logs = table.scale, train.scale(table.channels, REAL, log=positive)
    assert plain.variation is not None and logs.variation is not None
    residuals = [_logarithm(x.variation.residual * x.std)[place] for x in (plain, logs) if x.variation is not None]
    better = residuals[0] - residuals[1] - logs.mean.numpy()[place]
    return tuple(name for name, gain in zip(positive, better, strict=True) if gain > LEAST)


def _logarithm(residual) -> NDArray[np.float64]:
    return np.log(np.maximum(residual.numpy(), np.finfo(np.float64).tiny))
