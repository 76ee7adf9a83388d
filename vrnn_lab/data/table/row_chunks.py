"""Read the rows of a large file in chunks, in the order of the file or sorted by `sorted_rows`."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrnn_lab.data.table import columns, parquet_file
from vrnn_lab.data.table.columns import Cells, ColumnRoles
from vrnn_lab.data.table.time_zones import has_zone, mixed

log = logging.getLogger("vrnn_lab")
ROWS = 2**18  # read at once
LOG_EVERY = 10.0  # seconds between lines of progress in the log


@dataclass(frozen=True)
class Source:
    """Name a file and the columns that are read from it, as the config of data=table does."""

    path: Path
    wanted: list[str]
    id: str | None
    time: str
    values: tuple[str, ...] | None  # None: all columns of numbers, in the long form all channels that occur
    split: str | None
    roles: ColumnRoles
    channel: str | None  # of the long form
    value: str | None

    @property
    def name(self) -> str:
        """Return the name of the only series of a file without names."""
        return self.path.name.split(".")[0]


@dataclass(frozen=True)
class Chunk:
    """Hold some rows of a file, with the first row and the name of each run of rows of one name."""

    cells: Cells
    start: NDArray[np.int64]  # (runs,)
    names: list[str]  # "" for rows without a name


class RowChunks(ABC):
    """Yield the rows of a source in chunks.

    source: of these rows, whose `values` are the channels; named: whether the user named these; dates, zoned: the
    kind of the times read so far, None before the first.
    """

    source: Source
    named: bool
    dates: bool | None = None
    zoned: bool | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        return self.source.values or ()

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Return the column of the cells that holds the values of each channel."""
        return self.channels

    @property
    @abstractmethod
    def size(self) -> int:
        """Return an estimate of the number of rows, from above."""

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of the whole source."""

    @abstractmethod
    def times(self, cells: Cells) -> NDArray[np.float64]:
        """Return the times (rows,); raise ValueError for a cell that is no time, or not of the kind of the others."""

    @abstractmethod
    def time_text(self, cells: Cells, place: int) -> str:
        """Return the time of a row as text, for a message."""


class RowsOfFile(RowChunks):
    """Yield the rows of a CSV or Parquet file in its order; raise ValueError for a file without rows or channels."""

    def __init__(self, source: Source):
        self.source, self.named, self.first_date = source, source.values is not None, ""
        self.parquet = source.path.suffix.lower() == ".parquet"
        if self.parquet and not parquet_file.row_count(source.path):
            raise ValueError(
                f"{source.path} has no rows, only the columns {source.wanted}; expected one row per time."
            )
        if source.values is None and source.channel is None:
            channels = self._typed_channels() if self.parquet else self._channels_of_text()
            self.source = replace(source, values=channels)

    @property
    def size(self):
        if self.parquet:
            return parquet_file.row_count(self.source.path)
        packed = 10 if self.source.path.suffix.lower() == ".gz" else 1
        return packed * self.source.path.stat().st_size // (2 * len(self.source.wanted))

    def _typed_channels(self) -> tuple[str, ...]:
        """Return the columns whose type is a number's, without roles of their own."""
        import pyarrow as pa

        is_number = lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        source, schema = self.source, parquet_file.schema(self.source.path)
        with_role = [name for _, name in source.roles.wanted]
        others = [c for c in source.wanted if c not in (source.id, source.time, source.split, *with_role)]
        others = [c for c in others if c[:9] != "Unnamed: "]
        channels = tuple(c for c in others if is_number(schema.field(c).type))
        columns.log_left_out(source.path, source.id, source.time, others, channels, "Expected one per channel.")
        return channels

    def _channels_of_text(self) -> tuple[str, ...]:
        """Return the columns of numbers among the first rows of a CSV file."""
        source = self.source
        cells = next(self._cells(), None)
        if cells is None:
            raise ValueError(
                f"{source.path} has no rows, only the columns {source.wanted}; expected one row per time."
            )
        return columns.number_columns(cells, source.id, source.time, source.split, source.roles)

    def _cells(self) -> Iterator[Cells]:
        source = self.source
        words = [name for name in (source.id, source.split, source.channel) if name is not None]
        chunks = columns.chunks(source.path, source.wanted, words, ROWS)
        yield from (cells for cells in chunks if len(cells.frame))

    def cells(self) -> Iterator[Cells]:
        """Yield the rows, and log the progress."""
        logged_at = monotonic()
        for cells in self._cells():
            yield cells
            if monotonic() - logged_at > LOG_EVERY:
                logged_at = monotonic()
                log.info("%s: %d rows read", self.source.path, int(cells.frame.index[-1]) + 1)

    def chunks(self):
        yield from self._of_parquet() if self.parquet else map(self._of_csv, self.cells())

    def _of_csv(self, cells: Cells) -> Chunk:
        if self.source.id is None:
            return Chunk(cells, np.zeros(1, np.int64), [self.source.name])
        column = cells.column(self.source.id).fillna("").to_numpy()
        start = np.append(0, np.flatnonzero(column[1:] != column[:-1]) + 1)
        return Chunk(cells, start, [str(name) for name in column[start]])

    def _of_parquet(self) -> Iterator[Chunk]:
        """Yield the chunks of a Parquet file, of whose names only the first in each run becomes a Python string."""
        row, logged_at, path = 0, monotonic(), self.source.path
        batches = parquet_file.batches(path, self.source.wanted, ROWS)
        while True:
            with parquet_file.readable(path):
                batch = next(batches, None)
                if batch is None:
                    return
                chunk = self._of_batch(batch, row)
            yield chunk
            row += len(batch)
            if monotonic() - logged_at > LOG_EVERY:
                logged_at = monotonic()
                log.info("%s: %d %% of %d rows read", path, 100 * row / self.size, self.size)

    def _of_batch(self, batch: Any, row: int) -> Chunk:
        import pyarrow as pa
        import pyarrow.compute as pc

        id = self.source.id
        frame = batch.select([name for name in batch.schema.names if name != id]).to_pandas(ignore_metadata=True)
        cells = Cells(self.source.path, frame.set_index(pd.RangeIndex(row, row + len(batch))))
        if id is None:
            return Chunk(cells, np.zeros(1, np.int64), [self.source.name])
        column = batch.column(id)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        text = pc.fill_null(column.cast(pa.string()), "")
        new = np.asarray(pc.call_function("not_equal", [text[1:], text[:-1]]))
        start = np.append(0, np.flatnonzero(new) + 1)
        names = pd.Index(column.take(pa.array(start)).to_pandas())  # names floats as the in-memory reader does
        return Chunk(cells, start, ["" if pd.isna(name) else str(name) for name in names])

    def times(self, cells):
        column = self.source.time
        times, dates = columns.times(cells, column)
        if self.dates not in (None, dates):
            raise ValueError(
                f"{self.source.path}: column '{column}' holds dates in some rows and numbers in others "
                f"(from {cells.where(0)}); expected one kind."
            )
        self.dates = dates
        if dates:
            zoned, example = has_zone(cells.column(column)), columns.shown(cells, column, 0)
            if self.zoned not in (None, zoned):
                raise mixed(
                    self.source.path,
                    column,
                    *((self.first_date, example) if zoned else (example, self.first_date)),
                )
            self.zoned, self.first_date = zoned, self.first_date or example
        return times

    def time_text(self, cells, place):
        return cells.text(self.source.time, place)
