"""Write the rows of a large file to plain arrays, in one pass over rows that are sorted by series and time."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.packed_strings import PackedStrings
from vrnn_lab.data.splits import hashed
from vrnn_lab.data.table import columns
from vrnn_lab.data.table.columns import Cells
from vrnn_lab.data.table.row_chunks import Chunk, RowChunks
from vrnn_lab.data.table.static_covariates import StaticCovariates

log = logging.getLogger("vrnn_lab")
ARRAYS = {
    "times": "<f8",
    "values": "<f8",
    "covariates": "<f8",
    "error": "<f8",
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
AT_ONCE = 2**20  # points of which static covariates are written at once


def array(file: Path) -> NDArray[Any]:
    """Return an array of ARRAYS, mapped from its file."""
    if not file.stat().st_size:
        return np.zeros(0, ARRAYS[file.name])
    return np.asarray(np.memmap(file, ARRAYS[file.name], "r"))


class NotSortedError(ValueError):
    """Report a series whose rows are not contiguous, or not in order of time."""


class ArrayWriter:
    """Write the arrays of a file in one pass over its chunks, and check that its rows are in order."""

    def __init__(self, rows: RowChunks, out: Mapping[str, Any]):
        self.rows, self.source, self.out = rows, rows.source, out
        self.points = self.series = self.empty = self.checked = self.bytes = 0
        self.by_name = True
        self.name: str | None = None  # series of the last row
        self.open = True  # whether the series of that row has a point already
        self.written: str | None = None  # name of the last series that was written
        self.time, self.row, self.label = -np.inf, 0, -1
        self.observed = np.zeros(len(rows.channels), np.int64)
        self.ids: list[NDArray[np.int64]] = []
        self.static = StaticCovariates(self.source.roles.static)

    def write(self, name: str, array) -> None:
        self.out[name].write(np.ascontiguousarray(array, ARRAYS[name]).data)

    def add(self, chunk: Chunk) -> None:
        cells, roles = chunk.cells, self.source.roles
        values = np.stack([columns.numbers(cells, name) for name in self.rows.value_columns], 1)
        known = [columns.known(cells, name) for name in roles.known]
        bars = [
            columns.errors(cells, name, value)
            for name, value in zip(roles.error, values.T[: len(roles.error)], strict=True)
        ]
        there = ~np.isnan(values)
        observed = np.asarray(there.any(1))
        self.observed += there.sum(0)
        owner = np.repeat(np.arange(len(chunk.start)), np.diff(np.append(chunk.start, len(observed))))
        count = np.bincount(owner[observed], minlength=len(chunk.start))
        continues = self.open and chunk.names[0] == self.name
        static = self.static.add(chunk) if roles.static else None
        if static is not None and continues and self.series:
            self.static.of_series[-1][-1] = static[0]
        if count.any():
            self._points(cells.rows(observed), owner[observed], count, chunk, continues, static)
            self.write("values", values[observed])
            if roles.covariates:
                empty = np.full((len(values), len(roles.static)), np.nan)  # written at the end
                self.write("covariates", np.concatenate([np.reshape(known, (-1, len(values))).T, empty], 1)[observed])
            if bars:
                self.write("error", np.stack(bars, 1)[observed])
        has = (count > 0) | [not name for name in chunk.names]
        has[0] |= continues
        self.empty += int((~has[:-1]).sum()) + (chunk.names[0] != self.name and not self.open)
        self.name, self.open = chunk.names[-1], bool(has[-1])

    def _points(self, cells: Cells, owner, count, chunk: Chunk, continues: bool, static) -> None:
        """Check and write the rows with an observed value.

        owner (points,): their run in the chunk; count (runs,): points of each run; continues: whether the first run
        continues the last series; static (runs, static), None without static covariates.
        """
        if self.source.id is not None and (unnamed := [i for i, name in enumerate(chunk.names) if not name]):
            codes = np.where(np.isin(owner, unnamed), -1, 0)
            columns.all_filled(cells, self.source.id, codes)
        row, times = cells.frame.index.to_numpy(), self.rows.times(cells)
        self._check_order(cells, row, owner, times, chunk.names, continues)
        kept = np.flatnonzero(count)
        begin = self.points + np.cumsum(count[kept]) - count[kept]
        continued = continues and bool(kept[0] == 0)
        fresh = kept[continued:]
        names = [chunk.names[i] for i in fresh]
        self._begin(names, begin[continued:], row[np.searchsorted(owner, fresh)])
        if static is not None and len(fresh):
            self.static.of_series.append(static[fresh])
        if self.source.split is not None:
            number = self.series - len(names) - continued + np.searchsorted(kept, owner)
            self._label(columns.marks(cells, self.source.split), number, continued)
        self.write("times", times)
        self.points, self.time, self.row = self.points + len(times), times[-1], int(row[-1])

    def _begin(self, names: list[str], first, row) -> None:
        if not names:
            return
        before = [self.written or "", *names]
        self.by_name = self.by_name and all(a <= b for a, b in zip(before, names, strict=False))
        texts = [name.encode() for name in names]
        ends = self.bytes + np.cumsum([len(text) for text in texts])
        ids = hashed(names)
        self.out["text"].write(b"".join(texts))
        for key, numbers in (("offsets", first), ("row", row), ("ids", ids), ("text_end", ends)):
            self.write(key, numbers)
        self.ids.append(ids)
        self.series, self.bytes, self.written = self.series + len(names), int(ends[-1]), names[-1]
        if self.series > 2 * self.checked + 1000:
            self.refuse_returning()

    def _label(self, label, owner, continued: bool) -> None:
        """Write a new run wherever the series or the split, label (points,), changes."""
        before = owner[0] if continued else -1
        new = (np.diff(owner, prepend=before) != 0) | (np.diff(label, prepend=self.label) != 0)
        for key, numbers in (
            ("owner", owner[new]),
            ("first", self.points + np.flatnonzero(new)),
            ("label", label[new]),
        ):
            self.write(f"run_{key}", numbers)
        self.label = int(label[-1])

    def _check_order(self, cells: Cells, row, owner, times, names: list[str], continues: bool) -> None:
        before = np.append(self.time if continues and owner[0] == 0 else -np.inf, times[:-1])
        before[1:][np.diff(owner) > 0] = -np.inf
        wrong = columns.first(times <= before)
        if wrong is None:
            return
        place = columns.where(cells.path, int(row[wrong - 1]) if wrong else self.row)
        now = f"{self.source.time}={self.rows.time_text(cells, wrong)}"
        name = f"series '{names[owner[wrong]]}'"
        if times[wrong] == before[wrong]:
            raise columns.twice(cells.path, name, now, place, cells.where(wrong))
        raise NotSortedError(f"{name} has {now} in {cells.where(wrong)}, before the time of {place}")

    def refuse_returning(self) -> None:
        """Raise NotSortedError for a series that returns after another one, found by repeated ids."""
        ids = np.concatenate([*self.ids, np.zeros(0, np.int64)])
        self.ids, self.checked = [ids], self.series
        order = np.argsort(ids, kind="stable")
        again = order[1:][np.diff(ids[order]) == 0]
        if not len(again):
            return
        for out in self.out.values():
            out.flush()
        now = int(again.min())
        of = lambda name: array(self._file(name))
        names = PackedStrings(of("text"), np.append(0, of("text_end")), np.arange(len(ids)))
        begun = int(np.flatnonzero(ids == ids[now])[0])
        first, returned = (columns.where(self.source.path, int(of("row")[i])) for i in (begun, now))
        raise NotSortedError(
            f"series '{names[now]}', which begins in {first}, comes back in {returned} after series "
            f"'{names[now - 1]}'"
        )

    def _file(self, name: str) -> Path:
        return Path(self.out[name].name)

    def finish(self) -> None:
        self.refuse_returning()
        path = self.source.path
        if not self.series:
            raise ValueError(f"{path} has rows, but no observed value in any; expected numbers in some.")
        if not self.rows.named and not self.observed.all():
            without = [c for c, n in zip(self.rows.channels, self.observed, strict=True) if not n]
            raise ValueError(
                f"{path}: the columns {without} have no observed value; name the columns to use: data.values=[...]."
            )
        self.write("offsets", [self.points])
        for out in self.out.values():
            out.flush()
        times, offsets = array(self._file("times")), array(self._file("offsets"))
        self.write("windows", np.stack([times[offsets[:-1]], times[offsets[1:] - 1]], 1))
        self._write_static(offsets)
        if self.empty + (not self.open):
            log.warning("%s: %d series have no observed value and are left out", path, self.empty + (not self.open))

    def _write_static(self, offsets: NDArray[np.int64]) -> None:
        """Write the static covariates of every point; raise ValueError for a series without one."""
        roles = self.source.roles
        if not roles.static:
            return
        static = np.concatenate(self.static.of_series)
        if (missing := np.argwhere(np.isnan(static))).size:
            series, place = missing[0]
            of = lambda name: array(self._file(name))
            names = PackedStrings(of("text"), np.append(0, of("text_end")), np.arange(len(static)))
            begins = columns.where(self.source.path, int(of("row")[series]))
            raise columns.no_static(self.source.path, names[series], begins, roles.static[place])
        shape = (self.points, len(roles.covariates))
        written = np.memmap(self._file("covariates"), ARRAYS["covariates"], "r+", shape=shape)
        for first in range(0, self.points, AT_ONCE):
            points = np.arange(first, min(first + AT_ONCE, self.points))
            owner = np.searchsorted(offsets, points, side="right") - 1
            written[points[0] : points[-1] + 1, len(roles.known) :] = static[owner]
        written.flush()
