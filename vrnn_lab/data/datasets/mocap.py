"""Read motion capture of a walking person, the benchmark of latent stochastic differential equations."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Count, Natural
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.data.matlab import read_arrays
from vrnn_lab.data.steps import in_steps

PARTS = {"train": "Xtr", "val": "Xval", "test": "Xtest"}
CHANNELS, FRAMES, TRAINED = 50, 300, 200
STILL = 1e-9  # std in training, in the file's units, of a channel that does not move
SOURCE = (
    "expected mocap35.mat, as in the public repository cagatayyildiz/ODE2VAE: arrays Xtr, Xval and Xtest of shape "
    f"(walks, {FRAMES} frames, {CHANNELS} channels)"
)


class MotionCapture(SeriesData):
    """Read 23 walks of subject 35 of the CMU motion capture database, 300 frames of 50 channels each.

    16 walks are for training, 3 for validation and 4 for test, as in Gan et al. 2015, Yildiz et al. 2019
    (arXiv 1905.10994, section 4.2) and Li et al. 2020 (arXiv 2001.01328, section 7.3). Channels are joint angles in
    the file's units; time is counted in frames.

    Four channels do not move; their values differ by 1e-14 from walk to walk, and are set to zero here.

    Two protocols are published (Ansari et al. 2023, arXiv 2301.11308, appendix C.3). setup=1: models are trained on
    whole walks, see the first 3 frames of a test walk, and predict the other 297. setup=2: they are trained on the
    first 200 frames, see 100, and predict the other 200. The question is set apart from the setup:
    `evaluate.forecast.until=3` for setup 1, 100 for setup 2. The published number is the mean squared error over all
    asked values of all channels in the file's units, `test/forecast/mse` in metrics.json.
    """

    time_unit = "frame"

    def __init__(self, path: str, setup: Literal[1, 2] = 2, batch_size: Count = 16, seed: Natural = 0):
        super().__init__(batch_size, seed)
        self.path, self.protocol = Path(path).expanduser(), setup

    @property
    def channels(self):
        return tuple(f"angle_{i}" for i in range(1, CHANNELS + 1))

    def make(self):
        walks = read(self.path)
        still = walks["train"].std((0, 1)) < STILL
        walks = {split: np.where(still, 0.0, values) for split, values in walks.items()}
        if self.protocol == 2:
            walks["train"] = walks["train"][:, :TRAINED]
        return {split: _series(split, values) for split, values in walks.items()}


def _series(split: str, values: NDArray[np.float64]) -> Ragged:
    return in_steps(list(values), [f"{split} {i}" for i in range(1, len(values) + 1)])


def read(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the walks (walk, frame, channel) of each split; raise ValueError for a file of another format."""
    walks = dict(zip(PARTS, read_arrays(path, list(PARTS.values()), SOURCE), strict=True))
    for split, values in walks.items():
        if values.dtype.kind != "f" or values.ndim != 3 or values.shape[1:] != (FRAMES, CHANNELS) or not len(values):
            raise ValueError(f"data.path={path}: {PARTS[split]} has the shape {values.shape}; {SOURCE}.")
        if not np.isfinite(values).all():
            raise ValueError(f"data.path={path}: {PARTS[split]} holds values that are not finite; {SOURCE}.")
    return walks
