"""Build series whose times are step numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.base import Ragged
from vrnn_lab.data.splits import hashed


def in_steps(values: Sequence[NDArray], names: Sequence[str], labels: NDArray[np.int64] | None = None) -> Ragged:
    """Build series from values, each (time, dim), at times 0, 1, 2, ..., with windows up to their last points."""
    lengths = np.array([len(x) for x in values])
    return Ragged.joined(
        times=np.concatenate([np.arange(n, dtype=np.float64) for n in lengths]),
        values=np.concatenate(values).astype(np.float64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        windows=np.stack([np.zeros(len(lengths)), lengths - 1.0], 1),
        ids=hashed(names),
        names=tuple(names),
        labels=labels,
    )
