"""Summarise predictions in the data's units: mean, standard deviation, quantiles and paths."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.densities import Bernoulli
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.evaluation.evaluate import POINTS_AT_ONCE
from vrnn_lab.evaluation.scores import LEVELS, quantiles
from vrnn_lab.forecasting.queries import SeriesWindow
from vrnn_lab.models.base import Prediction

COLUMNS = ("mean", "std", *LEVELS)
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class PredictiveSummary:
    """Hold the summary of predictions for some windows: a row for each queried value."""

    windows: list[SeriesWindow]
    owner: NDArray[np.int64]  # (rows,): index of the window of each row
    times: NDArray[np.float64]  # (rows,)
    channel: NDArray[np.int64]  # (rows,): index of the channel
    numbers: dict[str, NDArray[np.float64]]  # (rows,) by column

    @classmethod
    def none(cls, paths: int) -> "PredictiveSummary":
        """Return a summary without rows, with the columns of one that keeps so many paths."""
        index, numbers = np.zeros(0, np.int64), np.zeros(0)
        return cls([], index, numbers, index, dict.fromkeys([*COLUMNS, *path_names(paths)], numbers))


def summarise(
    predict: Callable[[TimeSeries], Prediction], windows: list[SeriesWindow], paths: int, errors: bool = False
) -> PredictiveSummary:
    """Predict some windows as one batch and summarise the queried values.

    paths: the number of draws to keep. errors: whether the model takes error bars.
    """
    batch, queried = padded(windows, errors)
    prediction = predict(batch)
    columns = summary(prediction, batch, paths)
    if windows[0].truth is not None:
        truth = _padded_columns(
            [window.truth for window in windows if window.truth is not None], batch.times.shape[1]
        )
        columns |= {"value": truth, "surprise": two_sided(prediction, truth.to(prediction.paths)).cpu()}
    owner, place, channel = (index.numpy() for index in queried.nonzero(as_tuple=True))
    numbers = {name: column[owner, place, channel].double().numpy() for name, column in columns.items()}
    return PredictiveSummary(windows, owner, batch.times.numpy()[owner, place], channel, numbers)


def two_sided(prediction: Prediction, values: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
    """Return the two-sided tail probability 2 min(F, 1 - F) of values under the mixture over paths."""
    below = prediction.density.cdf_each(values).mean(0)
    return 2 * torch.minimum(below, 1 - below)


def path_names(count: int) -> list[str]:
    """Return the column names path_1, path_2, ... of so many paths."""
    return [f"path_{number + 1}" for number in range(count)]


def batches(windows: Iterable[SeriesWindow], draws: int) -> Iterator[list[SeriesWindow]]:
    """Yield consecutive windows in lists as long as one prediction may take with so many draws."""
    batch: list[SeriesWindow] = []
    longest = 0
    for window in windows:
        longer = max(longest, len(window.times))
        if batch and ((len(batch) + 1) * longer * draws > POINTS_AT_ONCE or len(batch) == ROWS_AT_ONCE):
            yield batch
            batch, longer = [], len(window.times)
        batch.append(window)
        longest = longer
    if batch:
        yield batch


def padded(windows: list[SeriesWindow], errors: bool) -> tuple[TimeSeries, Tensor]:
    """Return the windows as one padded batch, and the mask (batch, time, dim) of queried values.

    errors: whether the model takes error bars. A queried value that is observed is not scored.
    """
    has_covariates = windows[0].covariates.shape[1] > 0
    longest, dim = max(len(window.times) for window in windows), windows[0].values.shape[1]
    times, values = np.zeros((len(windows), longest)), np.full((len(windows), longest, dim), np.nan)
    queried = np.zeros(values.shape, bool)
    for row, window in enumerate(windows):
        count = len(window.times)
        times[row, :count], times[row, count:] = window.times, window.times[-1]
        values[row, :count], queried[row, :count] = window.values, window.queried
    seen = ~np.isnan(values)
    batch = TimeSeries(
        times=torch.from_numpy(times),
        values=torch.from_numpy(np.where(seen, values, 0.0)),
        seen=torch.from_numpy(seen),
        scored=torch.from_numpy(queried & ~seen),
        window=torch.tensor([window.window for window in windows], dtype=torch.float64),
        ids=torch.tensor([window.id for window in windows]),
        covariates=_padded_columns([window.covariates for window in windows], longest) if has_covariates else None,
        error=_padded_columns([window.error for window in windows], longest) if errors else None,
    )
    return batch, torch.from_numpy(queried)


def _padded_columns(rows: list[NDArray[np.float64]], longest: int) -> Tensor:
    """Return covariates or error bars as (batch, time, columns), zero at padding."""
    columns = np.zeros((len(rows), longest, rows[0].shape[1]))
    for row, values in enumerate(rows):
        columns[row, : len(values)] = values
    return torch.from_numpy(columns)


def summary(prediction: Prediction, batch: TimeSeries, paths: int) -> dict[str, Tensor]:
    """Return the columns of a summary, each (batch, time, dim).

    Mean and std are those of the mixture over paths, quantiles and the first `paths` paths those of the draws. The
    summary of an observed value is the value itself. Quantiles of binary values follow from their probability.
    """
    density = prediction.density
    mean = prediction.mean
    columns = {"mean": mean, "std": prediction.std}
    if isinstance(density, Bernoulli):
        columns |= {name: (level > 1 - mean).to(mean) for name, level in LEVELS.items()}
    else:
        columns |= quantiles(prediction.paths)
    columns |= dict(zip(path_names(paths), prediction.paths, strict=False))
    columns = {name: column.cpu() for name, column in columns.items()}
    seen = dict.fromkeys(columns, batch.values) | {"std": torch.zeros_like(batch.values)}
    return {name: torch.where(batch.seen, seen[name], column) for name, column in columns.items()}
