"""Simulate an autoregressive mixture of Gaussians, whose next value is multimodal with a known density."""

from math import pi

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.densities import Mixture
from vrnn_lab.core.types import Count, Decay, Natural, Positive
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order

WEIGHTS = np.array([0.5, 0.3, 0.2])
CORRELATIONS = np.array([0.9, -0.9, 0.0])  # of the two channels, within a component


class MixtureProcess(SeriesData):
    """Simulate x_t | x_(t-1) ~ sum_k w_k N(A x_(t-1) + m_k, S_k) in the plane, t = 0, 1, ...; x_(-1) = 0.

    A = radius R(2 pi / period) rotates and shrinks. The three m_k lie on a circle of radius `distance`, 120 degrees
    apart; w = (0.5, 0.3, 0.2); S_k has stds `spread` and correlations 0.9, -0.9 and 0. Given the past, the next value
    lies in one of three clusters, `distance` * 1.7 apart: `model/head=gmm model.head.covariance=full` can represent
    this density exactly, a Gaussian cannot.
    """

    def __init__(
        self,
        train: Count = 1800,
        val: Count = 200,
        test: Count = 200,
        points: Count = 30,
        radius: Decay = 0.8,
        period: Positive = 12.0,
        distance: Positive = 1.0,
        spread: Positive = 0.2,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.sizes, self.points, self.spread = (train, val, test), points, spread
        cos, sin = np.cos(2 * pi / period), np.sin(2 * pi / period)
        self.move = radius * np.array([[cos, -sin], [sin, cos]])  # A
        angle = 2 * pi * np.arange(3) / 3
        self.centres = distance * np.stack([np.cos(angle), np.sin(angle)], 1)  # m

    @property
    def channels(self):
        return ("first", "second")

    def make(self):
        rng = generator(self.seed, 10)
        count = sum(self.sizes)
        component = rng.choice(3, (self.points, count), p=WEIGHTS)
        rho = CORRELATIONS[component]
        one, two = rng.standard_normal((2, self.points, count))
        noise = self.spread * np.stack([one, rho * one + np.sqrt(1 - rho**2) * two], -1)
        states, state = [], np.zeros((count, 2))
        for step in self.centres[component] + noise:
            state = state @ self.move.T + step
            states.append(state)
        times = np.tile(np.arange(self.points, dtype=np.float64), (count, 1))
        return in_order(Ragged.of(times, np.stack(states, 1)), self.sizes)

    def following(self, before: Float64[Tensor, "*shape 2"]) -> Mixture:
        """Return the density of the next value after each previous value (*shape, 2)."""
        shape = (*before.shape[:-1], 3)
        tensor = lambda x: torch.from_numpy(x).to(before)
        means = (before @ tensor(self.move).mT)[..., None, :] + tensor(self.centres)
        return Mixture(
            log_weight=tensor(np.log(WEIGHTS)).expand(shape),
            means=means,
            stds=torch.full_like(means, self.spread),
            correlation=tensor(CORRELATIONS).expand(shape),
        )

    def exact(self, batch):
        """Return log p (batch,) of the known values by the chain rule, and None.

        Return None where a value that is not known precedes a known one: integrating it out has no closed form.
        """
        if (batch.counts[:, 1:] & ~batch.known[:, :-1].all(-1)).any():
            return None
        values = batch.values.to(batch.times)
        before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
        return self.following(before).log_prob(values, batch.known).sum(1), None
