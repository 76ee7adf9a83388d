"""Piano rolls in small MATLAB files of the true format."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

PARTS = {"train": "traindata", "val": "validdata", "test": "testdata"}
LENGTHS = {"train": [25, 7, 10, 1], "val": [30, 4], "test": [3, 40, 5]}


def rolls_of(lengths, seed: int = 0, dtype=np.uint8) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, *lengths])
    return [(rng.random((n, 88)) < 0.05).astype(dtype) for n in lengths]


def cells(rolls) -> np.ndarray:
    """(1, rolls) of cells, as MATLAB writes them."""
    made = np.empty((1, len(rolls)), dtype=object)
    made[0, :] = rolls
    return made


def rolls_in(folder: Path, name: str = "Music.mat", **changed) -> str:
    """Write a file of piano rolls and return its path; arrays of `changed` replace its own."""
    contents = {part: cells(rolls_of(LENGTHS[split])) for split, part in PARTS.items()}
    savemat(folder / name, {**contents, **changed})
    return str(folder / name)


@pytest.fixture
def file(tmp_path):
    return lambda **changed: rolls_in(tmp_path, **changed)
