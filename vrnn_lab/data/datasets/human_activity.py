"""Read the positions of four tags on a moving person, from the Localization Data for Person Activity."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data import splits
from vrnn_lab.data.base import SPLITS, Ragged, SeriesData, generator

log = logging.getLogger("vrnn_lab")

ROWS, RECORDINGS = 164_860, 25
TAGS = {
    "010-000-024-033": "ankle_left",
    "010-000-030-096": "ankle_right",
    "020-000-033-111": "chest",
    "020-000-032-221": "belt",
}
CLASSES = {  # the seven classes of Rubanova et al. 2019, and the file's eleven activities
    "walking": ("walking",),
    "falling": ("falling",),
    "lying": ("lying", "lying down"),
    "sitting": ("sitting", "sitting down"),
    "standing up": ("standing up from lying", "standing up from sitting", "standing up from sit on grnd"),
    "on all fours": ("on all fours",),
    "sitting on the ground": ("sitting on the ground",),
}
COLUMNS = ("sequence", "tag", "stamp", "date", "x", "y", "z", "activity")
TYPES: Any = dict.fromkeys(("sequence", "tag", "activity"), "category") | dict.fromkeys("xyz", "float64")
TYPES["stamp"] = "int64"
SECOND = 10_000_000  # time stamps count 100 ns each
SOURCE = (
    f"Expected ConfLongDemo_JSI.txt, {ROWS} lines such as 'A01,010-000-024-033,633790226051280329,"
    "27.05.2009 14:03:25:127,4.06,1.89,0.51,walking': download it from archive.ics.uci.edu/dataset/196 and set "
    "data.path to it"
)
NOTICE = (
    "data.protocol=rubanova, as in the public code of Rubanova et al. 2019: points of 10 ms, windows of 50 points at "
    "stride 25, assigned to the splits at random, so that windows of different splits share points. "
    "Differences: 10 % of the windows are for validation, apart from the test windows, and the scale is computed "
    "from training windows."
)


class HumanActivity(SeriesData):
    """Read five recordings of each of five people: positions of tags on ankles, chest and belt, and the activity.

    Source: Kaluza, Mirchevska, Dovgan, Lustrek & Gams 2010 (Ambient Intelligence, 177-186); CC BY 4.0; UCI Machine
    Learning Repository, doi 10.24432/C57G8X. Channels are x, y and z of each tag in metres. Tags have different
    reading times, which are rounded to 100 ms and averaged. Times are seconds since a recording's start.
    Each point has the class of its first reading; eleven activities are merged to the seven of Rubanova et al. 2019.

    Whole recordings are assigned to splits by a hash of (seed, name) and cut into windows of `window` points; no two
    windows of val or test share a point, nor do windows of different splits. protocol=rubanova assigns overlapping
    windows of 10 ms points at random, as public code does, and logs a warning.
    """

    time_unit = "s"
    units = ("m",) * 12
    classes = tuple(CLASSES)

    def __init__(
        self,
        path: str,
        protocol: Literal["ours", "rubanova"] = "ours",
        shares: list[Positive] | tuple[Positive, ...] | None = None,
        window: Count = 50,
        stride: Count | None = None,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.path, self.theirs = Path(path).expanduser(), protocol == "rubanova"
        self.shares = tuple(((0.7, 0.1, 0.2) if self.theirs else (0.6, 0.2, 0.2)) if shares is None else shares)
        self.window, self.stride = window, stride or (max(1, window // 2) if self.theirs else window)
        splits.check_cut(self.shares, window, self.stride)

    @property
    def channels(self):
        return tuple(f"{tag}_{axis}" for tag in TAGS.values() for axis in "xyz")

    def make(self):
        series = in_points(read(self.path), 0.01 if self.theirs else 0.1, self.channels)
        if self.theirs:
            log.warning(NOTICE)
            made = self._overlapping(series)
        else:
            runs = splits.by_name(series, self.shares, self.seed)
            made = splits.make_splits(series, runs, self.window, self.stride)
        return {split: replace(part, labels=series.labels) for split, part in made.items()}

    def _overlapping(self, series: Ragged) -> dict[str, Ragged]:
        cut = splits.cut(splits.whole_series(series), self.window, self.stride)
        order = generator(self.seed, 8).permutation(len(cut))
        split = np.repeat(np.arange(len(SPLITS)), splits.sizes(len(cut), self.shares, "windows"))[np.argsort(order)]
        ids = splits.window_ids(series, cut, "all")
        parts = {name: np.flatnonzero(split == i) for i, name in enumerate(SPLITS)}
        return {name: splits.gather(series, cut.rows(index), ids[index]) for name, index in parts.items()}


def read(path: Path) -> pd.DataFrame:
    """Read and check the lines of the file; raise ValueError for another file or an incomplete one."""
    if not path.is_file():
        raise ValueError(f"data.path={path} does not exist, or is a folder (looked in {Path.cwd()}). {SOURCE}")
    try:
        table = pd.read_csv(
            path, header=None, names=list(COLUMNS), dtype=TYPES, index_col=False, keep_default_na=False
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"data.path={path} is not the expected file ({error}). {SOURCE}") from error
    classes = [name for names in CLASSES.values() for name in names]
    for column, known in (("tag", list(TAGS)), ("activity", classes)):
        if unknown := sorted(set(table[column].cat.categories) - set(known)):
            raise ValueError(
                f"data.path={path}: column {column} holds '{unknown[0]}'; expected one of "
                f"{', '.join(known)}. {SOURCE}"
            )
    recordings = table["sequence"].nunique()
    if (len(table), recordings) != (ROWS, RECORDINGS) or not np.isfinite(table[list("xyz")].to_numpy()).all():
        raise ValueError(
            f"data.path={path} has {len(table)} lines of {recordings} recordings; expected {ROWS} lines "
            f"of {RECORDINGS}, each with three coordinates. {SOURCE}"
        )
    return table


def in_points(table: pd.DataFrame, bin: float, channels: tuple[str, ...]) -> Ragged:
    """Return the recordings as series; readings within a bin of `bin` seconds are averaged into one point.

    A point's label is the class of its first line; a tag that was not read in a bin is NaN there.
    """
    names = tuple(table["sequence"].cat.categories)
    owner = table["sequence"].cat.codes.to_numpy().astype(np.int64)
    stamp = table["stamp"].to_numpy()
    first = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(first, owner, stamp)
    moment = np.rint((stamp - first[owner]) / (bin * SECOND)).astype(np.int64)
    order = np.lexsort((stamp, owner))
    key = owner * (moment.max() + 1) + moment
    point, opening, place = np.unique(key[order], return_index=True, return_inverse=True)
    tag = np.array([list(TAGS).index(x) for x in table["tag"].cat.categories])[table["tag"].cat.codes][order]
    sums, count = np.zeros((len(point), len(TAGS), 3)), np.zeros((len(point), len(TAGS), 1))
    np.add.at(sums, (place, tag), table[list("xyz")].to_numpy()[order])
    np.add.at(count, (place, tag), 1)
    values = np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0).reshape(
        len(point), len(channels)
    )
    number = {name: i for i, names in enumerate(CLASSES.values()) for name in names}
    label = np.array([number[x] for x in table["activity"].cat.categories])[table["activity"].cat.codes]
    owners, times = owner[order][opening], moment[order][opening] * bin
    offsets = np.searchsorted(owners, np.arange(len(names) + 1))
    return Ragged.joined(
        times=times,
        values=values,
        offsets=offsets,
        windows=np.stack([times[offsets[:-1]], times[offsets[1:] - 1]], 1),
        ids=splits.hashed(names),
        names=names,
        labels=label[order][opening],
    )
