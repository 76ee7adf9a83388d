"""Summarise predictions in the data's units: mean, standard deviation, quantiles and paths."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
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
class Answer:
    """Hold the summary of predictions for some windows: a row for each queried value."""

    questions: list[SeriesWindow]
    owner: NDArray[np.int64]  # (rows,): index of the window of each row
    times: NDArray[np.float64]  # (rows,)
    channel: NDArray[np.int64]  # (rows,): index of the channel
    numbers: dict[str, NDArray[np.float64]]  # (rows,) by column

    @classmethod
    def none(cls, paths: int) -> "Answer":
        """Return a summary without rows, with the columns of one that keeps so many paths."""
        index, numbers = np.zeros(0, np.int64), np.zeros(0)
        return cls([], index, numbers, index, dict.fromkeys([*COLUMNS, *path_names(paths)], numbers))


def answer(
    predict: Callable[[TimeSeries], Prediction], questions: list[SeriesWindow], paths: int, errors: bool = False
) -> Answer:
    """Predict some windows as one batch and summarise the queried values.

    paths: the number of draws to keep. errors: whether the model takes error bars.
    """
    batch, asked = padded(questions, errors)
    numbers = summary(predict(batch), batch, paths)
    owner, place, channel = (each.numpy() for each in asked.nonzero(as_tuple=True))
    found = {name: each[owner, place, channel].double().numpy() for name, each in numbers.items()}
    return Answer(questions, owner, batch.times.numpy()[owner, place], channel, found)


def path_names(count: int) -> list[str]:
    """Return the column names path_1, path_2, ... of so many paths."""
    return [f"path_{number + 1}" for number in range(count)]


def batches(questions: Iterable[SeriesWindow], draws: int) -> Iterator[list[SeriesWindow]]:
    """Yield consecutive windows in lists as long as one prediction may take with so many draws."""
    held: list[SeriesWindow] = []
    longest = 0
    for question in questions:
        longer = max(longest, len(question.times))
        if held and ((len(held) + 1) * longer * draws > POINTS_AT_ONCE or len(held) == ROWS_AT_ONCE):
            yield held
            held, longer = [], len(question.times)
        held.append(question)
        longest = longer
    if held:
        yield held


def padded(questions: list[SeriesWindow], errors: bool) -> tuple[TimeSeries, Tensor]:
    """Return the windows as one padded batch, and the mask (batch, time, dim) of queried values.

    errors: whether the model takes error bars. A queried value that is observed is not scored.
    """
    told = questions[0].told.shape[1] > 0
    longest, dim = max(len(q.times) for q in questions), questions[0].values.shape[1]
    times, values = np.zeros((len(questions), longest)), np.full((len(questions), longest, dim), np.nan)
    asked = np.zeros(values.shape, bool)
    for row, question in enumerate(questions):
        count = len(question.times)
        times[row, :count], times[row, count:] = question.times, question.times[-1]
        values[row, :count], asked[row, :count] = question.values, question.asked
    seen = ~np.isnan(values)
    batch = TimeSeries(
        times=torch.from_numpy(times),
        values=torch.from_numpy(np.where(seen, values, 0.0)),
        seen=torch.from_numpy(seen),
        scored=torch.from_numpy(asked & ~seen),
        window=torch.tensor([q.window for q in questions], dtype=torch.float64),
        ids=torch.tensor([q.id for q in questions]),
        covariates=_beside([q.told for q in questions], longest) if told else None,
        error=_beside([q.error for q in questions], longest) if errors else None,
    )
    return batch, torch.from_numpy(asked)


def _beside(rows: list[NDArray[np.float64]], longest: int) -> Tensor:
    """Return covariates or error bars as (batch, time, columns), zero at padding."""
    found = np.zeros((len(rows), longest, rows[0].shape[1]))
    for row, each in enumerate(rows):
        found[row, : len(each)] = each
    return torch.from_numpy(found)


def summary(prediction: Prediction, batch: TimeSeries, paths: int) -> dict[str, Tensor]:
    """Return the columns of a summary, each (batch, time, dim).

    Mean and std are those of the mixture over paths, quantiles and the first `paths` paths those of the draws. The
    summary of an observed value is the value itself. Quantiles of binary values follow from their probability.
    """
    density = prediction.density
    mean = prediction.mean
    told = {"mean": mean, "std": prediction.std}
    if isinstance(density, Bernoulli):
        told |= {name: (level > 1 - mean).to(mean) for name, level in LEVELS.items()}
    else:
        told |= quantiles(prediction.paths)
    told |= dict(zip(path_names(paths), prediction.paths, strict=False))
    told = {name: each.cpu() for name, each in told.items()}
    seen = dict.fromkeys(told, batch.values) | {"std": torch.zeros_like(batch.values)}
    return {name: torch.where(batch.seen, seen[name], each) for name, each in told.items()}
