"""Simulate a linear-Gaussian state space model, a noisy damped rotation, with its exact likelihood."""

from math import log, pi

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.kalman import StateSpace, log_likelihood, smooth
from vrnn_lab.core.types import Count, Decay, Natural, Positive
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order


class LGSSM(SeriesData):
    """Simulate x_t = radius R(2 pi / period) x_(t-1) + N(0, process^2 I), y_t = H x_t + N(0, noise^2 I).

    t = 0, 1, ...; R is a rotation; H = [[1, 0], [coupling, 1]]. The start is stationary: x_0 ~ N(0, V),
    V = process^2 / (1 - radius^2) I. Over g steps A = radius^g R(2 pi g / period) and Q = V - A V A' =
    (1 - radius^(2 g)) V, which is defined for fractions of a step too, so any time can be queried.

    With coupling the two channels are correlated given the past, which an output with independent channels cannot
    represent: the nll of a perfect `rnn` is 0.0045 nats a value above the exact one, at coupling 0.5 0.018.
    Raise ValueError for radius=1, which has no stationary state.
    """

    def __init__(
        self,
        train: Count = 1800,
        val: Count = 200,
        test: Count = 200,
        points: Count = 50,
        radius: Decay = 0.95,
        period: Positive = 16.0,
        process: Positive = 0.3,
        noise: Positive = 0.3,
        coupling: float = 0.25,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        if radius == 1:
            raise ValueError("data.radius=1 has no stationary state to start from; expected less than 1.")
        self.sizes, self.points = (train, val, test), points
        self.noise = self.noise_std = noise
        self.radius, self.angle, self.process = radius, 2 * pi / period, process
        self.observe = np.array([[1.0, 0.0], [coupling, 1.0]])  # H
        self.variance = process**2 / (1 - radius**2)

    @property
    def channels(self):
        return ("first", "second")

    def make(self):
        rng = generator(self.seed, 4)
        times = np.tile(np.arange(self.points, dtype=np.float64), (sum(self.sizes), 1))
        clean = self._path(len(times), rng) @ self.observe.T
        values = clean + self.noise * rng.standard_normal(clean.shape)
        return in_order(Ragged.of(times, values, clean=clean), self.sizes)

    def _path(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the states (series, time, 2) of `count` series."""
        move = self.transition(torch.ones(1, dtype=torch.float64))[0].numpy()
        noise = rng.standard_normal((self.points, count, 2))
        states = [self.variance**0.5 * noise[0]]
        for step in noise[1:]:
            states.append(states[-1] @ move.T + self.process * step)
        return np.stack(states, 1)

    def transition(self, gap: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape 2 2"]:
        """Return the transition A over a gap (*shape), in steps."""
        cos, sin = torch.cos(self.angle * gap), torch.sin(self.angle * gap)
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return self.radius ** gap[..., None, None] * turn

    def state_space(self, times: Float64[Tensor, "batch time"]) -> StateSpace:
        """Return the state space model at times (batch, time)."""
        gap = torch.diff(times, dim=1, prepend=times[:, :1])
        plane = torch.eye(2).to(times)
        return StateSpace(
            mean=times.new_zeros(2),
            covariance=self.variance * plane,
            transition=self.transition(gap),
            process=-self.variance * torch.expm1(2 * log(self.radius) * gap)[..., None, None] * plane,
            observe=torch.from_numpy(self.observe).to(times),
            noise=times.new_full((2,), self.noise**2),
        )

    def exact(self, batch):
        space, values = self.state_space(batch.times), batch.values.to(batch.times)
        return log_likelihood(space, values, batch.known), smooth(space, values, batch.seen)
