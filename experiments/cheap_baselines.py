"""Answers that need no training: simple rules with a measured spread, and scikit-learn's Gaussian process."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pandas as pd
from held_out import Cell, Gaussians, cells, numbers, practice
from numpy.typing import NDArray
from real_sets import RealSet

from vrnn_lab.evaluation.gaussian_process import condition, fit_kernel

Array = NDArray[np.float64]
POINTS = 400  # of which a Gaussian process is fitted, and which it sees of a series


def mean(cell: Cell, level: float, _: float | None) -> Array:
    """The mean of the seen values."""
    return np.full(len(cell.at), cell.values.mean() if len(cell.values) else level)


def last(cell: Cell, level: float, _: float | None) -> Array:
    """The last seen value before a time; before the first the mean."""
    place = np.searchsorted(cell.times, cell.at, side="right") - 1
    return np.where(place >= 0, cell.values[place] if len(cell.values) else level, mean(cell, level, None))


def drift(cell: Cell, level: float, _: float | None) -> Array:
    """The last seen value, carried on along the line from the first seen value to the last."""
    place = np.searchsorted(cell.times, cell.at, side="right") - 1
    since = np.where(place >= 0, cell.at - cell.times[place], 0.0) if len(cell.times) else 0.0
    return last(cell, level, None) + slope(cell) * since


def half(cell: Cell, level: float, _: float | None) -> Array:
    """Half the last value, half the mean, which is shrunk to the training mean by one pseudo-observation."""
    shrunk = (cell.values.sum() + level) / (len(cell.values) + 1)
    return 0.5 * last(cell, level, None) + 0.5 * shrunk


def linear(cell: Cell, level: float, _: float | None) -> Array:
    """Straight lines between the seen neighbours, flat beyond the ends."""
    return np.interp(cell.at, cell.times, cell.values) if len(cell.values) else mean(cell, level, None)


def seasonal(cell: Cell, level: float, period: float | None) -> Array:
    """The value whole periods away, read linearly: the mean of the nearest before and after that are seen."""
    return _seasonal(cell, level, period, 0.0)


def seasonal_drift(cell: Cell, level: float, period: float | None) -> Array:
    """The same, carried on along the line from the first seen value to the last."""
    return _seasonal(cell, level, period, slope(cell))


def slope(cell: Cell) -> float:
    span = cell.times[-1] - cell.times[0] if len(cell.times) > 1 else 0.0
    return (cell.values[-1] - cell.values[0]) / span if span > 0 else 0.0


def _seasonal(cell: Cell, level: float, period: float | None, rise: float) -> Array:
    assert period is not None
    if not len(cell.times):
        return mean(cell, level, None)
    values = [_one_way(cell, at, period, rise) for at in cell.at]
    return np.where(np.isnan(values), last(cell, level, None), values)


def _one_way(cell: Cell, at: float, period: float, rise: float) -> float:
    """Return the seasonal guess at one time.

    NaN where no time whole periods away lies between two seen ones less than a period apart.
    """
    both = []
    for way in (-1, 1):
        room = (cell.times[-1] - cell.times[0]) / period + 1
        gone = max(1.0, np.ceil((at - cell.times[-1]) / period)) if way < 0 else 1.0
        gone = max(gone, np.ceil((cell.times[0] - at) / period)) if way > 0 else gone
        for count in np.arange(gone, gone + min(room, 3)):
            there = at + way * count * period
            right = int(np.searchsorted(cell.times, there))
            if 0 < right < len(cell.times) and cell.times[right] - cell.times[right - 1] < period / 4:
                both.append(float(np.interp(there, cell.times, cell.values)) - way * count * period * rise)
                break
    return float(np.mean(both)) if both else np.nan


Rule = Callable[[Cell, float, float | None], Array]
RULES: dict[str, Rule] = {"mean": mean, "last": last, "drift": drift, "half": half, "linear": linear}
SEASONAL: dict[str, Rule] = {"seasonal": seasonal, "seasonal drift": seasonal_drift}


def rules(real: RealSet) -> dict[str, Rule]:
    """Return the baselines that can be used on a set, by name."""
    return RULES | (SEASONAL if real.period else {})


def training_moments(real: RealSet, given: pd.DataFrame, channels: list[str]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of the training values of each channel."""
    columns = {name: given[name].to_numpy(np.float64) for name in channels}
    return {name: (float(np.nanmean(x)), float(np.nanstd(x))) for name, x in columns.items()}


