"""Sort the rows of a file of any size by series and time, and turn the long form into the wide one, with DuckDB."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.table import columns, parquet_file
from vrnn_lab.data.table.columns import Cells
from vrnn_lab.data.table.row_chunks import ROWS, Chunk, RowChunks, RowsOfFile, Source

log = logging.getLogger("vrnn_lab")
MEMORY = "1GB"  # that DuckDB may use before it writes to disk
THREADS = 4  # of DuckDB, at most, since each needs an eighth of that


@dataclass
class SortedRows(RowChunks):
    """Yield the rows of a source sorted by series and time; raise ValueError for a cell that cannot be used.

    The file is read once, its cells become numbers in a Parquet file in `folder`, and DuckDB sorts that file, on disk
    where it does not fit into memory. The index of the rows is that of the file, so that messages name its lines.
    """

    source: Source
    reason: str  # why they are sorted, for messages
    folder: Path  # is made here; the caller removes it
    dates: bool | None = field(default=None, init=False)
    zoned: bool | None = field(default=None, init=False)

    def __post_init__(self):
        self.duckdb = _duckdb(self.source, self.reason)
        self.folder.mkdir()
        raw = RowsOfFile(self.source)
        self.named, self.source = raw.named, raw.source
        log.info("%s: %s; its rows are sorted in %s", self.source.path, self.reason, self.folder.parent)
        self.occurring: list[str] = []  # channels of the long form, by the number that stands for them
        roles = self.source.roles
        values = self.source.values or () if self.source.channel is None else (str(self.source.value),)
        self.values = values  # columns that hold values
        self.numeric = list(dict.fromkeys([*values, *roles.covariates, *filter(None, roles.error)]))
        rows = self.folder / "rows.parquet"
        self._write(raw, rows)
        self.dates, self.zoned = raw.dates, raw.zoned
        self._sort(rows)
        rows.unlink()
        if self.source.channel is not None and roles.error:  # one column of error bars has become one a channel
            bars = tuple(f"{roles.error[0]} of {name}" for name in self.channels)
            self.source = replace(self.source, roles=replace(roles, error=bars))

    @property
    def value_columns(self):
        if self.source.channel is None:
            return self.channels
        return tuple(f"{self.source.value} of {name}" for name in self.channels)

    @property
    def size(self):
        return parquet_file.row_count(self.folder / "sorted.parquet")

    # ---- cells as numbers -------------------------------------------------------------------------------------

    def _write(self, raw: RowsOfFile, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = [("name", pa.string()), ("row", pa.int64()), ("time", pa.float64()), ("label", pa.int8())]
        kinds += [("channel", pa.int32())]
        kinds += [(f"c{i}", pa.float64()) for i in range(len(self.numeric))]
        read = False
        with pq.ParquetWriter(file, pa.schema(kinds), compression="zstd", compression_level=1) as out:
            for cells in raw.cells():
                out.write_table(pa.table(self._typed(raw, cells), pa.schema(kinds)))
                read = True
        if not read:
            raise ValueError(f"{self.source.path} has no rows, only the columns {self.source.wanted}; expected some.")
        if self.source.channel is not None:
            self._choose_channels()

    def _typed(self, raw: RowsOfFile, cells: Cells) -> dict[str, Any]:
        import pyarrow as pa

        source = self.source
        numbers = {name: columns.numbers(cells, name) for name in self.numeric}
        observed = np.zeros(len(cells.frame), bool)
        for name in self.values:
            observed |= ~np.isnan(numbers[name])
        for name in source.roles.known:
            columns.known(cells, name)
        owner, names = np.zeros(len(observed), np.int64), (source.name,)
        if source.id is not None:
            owner, names = columns.words(cells, source.id)
            columns.all_filled(cells.rows(observed), source.id, owner[observed])
        channel = self._channel(cells, observed)
        kept = cells.rows(observed)
        times, labels = np.full(len(observed), np.nan), np.full(len(observed), -1)
        if observed.any():
            times[observed] = raw.times(kept)
            if source.split is not None:
                labels[observed] = columns.marks(kept, source.split)
        named = owner >= 0
        texts = np.array([*names, ""], dtype=object)[owner]
        arrays = {"name": texts, "row": cells.frame.index.to_numpy(), "time": times, "label": labels}
        arrays |= {"channel": channel} | {f"c{i}": x for i, x in enumerate(numbers.values())}
        return {key: pa.array(x[named], from_pandas=True) for key, x in arrays.items()}

    def _channel(self, cells: Cells, observed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the index (rows,) of each row's channel among those that occur, in order of first occurrence."""
        if self.source.channel is None:
            return np.zeros(len(observed), np.int64)
        kind, occurring = columns.words(cells, self.source.channel)
        columns.all_filled(cells.rows(observed), self.source.channel, kind[observed])
        self.occurring += [name for name in occurring if name not in self.occurring]
        return np.array([*map(self.occurring.index, occurring), -1])[kind]

    def _choose_channels(self) -> None:
        if not self.occurring:
            raise ValueError(
                f"{self.source.path} has rows, but no channel in any; expected names in '{self.source.channel}'."
            )
        channels = self.source.values or tuple(sorted(self.occurring))
        columns.refuse_unknown_channels(self.source.path, self.source.channel, channels, self.occurring)
        self.source = replace(self.source, values=channels)

    # ---- sorting ----------------------------------------------------------------------------------------------

    def _sort(self, rows: Path) -> None:
        file = self.folder / "sorted.parquet"
        try:
            with closing(self.duckdb.connect()) as base:
                base.execute(f"SET memory_limit='{MEMORY}'; SET preserve_insertion_order=false;")
                base.execute("SET enable_progress_bar=false; SET temp_directory=?", [str(self.folder)])
                base.execute(f"SET threads={min(THREADS, os.cpu_count() or 1)}")
                table = self._without_copies(base, f"read_parquet({_text(rows)})")
                self._refuse_other_covariates(base, table)
                query = self._wide(table) if self.source.channel is not None else f"SELECT * FROM {table}"
                base.execute(f"COPY ({query} ORDER BY name, time, row) TO {_text(file)} (FORMAT parquet)")
        except self.duckdb.IOException as error:
            raise OSError(" ".join(str(error).split())) from error
        except RuntimeError as error:  # what DuckDB makes of Ctrl-C
            if "interrupted" in str(error).lower():
                raise KeyboardInterrupt from None
            raise

    @property
    def _is_value(self) -> str:
        """Return the condition that a row has an observed value."""
        if self.source.channel is not None:
            wanted = [str(i) for i, name in enumerate(self.occurring) if name in self.channels]
            return f"c0 IS NOT NULL AND channel IN ({', '.join(wanted)})"
        return " OR ".join(f"c{i} IS NOT NULL" for i in range(len(self.channels)))

    def _without_copies(self, base: Any, table: str) -> str:
        """Return a table of the rows in which no series has two values at one time.

        Where some have, rows that repeat an earlier one exactly are dropped. Raise ValueError for others.
        """
        if self._twice(base, table) is None:
            return table
        count = lambda name: base.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
        base.execute(f"CREATE TABLE once AS SELECT min(row) AS row, * EXCLUDE (row) FROM {table} GROUP BY ALL")
        if copies := count(table) - count("once"):
            log.warning("%s: %d rows repeat an earlier row exactly and are dropped.", self.source.path, copies)
        if (found := self._twice(base, "once")) is not None:
            name, time, channel, first, second = found
            kind = "" if self.source.channel is None else f", channel '{self.occurring[channel]}'"
            first, second = (columns.where(self.source.path, row) for row in (first, second))
            at = f"{self.source.time}={self._shown(time)}"
            raise columns.twice(self.source.path, f"series '{name}'{kind}", at, first, second)
        return "once"

    def _twice(self, base: Any, table: str) -> Any:
        """Return (name, time, channel, first row, last row) of values of one time, or None."""
        return base.execute(
            f"SELECT name, time, channel, min(row), max(row) AS second FROM {table} WHERE {self._is_value} "
            "GROUP BY name, time, channel HAVING count(*) > 1 ORDER BY second LIMIT 1"
        ).fetchone()

    def _refuse_other_covariates(self, base: Any, table: str) -> None:
        """Raise ValueError where rows of the long form that become one have different covariates."""
        roles = self.source.roles
        for column in roles.covariates if self.source.channel is not None else ():
            c, known = f"c{self.numeric.index(column)}", column in roles.known
            where, keys = (f"WHERE {self._is_value}", "name, time") if known else ("", "name")
            found = base.execute(
                f"SELECT name, min(time), min({c}), arg_min(row, {c}), max({c}), arg_max(row, {c}) "
                f"FROM {table} {where} GROUP BY {keys} HAVING min({c}) < max({c}) ORDER BY min(row) LIMIT 1"
            ).fetchone()
            if found is not None:
                name, time, least, one, most, two = found
                one, two = (columns.where(self.source.path, row) for row in (one, two))
                if known:
                    at = f"{self.source.time}={self._shown(time)}"
                    raise columns.two_known(self.source.path, name, column, at, (least, one), (most, two))
                raise columns.two_static(self.source.path, name, column, (least, f"in {one}"), (most, f"in {two}"))

    def _wide(self, table: str) -> str:
        """Return the query that makes one row a point of the long form, with columns v* of values and e* of bars."""
        roles, parts = self.source.roles, []
        bar = f"c{self.numeric.index(str(roles.error[0]))}" if roles.error else None
        for i, name in enumerate(self.channels):
            of = f"FILTER (channel = {self.occurring.index(name)})"
            parts.append(f"max(c0) {of} AS v{i}")
            parts += [f"max({bar}) {of} AS e{i}"] if bar else []
        rest = [f"c{self.numeric.index(name)}" for name in roles.covariates]
        parts += [f"arg_min({name}, row) AS {name}" for name in ("label", *dict.fromkeys(rest))]
        return f"SELECT name, time, min(row) AS row, {', '.join(parts)} FROM {table} GROUP BY name, time"

    def _shown(self, time: float) -> str:
        if not self.dates:
            return repr(time)
        return str(np.datetime64(round(time * 86_400e6), "us"))

    # ---- sorted rows -------------------------------------------------------------------------------------------

    def times(self, cells):
        return cells.column(self.source.time).to_numpy(np.float64)

    def time_text(self, cells, place):
        return self._shown(float(cells.column(self.source.time).iloc[place]))

    def chunks(self) -> Iterator[Chunk]:
        for batch in parquet_file.batches(self.folder / "sorted.parquet", None, ROWS):
            frame = batch.to_pandas()
            name = frame["name"].to_numpy()
            start = np.append(0, np.flatnonzero(name[1:] != name[:-1]) + 1)
            yield Chunk(Cells(self.source.path, self._cells(frame)), start, [str(x) for x in name[start]])

    def _cells(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows under the names of the source's columns, with the index of the file."""
        source = self.source
        found = {name: frame[f"c{i}"] for i, name in enumerate(self.numeric) if f"c{i}" in frame}
        if source.channel is not None:
            found |= {name: frame[f"v{i}"] for i, name in enumerate(self.value_columns)}
            found |= {name: frame[f"e{i}"] for i, name in enumerate(source.roles.error) if name is not None}
        found[source.time] = frame["time"]
        if source.split is not None:
            found[source.split] = pd.Categorical.from_codes(frame["label"], list(SPLITS))
        return pd.DataFrame(found).set_axis(frame["row"])


def _text(path: Path) -> str:
    """Return a path as a text of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _duckdb(source: Source, reason: str) -> Any:
    try:
        import duckdb
        import pyarrow  # noqa: F401 - imported to see whether it is there
    except ImportError:
        raise ValueError(
            f"data.stream=true reads {source.path} sorted by series and time, but {reason}; sorting a file of any "
            "size needs DuckDB, which is not installed: pip install 'vrnn_lab[large]'. Or leave data.stream out: the "
            "rows are then sorted in memory."
        ) from None
    return duckdb
