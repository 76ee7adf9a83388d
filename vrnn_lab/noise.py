"""All randomness of a model."""

from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.series import TimeSeries


class Noise:
    """Standard normal draws, shape (samples, batch, points, dim).

    While `fixed` is None (training), from a generator of its own, which `seed` sets. Else (evaluation) a
    function of (fixed, stream, series id, place in the row) alone: the same whatever else is in the batch
    and whatever was drawn before, so evaluation never advances the training generator.
    """

    def __init__(self):
        self.fixed: int | None = None
        self.generator: torch.Generator | None = None

    def seed(self, *numbers: int, device) -> None:
        if self.generator is None or self.generator.device != device:
            self.generator = torch.Generator(device)
        self.generator.manual_seed(crc32(repr(numbers).encode()))

    def __call__(
        self, stream: str, series: TimeSeries, samples: int, points: int, dim: int, like: Tensor
    ) -> Float[Tensor, "samples batch points dim"]:
        shape = (samples, len(series.ids), points, dim)
        if self.fixed is None:
            if self.generator is None or self.generator.device != like.device:
                self.seed(torch.initial_seed(), device=like.device)
            return torch.randn(shape, generator=self.generator, device=like.device, dtype=like.dtype)
        key = crc32(f"{self.fixed} {stream}".encode())
        out = np.empty((len(series.ids), points, samples, dim))
        for row, name in zip(out, series.ids.tolist(), strict=True):
            # Points before samples: a row padded to more points keeps the draws of the points it had.
            np.random.Generator(np.random.Philox(key=[key, name % 2**64])).standard_normal(out=row)
        return torch.from_numpy(out).to(like).permute(2, 0, 1, 3)
