"""Simulate a noisy Ornstein-Uhlenbeck process observed at random times, with its exact likelihood."""

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.kalman import StateSpace, log_likelihood, smooth
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order


class OU(SeriesData):
    """Simulate dx = theta (mean - x) dt + sigma dW, x(0) ~ N(mean, sigma^2 / 2 theta), with noise N(0, noise^2).

    Each series has its own times, uniform in [0, length]; their number is uniform in `points` = [least, most].
    Over a gap g: x(t + g) - mean ~ N(e^(-theta g) (x(t) - mean), (1 - e^(-2 theta g)) sigma^2 / 2 theta).
    Raise ValueError where `points` is not a range.
    """

    def __init__(
        self,
        train: Count = 1800,
        val: Count = 200,
        test: Count = 200,
        points: list[Count] | tuple[Count, ...] = (20, 40),
        length: Positive = 10.0,
        theta: Positive = 0.8,
        sigma: Positive = 1.3,
        mean: float = 2.0,
        noise: Positive = 0.25,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        if len(points) != 2 or points[0] > points[1]:
            raise ValueError(f"data.points={list(points)} is not a range; expected [least, most] with least <= most.")
        self.sizes, self.points, self.length = (train, val, test), tuple(points), length
        self.theta, self.mean = theta, mean
        self.noise = self.noise_std = noise
        self.variance = sigma**2 / (2 * theta)

    @property
    def channels(self):
        return ("x",)

    def make(self):
        rng = generator(self.seed, 3)
        lengths = rng.integers(self.points[0], self.points[1] + 1, sum(self.sizes))
        real = np.arange(self.points[1]) < lengths[:, None]
        # Shorter series are padded with the end of the window, so that sorting keeps the padding behind their times.
        times = np.sort(np.where(real, rng.uniform(0, self.length, real.shape), self.length), 1)
        path = self._path(times, rng)
        values = path + self.noise * rng.standard_normal(path.shape)
        series = Ragged.joined(
            times=times[real],
            values=values[real][:, None],
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            windows=np.tile([0.0, self.length], (len(lengths), 1)),
            ids=np.arange(len(lengths)),
            clean=path[real][:, None],
        )
        return in_order(series, self.sizes)

    def _path(self, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw noise-free values (series, time) at each row's own times (series, time)."""
        gaps = np.diff(times, axis=1)
        decay = np.exp(-self.theta * gaps)
        spread = np.sqrt(-self.variance * np.expm1(-2 * self.theta * gaps))
        noise = rng.standard_normal(times.shape)
        state = self.variance**0.5 * noise[:, 0]
        states = [state]
        for i in range(gaps.shape[1]):
            state = decay[:, i] * state + spread[:, i] * noise[:, i + 1]
            states.append(state)
        return self.mean + np.stack(states, 1)

    def state_space(self, times: Float64[Tensor, "batch time"]) -> StateSpace:
        """Return the state space model of x - mean at times (batch, time)."""
        gap = torch.diff(times, dim=1, prepend=times[:, :1])[..., None, None]
        return StateSpace(
            mean=times.new_zeros(1),
            covariance=times.new_full((1, 1), self.variance),
            transition=torch.exp(-self.theta * gap),
            process=-self.variance * torch.expm1(-2 * self.theta * gap),
            observe=times.new_ones(1, 1),
            noise=times.new_full((1,), self.noise**2),
        )

    def exact(self, batch):
        space, values = self.state_space(batch.times), batch.values.to(batch.times) - self.mean
        posterior = smooth(space, values, batch.seen)
        return log_likelihood(space, values, batch.known), Gaussian(posterior.mean + self.mean, posterior.std)
