"""Turn queries about series into windows of observed and queried points."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.splits import hashed
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.reader import SeriesReader, SeriesRows, paired
from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.forecasting.context_window import choose_window

ROUNDING = 1e-9  # tolerance of queried times, as a fraction of the horizon


@dataclass(frozen=True)
class Times:
    """Hold the queried times of a series, with the covariates and error bars given there."""

    times: NDArray[np.float64]  # (queries,)
    queried: NDArray[np.bool_]  # (queries, dim)
    covariates: NDArray[np.float64]  # (queries, covariates), NaN = not given
    error: NDArray[np.float64]  # (queries, dim), NaN = not given


@dataclass(frozen=True)
class SeriesWindow:
    """Hold the points of one series over one window, some observed, some queried."""

    name: str
    id: int  # seeds the noise of its draws
    times: NDArray[np.float64]  # (points,)
    values: NDArray[np.float64]  # (points, dim), NaN = not observed
    queried: NDArray[np.bool_]  # (points, dim)
    covariates: NDArray[np.float64]  # (points, covariates)
    error: NDArray[np.float64]  # (points, dim), 0 = none
    window: tuple[float, float]
    truth: NDArray[np.float64] | None = None  # (points, dim): values that are hidden from the model, NaN elsewhere


@dataclass(frozen=True)
class SeriesQuery:
    """Hold the query put to every series: times of a file, times ahead, or the empty cells.

    at: queried times; with a horizon those that may be queried, with the covariates that are known there.
    """

    at: SeriesReader | None = None
    horizon: float | None = None
    every: float | None = None
    fill: bool = False

    def of(self, given: SeriesReader, whole: bool) -> Iterator[tuple[SeriesRows, Times]]:
        """Yield each series with its queried times; whole: read the input into memory."""
        if self.at is None:
            times_of: Callable[[SeriesRows], Times] = _empty if self.fill else self._ahead
            yield from ((rows, times_of(rows)) for rows in given.series(whole))
            return
        for rows, points in paired(given, self.at, whole):
            times = Times(points.times, np.ones(points.values.shape, bool), points.covariates, points.error)
            if self.horizon is None:
                yield rows, times
            elif len(rows.times):  # a series that is not in the input has no last observation
                yield rows, self._of_future(rows, times)

    def _of_future(self, rows: SeriesRows, times: Times) -> Times:
        """Return the times of `at` within the horizon or, where `every` is given, those of its grid.

        Raise ValueError where `at` lacks a time of the grid.
        """
        assert self.horizon is not None
        start = _last(rows)
        room = max(ROUNDING * self.horizon, 4 * float(np.spacing(abs(start) + self.horizon)))
        there = (times.times > start + room) & (times.times <= start + self.horizon + room)
        if self.every is not None:
            grid = self._ahead(rows).times
            place = np.searchsorted(times.times, grid - room)
            found = place < len(times.times)
            found[found] = times.times[place[found]] <= grid[found] + room
            if not found.all():
                raise ValueError(
                    f"series '{rows.name}': future= has no row {grid[~found][0] - start:.6g} after its last observed "
                    "time, where every= asks for a prediction; add rows at those times, or leave every= out to "
                    "predict at every row of future= within the horizon."
                )
            there = np.isin(np.arange(len(times.times)), place)
        return Times(times.times[there], times.queried[there], times.covariates[there], times.error[there])

    def _ahead(self, rows: SeriesRows) -> Times:
        """Return the times queried after the last observed time or, where nothing is observed, after the last row."""
        assert self.horizon is not None and self.every is not None
        start = _last(rows)
        steps = np.arange(1, int(self.horizon / self.every * (1 + 1e-9)) + 1)
        none = lambda like: np.full((len(steps), like.shape[1]), np.nan)
        queried = np.ones((len(steps), rows.values.shape[1]), bool)
        times = np.asarray(start + self.every * steps, np.float64)
        return Times(times, queried, none(rows.covariates), none(rows.error))


def _last(rows: SeriesRows) -> float:
    """Return the last observed time of a series or, where nothing is observed, that of its last row."""
    observed = rows.times[~np.isnan(rows.values).all(1)]
    return float((observed if len(observed) else rows.times)[-1])


def _empty(rows: SeriesRows) -> Times:
    there = rows.empty.any(1)
    return Times(rows.times[there], rows.empty[there], rows.covariates[there], rows.error[there])


def over_windows(
    rows: SeriesRows, times: Times, scale, roles: ColumnRoles, keep_start: bool = False
) -> Iterator[SeriesWindow]:
    """Yield the windows of a series and its queries: one, or several for a series longer than the training windows.

    The queries between two neighbouring observed points stay together, as do those of as many such gaps as span half
    of the longest training window; each window includes its queries and the observed points next to them. scale: a
    `Scale`. Raise ValueError where values, covariates or error bars contradict each other, or covariates are missing.
    """
    clock = Clock.of_training(scale)
    points, values, queried, covariates, error = _merged(rows, times, roles, clock)
    seen = points[~np.isnan(values).all(1)]
    queries = points[queried.any(1)]
    if not len(queries):
        return
    counts = np.asarray((~np.isnan(values) | queried).any(1))
    _complete(covariates, rows.name, points, counts, roles, clock)
    begin, end = (seen[0], seen[-1]) if len(seen) else _assumed_window(queries, scale)
    longest = float(scale.longest)
    for number, (first, last, low, high) in enumerate(_runs(seen, queries, begin, end, longest)):
        start, stop = choose_window(low, high, begin, end, longest, keep_start)
        window = min(start, low), max(stop, high)  # rounding may put the sums just inside
        mine = queried & ((points >= first) & (points <= last))[:, None]
        kept = (points >= window[0]) & (points <= window[1]) & (~np.isnan(values) | mine).any(1)
        text = f"{rows.name}\0{number}" if number else rows.name
        id = int(hashed([text])[0])
        arrays: list[Any] = [array[kept] for array in (points, values, mine, covariates, error)]
        yield SeriesWindow(rows.name, id, *arrays, window=window)


def left_out(rows: SeriesRows) -> Iterator[tuple[SeriesRows, Times, float]]:
    """Yield, for each observed value of a series, the series without it, the query for it, and the value."""
    for point, channel in np.argwhere(~np.isnan(rows.values)):
        values, queried = rows.values.copy(), np.zeros((1, rows.values.shape[1]), bool)
        values[point, channel], queried[0, channel] = np.nan, True
        none = lambda like: np.full((1, like.shape[1]), np.nan)
        query = Times(rows.times[point : point + 1], queried, none(rows.covariates), none(rows.error))
        yield replace(rows, values=values), query, float(rows.values[point, channel])


def with_truth(window: SeriesWindow, truth: float) -> SeriesWindow:
    """Return a window with one queried value, and that value."""
    return replace(window, truth=np.where(window.queried, truth, np.nan))


def _merged(rows: SeriesRows, times: Times, roles: ColumnRoles, clock: Clock):
    """Merge the points of a series and the queried ones, sorted by time.

    Return times, values, queried, covariates, error.
    Raise ValueError where both give different covariates or error bars at one time.
    """
    points = np.union1d(rows.times, times.times)
    old, new = np.searchsorted(points, rows.times), np.searchsorted(points, times.times)
    values = np.full((len(points), rows.values.shape[1]), np.nan)
    queried = np.zeros(values.shape, bool)
    values[old], queried[new] = rows.values, times.queried

    def both(ours: NDArray[np.float64], theirs: NDArray[np.float64], columns: Sequence[str | None]):
        merged = np.full((len(points), ours.shape[1]), np.nan)
        merged[old] = ours
        before = merged[new]
        differ = ~np.isnan(before) & ~np.isnan(theirs) & (before != theirs)
        if differ.any():
            row, place = np.argwhere(differ)[0]
            when = clock.write(times.times[row : row + 1], text=True)[0]
            raise ValueError(
                f"series '{rows.name}' has two values of '{columns[place]}' at time {when}, {before[row, place]:g} "
                f"in input= and {theirs[row, place]:g} in at= or future=; correct one, or leave it empty there."
            )
        merged[new] = np.where(np.isnan(theirs), before, theirs)
        return merged

    covariates = both(rows.covariates, times.covariates, roles.covariates)
    error = both(rows.error, times.error, roles.error * (rows.error.shape[1] if len(roles.error) == 1 else 1))
    return points, values, queried, covariates, np.nan_to_num(error)


def _complete(
    covariates: NDArray[np.float64], name: str, times, counts: NDArray[np.bool_], roles: ColumnRoles, clock: Clock
):
    """Fill in static covariates at every point, in place; raise ValueError where a covariate is missing."""
    for place, column in enumerate(roles.covariates):
        if place >= len(roles.known):
            distinct = np.unique(covariates[~np.isnan(covariates[:, place]), place])
            if len(distinct) > 1:
                raise ValueError(
                    f"series '{name}' has two values of '{column}', {distinct[0]:g} and {distinct[1]:g}; the model "
                    "was trained with it as a static covariate, one number per series. Correct it."
                )
            if not len(distinct) and counts.any():
                raise ValueError(
                    f"series '{name}' has no '{column}', of which the model needs one number per series; fill it "
                    "in, in a row of the series in input=, or in the column of that name in at= or future=."
                )
            covariates[:, place] = distinct[0] if len(distinct) else np.nan
        without = np.flatnonzero(np.isnan(covariates[:, place]) & counts)
        if len(without):
            when = clock.write(times[without[:1]], text=True)[0]
            raise ValueError(
                f"series '{name}' has no '{column}' at time {when}, and the model needs it at every observed and "
                "queried time. Fill in that column in input= and in at= or future=."
            )


def _assumed_window(queries: NDArray[np.float64], scale) -> tuple[float, float]:
    """Return the observation window assumed for a series without observed values.

    It starts as the training windows do if the queries lie within the longest of them, else at the first query.
    """
    start, clock = float(scale.start), float(scale.clock)
    inside = start <= queries[0] and queries[-1] <= start + float(scale.longest)
    begin = start if inside else float(queries[0])
    return begin, begin + (clock if scale.longest > 0 else 0.0)


def _runs(seen, queries, begin: float, end: float, longest: float) -> list[tuple[float, float, float, float]]:
    """Group the queries; return (first, last, low, high) of each group.

    low, high: the observed points before and after the group, or its first and last query where there is none.
    """
    first, last = queries[0], queries[-1]
    if max(end, last) - min(begin, first) <= longest or longest <= 0:
        return [(first, last, first, last)]
    place = np.searchsorted(seen, queries, side="right")
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts[1:], len(queries)) - 1
    runs: list[tuple[float, float, float, float]] = []
    for a, b in zip(starts, ends, strict=True):
        gap = place[a]
        low = seen[gap - 1] if gap else queries[a]
        high = seen[gap] if gap < len(seen) else queries[b]
        if runs and high - runs[-1][2] <= longest / 2:
            runs[-1] = (*runs[-1][:1], queries[b], runs[-1][2], high)
        else:
            runs.append((queries[a], queries[b], low, high))
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in runs]
