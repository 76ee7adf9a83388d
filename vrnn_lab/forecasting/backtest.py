"""Run a rolling-origin backtest: forecasts from past cutoffs, scored against the observations that followed."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.cli.progress import tracked
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.supports import NUMBERS
from vrnn_lab.core.tasks import DensityTask, Own
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import names_of
from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.evaluation.baseline_units import as_real
from vrnn_lab.evaluation.baselines import (
    DRAWS,
    BaselineQuestion,
    baselines,
    fitted,
    fitted_processes,
    level_of,
    plain_energy,
)
from vrnn_lab.evaluation.evaluate import POINTS_AT_ONCE, Change
from vrnn_lab.evaluation.scores import ScoreAccumulator, Scores, energy, plain_scores, quantiles, sample_scores
from vrnn_lab.forecasting.context_window import choose_window
from vrnn_lab.runs.build import Parts, check_channels, load_parts

STRETCHES = 5  # equal parts of the horizon, scored separately
ROUNDING = 1e-9  # tolerance as a fraction of the horizon, for points at the cutoff or at the end


@dataclass(frozen=True)
class BacktestPlan:
    """Place the last `folds` cutoffs of each series, `every` apart, and forecast up to `horizon` after each.

    `horizon` and `every` are in the data's time unit; `every` is the horizon by default. The last cutoff lies one
    horizon before a series' last point. Raise ConfigError where a number is not positive and finite.
    """

    horizon: float
    every: float | None = None
    folds: int = 5

    def __post_init__(self):
        for key in ("horizon", "every", "folds"):
            if not 0 < (1 if (value := getattr(self, key)) is None else value) < inf:
                raise ConfigError(f"backtest.{key}={value}: expected a number above 0.")

    def of(self, times: NDArray[np.float64], start: float) -> NDArray[np.float64]:
        """Return the cutoffs of a series (folds,), NaN where the split has nothing before or after one.

        times: of the whole series, sorted. start: where the split's own part begins; earlier points are only
        observed, never scored.
        """
        earlier = times[times < start]
        first = earlier[-1] if len(earlier) else times[0]
        cutoffs = times[-1] - self.horizon - (self.every or self.horizon) * np.arange(self.folds)[::-1]
        return np.where(cutoffs >= first - ROUNDING * self.horizon, cutoffs, np.nan)


@dataclass(frozen=True)
class Folds:
    """Hold a row for each cutoff of each series: the series from its window's start to the end of the horizon."""

    series: Ragged
    origin: NDArray[np.float64]  # (rows,)
    fold: NDArray[np.int64]  # (rows,): 1 is the earliest
    room: float  # tolerance: points up to this much after the cutoff still count as observed
    clock: Clock

    def batches(self, samples: int) -> Iterator[tuple[TimeSeries, NDArray[np.int64]]]:
        """Yield batches with the indices of the rows that they hold, small enough for `samples` draws at once."""
        longest = int(self.series.lengths.max(initial=1))
        size = max(1, POINTS_AT_ONCE // (samples * max(1, longest)))
        for first in range(0, len(self.origin), size):
            index = np.arange(first, min(first + size, len(self.origin)))
            yield self._batch(index), index

    def _batch(self, index: NDArray[np.int64]) -> TimeSeries:
        batch = self.series.batch(index, DensityTask(), Own(generator, index))  # DensityTask draws nothing from it
        past = batch.times <= torch.from_numpy(self.origin[index])[:, None] + self.room
        seen = batch.known & past[..., None]
        reset = {"most_seen": None, "longest_gap": None, "opens_seen": False}
        return replace(batch, seen=seen, scored=batch.known & ~seen, **reset)


def folds(data: SeriesData, split: str, plan: BacktestPlan, longest: float, keep_start: bool = False) -> Folds:
    """Return all rows of a plan on a split; raise ConfigError where there is none.

    longest: the longest training window. keep_start: training windows begin where their series do
    (`context_window.choose_window`).
    """
    series, starts = data.reaching_back(split)
    room, rows = ROUNDING * plan.horizon, []
    for i, start in enumerate(starts):
        times = series.points.times[series.first[i] : series.end[i]]
        for fold, origin in enumerate(plan.of(times, start) if len(times) else [], 1):
            if not np.isnan(origin):
                begin, end = choose_window(origin, origin + plan.horizon, times[0], origin, longest, keep_start)
                low, after = np.searchsorted(times, begin), np.searchsorted(times, origin + room, "right")
                high = np.searchsorted(times, origin + plan.horizon + room, "right")
                if high > after:
                    rows.append((i, fold, origin, series.first[i] + low, series.first[i] + high, begin, end))
    if not rows:
        lengths = series.windows[:, 1] - starts
        raise ConfigError(
            f"backtest.horizon={plan.horizon:g}: none of the {len(series)} {split} series is long enough (the "
            f"longest: {lengths.max(initial=0):g} {data.time_unit}); expected a shorter horizon, or longer series."
        )
    row, fold, origin, first, end, begin, stop = map(np.array, zip(*rows, strict=True))
    windows = np.stack([begin, stop], 1)
    part = replace(series.part(row), first=first, end=end, windows=windows, labels=None)
    return Folds(part, origin, fold, room, Clock.of_training(data))


@dataclass
class RowScores:
    """Accumulate the scores of one row of the result table, over all values and over named parts of them."""

    scale: Scale
    tallies: dict[str, ScoreAccumulator] = field(default_factory=dict)
    energies: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, scores: Scores, joint: Tensor, batch: TimeSeries, parts: dict[str, Tensor]) -> None:
        """Add the scores of a batch.

        joint: the energy score of each series with a scored value. parts: name -> mask (batch, time) of the points
        that count.
        """
        for name, part in parts.items():
            tally = self.tallies.setdefault(name, ScoreAccumulator(self.scale.channels, self.scale.score_std))
            tally.add(scores, batch.scored & part[..., None])
            if len(joint) and not name.startswith("to "):
                self.energies.setdefault(name, []).append(joint[part.any(1)[batch.scored.any(2).any(1)]])

    def result(self, prefix: str) -> dict[str, float]:
        """Return the scores as `<prefix>/<part>/<score>`, without parts that hold no value."""
        scores: dict[str, float] = {}
        for name, tally in self.tallies.items():
            if not (of_part := tally.result(f"{prefix}/{name}")):
                continue  # the cutoff lies before all series
            scores |= of_part
            if energies := self.energies.get(name):
                scores[f"{prefix}/{name}/energy"] = torch.cat(energies).mean().item()
        return scores


