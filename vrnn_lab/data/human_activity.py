"""Where four tags on a moving person are: the Localization Data for Person Activity."""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrnn_lab.checks import Count, Natural, Positive
from vrnn_lab.data import windows
from vrnn_lab.data.base import SPLITS, Ragged, SeriesData, generator
from vrnn_lab.data.windows import Runs

log = logging.getLogger("vrnn_lab")

ROWS, RECORDINGS = 164_860, 25
TAGS = {
    "010-000-024-033": "ankle_left",
    "010-000-030-096": "ankle_right",
    "020-000-033-111": "chest",
    "020-000-032-221": "belt",
}
CLASSES = {  # the seven of Rubanova et al. 2019, and the file's eleven
    "walking": ("walking",),
    "falling": ("falling",),
    "lying": ("lying", "lying down"),
    "sitting": ("sitting", "sitting down"),
    "standing up": ("standing up from lying", "standing up from sitting", "standing up from sit on grnd"),
    "on all fours": ("on all fours",),
    "sitting on the ground": ("sitting on the ground",),
}
COLUMNS = ("sequence", "tag", "stamp", "date", "x", "y", "z", "activity")
SECOND = 10_000_000  # stamps, each 100 ns
SOURCE = (
    f"Expected ConfLongDemo_JSI.txt, {ROWS} lines such as 'A01,010-000-024-033,633790226051280329,27.05.2009 "
    "14:03:25:127,4.06,1.89,0.51,walking': download it from archive.ics.uci.edu/dataset/196 and name it: data.path"
)
NOTICE = (
    "data.protocol=rubanova, as in the public code of Rubanova et al. 2019: points of 10 ms, windows of 50 points at "
    "stride 25, dealt to the splits at random, so that windows of different splits share points: scores on them are too "
    "good. Not as there: 10 % of the windows validate, which are no test windows, and the scale is read from training."
)


class HumanActivity(SeriesData):
    """Five people, five recordings each: the positions of tags on ankles, chest and belt, and what the person does.

    Kaluza, Mirchevska, Dovgan, Lustrek & Gams 2010 (Ambient Intelligence, 177-186); CC BY 4.0; UCI Machine Learning
    Repository, doi 10.24432/C57G8X. Channels are metres, a tag's x, y and z; tags are read at times of their own, which
    are rounded to 100 ms, and what falls together is averaged. Times are seconds since a recording's first reading.
    Each point has a class, that of its first reading: eleven activities as the seven of Rubanova et al. 2019.

    Whole recordings go to the splits by a hash of (seed, name), and are cut into windows of `window` points; no two
    windows of val or test share a point, nor do those of two splits. protocol=rubanova deals overlapping windows of
    10 ms points, as public code does, and says so.
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
        self.shares = tuple(shares or ((0.7, 0.1, 0.2) if self.theirs else (0.6, 0.2, 0.2)))
        self.window, self.stride = window, stride or (max(1, window // 2) if self.theirs else window)
        windows.check_cut(self.shares, window, self.stride)

    @property
    def channels(self):
        return tuple(f"{tag}_{axis}" for tag in TAGS.values() for axis in "xyz")

    def make(self):
        series = in_points(read(self.path), 0.01 if self.theirs else 0.1, self.channels)
        if self.theirs:
            log.warning(NOTICE)
            made = self._overlapping(series)
        else:
            runs = windows.by_name(series, self.shares, self.seed)
            made = windows.make_splits(series, runs, self.window, self.stride)
        return {split: part.labelled(series.labels) for split, part in made.items()}

    def _overlapping(self, series: Ragged) -> dict[str, Ragged]:
        cut = windows.cut(windows.whole_series(series), self.window, self.stride)
        order = generator(self.seed, 8).permutation(len(cut))
        split = np.repeat(np.arange(len(SPLITS)), windows.sizes(len(cut), self.shares, "windows"))[np.argsort(order)]
        ids = windows.window_ids(series, cut, "all")
        parts = {name: np.flatnonzero(split == i) for i, name in enumerate(SPLITS)}
        return {name: windows.gather(series, cut.rows(index), ids[index]) for name, index in parts.items()}
