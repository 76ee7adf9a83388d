"""Turn queries about series into windows of observed and queried points."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.splits import hashed
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.reader import SeriesReader, SeriesRows, paired
from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.forecasting.context_window import choose_window


@dataclass(frozen=True)
class Times:
    """Hold the queried times of a series, with the covariates and error bars given there."""

    times: NDArray[np.float64]  # (asked,)
    asked: NDArray[np.bool_]  # (asked, dim)
    told: NDArray[np.float64]  # (asked, covariates), NaN = not given
    error: NDArray[np.float64]  # (asked, dim), NaN = not given


@dataclass(frozen=True)
class SeriesWindow:
    """Hold the points of one series over one window, some observed, some queried."""

    name: str
    id: int  # seeds the noise of its draws
    times: NDArray[np.float64]  # (points,)
    values: NDArray[np.float64]  # (points, dim), NaN = not observed
    asked: NDArray[np.bool_]  # (points, dim)
    told: NDArray[np.float64]  # (points, covariates)
    error: NDArray[np.float64]  # (points, dim), 0 = none
    window: tuple[float, float]


@dataclass(frozen=True)
class SeriesQuery:
    """Hold the query put to every series: times of a file, times ahead, or the empty cells."""

    at: SeriesReader | None = None
    horizon: float | None = None
    every: float | None = None
    fill: bool = False

    def of(self, given: SeriesReader, whole: bool) -> Iterator[tuple[SeriesRows, Times]]:
        """Yield each series with its queried times; whole: read the input into memory."""
        if self.at is None:
            ask: Callable[[SeriesRows], Times] = _empty if self.fill else self._ahead
            yield from ((rows, ask(rows)) for rows in given.series(whole))
            return
        for rows, points in paired(given, self.at, whole):
            yield rows, Times(points.times, np.ones(points.values.shape, bool), points.told, points.error)

    def _ahead(self, rows: SeriesRows) -> Times:
        """Return the times queried after the last observed time or, where nothing is observed, after the last row."""
        assert self.horizon is not None and self.every is not None
        observed = rows.times[~np.isnan(rows.values).all(1)]
        start = (observed if len(observed) else rows.times)[-1]
        steps = np.arange(1, int(self.horizon / self.every * (1 + 1e-9)) + 1)
        none = lambda like: np.full((len(steps), like.shape[1]), np.nan)
        asked = np.ones((len(steps), rows.values.shape[1]), bool)
        return Times(start + self.every * steps, asked, none(rows.told), none(rows.error))


def _empty(rows: SeriesRows) -> Times:
    there = rows.empty.any(1)
    return Times(rows.times[there], rows.empty[there], rows.told[there], rows.error[there])


def over_windows(
    rows: SeriesRows, times: Times, scale, beside: ColumnRoles, keep_start: bool = False
) -> Iterator[SeriesWindow]:
    """Yield the windows of a series and its queries: one, or several for a series longer than the training windows.

    The queries between two neighbouring observed points stay together, as do those of as many such gaps as span half
    of the longest training window; each window includes its queries and the observed points next to them. scale: a
    `Scale`. Raise ValueError where values, covariates or error bars contradict each other, or covariates are missing.
    """
    clock = Clock.of_training(scale)
    points, values, asked, told, error = _together(rows, times, beside, clock)
    seen = points[~np.isnan(values).all(1)]
    questions = points[asked.any(1)]
    if not len(questions):
        return
    counts = np.asarray((~np.isnan(values) | asked).any(1))
    _complete(told, rows.name, points, counts, beside, clock)
    begin, end = (seen[0], seen[-1]) if len(seen) else _usual(questions, scale)
    longest = float(scale.longest)
    for number, (first, last, low, high) in enumerate(_runs(seen, questions, begin, end, longest)):
        start, stop = choose_window(low, high, begin, end, longest, keep_start)
        window = min(start, low), max(stop, high)  # rounding may put the sums just inside
        mine = asked & ((points >= first) & (points <= last))[:, None]
        kept = (points >= window[0]) & (points <= window[1]) & (~np.isnan(values) | mine).any(1)
        text = f"{rows.name}\0{number}" if number else rows.name
        id = int(hashed([text])[0])
        cut: list[Any] = [each[kept] for each in (points, values, mine, told, error)]
        yield SeriesWindow(rows.name, id, *cut, window=window)


def _together(rows: SeriesRows, times: Times, beside: ColumnRoles, clock: Clock):
    """Merge the points of a series and the queried ones, sorted by time; return times, values, asked, told, error.

    Raise ValueError where both give different covariates or error bars at one time.
    """
    points = np.union1d(rows.times, times.times)
    old, new = np.searchsorted(points, rows.times), np.searchsorted(points, times.times)
    values = np.full((len(points), rows.values.shape[1]), np.nan)
    asked = np.zeros(values.shape, bool)
    values[old], asked[new] = rows.values, times.asked

    def both(ours: NDArray[np.float64], theirs: NDArray[np.float64], columns: Sequence[str | None]):
        found = np.full((len(points), ours.shape[1]), np.nan)
        found[old] = ours
        before = found[new]
        differ = ~np.isnan(before) & ~np.isnan(theirs) & (before != theirs)
        if differ.any():
            row, place = np.argwhere(differ)[0]
            when = clock.write(times.times[row : row + 1], text=True)[0]
            raise ValueError(
                f"series '{rows.name}' has two values of '{columns[place]}' at time {when}, {before[row, place]:g} "
                f"in input= and {theirs[row, place]:g} in at=; correct one, or leave it empty in at=."
            )
        found[new] = np.where(np.isnan(theirs), before, theirs)
        return found

    told = both(rows.told, times.told, beside.covariates)
    error = both(rows.error, times.error, beside.error * (rows.error.shape[1] if len(beside.error) == 1 else 1))
    return points, values, asked, told, np.nan_to_num(error)


def _complete(
    told: NDArray[np.float64], name: str, times, counts: NDArray[np.bool_], beside: ColumnRoles, clock: Clock
):
    """Fill in static covariates at every point, in place; raise ValueError where a covariate is missing."""
    for place, column in enumerate(beside.covariates):
        if place >= len(beside.known):
            found = np.unique(told[~np.isnan(told[:, place]), place])
            if len(found) > 1:
                raise ValueError(
                    f"series '{name}' has two values of '{column}', {found[0]:g} and {found[1]:g}; the model was "
                    "trained with it as static, one number a series. Correct it."
                )
            if not len(found) and counts.any():
                raise ValueError(
                    f"series '{name}' has no '{column}', of which the model knows one number a series; fill it "
                    "in, in a row of the series in input=, or in the column of that name in at=."
                )
            told[:, place] = found[0] if len(found) else np.nan
        without = np.flatnonzero(np.isnan(told[:, place]) & counts)
        if len(without):
            when = clock.write(times[without[:1]], text=True)[0]
            raise ValueError(
                f"series '{name}' has no '{column}' at time {when}, and the model must know it at every time that is "
                "seen or asked. Fill in that column, of input= and of at=."
            )


def _usual(questions: NDArray[np.float64], scale) -> tuple[float, float]:
    """Return the observation window assumed for a series without observed values.

    It starts as the training windows do if the queries lie within the longest of them, else at the first query.
    """
    start, clock = float(scale.start), float(scale.clock)
    inside = start <= questions[0] and questions[-1] <= start + float(scale.longest)
    begin = start if inside else float(questions[0])
    return begin, begin + (clock if scale.longest > 0 else 0.0)


def _runs(seen, questions, begin: float, end: float, longest: float) -> list[tuple[float, float, float, float]]:
    """Group the queries; return (first, last, low, high) of each group.

    low, high: the observed points before and after the group, or its first and last query where there is none.
    """
    first, last = questions[0], questions[-1]
    if max(end, last) - min(begin, first) <= longest or longest <= 0:
        return [(first, last, first, last)]
    place = np.searchsorted(seen, questions, side="right")
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts[1:], len(questions)) - 1
    runs: list[tuple[float, float, float, float]] = []
    for a, b in zip(starts, ends, strict=True):
        gap = place[a]
        low = seen[gap - 1] if gap else questions[a]
        high = seen[gap] if gap < len(seen) else questions[b]
        if runs and high - runs[-1][2] <= longest / 2:
            runs[-1] = (*runs[-1][:1], questions[b], runs[-1][2], high)
        else:
            runs.append((questions[a], questions[b], low, high))
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in runs]