def _parts(fold_rows: Folds, batch: TimeSeries, index: NDArray[np.int64], plan: BacktestPlan) -> dict[str, Tensor]:
    """Return the masks (batch, time) of what is scored separately: all points, parts of the horizon, each cutoff."""
    since = batch.times - torch.from_numpy(fold_rows.origin[index])[:, None]
    whole = torch.ones_like(since, dtype=torch.bool)
    parts, step = {"all": whole}, plan.horizon / STRETCHES
    place = (since / step - ROUNDING).ceil().clamp(1, STRETCHES)
    for i in range(1, STRETCHES + 1):
        parts[f"to {i * step:.4g}"] = place == i
    for fold in range(1, plan.folds + 1):
        parts[_name(fold_rows, fold)] = whole & torch.from_numpy(fold_rows.fold[index] == fold)[:, None]
    return parts


def _name(fold_rows: Folds, fold: int) -> str:
    """Return the name of a cutoff in the table: its time where all series share it, else its number."""
    times = np.unique(fold_rows.origin[fold_rows.fold == fold])
    if len(times) != 1:
        return f"origin {fold}"
    return f"from {fold_rows.clock.write(times, text=True)[0] if fold_rows.clock.dates else f'{times[0]:.10g}'}"


def run(
    parts: Parts, plan: BacktestPlan, split: str = "test", change: Change | None = None
) -> tuple[dict[str, float], pd.DataFrame]:
    """Return the scores `<row>/<part>/<score>` and a data frame of all values that the model forecasts.

    Rows are the model, the baselines and the exact answer. change: applied to each prediction first, such as a
    recalibration. Raise ConfigError for a point process, and where the channels of model and data differ.
    """
    model, data, draws = parts.model, parts.data, parts.protocol.draws
    check_channels(model.scale.channels, parts)
    if model.scale.support == "events":
        raise ConfigError("backtest=true: a point process has no values to forecast; expected data with values.")
    fold_rows = folds(data, split, plan, model.scale.longest.item(), model.keep_start)
    row, frames = RowScores(model.scale), []
    with model.fixed_noise(parts.config.seed):
        asked = tracked(
            fold_rows.batches(draws), "backtest, cutoffs", len(fold_rows.origin), lambda pair: len(pair[1])
        )
        for batch, index in asked:
            batch = batch.to(model.device)
            prediction = model.predict(batch, draws)
            prediction = change(prediction, batch) if change else prediction
            scores = sample_scores(prediction, batch.values)
            joint = batch.values.new_zeros(0)
            if model.scale.support in NUMBERS:
                joint = energy(prediction.paths, batch.values, batch.scored, model.data_score_std)
            batch, scores = batch.to("cpu"), {name: score.cpu() for name, score in scores.items()}
            row.add(scores, joint.cpu(), batch, _parts(fold_rows, batch, index, plan))
            mean, std, paths = prediction.mean.cpu(), prediction.std.cpu(), prediction.paths.cpu()
            frames.append(_values(mean, std, paths, scores, batch, fold_rows, index))
    result = row.result("this model") | _baselines(data, model.scale, plan, fold_rows, model.keep_start)
    values = pd.concat(frames, ignore_index=True)
    values["channel"] = np.array(data.channels, dtype=object)[values["channel"]]
    return result, values


