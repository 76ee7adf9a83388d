"""Read the series of a file of any size, or of a data frame, one after the other."""

import gzip
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from vrnn_lab.data.splits import hashed
from vrnn_lab.data.table import columns, parquet_file
from vrnn_lab.data.table.columns import Cells, ColumnRoles
from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.data.table.time_zones import has_zone, mixed, other_than_trained

log = logging.getLogger("vrnn_lab")
SMALL = 200_000  # files of up to this many rows are read whole and may have their rows in any order
ONLY = "series"  # name of the single series of a file without names


@dataclass(frozen=True)
class TableSchema:
    """Name the columns of a table, wide (one per channel) or long (`channel` names the channel, `value` its number).

    Raise ValueError for time=None, and where only one of `channel` and `value` is given.
    """

    id: str | None = "id"  # None: all rows are one series
    time: str = "time"
    channel: str | None = None
    value: str | None = None

    def __post_init__(self):
        if self.time is None:
            raise ValueError("time=null: expected the name of the column of times.")
        if (self.channel is None) != (self.value is None):
            raise ValueError(
                f"channel={self.channel} and value={self.value}; the long form needs both columns, the wide form "
                "neither."
            )


@dataclass(frozen=True)
class SeriesRows:
    """Hold the cells of one series at each of its times."""

    name: str
    times: NDArray[np.float64]  # (points,), increasing
    values: NDArray[np.float64]  # (points, dim), NaN = not observed
    empty: NDArray[np.bool_]  # (points, dim): the file has the cell, and it is empty
    covariates: NDArray[np.float64]  # (points, covariates), NaN = not given
    error: NDArray[np.float64]  # (points, dim): error bars, NaN = not given


@dataclass(frozen=True)
class Chunk:
    """Hold consecutive rows of one series in the order of the file, each field (rows, ...) as in SeriesRows."""

    name: str
    row: NDArray[np.int64]  # index in the file
    times: NDArray[np.float64]
    values: NDArray[np.float64]
    empty: NDArray[np.bool_]
    covariates: NDArray[np.float64]
    error: NDArray[np.float64]


