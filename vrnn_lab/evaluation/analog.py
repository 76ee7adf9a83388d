"""Predict by analogs, the continuations of the most similar stretches of the training series (Lorenz 1969)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.series import TimeSeries
from vrnn_lab.data.base import Ragged

Array = NDArray[np.float64]
Line = Callable[[TimeSeries, Tensor], Tensor]
COMPARED = 16  # observed points of a series that are compared, the nearest to the query times
NEAREST = 16  # stretches in the weighted mean
CHANGES, VALUES = 0, 1  # kinds of predictions
ENOUGH = 0.5  # fraction of the compared values that a stretch must cover
SAME = 1e-12  # squared distance, in squared training stds, below which stretches are equal
MOST_JOINED = 100_000  # most windows for which those of one series are joined
AT_ONCE = 1_000_000  # values of stretches held in memory at once
LONGEST = 100_000  # last points per record that are read
ROUNDING = 1e-9  # tolerance at a record's ends, relative to the longest record


class Analog:
    """Predict a series by the mean of the training stretches most similar to its observed values.

    Of a series the COMPARED observed points nearest in time to the query times are compared: the latest for a
    forecast, those on both sides for a gap. A stretch of a training record is read at the same time offsets, linearly
    between its points, all channels together; its distance is the mean square of the differences in training stds.
    The NEAREST stretches that reach the middle of the query times have weight exp(-(d^2 / d_1^2 - 1) / 2), d_1 the
    smallest distance; where none reaches it, the NEAREST of all.

    There are two kinds of predictions. VALUES: the stretches' values themselves. CHANGES: a line through the observed
    values (flat beyond the last one) plus the stretches' residuals from the same line through their own values, so
    that a forecast is the last known value plus the stretches' changes from there; distances then ignore the mean
    difference of each channel. Where nothing is observed, or no stretch covers enough, the line is the prediction.
    """

    def __init__(self, records: Sequence[tuple[Array, Array]], std: Array, line: Line, most: int):
        """Take the training records, of which at most `most` stretches are compared, spread evenly.

        records: at most `most`, with the times (points,) of each, which do not decrease, and its values (points, dim)
        in the data's units, NaN = not observed. std: (dim,), by which differences are divided. line: returns, for a
        batch and the mean (dim,), the guess to which changes are added.
        """
        self.std, self.line = np.where(std > 0, std, 1.0), line
        chosen = [record for record in records if len(record[0])]
        self.length = np.array([times[-1] - times[0] for times, _ in chosen])
        self.slack = ROUNDING * self.length.max(initial=0.0)
        # All records on one time axis, end to end, so that a single search finds a time of any of them.
        room = self.length + max(self.length.max(initial=0.0), 1.0)
        self.start = np.concatenate([[0.0], np.cumsum(room)[:-1]]) if len(chosen) else np.zeros(0)
        by_channel = [_observed(chosen, self.start, channel) for channel in range(len(std))]
        self.times, self.values, self.first, self.last = map(list, zip(*by_channel, strict=True))
        self.record, self.place = _places(self.length, most)

    def __call__(self, series: TimeSeries, mean: Tensor) -> Float[Tensor, "batch time dim"]:
        """Return the prediction by changes; mean: (dim,), used where nothing is observed."""
        return self.candidates(series, mean, [CHANGES])[0]

    def candidates(
        self, series: TimeSeries, mean: Tensor, kinds: Sequence[int] = (CHANGES, VALUES)
    ) -> Float[Tensor, "kind batch time dim"]:
        """Return some kinds of predictions in the data's units; values that are not scored have the line."""
        line = self.line(series, mean)
        predictions = line.expand(len(kinds), *line.shape).clone()
        compared = _compared(series.times, series.seen, series.scored)
        rows = (compared.any((1, 2)) & series.scored.any((1, 2))).nonzero()[:, 0]
        if not len(rows) or not len(self.record):
            return predictions
        batch, compared = series.rows(rows), compared[rows]
        start, offset = self._starts(batch, compared)
        distances, reaching = self._distances(batch, compared, start, offset), self._reaching(batch, start, offset)
        for place, kind in enumerate(kinds):
            known = reaching & np.isfinite(distances[kind])
            distance = np.where(known | ~known.any(1, keepdims=True), distances[kind], np.inf)
            order = np.argsort(distance, 1, kind="stable")[:, :NEAREST]
            begin, weight = (np.take_along_axis(each, order, 1) for each in (start, distance))
            chosen = zip(begin.T, self.record[order].T, _weights(weight).T, strict=True)
            predictions[place, rows] = self._mean(batch, mean, offset, chosen, kind == CHANGES)
        return predictions

    def _starts(self, series: TimeSeries, compared: Bool[Tensor, "batch time dim"]) -> tuple[Array, Array]:
        """Return each stretch's start on the common axis, (batch, stretches), and the times since a row's own start.

        A stretch goes from the first to the last point that is compared or queried. In a training record it starts
        anywhere such that the record covers it; in a shorter record, anywhere such that it covers the record.
        """
        times, counts = series.times.double().numpy(), (compared | series.scored).any(2).numpy()
        first = np.where(counts, times, np.inf).min(1, keepdims=True)
        span = np.where(counts, times, -np.inf).max(1, keepdims=True) - first
        room = self.length[self.record] - span
        low, high = np.minimum(room, 0), np.maximum(room, 0)
        same = np.clip(first - series.window[:, :1].double().numpy(), low, high)
        shift = np.where(np.isnan(self.place), same, low + self.place * (high - low))
        return self.start[self.record] + shift, times - first

    def _reaching(self, series: TimeSeries, start: Array, offset: Array) -> NDArray[np.bool_]:
        """Return whether each stretch's record reaches the middle of the query times, (batch, stretches)."""
        queried = series.scored.any(2).numpy()
        low = np.where(queried, offset, np.inf).min(1, keepdims=True)
        high = np.where(queried, offset, -np.inf).max(1, keepdims=True)
        since = start + (low + high) / 2 - self.start[self.record]
        return (since >= -self.slack) & (since <= self.length[self.record] + self.slack)

    def _read(self, at: Array, record: NDArray[np.int64], channel: int) -> Array:
        """Return values of a channel at times of the common axis, NaN outside the record."""
        first, last = self.first[channel][record], self.last[channel][record]
        inside = (at >= first - self.slack) & (at <= last + self.slack)
        if not inside.any():
            return np.full(at.shape, np.nan)
        return np.where(inside, np.interp(at, self.times[channel], self.values[channel]), np.nan)

    def _distances(self, series: TimeSeries, compared: Tensor, start: Array, offset: Array) -> Array:
        """Return squared distances of changes and of values, (2, batch, stretches), infinite for too little cover."""
        rows, stretches = start.shape
        values = series.values.double().numpy()
        count, second, about = np.zeros((3, rows, stretches))
        for channel in range(len(self.std)):
            row, point = compared[..., channel].numpy().nonzero()
            if not len(row):
                continue
            own, begin = np.unique(row, return_index=True)
            total = lambda x, begin=begin: np.add.reduceat(x, begin, 1).T
            size = max(1, AT_ONCE // len(row))
            for stretch in np.split(np.arange(stretches), range(size, stretches, size)):
                at = start.T[stretch][:, row] + offset[row, point]
                read = self._read(at, np.broadcast_to(self.record[stretch, None], at.shape), channel)
                error = (values[row, point, channel] - read) / self.std[channel]
                there = np.isfinite(error)
                error[~there] = 0.0
                block = np.ix_(own, stretch)
                some, first, squares = total(there.astype(float)), total(error), total(error**2)
                count[block] += some
                second[block] += squares
                about[block] += squares - first**2 / np.maximum(some, 1)
        enough = count >= np.maximum(ENOUGH * compared.sum((1, 2)).numpy()[:, None], 1)
        mean = np.stack([about, second]).clip(min=0) / np.maximum(count, 1)
        return np.where(enough, mean, np.inf)

    def _mean(
        self,
        series: TimeSeries,
        mean: Tensor,
        offset: Array,
        chosen: Iterable[tuple[Array, NDArray[np.int64], Array]],
        changes: bool,
    ) -> Tensor:
        """Return the weighted mean of the chosen stretches at scored values, and the line elsewhere.

        chosen: for the nearest stretch, then the next, ..., its start, its record and its weight, each (batch,).
        """
        line = self.line(series, mean)
        read_at = series.known if changes else series.scored
        to_read = [read_at[..., c].numpy().nonzero() for c in range(len(self.std))]
        total, weights = (np.zeros(line.shape) for _ in range(2))
        for begin, record, weight in chosen:
            at, read = begin[:, None] + offset, np.full(line.shape, np.nan)
            for c, (row, point) in enumerate(to_read):
                read[row, point, c] = self._read(at[row, point], record[row], c)
            if changes:
                own = torch.from_numpy(read)
                seen = series.seen & own.isfinite()
                theirs = self.line(replace(series, values=torch.where(seen, own, 0), seen=seen), mean).numpy()
                read = read - np.where(seen.any(1, keepdim=True).numpy(), theirs, np.nan)
            share = np.where(np.isfinite(read), weight[:, None, None], 0.0)
            total += share * np.where(share > 0, read, 0.0)
            weights += share
        average = torch.from_numpy(total / np.where(weights > 0, weights, 1.0)).to(line)
        known = torch.from_numpy(weights > 0) & series.scored
        return torch.where(known, line + average if changes else average, line)


def records_of(series: Ragged, most: int) -> list[tuple[Array, Array]]:
    """Return times (points,) and values (points, dim) of at most `most` records, evenly chosen.

    A record is a series, cut to its last LONGEST points; windows of one series (by name) that touch or overlap are
    joined.
    """
    first, end, names = series.first, series.end, series.names
    if names is not None and len(first) <= MOST_JOINED:
        touch = (first[1:] > first[:-1]) & (first[1:] <= end[:-1])
        continues = np.array([bool(t) and names[i] == names[i + 1] for i, t in enumerate(touch)], dtype=bool)
        new = np.flatnonzero(np.concatenate([[True], ~continues]))
        first, end = first[new], np.maximum.reduceat(end, new)
    some = np.linspace(0, len(first) - 1, min(len(first), most)).round().astype(int)
    slices = [slice(max(first[i], end[i] - LONGEST), end[i]) for i in some]
    return [(np.array(series.points.times[part]), np.array(series.points.values[part])) for part in slices]


def _places(length: Array, most: int) -> tuple[NDArray[np.int64], Array]:
    """Return the record of each stretch, and its start as a fraction of the free room in that record.

    One stretch per record starts as long after the record's start as a series does after its window's start (NaN);
    the others are spread evenly, in proportion to the records' lengths.
    """
    more = (most - len(length)) * length / max(length.sum(), np.finfo(float).tiny)
    more = np.maximum(more, 0).astype(int)
    shares = [np.concatenate([[np.nan], (np.arange(count) + 0.5) / max(count, 1)]) for count in more]
    return np.repeat(np.arange(len(length)), more + 1), np.concatenate([*shares, np.zeros(0)])


def _observed(records: list[tuple[Array, Array]], start: Array, channel: int) -> tuple[Array, Array, Array, Array]:
    """Return a channel's times on the common axis and values, (values,) each, and each record's start and end."""
    times, values, ends = [], [], []
    for begin, (points, observations) in zip(start, records, strict=True):
        there = np.isfinite(observations[:, channel])
        times.append(begin + points[there] - points[0])
        values.append(observations[there, channel])
        ends.append((times[-1][0], times[-1][-1]) if there.any() else (np.inf, -np.inf))
    first, last = np.array(ends, dtype=float).reshape(-1, 2).T
    return np.concatenate([*times, np.zeros(0)]), np.concatenate([*values, np.zeros(0)]), first, last


def _compared(
    times: Float64[Tensor, "batch time"], seen: Bool[Tensor, "batch time dim"], scored: Bool[Tensor, "batch time dim"]
) -> Bool[Tensor, "batch time dim"]:
    """Return the mask of observed values at the COMPARED points nearest in time to the query times."""
    queried = scored.any(2)
    before = torch.where(queried, times, -torch.inf).cummax(1).values
    after = torch.where(queried, times, torch.inf).flip(1).cummin(1).values.flip(1)
    apart = torch.where(seen.any(2), torch.minimum(times - before, after - times), torch.inf)
    rank = apart.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return seen & (rank < COMPARED)[..., None]


def _weights(squares: Array) -> Array:
    """Return exp(-(d^2 / d_1^2 - 1) / 2) of increasing squared distances (batch, stretches); 0 for infinite ones."""
    nearest = np.maximum(squares[:, :1], SAME)
    known = np.isfinite(squares)
    ratio = np.where(known, squares, 0.0) / np.where(np.isfinite(nearest), nearest, 1.0)
    return np.where(known, np.exp(-0.5 * (np.maximum(ratio, 1.0) - 1)), 0.0)