def with_spread(real: RealSet, rule: Rule, given: pd.DataFrame, kind: str, moments) -> Gaussians:
    """A rule with one standard deviation a channel: the root mean square of its errors on the practice queries."""
    squares: dict[str, list[Array]] = defaultdict(list)
    for query in practice(real, given, kind).queries:
        for cell in cells(real, query):
            squares[cell.channel].append((cell.truth - rule(cell, moments[cell.channel][0], real.period)) ** 2)
    spread = {name: np.sqrt(np.concatenate(each).mean()) for name, each in squares.items()}

    def predict(cell: Cell) -> tuple[Array, Array]:
        level, std = moments[cell.channel]
        wide = max(spread.get(cell.channel, std), 1e-3 * std)
        return rule(cell, level, real.period), np.full(len(cell.at), wide)

    return predict


# ---------------------------------------------------------------------------------------------- Gaussian process


class SharedProcess:
    """A Gaussian process of each channel: one kernel for all series of a set, fitted by marginal likelihood.

    The kernel is that of vrnn_lab.evaluation.gaussian_process. It is fitted to at most POINTS points, of whole series
    drawn at random, or the last ones of a single series. Each series is then conditioned on its own POINTS points
    nearest to what is queried.
    """

    def __init__(self, real: RealSet, given: pd.DataFrame, moments: dict[str, tuple[float, float]], seed: int = 0):
        self.real, self.moments = real, moments
        names = given["id"].to_numpy() if real.id else np.full(len(given), "")
        times = numbers(given["time"])
        rng = np.random.default_rng(seed)
        order = rng.permutation(np.unique(names))
        self.kernels = {}
        for channel, (level, std) in moments.items():
            x = given[channel].to_numpy(np.float64)
            chosen, left = [], POINTS
            for name in order:
                rows = np.flatnonzero((names == name) & ~np.isnan(x))[-max(left, 0) :] if left > 0 else []
                chosen.append(rows)
                left -= len(rows)
            span = max((np.ptp(times[rows]) for rows in chosen if len(rows)), default=1.0) or 1.0
            series = np.concatenate([np.full(len(rows), float(place)) for place, rows in enumerate(chosen)])
            rows = np.concatenate(chosen).astype(int)
            period = real.period / span if real.period else None
            kernel = fit_kernel(times[rows] / span, series, (x[rows] - level) / (std or 1.0), period)
            self.kernels[channel] = (kernel, span)

    def __call__(self, cell: Cell) -> tuple[Array, Array]:
        kernel, span = self.kernels[cell.channel]
        level, std = self.moments[cell.channel]
        std = std or 1.0
        means, stds = np.empty(len(cell.at)), np.empty(len(cell.at))
        for part in _stretches(cell):
            middle = cell.at[part].mean()
            near = np.sort(np.argsort(np.abs(cell.times - middle), kind="stable")[:POINTS])
            seen, values = cell.times[near] / span, (cell.values[near] - level) / std
            means[part], stds[part] = condition(kernel, seen, values, cell.at[part] / span)
        return level + std * means, std * stds


def _stretches(cell: Cell) -> list[NDArray[np.int64]]:
    """The queried times in groups that no seen time separates; one group where the whole series is seen at once."""
    if len(cell.times) <= POINTS:
        return [np.arange(len(cell.at))]
    place = np.searchsorted(cell.times, cell.at)
    return [np.flatnonzero(place == each) for each in np.unique(place)]