@dataclass
class SeriesReader:
    """Read a file or frame as series; raise ValueError, with the remedy, where it does not fit the model.

    key: the option that names it; for `at` and `future` (queries) no values are read, and covariates and error bars
    are optional.
    dates: whether times must be dates; zoned: whether dates must have a zone; None where that is not known.
    """

    source: Path | pd.DataFrame
    key: str
    schema: TableSchema
    channels: tuple[str, ...]
    roles: ColumnRoles
    dates: bool | None
    zoned: bool | None = None
    clock: Clock | None = field(default=None, init=False)  # format of the times read so far
    first_date: str = field(default="", init=False)  # the first date, with its line
    whole_ids: bool = field(default=False, init=False)  # the names are whole numbers, not texts
    occurring: set[str] = field(default_factory=set, init=False)  # channels read so far in the long form

    def __post_init__(self):
        schema = self.schema
        if isinstance(self.source, Path):
            self.path, self.names = self.source, columns.column_names(self.source, self.key)
        else:
            self.path, self.names = Path(f"the data frame {self.key}"), [str(name) for name in self.source.columns]
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"{self.path} has more than one column named {', '.join(twice)}; expected each once.")
        self.is_query = self.key in ("at", "future")
        required = [("id", schema.id), ("time", schema.time)]
        if not self.is_query:
            self._demand_roles()
            required += [("channel", schema.channel), ("value", schema.value), *self.roles.wanted]
        self.required = [(key, name) for key, name in required if name is not None]
        columns.demand(self.path, self.names, self.required, keys="")
        wide = not self.is_query and not schema.channel
        self.present = tuple(c for c in self.channels if wide and c in self.names)
        if wide:
            self._check_channels()
        if self.is_query:
            self._log_unused()
        if not self.is_query and len(self.roles.error) not in (0, len(self.channels) if wide else 1):
            raise ValueError(
                f"the model was trained with error bars in the columns {', '.join(map(str, self.roles.error))}; "
                "expected a table of the form it was trained on, wide or long, with these columns."
            )

    def _demand_roles(self) -> None:
        if absent := [(key, name) for key, name in self.roles.wanted if name not in self.names]:
            key, name = absent[0]
            raise ValueError(
                f"{self.path} has no column '{name}', which the model was trained with (data.{key}); it has "
                f"{self.names}. Add a column of that name."
            )

    def _log_unused(self) -> None:
        known = {name for _, name in (*self.required, *self.roles.wanted)}
        if spare := [name for name in self.names if name not in known]:
            log.warning(
                "%s: all channels are predicted at its times; columns that are not used: %s",
                self.path,
                ", ".join(spare),
            )

    def _check_channels(self) -> None:
        spare = [n for n in self.names if n not in {name for _, name in self.required}]
        if not self.present:
            raise ValueError(
                f"{self.path} has none of the model's channels, {', '.join(self.channels)}; it has {self.names}. "
                "Rename its columns to these, or use the long form: channel=<column> value=<column>."
            )
        if absent := [c for c in self.channels if c not in self.present]:
            log.warning("%s has no column %s: its values are taken as not observed", self.path, ", ".join(absent))
        if unknown := [c for c in spare if c not in self.channels]:
            log.info("%s: columns that are not channels of the model are left out: %s", self.path, ", ".join(unknown))

    def _check_occurring(self) -> None:
        unknown = sorted(self.occurring.difference(self.channels))
        if unknown and len(unknown) == len(self.occurring):
            raise ValueError(
                f"{self.path}: column '{self.schema.channel}' holds none of the model's channels, "
                f"{', '.join(self.channels)}; it holds {unknown[:20]}."
            )
        if unknown:
            log.info("%s: channels that the model does not know are left out: %s", self.path, ", ".join(unknown))

    @property
    def small(self) -> bool:
        """Return whether the file has at most SMALL rows or is a frame, so that it may be read whole."""
        if not isinstance(self.source, Path):
            return True
        if self.path.suffix.lower() == ".parquet":
            return parquet_file.row_count(self.path) <= SMALL
        with (gzip.open if self.path.suffix.lower() == ".gz" else open)(self.path, "rb") as lines:
            return sum(1 for _ in islice(lines, SMALL + 2)) <= SMALL + 1

    def ids(self) -> set[int]:
        """Return the hashes of all names of series."""
        if self.schema.id is None:
            return set(hashed([ONLY]).tolist())
        hashes: set[int] = set()
        for cells in self._cells([self.schema.id]):
            hashes.update(hashed(columns.words(cells, self.schema.id)[1]).tolist())
        return hashes

    def series(self, whole: bool) -> Iterator[SeriesRows]:
        """Yield the series one after the other.

        whole: sorted by name, for a `small` file with rows in any order; otherwise in the file's order, where rows of
        a series must be contiguous. Raise ValueError for a series that comes back and for repeated times.
        """
        pieces: list[Chunk] = []
        seen: dict[int, int] = {}  # hash of a name -> first row of its series
        for piece in self._pieces(whole):
            if pieces and pieces[0].name != piece.name:
                yield self._joined(pieces)
                pieces = []
            if not pieces:
                self._check_new(piece, seen)
            pieces.append(piece)
        if pieces:
            yield self._joined(pieces)
        self._check_occurring()

    def nothing(self, name: str) -> SeriesRows:
        """Return a series of that name without any points."""
        none = np.zeros((0, len(self.channels)))
        return SeriesRows(name, np.zeros(0), none, none.astype(bool), np.zeros((0, len(self.roles.covariates))), none)

    def _check_new(self, piece: Chunk, seen: dict[int, int]) -> None:
        number = int(hashed([piece.name])[0])
        if number in seen:
            raise ValueError(
                f"{self.path}: series '{piece.name}', which begins in {columns.where(self.path, seen[number])}, "
                f"comes back in {columns.where(self.path, int(piece.row[0]))} after another series; {self.sort_first}"
            )
        seen[number] = int(piece.row[0])

    @property
    def sort_first(self) -> str:
        return (
            f"a file of more than {SMALL} rows, or one read with stream=true, needs the rows of each series "
            'together, and the same order of series in input= and at=. Sort it once: duckdb -c "COPY (SELECT * FROM '
            f"'{self.path}' ORDER BY {self.schema.id}, {self.schema.time}) TO 'sorted.parquet'\"; or with pandas: "
            "read_csv, sort_values, to_csv."
        )

    def _cells(self, wanted: list[str]) -> Iterator[Cells]:
        words = [name for name in (self.schema.id, self.schema.channel) if name in wanted]
        if isinstance(self.source, Path):
            yield from columns.chunks(self.source, wanted, words, SMALL)
        else:
            frame = self.source.set_axis(self.names, axis=1).loc[:, wanted]
            yield Cells(self.path, frame.reset_index(drop=True))

    @cached_property
    def _wanted(self) -> list[str]:
        optional = [name for _, name in self.roles.wanted if name in self.names]
        return list(dict.fromkeys([*(name for _, name in self.required), *optional, *self.present]))

    def _pieces(self, whole: bool) -> Iterator[Chunk]:
        for cells in self._cells(self._wanted):
            cells, numbers = self._numbers(columns.without_copies(cells))
            if not len(cells.frame):
                continue
            owner, names = np.zeros(len(cells.frame), np.int64), (ONLY,)
            if self.schema.id is not None:
                owner, names = columns.words(cells, self.schema.id)
                columns.all_filled(cells, self.schema.id, owner)
                self.whole_ids = self.whole_ids or _whole(cells.column(self.schema.id))
            times = self._times(cells)
            row = cells.frame.index.to_numpy()
            order = np.argsort(owner, kind="stable") if whole else slice(None)
            owner = owner[order]
            arrays: list[NDArray[Any]] = [array[order] for array in (row, times, *numbers)]
            edges = [0, *np.flatnonzero(np.diff(owner)) + 1, len(owner)]
            for begin, end in pairwise(edges):
                yield Chunk(names[owner[begin]], *(array[begin:end] for array in arrays))

    def _times(self, cells: Cells) -> NDArray[np.float64]:
        times, dates = columns.times(cells, self.schema.time)
        if self.clock is None:
            self.clock = Clock.of(cells, self.schema.time, dates)
        if self.dates not in (None, dates):
            kinds = "dates", "numbers"
            raise ValueError(
                f"{self.path}: column '{self.schema.time}' holds {kinds[not dates]}, but the times that the model "
                f"was trained on are {kinds[dates]}; expected the same kind, counted from the same moment."
            )
        if self.clock.dates != dates:
            raise ValueError(
                f"{self.path}: column '{self.schema.time}' holds dates in some rows and numbers in others (from "
                f"{cells.where(0)}); expected one kind."
            )
        if dates:
            self._check_zone(cells)
        return times

    def _check_zone(self, cells: Cells) -> None:
        """Check that the dates of a chunk agree, in having a zone or not, with earlier chunks and with training.

        Raise ValueError if they do not. Within the chunk the dates are all of one kind.
        """
        zoned = has_zone(cells.column(self.schema.time))
        example = columns.shown(cells, self.schema.time, 0)
        if self.zoned not in (None, zoned):
            raise other_than_trained(self.path, self.schema.time, example, zoned)
        self.first_date = self.first_date or example
        assert self.clock is not None
        if (self.clock.zone is not None) != zoned:
            pair = (self.first_date, example) if zoned else (example, self.first_date)
            raise mixed(self.path, self.schema.time, *pair)

    def _numbers(self, cells: Cells) -> tuple[Cells, list[NDArray[Any]]]:
        """Return the cells without blank rows, and [values, empty cells, covariates, error bars] of the kept rows."""
        covariates, error = self._columns(cells, self.roles.covariates), self._errors(cells)
        if self.schema.channel and not self.is_query:
            values, empty, kept = self._long(cells)
            error = np.where(np.isnan(values) & ~empty, np.nan, error)
        else:
            values = self._columns(cells, tuple(c if c in self.present else None for c in self.channels))
            empty = np.isnan(values) & [name in self.present for name in self.channels]
            kept = np.ones(len(values), bool)
        self._check_errors(cells, values)
        written = cells.column(self.schema.time).notna().to_numpy()
        if self.schema.id is not None:
            written = written | (columns.words(cells, self.schema.id)[0] >= 0)
        kept &= written | ~np.isnan(values).all(1)
        return cells.rows(kept), [array[kept] for array in (values, empty, covariates, error)]

    def _columns(self, cells: Cells, names: Sequence[str | None]) -> NDArray[np.float64]:
        """Return the numbers (rows, names) of the named columns, NaN for a column that the file does not have."""
        none = np.full(len(cells.frame), np.nan)
        here = [name if name in self.names else None for name in names]
        read = [none if name is None else columns.numbers(cells, name, "Correct the cell.") for name in here]
        return np.stack(read, 1) if read else none[:, None][:, :0]

    def _errors(self, cells: Cells) -> NDArray[np.float64]:
        """Return the error bars (rows, dim), NaN where none is given; a single column applies to all channels."""
        bars = self._columns(cells, self.roles.error or (None,))
        return np.broadcast_to(bars, (len(bars), len(self.channels)))

    def _check_errors(self, cells: Cells, values: NDArray[np.float64]) -> None:
        """Check that values have error bars where the model uses them, and that none is negative, queries included.

        Raise ValueError if not.
        """
        for channel, name in enumerate(self.roles.error):
            if name not in self.names:
                continue
            observed = ~np.isnan(values if self.schema.channel else values[:, [channel]]).all(1)
            counts = observed | (self._columns(cells, [name])[:, 0] < 0)
            columns.errors(cells, name, np.where(counts, 0.0, np.nan))

    def _long(self, cells: Cells) -> tuple[NDArray, NDArray, NDArray]:
        """Read the long form: return values and empty cells, each (rows, dim), and the rows (rows,) to keep.

        A row holds a cell of one channel. A row without channel and number holds an empty cell of every channel. Rows
        of channels that the model does not know are dropped.
        """
        assert self.schema.channel is not None and self.schema.value is not None
        number = columns.numbers(cells, self.schema.value, cure="Correct the cell.")
        kind, occurring = columns.words(cells, self.schema.channel)
        columns.all_filled(cells.rows(~np.isnan(number)), self.schema.channel, kind[~np.isnan(number)])
        self.occurring.update(occurring)
        place = np.array([*(self.channels.index(x) if x in self.channels else -1 for x in occurring), -2])[kind]
        values = np.full((len(place), len(self.channels)), np.nan)
        empty = np.zeros(values.shape, bool)
        there = np.flatnonzero(place >= 0)
        values[there, place[there]] = number[there]
        empty[there, place[there]] = np.isnan(number[there])
        empty[place == -2] = True
        return values, empty, place != -1

    def _joined(self, pieces: list[Chunk]) -> SeriesRows:
        """Join chunks of a series, sort them by time and merge the rows of one time into one point."""
        join = lambda name: np.concatenate([getattr(piece, name) for piece in pieces])
        times = join("times")
        order = np.argsort(times, kind="stable")
        times, row = times[order], join("row")[order]
        values, empty, covariates, error = (join(name)[order] for name in ("values", "empty", "covariates", "error"))
        observed = ~np.isnan(values)
        new = np.diff(times, prepend=-np.inf) > 0
        point = np.cumsum(new) - 1
        if not new.all():
            self._refuse_twice(pieces[0].name, observed, point, times, row)
            values, covariates, error = (_merged(array, point) for array in (values, covariates, error))
            empty = np.logical_or.reduceat(empty, np.flatnonzero(new)) & np.isnan(values)
        return SeriesRows(pieces[0].name, times[new], values, empty, covariates, error)

    def _refuse_twice(self, name: str, observed: NDArray, point: NDArray, times: NDArray, row: NDArray) -> None:
        """Raise ValueError for a second value at one time, of a channel in the long form, of a row in the wide form.

        observed (rows, dim); point, times, row (rows,): each row's point, time and index in the file.
        """
        seen = observed if self.schema.channel else np.asarray(observed.any(1))[:, None]
        for channel, there in enumerate(seen.T):
            which = np.flatnonzero(there)
            again = columns.first(np.diff(point[which]) == 0)
            if again is None:
                continue
            first, second = (columns.where(self.path, int(row[i])) for i in which[again : again + 2])
            kind = f", channel '{self.channels[channel]}'" if self.schema.channel else ""
            assert self.clock is not None
            time = self.clock.write(times[which[again : again + 1]], text=True)[0]
            raise ValueError(
                f"{self.path}: series '{name}'{kind} has two rows at {self.schema.time}={time}, {first} and "
                f"{second}; expected one. Delete or average them, or name the column that tells the series apart: "
                "id=..."
            )


