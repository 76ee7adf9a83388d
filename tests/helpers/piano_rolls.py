"""Piano rolls in small MATLAB files of the true format."""

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


@pytest.fixture
def file(tmp_path):
    def write(**changed) -> str:
        contents = {name: cells(rolls_of(LENGTHS[split])) for split, name in PARTS.items()}
        savemat(tmp_path / "Music.mat", {**contents, **changed})
        return str(tmp_path / "Music.mat")

    return write
