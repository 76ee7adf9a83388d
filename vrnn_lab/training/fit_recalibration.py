"""Fit the recalibration of a run on its validation split, for forecasts from cutoffs beyond those of training."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.tasks import Forecast
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.recalibration import Recalibration, batches_of, evenly, fit
from vrnn_lab.forecasting.backtest import BacktestPlan, Folds, folds
from vrnn_lab.runs.build import Parts
from vrnn_lab.training.out_of_time import OutOfTime

CUTOFFS = (1 / 3, 2 / 3)  # cutoffs as fractions of a validation window, in addition to the protocol's own question
FOLDS = 5  # cutoffs in the validation part of a series that is split in time


def recalibrate(parts: Parts, ends: OutOfTime | None = None) -> Recalibration:
    """Fit the factors on the protocol's questions to validation and on rolling cutoffs within it.

    Whole series that were split by name cover one span of time, and a forecast after that is harder than any in
    validation. ends: the result of a second model for such times; without it a forecast of such series is widened
    where validation says so, but never narrowed.
    """
    scale = parts.model.scale
    further = rolling(parts.data, scale.longest.item(), parts.protocol.draws, parts.model.keep_start)
    factors = fit(parts.model, parts.data, parts.protocol, parts.config.seed, further)
    if scale.whole_series and not parts.data.split_in_time:
        factors = factors.widening_ahead()
    return replace(factors, beyond=ends.beyond(scale, factors.forecast)) if ends else factors


def rolling(data: SeriesData, longest: float, draws: int, keep_start: bool = False) -> Iterator[TimeSeries]:
    """Yield batches of forecasts from several cutoffs of each validation series.

    For series that are split in time the cutoffs lie in the validation part, and everything before, the training part
    too, is observed; for series that are split as a whole they lie at CUTOFFS of the window. longest: the longest
    training window. keep_start: training windows begin where their series do.
    """
    for plan in plans(data, longest):
        try:
            queries = folds(data, "val", plan, longest, keep_start)
        except ConfigError:  # no validation part is as long as the horizon
            continue
        yield from (batch for batch, _ in _few(queries).batches(draws))
    if data.split_in_time:
        return
    for until in CUTOFFS:
        yield from batches_of(data, Forecast(until, scored="held_out"), draws)


def plans(data: SeriesData, longest: float) -> list[BacktestPlan]:
    """Return backtest plans within the validation part of series that are split in time, empty for other series.

    One plan has one cutoff with a long horizon, the other FOLDS cutoffs with half of it.
    """
    if not data.split_in_time:
        return []
    series, starts = data.reaching_back("val")
    whole = float(np.median(series.windows[:, 1] - starts))
    if whole <= 0:
        return []
    far = min(whole, longest) if longest > 0 else whole
    near = far / 2
    return [BacktestPlan(far, folds=1), BacktestPlan(near, every=(whole - near) / (FOLDS - 1), folds=FOLDS)]


def _few(queries: Folds) -> Folds:
    some = evenly(len(queries.origin))
    return replace(queries, series=queries.series.part(some), origin=queries.origin[some], fold=queries.fold[some])