def _merged(values: NDArray[np.float64], point: NDArray[np.int64]) -> NDArray[np.float64]:
    """Merge the rows (rows, columns) of each point into (points, columns), with the last number of several."""
    merged = np.full((point[-1] + 1, values.shape[1]), np.nan)
    row, column = np.nonzero(~np.isnan(values))
    merged[point[row], column] = values[row, column]
    return merged


def _whole(content: pd.Series) -> bool:
    kind = content.cat.categories if isinstance(content.dtype, pd.CategoricalDtype) else content
    return types.is_integer_dtype(kind.dtype) and not (len(kind) and kind.max() > np.iinfo(np.int64).max)


def paired(given: SeriesReader, queries: SeriesReader, whole: bool) -> Iterator[tuple[SeriesRows, SeriesRows]]:
    """Yield each queried series as (given rows, queried rows), in the order of the queries.

    A series that is not given has no given rows. Raise ValueError where the two files order their series differently.
    """
    wanted, without = queries.ids(), WithoutRows(given.path)
    queried = queries.series(whole)
    for rows in given.series(whole):
        _check_zones(given, queries)
        number = int(hashed([rows.name])[0])
        if number in without.seen:
            raise ValueError(
                f"{given.path}: series '{rows.name}' has another place in {queries.path}; {queries.sort_first}"
            )
        if number not in wanted:
            continue
        for query in queried:
            _check_zones(given, queries)
            if query.name == rows.name:
                yield rows, query
                break
            without.add(query.name)
            yield given.nothing(query.name), query
    for query in queried:
        without.add(query.name)
        yield given.nothing(query.name), query
    without.log()


def _check_zones(given: SeriesReader, queries: SeriesReader) -> None:
    """Raise ValueError where the dates read so far have a zone in one of the two files and none in the other."""
    if given.clock is None or queries.clock is None or not (given.clock.dates and queries.clock.dates):
        return
    if (given.clock.zone is None) != (queries.clock.zone is None):
        one, other = (given, queries) if given.clock.zone is None else (queries, given)
        raise ValueError(
            f"{one.path} has times without a zone ({one.first_date}), and {other.path} has times with one "
            f"({other.first_date}); expected a zone in both or in none. Append Z to times that are UTC, and to "
            "others their offset from it, such as +01:00."
        )


class WithoutRows:
    """Collect queried series without any given row, to log their number and the first names."""

    def __init__(self, path: Path):
        self.path, self.seen, self.shown = path, set[int](), list[str]()

    def add(self, name: str) -> None:
        self.seen.add(int(hashed([name])[0]))
        self.shown += [f"'{name}'"] if len(self.shown) < 5 else []

    def log(self) -> None:
        if self.seen:
            count, shown = len(self.seen), ", ".join(self.shown)
            log.warning(
                "%d series have no row in %s and are predicted without observations: %s", count, self.path, shown
            )
