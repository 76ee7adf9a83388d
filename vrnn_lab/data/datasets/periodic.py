"""Simulate sine waves of random frequency and offset."""

import numpy as np

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order


class Periodic(SeriesData):
    """Simulate x(t) = sin(2 pi f t) + c, f ~ U[0.4, 0.8], c ~ N(1, 0.1^2), at time 0 and at random times in [0, 5].

    Noise is U[0, noise) except on the first point; the clean curve includes its mean. Each series has its own times,
    or all share one draw (`shared_times`, as in the public code of Rubanova et al. 2019, arXiv 1907.03907).
    """

    def __init__(
        self,
        train: Count = 800,
        val: Count = 100,
        test: Count = 100,
        points: Count = 100,
        noise: Positive = 0.01,
        shared_times: bool = False,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.sizes, self.points, self.noise, self.shared_times = (
            (train, val, test),
            points,
            noise,
            shared_times,
        )
        self.noise_std = noise / 12**0.5

    @property
    def channels(self):
        return ("x",)

    def make(self):
        rng = generator(self.seed, 2)
        count = sum(self.sizes)
        frequency, offset = rng.uniform(0.4, 0.8, (count, 1)), rng.normal(1, 0.1, (count, 1))
        times = rng.uniform(0, 5, (1 if self.shared_times else count, self.points))
        times[:, 0] = 0
        times = np.broadcast_to(np.sort(times, 1), (count, self.points))
        noisy = np.ones(self.points)
        noisy[0] = 0
        curve = np.sin(2 * np.pi * frequency * times) + offset
        values = curve + self.noise * noisy * rng.random(times.shape)
        clean = curve + self.noise * noisy / 2
        series = Ragged.of(times, values[..., None], window=(0, 5), clean=clean[..., None])
        return in_order(series, self.sizes)
