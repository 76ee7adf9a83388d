"""Summarise a data set before training: its splits, its channels and suspicious values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.supports import NUMBERS
from vrnn_lab.data.base import SPLITS, Ragged, SeriesData, pieces, places
from vrnn_lab.data.splits import names_of
from vrnn_lab.data.table.time_format import Clock

SHOWN = 20  # channels in a summary
MOST = 2_000_000  # points that a summary reads at most; of more, evenly spaced series
SENTINELS = (-9999, -999, -99, 999, 9999, 99999, -99999, -32768, 32767, -1e9, 1e9, 1e20, -1e20, 1e30, -1e30)
FAR = 10_000.0  # interquartile ranges from the median: further than any plausible distribution of measurements
SLIP = 300  # times its neighbours, and SLIP / 3 times the median: a value that may have a slipped decimal point


@dataclass(frozen=True)
class RowCounts:
    """Count the rows that were read from a file, and those that were left out, by reason."""

    read: int
    copies: int = 0  # repeat an earlier row exactly
    empty: int = 0  # have no value
    other: int = 0  # long form: of channels that data.values does not name

    def __str__(self) -> str:
        reasons = {"repeat an earlier row": self.copies, "have no value": self.empty}
        reasons["are of channels that data.values leaves out"] = self.other
        dropped = [f"{_count(number)} {reason}" for reason, number in reasons.items() if number]
        used = self.read - self.copies - self.empty - self.other
        return f"rows: {_count(self.read)} read, {_count(used)} used" + "".join(f"; {reason}" for reason in dropped)


def summary(data: SeriesData, series: Ragged, rule: str, file_rows: RowCounts | None = None) -> str:
    """Return a text that summarises a data set: rows, splits, channels and covariates.

    series: all its series, uncut; rule: how they were split, in words; file_rows: rows of its file, where counted.
    """
    values = _some(series)[1]
    head = ["", "series", "windows", "points", "values"]
    rows = [[split, *map(_count, _sizes(data.splits[split]))] for split in SPLITS]
    lines = [f"data: {len(series):,} series of {int(series.lengths.sum()):,} points, {rule}", *_columns(head, rows)]
    lines[:0] = [] if file_rows is None else [str(file_rows)]
    head = ["channel", "minimum", "median", "maximum", "missing"]
    rows = [[name, *_statistics(values[:, i])] for i, name in enumerate(data.channels[:SHOWN])]
    lines += _columns(head, rows)
    if len(data.channels) > SHOWN:
        lines.append(f"  and {len(data.channels) - SHOWN} more channels")
    if names := data.scale.covariates:
        lines.append(f"  covariates: {', '.join(names)}")
    return "\n".join(lines)


def odd_values(data: SeriesData, series: Ragged) -> Iterator[str]:
    """Yield one sentence for each constant channel and each kind of value that is hardly a measurement."""
    if data.support not in NUMBERS:
        return
    clock, (owner, values, times) = Clock(data.dates), _some(series)
    names = names_of(series)

    def place(point: int) -> str:
        when = clock.write(times[point : point + 1], text=True)[0]
        return f"series '{names[owner[point]]}' at {when if data.dates else f'{when:g}'}"

    for channel, column in zip(data.channels, values.T, strict=True):
        known = np.flatnonzero(~np.isnan(column))
        x = column[known]
        if len(x) < 2:
            continue
        if x.min() == x.max():
            yield (
                f"channel '{channel}' is {x[0]:g} in all of its {len(x)} values, so nothing can be learned from it. "
                "To leave it out, name the others: data.values=[...]"
            )
            continue
        odd = _sentinels(x)
        for value in np.unique(x[odd]):
            at = known[x == value]
            yield (
                f"channel '{channel}' holds {value:g} in {len(at)} values, first in {place(int(at[0]))}, far from "
                "all others. If it means that nothing was measured, empty those cells."
            )
        rest = ~odd
        slipped = _slips(x[rest], owner[known][rest])
        if len(slipped):
            at = known[rest][slipped]
            yield (
                f"channel '{channel}' has {len(at)} values hundreds of times as large as their neighbours, first "
                f"{column[at[0]]:g} in {place(int(at[0]))}. If they are mistakes, correct them or empty their cells."
            )
        plain = np.delete(known[rest], slipped)
        if (far := plain[_far(column[plain])]).size:
            yield (
                f"channel '{channel}' has {len(far)} values more than {FAR:g} times the spread of the middle half of "
                f"its values away from their median, first {column[far[0]]:g} in {place(int(far[0]))}. They "
                "determine the scale by which the channel is standardised. If they are mistakes, correct them or "
                "empty their cells."
            )


def _some(series: Ragged) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return series (points,), values (points, dim) and times (points,), of some series if points exceed MOST."""
    chosen = np.arange(0, len(series), 1 + int(series.lengths.sum()) // MOST)
    some = series.part(chosen)
    return np.repeat(chosen, some.lengths), np.asarray(some.values), np.asarray(some.times)


def _sizes(split: Ragged) -> tuple[int, int, int, int]:
    """Return the numbers of series, windows, points and observed values of a split."""
    parts = (split.points.values[places(a, b)] for _, a, b in pieces(split.first, split.end, MOST))
    known = sum(int((~np.isnan(part)).sum()) for part in parts)
    return len(set(names_of(split))), len(split), int(split.lengths.sum()), known


def _statistics(x: NDArray[np.float64]) -> list[str]:
    known = x[~np.isnan(x)]
    numbers = [known.min(), np.median(known), known.max()] if len(known) else []
    return [*(f"{number:.4g}" for number in numbers), *[""] * (3 - len(numbers)), f"{1 - len(known) / len(x):.1%}"]


def _count(number: int) -> str:
    return f"{number:,}"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, with the first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = lambda cells: (
        "  "
        + "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
    )
    return [line(cells).rstrip() for cells in (head, *rows)]


def _sentinels(x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the values that often stand for a missing one, such as -9999, and lie far from all others."""
    named = np.isin(x, SENTINELS) | (np.abs(x) >= 1e20)
    if named.all() or not named.any():
        return np.zeros(len(x), bool)
    low, high = x[~named].min(), x[~named].max()
    reach = max(high - low, 1e-12 * abs(high))
    return named & ((x < low - reach) | (x > high + reach))


def _far(x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the values that lie FAR from the median; none where half of the values are one number."""
    if not len(x):
        return np.zeros(0, bool)
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    return (np.abs(x - middle) > FAR * (high - low)) & (high > low)


def _slips(x: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of values SLIP times as large as both neighbours in their series, far above the median."""
    size = np.abs(x)
    before, after = np.zeros(len(x)), np.zeros(len(x))
    same = np.diff(owner) == 0
    before[1:][same], after[:-1][same] = size[:-1][same], size[1:][same]
    neighbour, usual = np.maximum(before, after), np.median(size)
    return np.flatnonzero((neighbour > 0) & (size > SLIP * neighbour) & (usual > 0) & (size > SLIP / 3 * usual))
