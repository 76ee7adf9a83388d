"""Convert a Parquet file of any size, in one pass, to plain arrays in the cache, which are then read from disk."""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.data.base import Points, Ragged
from vrnn_lab.data.cache import cache_folder, own_folder
from vrnn_lab.data.packed_strings import PackedStrings
from vrnn_lab.data.splits import Contents, Fill, Runs, hashed
from vrnn_lab.data.table import columns, parquet_file
from vrnn_lab.data.table.columns import Cells
from vrnn_lab.data.table.time_zones import has_zone, mixed

log = logging.getLogger("vrnn_lab")
ROWS = 2**18  # read at once
KEPT = 5  # most recently used files that stay in the cache
COPIES = 3  # copies of a file's values, with noise of different seeds, that are kept
LOG_EVERY = 10.0  # seconds between lines of progress in the log
FORM = 3  # version of the format; a new one is written to another folder
VERIFIED = 2**30  # bytes of arrays up to which checksums are verified (1 s a GB); above, only sizes are checked
ARRAYS = {
    "times": "<f8",
    "values": "<f8",
    "offsets": "<i8",  # of the first point of each series, and the end
    "windows": "<f8",
    "ids": "<i8",
    "row": "<i8",  # row of the file in which each series begins
    "text": "u1",  # names
    "text_end": "<i8",
    "run_owner": "<i8",  # run_*: runs of points of one series and split
    "run_first": "<i8",
    "run_label": "<i8",
}


@dataclass(frozen=True)
class Stored:
    """Read the arrays of a converted file from its folder in the cache."""

    folder: Path

    def array(self, name: str) -> NDArray:
        file = self.folder / name
        if not file.stat().st_size:
            return np.zeros(0, ARRAYS[name])
        return np.asarray(np.memmap(file, ARRAYS[name], "r"))

    @property
    def facts(self) -> dict:
        return read_json(self.folder / "facts.json", self._cure)

    @property
    def _cure(self) -> str:
        return "It is written again."

    def verify(self) -> None:
        """Check the sizes of all arrays, and up to VERIFIED bytes their checksums; raise DamagedError for a fault."""
        known = self.facts["arrays"]
        whole = sum(size for size, _ in known.values()) <= VERIFIED
        for name, (size, digest) in known.items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != size or (whole and checksum(file) != digest):
                raise DamagedError(
                    f"{file} is damaged: its size or its checksum has changed since it was written. {self._cure}"
                )

    @property
    def zoned(self) -> bool:
        """Return whether the times of the stored series are dates with a time zone."""
        return self.facts["zoned"]

    def contents(self) -> Contents:
        """Return the channels and series of the file, sorted by name, with the arrays mapped from disk."""
        facts = self.facts
        times, ids, offsets = self.array("times"), self.array("ids"), self.array("offsets")
        order = np.arange(len(ids))
        names = PackedStrings(self.array("text"), np.append(0, self.array("text_end")), order)
        series = Ragged(
            points=Points(times, self.array("values").reshape(len(times), -1)),
            first=offsets[:-1],
            end=offsets[1:],
            windows=self.array("windows").reshape(len(ids), 2),
            ids=ids,
            names=names,
        )
        if not facts["by_name"]:  # names were not in ascending order of their text
            order = np.argsort(np.array([name.encode() for name in names]), kind="stable")
            series = series.part(order)
        marked = self._marked(np.argsort(order), len(times)) if facts["marked"] else None
        return Contents(tuple(facts["channels"]), series, marked, facts["dates"])

    def _marked(self, place: NDArray[np.int64], count: int) -> tuple[Runs, NDArray[np.int64]]:
        owner, first = place[self.array("run_owner")], self.array("run_first")
        order = np.argsort(owner, kind="stable")
        runs = Runs(owner, first, np.append(first[1:], count)).rows(order)
        return runs, self.array("run_label")[order]

    def allocated(self, values: NDArray[np.float64], name: str, fill: Fill) -> NDArray[np.float64]:
        """Return new values of the shape of `values`, stored on disk under a name; `fill` writes them the first time.

        Raise ValueError where they cannot be written.
        """
        file = self.folder / f"values_{name}"
        temporary = file.with_name(f".{file.name}")
        with _writing(self.folder):
            if not file.exists():
                for old in sorted(self.folder.glob("values_*"), key=lambda p: p.stat().st_mtime)[: 1 - COPIES]:
                    old.unlink()
                _demand_room(self.folder.parent, values.nbytes)
                try:
                    _reserve(temporary, values.nbytes)
                    new = np.memmap(temporary, "<f8", "r+", shape=values.shape)
                    fill(new)
                    new.flush()
                    temporary.replace(file)
                finally:
                    temporary.unlink(missing_ok=True)
            return np.asarray(np.memmap(file, "<f8", "r", shape=values.shape))


