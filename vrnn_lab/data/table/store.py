"""Convert a file of any size to plain arrays in the cache, which are then read from disk."""

import hashlib
import json
import logging
import os
import shutil
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.data.base import Points, Ragged
from vrnn_lab.data.cache import cache_folder, own_folder
from vrnn_lab.data.packed_strings import PackedStrings
from vrnn_lab.data.splits import Contents, Fill, Runs
from vrnn_lab.data.table import columns, parquet_file
from vrnn_lab.data.table.array_writer import ARRAYS, ArrayWriter, NotSortedError, array
from vrnn_lab.data.table.row_chunks import RowChunks, RowsOfFile, Source
from vrnn_lab.data.table.sorted_rows import SortedRows

log = logging.getLogger("vrnn_lab")
KEPT = 5  # most recently used files that stay in the cache
COPIES = 3  # copies of a file's values, with noise of different seeds, that are kept
FORM = 4  # version of the format; a new one is written to another folder
VERIFIED = 2**30  # bytes of arrays up to which checksums are verified (1 s a GB); above, only sizes are checked


@dataclass(frozen=True)
class Stored:
    """Read the arrays of a converted file from its folder in the cache."""

    folder: Path

    def array(self, name: str) -> NDArray:
        return array(self.folder / name)

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
        of_points = lambda name: self.array(name).reshape(len(times), -1)
        order = np.arange(len(ids))
        names = PackedStrings(self.array("text"), np.append(0, self.array("text_end")), order)
        series = Ragged(
            points=Points(
                times,
                of_points("values"),
                covariates=of_points("covariates") if facts["covariates"] else None,
                error=of_points("error") if facts["error"] else None,
            ),
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


def stored(source: Source) -> Stored:
    """Return the arrays of the wanted columns of a file, and convert the file first if they are not in the cache.

    Raise ValueError for a file that cannot be used, and where the cache cannot be written.
    """
    state = source.path.stat()
    key = [str(source.path.absolute()), state.st_size, state.st_mtime_ns, {**asdict(source), "path": None}, FORM]
    folder = cache_folder() / "streams" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    with _writing(folder):
        if folder.is_dir() and _intact(Stored(folder)):
            os.utime(folder)
        else:
            _convert_in_any_order(source, folder)
    _forget(folder.parent)
    return Stored(folder)


def _convert_in_any_order(source: Source, folder: Path) -> None:
    reason = "it is in the long form"
    if source.channel is None:
        try:
            return _convert(RowsOfFile(source), folder)
        except (NotSortedError, columns.RepeatedError) as error:
            if isinstance(error, columns.RepeatedError) and find_spec("duckdb") is None:
                raise  # DuckDB would only drop exact copies of rows
            reason = str(error).removeprefix(f"{source.path}: ")
    rows = folder.with_name(f".{folder.name}.rows")
    shutil.rmtree(rows, ignore_errors=True)  # left by a process that was killed
    try:
        _convert(SortedRows(source, reason, rows), folder)
    finally:
        shutil.rmtree(rows, ignore_errors=True)


def _intact(stored: Stored) -> bool:
    """Return whether the arrays pass their check; remove them if not, so that they are written again."""
    try:
        stored.verify()
        return True
    except (DamagedError, FileNotFoundError) as error:
        log.warning("warning: %s", error)
        shutil.rmtree(stored.folder)
        return False


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with file.open("rb") as opened:
        while part := opened.read(2**22):
            crc = zlib.crc32(part, crc)
    return crc


def _convert(rows: RowChunks, folder: Path) -> None:
    """Write all arrays to a temporary folder and rename it to `folder` when it is complete."""
    source = rows.source
    size = 8 * rows.size * (1 + len(rows.channels) + len(source.roles.covariates) + len(source.roles.error))
    _demand_room(folder.parent, size)
    log.info("%s: its numbers are converted once and written to %s, %.2g GB", source.path, folder.parent, size / 1e9)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        with ExitStack() as opened:
            writer = ArrayWriter(rows, {name: opened.enter_context((temporary / name).open("wb")) for name in ARRAYS})
            for chunk in rows.chunks():
                writer.add(chunk)
            writer.finish()
        facts = {
            "channels": rows.channels,
            "dates": rows.dates,
            "zoned": bool(rows.zoned),
            "by_name": writer.by_name,
            "covariates": bool(source.roles.covariates),
            "error": bool(source.roles.error),
            "marked": source.split is not None,
        }
        facts["arrays"] = {name: [(temporary / name).stat().st_size, checksum(temporary / name)] for name in ARRAYS}
        write_json(temporary / "facts.json", facts)
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
