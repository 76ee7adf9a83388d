"""Read two labelled sets of the UEA archive: speakers of a vowel, and activities of a person with a watch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Count, Natural, Share
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.cache import cache_folder
from vrnn_lab.data.steps import in_steps


@dataclass(frozen=True)
class Problem:
    """Name the channels and classes of the files <title>_TRAIN.ts and <title>_TEST.ts."""

    title: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]


PROBLEMS = {
    "speech": Problem("JapaneseVowels", tuple(f"c{i}" for i in range(1, 13)), tuple("123456789")),
    "motion": Problem(
        "BasicMotions",
        ("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"),
        ("Standing", "Running", "Walking", "Badminton"),
    ),
}


class UEA(SeriesData):
    """Read series of the UEA archive, each with a class; time is counted in steps.

    * speech: JapaneseVowels, 12 cepstrum coefficients of /ae/, 270 + 370 utterances of 7 to 29 frames; the class
      is the speaker, one of 9 men (Kudo, Toyama & Shimbo 1999, Pattern Recognition Letters 20, 1103-1111)
    * motion: BasicMotions, a watch's accelerometer and gyroscope every 0.1 s, 40 + 40 series of 100 points; the
      class is its wearer's activity (Bagnall et al. 2018, arXiv 1811.00075). One reading in nine repeats the previous
      one exactly, so the likelihood is unbounded: compare nll between heads of one kind only.

    The archive's own test files are the test split. A fraction `val` of each class in the training files, drawn by
    the seed, is used for validation. `python -m vrnn_lab.fetch speech` (or motion) downloads the files to the cache;
    `path` is another folder that holds them.
    """

    time_unit = "step"

    def __init__(
        self,
        name: Literal["speech", "motion"] = "speech",
        path: str | None = None,
        val: Share = 0.2,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.name, self.problem, self.val = name, PROBLEMS[name], val
        self.folder = cache_folder() if path is None else Path(path).expanduser()
        self.classes = self.problem.classes

    @property
    def channels(self):
        return self.problem.channels

    def make(self):
        train = self._read("TRAIN")
        assert train.labels is not None
        held = self._held_out(train.labels)
        return {
            "train": train.part(np.flatnonzero(~held)),
            "val": train.part(np.flatnonzero(held)),
            "test": self._read("TEST"),
        }

    def _held_out(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mark the series (series,) of each class that are held out for validation."""
        rng = generator(self.seed, 7)
        held = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            held[members[: round(self.val * len(members))]] = True
        return held

    def _read(self, part: str) -> Ragged:
        cure = (
            f"Run: python -m vrnn_lab.fetch {self.name} (data.path=null), or set data.path to the folder of the files"
        )
        return read(self.folder / f"{self.problem.title}_{part}.ts", self.problem, cure)


def read(path: Path, problem: Problem, cure: str) -> Ragged:
    """Read the series of a .ts file: after the line @data, one per line, channels separated by ':', the class last.

    cure: last sentence of the ValueError for a missing or invalid file.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. {cure}")
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines()]
    start = next((i for i, line in enumerate(lines) if line.lower() == "@data"), len(lines))
    series = []
    for number, line in enumerate(lines[start + 1 :], start + 2):
        try:
            series += [_series(line, problem)] if line else []
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: {error}. The file is not the expected {problem.title}. {cure}"
            ) from error
    if not series:
        raise ValueError(f"{path} has no series after a line '@data'; expected one per line. {cure}")
    values, labels = zip(*series, strict=True)
    return in_steps(values, [f"{path.stem} {i}" for i in range(1, len(series) + 1)], np.array(labels))


def _series(line: str, problem: Problem) -> tuple[NDArray[np.float64], int]:
    """Return the values (time, dim) of a line and the index of its class."""
    *parts, label = line.split(":")
    if len(parts) != len(problem.channels):
        raise ValueError(
            f"it has {len(parts)} channels; expected {len(problem.channels)} and the class, separated by ':'"
        )
    if label not in problem.classes:
        raise ValueError(f"its class is '{label}'; expected one of {', '.join(problem.classes)}")
    columns = [np.array(part.split(","), dtype=np.float64) for part in parts]
    if len(lengths := {len(column) for column in columns}) > 1:
        raise ValueError(
            f"its channels have {min(lengths)} to {max(lengths)} values; expected the same number in each"
        )
    return np.stack(columns, 1), problem.classes.index(label)