def stored(path: Path, wanted: list[str], id: str | None, time: str, values, split: str | None) -> Stored:
    """Return the arrays of the wanted columns of a file, and convert the file first if they are not in the cache.

    Raise ValueError for a file that cannot be used, and where the cache cannot be written.
    """
    state = path.stat()
    key = [str(path.absolute()), state.st_size, state.st_mtime_ns, wanted, id, time, values, split, FORM]
    folder = cache_folder() / "streams" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    with _writing(folder):
        if folder.is_dir() and _intact(Stored(folder)):
            os.utime(folder)
        else:
            _convert(Reader(path, wanted, id, time, values, split), folder)
    _forget(folder.parent)
    return Stored(folder)


def _intact(stored: Stored) -> bool:
    """Return whether the arrays pass their check; remove them if not, so that they are written again."""
    try:
        stored.verify()
        return True
    except (DamagedError, FileNotFoundError) as error:
        log.warning("warning: %s", error)
        shutil.rmtree(stored.folder)
        return False


@dataclass
class Reader:
    """Read the columns of a Parquet file in chunks; raise ValueError for a file without rows or channels."""

    path: Path
    wanted: list[str]
    id: str | None
    time: str
    values: tuple[str, ...] | None
    split: str | None
    channels: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        import pyarrow.parquet as pq

        with parquet_file.readable(self.path):
            self.file = parquet_file.opened(self.path, pq)
        self.count = self.file.metadata.num_rows
        if not self.count:
            raise ValueError(f"{self.path} has no rows, only the columns {self.wanted}; expected one row per time.")
        self.channels = self.values or self._number_columns()

    def _number_columns(self) -> tuple[str, ...]:
        import pyarrow as pa

        is_number = lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        schema = self.file.schema_arrow
        others = [c for c in self.wanted if c not in (self.id, self.time, self.split) and c[:9] != "Unnamed: "]
        channels = tuple(c for c in others if is_number(schema.field(c).type))
        columns.log_left_out(self.path, self.id, self.time, others, channels, "Expected one per channel.")
        return channels

    def batches(self) -> Iterator[tuple[int, "Chunk"]]:
        """Yield (index of the first row, chunk) over the whole file, and log the progress."""
        row, logged_at = 0, monotonic()
        batches = self.file.iter_batches(ROWS, columns=self.wanted)
        while True:
            with parquet_file.readable(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                chunk = self._chunk(parquet_file.supported(batch), row)
            yield row, chunk
            row += len(batch)
            if monotonic() - logged_at > LOG_EVERY:
                logged_at = monotonic()
                log.info("%s: %d %% of %d rows written", self.path, 100 * row / self.count, self.count)

    def _chunk(self, batch, row: int) -> "Chunk":
        import pyarrow as pa
        import pyarrow.compute as pc

        numbers = [name for name in batch.schema.names if name != self.id]
        frame = batch.select(numbers).to_pandas(ignore_metadata=True)
        cells = Cells(self.path, frame.set_index(pd.RangeIndex(row, row + len(batch))))
        if self.id is None:
            return Chunk(cells, np.zeros(1, np.int64), [self.path.name.split(".")[0]])
        column = batch.column(self.id)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        text = pc.fill_null(column.cast(pa.string()), "")
        new = np.asarray(pc.call_function("not_equal", [text[1:], text[:-1]]))
        start = np.append(0, np.flatnonzero(new) + 1)
        names = pd.Index(column.take(pa.array(start)).to_pandas())  # names floats as the in-memory reader does
        return Chunk(cells, start, ["" if pd.isna(name) else str(name) for name in names])


@dataclass
class Chunk:
    """Hold some rows of a file, with the first row and the name of each run of rows of one name."""

    cells: Cells
    start: NDArray[np.int64]  # (runs,)
    names: list[str]


class ArrayWriter:
    """Write the arrays of a file in one pass over its chunks, and check that its rows are in order."""

    def __init__(self, reader: Reader, out: dict):
        self.reader, self.out = reader, out
        self.points = self.series = self.empty = self.checked = self.bytes = 0
        self.by_name, self.dates, self.zoned = True, None, None
        self.date = ""  # the first date, with its row
        self.name: str | None = None  # series of the last row
        self.open = True  # whether the series of that row has a point already
        self.written: str | None = None  # name of the last series that was written
        self.time, self.row, self.label = -np.inf, 0, -1
        self.observed = np.zeros(len(reader.channels), np.int64)
        self.ids: list[NDArray[np.int64]] = []

    def write(self, name: str, array) -> None:
        self.out[name].write(np.ascontiguousarray(array, ARRAYS[name]).data)

    def add(self, row: int, chunk: Chunk) -> None:
        reader, cells = self.reader, chunk.cells
        values = np.stack([columns.numbers(cells, name) for name in reader.channels], 1)
        there = ~np.isnan(values)
        observed = np.asarray(there.any(1))
        self.observed += there.sum(0)
        owner = np.repeat(np.arange(len(chunk.start)), np.diff(np.append(chunk.start, len(observed))))
        count = np.bincount(owner[observed], minlength=len(chunk.start))
        continues = self.open and chunk.names[0] == self.name
        if count.any():
            self._points(
                cells.rows(observed), row + np.flatnonzero(observed), owner[observed], count, chunk, continues
            )
            self.write("values", values[observed])
        has = (count > 0) | [not name for name in chunk.names]
        has[0] |= continues
        self.empty += int((~has[:-1]).sum()) + (chunk.names[0] != self.name and not self.open)
        self.name, self.open = chunk.names[-1], bool(has[-1])

    def _points(self, cells: Cells, row, owner, count, chunk: Chunk, continues: bool) -> None:
        """Check and write the rows with an observed value.

        row (points,): their index in the file; owner (points,): their run in the chunk; count (runs,): points of each
        run; continues: whether the first run continues the last series.
        """
        if self.reader.id is not None and (unnamed := [i for i, name in enumerate(chunk.names) if not name]):
            codes = np.where(np.isin(owner, unnamed), -1, 0)
            columns.all_filled(cells, self.reader.id, codes)
        times, dates = columns.times(cells, self.reader.time)
        if self.dates not in (None, dates):
            raise ValueError(
                f"{self.reader.path}: column '{self.reader.time}' holds dates in some rows and numbers in others "
                f"(from {cells.where(0)}); expected one kind."
            )
        self.dates = dates
        if dates:
            self._check_zone(cells)
        self._check_order(cells, row, owner, times, chunk.names, continues)
        kept = np.flatnonzero(count)
        begin = self.points + np.cumsum(count[kept]) - count[kept]
        continued = continues and bool(kept[0] == 0)
        fresh = kept[continued:]
        names = [chunk.names[i] for i in fresh]
        self._begin(names, begin[continued:], row[np.searchsorted(owner, fresh)])
        if self.reader.split is not None:
            number = self.series - len(names) - continued + np.searchsorted(kept, owner)
            self._label(columns.marks(cells, self.reader.split), number, continued)
        self.write("times", times)
        self.points, self.time, self.row = self.points + len(times), times[-1], int(row[-1])

    def _check_zone(self, cells: Cells) -> None:
        column = self.reader.time
        zoned, example = has_zone(cells.column(column)), columns.shown(cells, column, 0)
        if self.zoned not in (None, zoned):
            raise mixed(self.reader.path, column, *((self.date, example) if zoned else (example, self.date)))
        self.zoned, self.date = zoned, self.date or example

    def _begin(self, names: list[str], first, row) -> None:
        if not names:
            return
        before = [self.written or "", *names]
        self.by_name = self.by_name and all(a <= b for a, b in zip(before, names, strict=False))
        texts = [name.encode() for name in names]
        ends = self.bytes + np.cumsum([len(text) for text in texts])
        ids = hashed(names)
        self.out["text"].write(b"".join(texts))
        for key, array in (("offsets", first), ("row", row), ("ids", ids), ("text_end", ends)):
            self.write(key, array)
        self.ids.append(ids)
        self.series, self.bytes, self.written = self.series + len(names), int(ends[-1]), names[-1]
        if self.series > 2 * self.checked + 1000:
            self.refuse_returning()

    def _label(self, label, owner, continued: bool) -> None:
        """Write a new run wherever the series or the split, label (points,), changes."""
        before = owner[0] if continued else -1
        new = (np.diff(owner, prepend=before) != 0) | (np.diff(label, prepend=self.label) != 0)
        for key, array in (
            ("owner", owner[new]),
            ("first", self.points + np.flatnonzero(new)),
            ("label", label[new]),
        ):
            self.write(f"run_{key}", array)
        self.label = int(label[-1])

    def _check_order(self, cells: Cells, row, owner, times, names: list[str], continues: bool) -> None:
        before = np.append(self.time if continues and owner[0] == 0 else -np.inf, times[:-1])
        before[1:][np.diff(owner) > 0] = -np.inf
        wrong = columns.first(times <= before)
        if wrong is None:
            return
        place = f"row {(int(row[wrong - 1]) if wrong else self.row) + 1}"
        path, time = self.reader.path, self.reader.time
        name, now = f"series '{names[owner[wrong]]}'", f"{time}={cells.text(time, wrong)}"
        if times[wrong] == before[wrong]:
            raise ValueError(
                f"{path}: {name} has two rows at {now}, {place} and {cells.where(wrong)}; expected one. Delete or "
                "average them, or name the column that tells the series apart: data.id=..."
            )
        raise ValueError(
            f"{path}: {name} has {now} in {cells.where(wrong)}, before the time of {place}; "
            + sort_first(path, self.reader)
        )

    def refuse_returning(self) -> None:
        """Raise ValueError for a series that returns after another one, found by repeated ids."""
        ids = np.concatenate([*self.ids, np.zeros(0, np.int64)])
        self.ids, self.checked = [ids], self.series
        order = np.argsort(ids, kind="stable")
        again = order[1:][np.diff(ids[order]) == 0]
        if not len(again):
            return
        for out in self.out.values():
            out.flush()
        place = int(again.min())
        series = Stored(Path(self.out["ids"].name).parent)
        names = PackedStrings(series.array("text"), np.append(0, series.array("text_end")), np.arange(len(ids)))
        row, now = series.array("row"), place
        earlier = int(np.flatnonzero(ids == ids[now])[0])
        raise ValueError(
            f"{self.reader.path}: series '{names[now]}', which begins in row {row[earlier] + 1}, comes back in row "
            f"{row[now] + 1} after series '{names[now - 1]}'; " + sort_first(self.reader.path, self.reader)
        )

    def finish(self) -> None:
        self.refuse_returning()
        path = self.reader.path
        if not self.series:
            raise ValueError(f"{path} has rows, but no observed value in any; expected numbers in some.")
        if self.reader.values is None and not self.observed.all():
            without = [c for c, n in zip(self.reader.channels, self.observed, strict=True) if not n]
            raise ValueError(
                f"{path}: the columns {without} have no observed value; name the columns to use: data.values=[...]."
            )
        self.write("offsets", [self.points])
        for out in self.out.values():
            out.flush()
        series = Stored(Path(self.out["ids"].name).parent)
        times, offsets = series.array("times"), series.array("offsets")
        self.write("windows", np.stack([times[offsets[:-1]], times[offsets[1:] - 1]], 1))
        if self.empty + (not self.open):
            log.warning("%s: %d series have no observed value and are left out", path, self.empty + (not self.open))


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with file.open("rb") as opened:
        while part := opened.read(2**22):
            crc = zlib.crc32(part, crc)
    return crc


def sort_first(path: Path, reader: Reader) -> str:
    by = ", ".join(name for name in (reader.id, reader.time) if name)
    return (
        "data.stream=true needs the rows of each series together and in order of time. Sort the file once: duckdb -c "
        f"\"COPY (SELECT * FROM '{path}' ORDER BY {by}) TO 'sorted.parquet'\", or with pandas: read_parquet, "
        "sort_values, to_parquet. Or leave data.stream out: the rows are then sorted in memory."
    )


def _convert(reader: Reader, folder: Path) -> None:
    """Write all arrays to a temporary folder and rename it to `folder` when it is complete."""
    size = 8 * reader.count * (1 + len(reader.channels))
    _demand_room(folder.parent, size)
    log.info("%s: its numbers are converted once and written to %s, %.2g GB", reader.path, folder.parent, size / 1e9)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        with ExitStack() as opened:
            writer = ArrayWriter(
                reader, {name: opened.enter_context((temporary / name).open("wb")) for name in ARRAYS}
            )
            for row, chunk in reader.batches():
                writer.add(row, chunk)
            writer.finish()
        facts = {
            "channels": reader.channels,
            "dates": writer.dates,
            "zoned": bool(writer.zoned),
            "by_name": writer.by_name,
        }
        facts["arrays"] = {name: [(temporary / name).stat().st_size, checksum(temporary / name)] for name in ARRAYS}
        write_json(temporary / "facts.json", {**facts, "marked": reader.split is not None})
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        parquet_file.release()


def _demand_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.05 * size:
        raise OSError(f"{size / 1e9:.2g} GB are needed there, but only {free / 1e9:.2g} GB are free")


def _reserve(file: Path, size: int) -> None:
    """Create a file of `size` bytes; a disk that fills up while writing to a mapped file would kill the process."""
    with file.open("wb") as out:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), 0, size)
        out.truncate(size)


@contextmanager
def _writing(folder: Path):
    """Hold the lock of a folder of the cache within the context; raise ValueError where writing fails."""
    try:
        own_folder(folder.parent)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield
    except OSError as error:
        raise ValueError(
            f"data.stream=true writes the numbers of the file to {folder.parent}, and that failed ({error}); no "
            "incomplete file was left. Free disk space, or choose another folder: VRNN_LAB_CACHE=<folder>."
        ) from error


def _forget(root: Path) -> None:
    """Remove the least recently used folders of the cache, all but KEPT, unless they are locked."""
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    for old in sorted(folders, key=lambda p: p.stat().st_mtime)[:-KEPT]:
        try:
            with FileLock(f"{old}.lock", timeout=0):
                shutil.rmtree(old, ignore_errors=True)  # processes that mapped the files can still read them
        except Timeout:
            continue