def _baselines(
    data: SeriesData, scale: Scale, plan: BacktestPlan, fold_rows: Folds, keep_start: bool
) -> dict[str, float]:
    """Return the scores of the baselines and of the exact answer.

    Baselines take their spread from the same cutoffs on validation; Gaussian processes from their own likelihood.
    """
    result: dict[str, float] = {}
    scale = as_real(scale)
    try:
        validation = folds(data, "val", plan, scale.longest.item(), keep_start)
    except ConfigError:  # validation is too short for the horizon: take the spread of all training data
        validation = None
    level = level_of(data, scale)
    predictors = {}
    for name, guess in baselines(data, scale).items():
        batches = [] if validation is None else (batch for batch, _ in validation.batches(1))
        predictors[name] = fitted(batches, guess, scale, level)
    values = int(fold_rows.series.lengths.sum()) * scale.dim
    question = BaselineQuestion(
        "the backtest", len(fold_rows.origin), values, (batch for batch, _ in fold_rows.batches(1))
    )
    predictors |= fitted_processes(data, scale, level, [question])
    for name, predict in predictors.items():
        row = RowScores(scale)
        for batch, index in fold_rows.batches(DRAWS):
            density = predict(batch)
            joint = plain_energy(density, batch, scale.score_std, data.seed)
            row.add(plain_scores(density, batch.values), joint, batch, _parts(fold_rows, batch, index, plan))
        result |= row.result(name)
    return result | _exact(data, scale, plan, fold_rows)


def _exact(data: SeriesData, scale: Scale, plan: BacktestPlan, fold_rows: Folds) -> dict[str, float]:
    row = RowScores(scale)
    for batch, index in fold_rows.batches(DRAWS):
        truth = data.exact(batch)
        if truth is None or truth[1] is None:
            return {}
        scores = plain_scores(truth[1], batch.values)
        row.add(scores, batch.values.new_zeros(0), batch, _parts(fold_rows, batch, index, plan))
    return row.result("exact")


def _values(mean, std, paths, scores: Scores, batch: TimeSeries, fold_rows: Folds, index) -> pd.DataFrame:
    """Return a data frame with a row for each scored value; channels are indices."""
    row, point, channel = batch.scored.nonzero(as_tuple=True)
    at = lambda column: column[row, point, channel].numpy()
    draws = paths[:, row, point, channel]
    names = np.array(names_of(fold_rows.series.part(index)), dtype=object)
    return pd.DataFrame(
        {
            "id": names[row.numpy()],
            "origin": fold_rows.clock.write(fold_rows.origin[index][row.numpy()]),
            "time": fold_rows.clock.write(batch.times[row, point].numpy()),
            "channel": channel.numpy(),
            "value": at(batch.values),
            "mean": at(mean),
            "std": at(std),
            **{name: level.numpy() for name, level in quantiles(draws).items()},
            **{name: at(scores[name]) for name in ("nll", "crps", "brier") if name in scores},
        }
    )


def backtest(
    source: Parts | str | Path,
    horizon: float,
    every: float | None = None,
    folds: int = 5,
    split: str = "test",
    change: Change | None = None,
) -> pd.DataFrame:
    """Return every value that a run, or its parts, forecasts from fold_rows cutoffs of the series of a split.

    horizon, every: in the data's time unit; every: by default the horizon. change: applied to each prediction first.
    The columns are id, origin, time, channel, value (as observed), mean, std, q05 to q95, nll and crps; times are as
    in the data. Raise ConfigError where no series is as long as the horizon.
    """
    parts = source if isinstance(source, Parts) else load_parts(source)
    return run(parts, BacktestPlan(float(horizon), None if every is None else float(every), folds), split, change)[1]
