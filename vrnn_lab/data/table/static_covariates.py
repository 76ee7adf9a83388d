"""Collect the covariates that a series has once, from whichever of its rows, while a large file is read."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.table import columns
from vrnn_lab.data.table.row_chunks import Chunk


@dataclass
class StaticCovariates:
    """Collect the static covariates of every series that is written, from any of its rows."""

    names: tuple[str, ...]
    of_series: list[NDArray[np.float64]] = field(default_factory=list)  # (series, static), of each chunk
    last: NDArray[np.float64] = field(init=False)  # of the series of the last row
    name: str | None = None

    def __post_init__(self):
        self.last = np.full(len(self.names), np.nan)

    def add(self, chunk: Chunk) -> NDArray[np.float64]:
        """Return the numbers (runs, static) of each run, with those that its series had in earlier chunks.

        Raise ValueError for a series with two different numbers.
        """
        cells, start = chunk.cells, chunk.start
        found = np.full((len(start), len(self.names)), np.nan)
        for place, column in enumerate(self.names):
            values = columns.numbers(cells, column, f"data.static takes numbers. {columns.CODE}")
            before = np.full(len(start), np.nan)
            if chunk.names[0] == self.name:
                before[0] = self.last[place]
            least, most = np.fmin.reduceat(values, start), np.fmax.reduceat(values, start)
            least, most = np.fmin(least, before), np.fmax(most, before)
            if (wrong := columns.first((least < most) & [bool(name) for name in chunk.names])) is not None:
                raise self._two(chunk, column, wrong, values, before[wrong])
            found[:, place] = most
        self.last, self.name = found[-1], chunk.names[-1]
        return found

    def _two(self, chunk: Chunk, column: str, run: int, values, before: float) -> ValueError:
        begin, end = chunk.start[run], np.append(chunk.start, len(values))[run + 1]
        inside = np.flatnonzero(~np.isnan(values[begin:end])) + begin
        known = values[inside[0]] if np.isnan(before) else before
        other = int(inside[values[inside] != known][0])
        first = "before" if not np.isnan(before) else f"in {chunk.cells.where(int(inside[0]))}"
        one, two = (known, first), (values[other], f"in {chunk.cells.where(other)}")
        return columns.two_static(chunk.cells.path, chunk.names[run], column, one, two)
