"""Provide the data set of the user's own series, from a CSV or Parquet file."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vrnn_lab.core.log_density import log_array
from vrnn_lab.core.series import Scale
from vrnn_lab.core.supports import POSITIVE, REAL
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data import splits
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.data.splits import Contents, Runs
from vrnn_lab.data.table import columns, parquet_file, store, summary, value_checks
from vrnn_lab.data.table.columns import Cells, ColumnRoles
from vrnn_lab.data.table.row_chunks import Source
from vrnn_lab.data.table.time_zones import has_zone
from vrnn_lab.data.trend import fit_trend, trend_at

log = logging.getLogger("vrnn_lab")
FEW_SERIES = 10  # up to this many long series are each split in time; more are split as whole series
LONG = 100  # points from which a series counts as long where no window is given
WINDOWS = 5  # windows from which a series counts as long where a window is given
SHORTEST, LONGEST = 10, 100  # limits of a default window, which is a tenth of the shortest series


@dataclass(frozen=True)
class TableRows:
    """Hold the rows of a table with their series and times as numbers, in the file's order."""

    cells: Cells
    owner: NDArray[np.int64]  # (rows,): index into names
    names: tuple[str, ...]
    times: NDArray[np.float64]  # (rows,)
    dates: bool


class Table(SeriesData):
    """Read a file with one row per time: columns `id`, `time`, one per channel; or long, with `channel` and `value`.

    Empty cells and NaN mean not observed, so channels may be observed at different times. Rows come in any order.
    Times are numbers in any unit, kept as they are, or ISO dates, which become days since 1970. `id=null`: the file
    is one series. `values`: the channels, by default all other columns of numbers (in the long form, all channels
    that occur, sorted by name).

    Splits follow the column `split` (train, val, test), where there is one; otherwise whole series are assigned by
    the rank of a hash of (seed, id), so that the shares hold exactly. A single series, and each of 2 to 10 long ones,
    is split in time, the earliest part for training. With `window`, every series is then cut into windows of that
    many points; no point lies in windows of two splits, nor in two windows of val or test. Series that are split in
    time have windows of a tenth of the shortest series by default. Rounded values get uniform noise of one rounding
    step (`dequantise`), estimated from training values.

    `known` and `static` are covariates: known at every point, queries included, and never scored. `known` changes
    from row to row and is filled in every row; `static` is one number per series, in one of its rows or in all.
    `error`: columns of the known standard deviation of the observation noise, one for each of `values` (null: none),
    in the long form one for `value`. Every observed value then needs one. To use them as inputs of a model too, name
    them in `known` as well.

    `period`: one or several known periods of the series in the unit of time; their sines and cosines become
    covariates, in training and in prediction. `trend`: a straight line or a parabola in time is fitted to the
    training part of a single record and subtracted from its values; predictions add it again, with the uncertainty
    of its coefficients.

    `log`: channels of values above zero, such as concentrations or prices, that are modelled by their logarithms, so
    that no prediction is zero or below. Scores and predictions are in the data's units as before, and the nats
    include the Jacobian of the logarithm (a Gaussian head then is a log-normal one).

    `support`: the kind of all values, which must suit the output head: real numbers; numbers above zero (positive,
    for the head gamma); whole numbers from zero (counts, for poisson and negative_binomial); or zeros and ones
    (binary, for bernoulli).

    `stream`: for a file of any size. Its numbers are written once to the cache as plain arrays, and read from there
    as batches need them. A file in the long form, or whose rows are not sorted by series and time, is first sorted on
    disk by DuckDB.

    Raise ValueError that names the file, the line and the remedy for a file that cannot be used.
    """

    def __init__(
        self,
        path: str,
        id: str | None = "id",
        time: str = "time",
        values: list[str] | tuple[str, ...] | None = None,
        channel: str | None = None,
        value: str | None = None,
        known: list[str] | tuple[str, ...] = (),
        static: list[str] | tuple[str, ...] = (),
        error: list[str | None] | tuple[str | None, ...] | None = None,
        split: str | None = "split",
        shares: list[Positive] | tuple[Positive, ...] = (0.7, 0.15, 0.15),
        window: Count | None = None,
        stride: Count | None = None,
        dequantise: bool = True,
        period: Positive | Count | list[Positive | Count] | tuple[Positive | Count, ...] | None = None,
        trend: Literal["none", "linear", "quadratic"] = "none",
        log: list[str] | tuple[str, ...] = (),
        support: Literal["real", "positive", "counts", "binary"] = "real",
        stream: bool = False,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        splits.check_cut(shares, window, stride)
        if (channel is None) != (value is None):
            raise ValueError(
                f"data.channel={channel} and data.value={value}; the long form needs both columns, the wide form "
                "neither."
            )
        self.path, self.id, self.time, self.split = Path(path).expanduser(), id, time, split
        self.values = None if values is None else tuple(values)
        self.channel, self.value = channel, value
        self.beside = ColumnRoles(tuple(known), tuple(static), tuple(error or ()))
        self.shares, self.window, self.stride, self.dequantise = tuple(shares), window, stride, dequantise
        self.periods = (float(period),) if isinstance(period, (int, float)) else tuple(map(float, period or ()))
        self.trend, self.log, self.own_levels = trend, tuple(log), True
        self.support = support
        value_checks.refuse_for_support(support, log=self.log, error=self.beside.error, trend=trend != "none")
        self.stream, self.keep = stream, not stream
        self._rows: summary.RowCounts | None = None  # of the file; not counted for a stream
        self._check_roles()

    @property
    def channels(self):
        return self._contents.channels

    @property
    def covariates(self):
        return self.beside.covariates

    @property
    def whole_series(self) -> bool:
        return self._window is None

    @cached_property
    def scale(self) -> Scale:
        """Return the scale of the training split; with a trend, mean and std are those of the residuals.

        Raise ValueError for a trend of more than one series.
        """
        scale = super().scale
        if self.trend == "none":
            return scale
        train, start, reach = self.splits["train"], float(scale.start), float(scale.reach)
        if len(self.whole()) > 1 or not reach > 0:
            raise ValueError(
                f"data.trend={self.trend} is fitted to a single record, but {self.path} holds {len(self.whole())} "
                "series; set data.trend=none and, for a separate slope of each series, model.level=linear."
            )
        times, place = np.unique(train.times, return_index=True)  # training windows may overlap
        in_log = scale.log_channels.numpy()
        degree = ("linear", "quadratic").index(self.trend) + 1
        fitted = fit_trend(times, log_array(train.values[place], in_log), degree, start, reach, self.periods)
        values = log_array(train.points.values, in_log) - trend_at(fitted, train.points.times, start, reach)
        residuals = replace(train.points, values=values)
        residual = replace(train, points=residuals).scale(self.channels, self.support, self.classes, self.covariates)
        spread = scale.value_std
        if spread is not None:  # of the other channels errors are measured in stds of residuals, as without data.log
            spread = torch.where(scale.log_channels, spread, residual.std)
        moments = {"mean": residual.mean, "std": residual.std, "value_std": spread}
        return replace(scale, **moments, variation=residual.variation, trend=fitted)

    def whole(self) -> Ragged:
        """Return every series of the file, before it is cut into windows and without added noise."""
        return self._contents.series

    @property
    def split_rule(self) -> str:
        """Describe in words how the series were assigned to train, val and test."""
        if self._contents.marked is not None:
            return f"split by the column '{self.split}'"
        if self._in_time:
            return "each split in time, its earliest part for training"
        return f"split as whole series by a hash of their names (data.seed={self.seed})"

    def describe(self) -> tuple[str, list[str]]:
        """Return a text that summarises the table, and one sentence for each oddity in its values."""
        series = self.whole()
        return summary.summary(self, series, self.split_rule, self._rows), list(summary.odd_values(self, series))

    def make(self):
        return splits.make_splits(*self._uncut, self._window, self.stride)

    def reaching_back(self, split):
        series, runs = self._uncut
        return splits.reaching_back(series, runs[split])

    @cached_property
    def _uncut(self) -> tuple[Ragged, dict[str, Runs]]:
        series, runs = self.whole(), self._runs()
        if self.dequantise and self.support in (REAL, POSITIVE):
            positive = self.channels if self.support == POSITIVE else self.log
            allocate = self._stored.allocated if self.stream else splits.in_memory
            series = splits.dequantised(series, runs["train"], self.channels, self.seed, allocate, positive=positive)
        return series, runs

    def _runs(self) -> dict[str, Runs]:
        series, marked = self.whole(), self._contents.marked
        if marked is not None:
            return splits.by_label(series, *marked)
        if self._in_time:
            return splits.by_time(series, self.shares)
        return splits.by_name(series, self.shares, self.seed)

    @cached_property
    def _in_time(self) -> bool:
        """Return whether every series is split in time, instead of assigned to one split as a whole."""
        lengths = self.whole().lengths
        long = LONG if self.window is None else WINDOWS * self.window
        few = len(lengths) == 1 or (len(lengths) <= FEW_SERIES and lengths.min() >= long)
        return self._contents.marked is None and bool(few)

    @cached_property
    def _window(self) -> int | None:
        """Return the number of points in a window, given or chosen here; None where series are not cut.

        Raise ValueError for series that are too short to be cut.
        """
        if self.window is not None or not self._in_time:
            return self.window
        series = self.whole()
        shortest, name = int(series.lengths.min()), splits.names_of(series)[0]
        what = f"a single series, '{name}'," if len(series) == 1 else f"{len(series)} series"
        if shortest < 2 * SHORTEST:
            raise ValueError(
                f"{self.path} holds {what} of {shortest} points, too few to be cut into windows; expected at least "
                f"{2 * SHORTEST}. If there are several series, name the column that tells them apart: data.id=..."
            )
        length = min(LONGEST, max(SHORTEST, shortest // 10))
        cut = f"{what} {'is' if len(series) == 1 else 'are'} cut into windows of {length} points"
        log.info("%s: %s; data.window=... sets another number.", self.path, cut)
        return length

    def _check_roles(self) -> None:
        named = [("id", self.id), ("time", self.time), ("channel", self.channel), ("value", self.value)]
        named += [("values", name) for name in self.values or () if self.channel is None]
        named += [(key, name) for key, name in self.beside.wanted if key != "error" or name not in self.beside.known]
        named += [("split", self.split)] if self.split in self.covariates else []
        key_of: dict[str | None, str] = {}
        for key, name in named:
            if name is not None and name in key_of:
                raise ValueError(
                    f"data.{key_of[name]} and data.{key} both name the column '{name}'; each needs a column of its "
                    "own."
                )
            key_of[name] = key
        if self.values is not None and len(set(self.values)) < max(1, len(self.values)):
            raise ValueError(f"data.values={list(self.values)}; expected at least one name, and each once.")
        error = self.beside.error
        if error and self.channel is None and len(self.values or ()) != len(error):
            raise ValueError(
                f"data.error={list(error)} and data.values={self.values and list(self.values)}; expected the "
                "channels and one column of error bars for each, in the same order, null for a channel without error "
                "bars."
            )
        if error and self.channel is not None and (len(error) > 1 or None in error):
            raise ValueError(f"data.error={list(error)}; the long form takes one column, for data.value.")

    @cached_property
    def _contents(self) -> Contents:
        read = self._stream if self.stream else self._read_wide if self.channel is None else self._read_long
        contents = read()
        self._check_values(contents)
        self.dates, self.time_unit = contents.dates, "days" if contents.dates else ""
        parquet_file.release()
        return contents

    def _check_values(self, contents: Contents) -> None:
        """Raise ValueError for a value of another kind than `support`, and where a channel of `log` cannot be one."""
        if self.support != REAL:
            key = f"data.support={self.support}"
            value_checks.refuse_other_values(self.path, contents, contents.channels, self.support, key)
        if self.log:
            error = self.beside.error
            with_error = (
                contents.channels
                if self.channel is not None
                else tuple(name for name, column in zip(contents.channels, error, strict=False) if column is not None)
            )
            value_checks.refuse_wrong_logs(self.path, contents, self.log, with_error if error else ())

    def _wanted(self, needed: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Return the columns to read, all columns where no channels are named, and those that hold texts.

        needed: (config key, column) of the columns of values. Raise ValueError for a missing column.
        """
        names = columns.column_names(self.path)
        roles = [(key, name) for key, name in (("id", self.id), ("time", self.time)) if name is not None]
        if self.split not in (None, "split"):
            roles.append(("split", self.split))
        roles += self.beside.wanted
        columns.demand(self.path, names, [*roles, *needed])
        texts = [name for name in (self.id, self.split, self.channel) if name in names]
        named = {*texts, *(name for _, name in [*roles, *needed])}
        return [name for name in names if name in named or not needed], texts

    @property
    def _columns_of_values(self) -> list[tuple[str, str]]:
        """Return (config key, column) of the columns of values; an empty list where none is named."""
        if self.channel is None:
            return [("values", name) for name in self.values or ()]
        return [("channel", str(self.channel)), ("value", str(self.value))]

    def _stream(self) -> Contents:
        wanted, _ = self._wanted(self._columns_of_values)
        split = self.split if self.split in wanted else None
        source = Source(
            self.path, wanted, self.id, self.time, self.values, split, self.beside, self.channel, self.value
        )
        self._stored = store.stored(source)
        self.zoned = self._stored.zoned
        return self._stored.contents()

    def _read_wide(self) -> Contents:
        wanted = self._wanted(self._columns_of_values)
        return self._once(self._from_wide, columns.read(self.path, *wanted))

    def _once(self, assemble: Callable[[Cells], Contents], cells: Cells) -> Contents:
        """Assemble the series from the rows; where a time occurs twice, retry without exact copies of rows."""
        self._rows = summary.RowCounts(len(cells.frame))
        try:
            return assemble(cells)
        except columns.RepeatedError:
            fewer = columns.without_copies(cells)
            if len(fewer.frame) == len(cells.frame):
                raise
            self._rows = replace(self._rows, copies=len(cells.frame) - len(fewer.frame))
            return assemble(fewer)

    def _count_unused(self, empty: NDArray[np.bool_], other: int = 0) -> None:
        if self._rows is not None:
            self._rows = replace(self._rows, empty=int(empty.sum()), other=other)

    def _from_wide(self, cells: Cells) -> Contents:
        channels = self.values or columns.number_columns(cells, self.id, self.time, self.split, self.beside)
        values = np.stack([columns.numbers(cells, name) for name in channels], 1)
        observed = np.any(~np.isnan(values), axis=1)
        self._count_unused(~observed)
        covariates, error = columns.covariates(cells, self.id, self.beside), None
        if self.beside.error:
            pairs = zip(self.beside.error, values.T, strict=True)
            error = np.stack([columns.errors(cells, name, value) for name, value in pairs], 1)
        points = self._points(cells, observed)
        order = time_order(points)
        self._refuse_twice(points, order, points.owner[order], points.times[order])
        chosen = lambda x: x if x is None else x[observed][order]
        return self._assemble(points, order, channels, chosen(values), chosen(covariates), chosen(error))

    def _read_long(self) -> Contents:
        wanted = self._wanted(self._columns_of_values)
        return self._once(self._from_long, columns.read(self.path, *wanted))

    def _from_long(self, cells: Cells) -> Contents:
        assert self.channel is not None and self.value is not None
        numbers = columns.numbers(cells, self.value)
        kind, occurring = columns.words(cells, self.channel)
        channels = self.values or occurring
        columns.refuse_unknown_channels(self.path, self.channel, channels, occurring)
        columns.all_filled(cells.rows(~np.isnan(numbers)), self.channel, kind[~np.isnan(numbers)])
        place = np.array([*(channels.index(x) if x in channels else -1 for x in occurring), -1])[kind]
        observed = ~np.isnan(numbers) & (place >= 0)
        self._count_unused(np.isnan(numbers), other=int((~np.isnan(numbers) & (place < 0)).sum()))
        covariates = columns.covariates(cells, self.id, self.beside)
        error = None
        if self.beside.error:
            error = columns.errors(cells, self.beside.error[0], np.where(observed, numbers, np.nan))[observed]
        points = self._points(cells, observed)
        numbers, place = numbers[observed], place[observed]
        order = time_order(points)
        owner, times = points.owner[order], points.times[order]
        new = (np.diff(owner, prepend=-1) != 0) | (np.diff(times, prepend=np.nan) != 0)
        point = np.cumsum(new) - 1
        again = np.lexsort((order, place[order], point))
        self._refuse_twice(points, order[again], point[again], place[order][again])
        first = np.flatnonzero(new)
        if covariates is not None:
            covariates = covariates[observed][order]
            self._refuse_other(points, order, covariates, first[point])
            covariates = covariates[first]

        def pivot(numbers):
            table = np.full((len(first), len(channels)), np.nan)
            table[point, place[order]] = numbers[order]
            return table

        return self._assemble(
            points, order[first], channels, pivot(numbers), covariates, None if error is None else pivot(error)
        )

    def _points(self, cells: Cells, observed: NDArray[np.bool_]) -> TableRows:
        """Return the rows with an observed value, and log the names of series without any.

        Raise ValueError where no row has one, and where such a row has no name.
        """
        if not observed.any():
            raise ValueError(f"{self.path} has rows, but no observed value in any; expected numbers in some.")
        if self.id is None:
            owner, names = np.zeros(len(observed), np.int64), (self.path.name.split(".")[0],)
        else:
            owner, names = columns.words(cells, self.id)
        has_value = np.zeros(len(names) + 1, bool)
        has_value[owner[observed]] = True  # the last entry is for rows without a name, whose owner is -1
        empty = np.flatnonzero(~has_value[:-1])
        cells, owner = cells.rows(observed), owner[observed]
        if self.id is not None:
            columns.all_filled(cells, self.id, owner)
        if len(empty):
            shown = ", ".join(f"'{names[i]}'" for i in empty[:5])
            log.warning("%s: %d series have no observed value and are left out: %s", self.path, len(empty), shown)
            owner = (np.cumsum(has_value[:-1]) - 1)[owner]
            names = tuple(np.delete(np.array(names, dtype=object), empty))
        times, dates = columns.times(cells, self.time)
        self.zoned = dates and has_zone(cells.column(self.time))
        return TableRows(cells, owner, names, times, dates)

    def _assemble(self, points: TableRows, order, channels, values, covariates, error) -> Contents:
        """Build the contents from sorted arrays.

        order (points,): the row from which each point takes its time and split; values, error (points, dim);
        covariates (points, covariates) or None.
        """
        owner, times = points.owner[order], points.times[order]
        offsets = np.searchsorted(owner, np.arange(len(points.names) + 1))
        series = Ragged.joined(
            times=times,
            values=values,
            offsets=offsets,
            windows=np.stack([times[offsets[:-1]], times[offsets[1:] - 1]], 1),
            ids=splits.hashed(points.names),
            names=points.names,
            covariates=covariates,
            error=error,
        )
        marked = None
        if self.split is not None and self.split in points.cells.frame:
            marked = splits.stretches(owner, columns.marks(points.cells, self.split)[order])
        return Contents(tuple(channels), series, marked, points.dates)

    def _refuse_other(self, points: TableRows, order, covariates, first) -> None:
        """Raise ValueError where rows of one point of the long form have different covariates.

        covariates (rows, covariates), in the given order of the file's rows; first (rows,): the first row of
        each one's point in that order.
        """
        if (differing := np.argwhere(covariates != covariates[first])).size:
            row, column = differing[0]
            cells, one, two = points.cells, int(order[first[row]]), int(order[row])
            raise columns.two_known(
                self.path,
                points.names[points.owner[two]],
                self.covariates[column],
                f"{self.time}={cells.text(self.time, two)}",
                (covariates[first[row], column], cells.where(one)),
                (covariates[row, column], cells.where(two)),
            )

    def _refuse_twice(self, points: TableRows, order, *keys) -> None:
        """Raise RepeatedError where two neighbouring rows, in the given order, agree in all keys, each (rows,)."""
        same = np.logical_and.reduce([np.diff(key) == 0 for key in keys])
        if not same.any():
            return
        pairs = np.sort(np.stack([order[:-1][same], order[1:][same]], 1), 1)
        first, second = map(int, pairs[pairs[:, 1].argmin()])
        cells = points.cells
        kind = "" if self.channel is None else f", channel '{cells.text(self.channel, first)}'"
        series = f"series '{points.names[points.owner[first]]}'{kind}"
        time = f"{self.time}={cells.text(self.time, first)}"
        raise columns.twice(self.path, series, time, cells.where(first), cells.where(second))


def time_order(points: TableRows) -> NDArray[np.int64]:
    """Return the order (rows,) that sorts rows by series, then time, with ties in the file's order.

    Log a warning where times decrease in the file.
    """
    owner, times = points.owner, points.times
    order = np.arange(len(owner))
    if (np.diff(owner) < 0).any():
        order = np.argsort(owner, kind="stable")
    falls = np.flatnonzero((np.diff(times[order]) < 0) & (np.diff(owner[order]) == 0))
    if not len(falls):
        return order
    place = int(order[falls[0] + 1])
    log.warning(
        "%s: times decrease (series '%s', %s); the rows are sorted by time.",
        points.cells.path,
        points.names[owner[place]],
        points.cells.where(place),
    )
    return np.lexsort((times, owner))
