"""Simulate an inhomogeneous Poisson process, events at random times, with its exact likelihood."""

from math import pi
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.types import Count, Natural, Positive, Share
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order

PHASES = 512  # grid points; exact for fewer events a series, since p(events | phase) is smooth and periodic


class Events(SeriesData):
    """Simulate events at rate(t) = base (1 + depth sin(2 pi t / period + phase)) on [0, length]; values are all 1.

    Events t_1 .. t_n in the window have log p = sum_i log rate(t_i) - integral of the rate over the window (Daley &
    Vere-Jones 2003, prop. 7.2.III), a density of their number and of their ordered times. A series may have no event.

    phase=fixed: 0 for all, so every series has the same rate; random: each series draws its own from U[0, 2 pi),
    which can be inferred from its early events; p is averaged over the phase.
    """

    support = "events"

    def __init__(
        self,
        train: Count = 800,
        val: Count = 100,
        test: Count = 100,
        length: Positive = 20.0,
        base: Positive = 2.0,
        depth: Share = 0.8,
        period: Positive = 5.0,
        phase: Literal["fixed", "random"] = "fixed",
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.sizes, self.length = (train, val, test), length
        self.base, self.depth, self.turn, self.phase = base, depth, 2 * pi / period, phase

    @property
    def channels(self):
        return ("event",)

    def make(self):
        """Simulate the splits by thinning: draw events at the highest rate, keep each with probability rate / highest
        (Lewis & Shedler 1979)."""
        rng = generator(self.seed, 8)
        count, highest = sum(self.sizes), self.base * (1 + self.depth)
        phase = rng.uniform(0, 2 * pi, (count, 1)) if self.phase == "random" else np.zeros((count, 1))
        drawn = rng.poisson(highest * self.length, count)
        times = rng.uniform(0, self.length, (count, drawn.max(initial=0)))
        rate = self.rate(torch.from_numpy(times), torch.from_numpy(phase)).numpy()
        kept = (np.arange(times.shape[1]) < drawn[:, None]) & (rng.random(times.shape) * highest < rate)
        times = np.sort(np.where(kept, times, np.inf), 1)
        times = times[np.isfinite(times)]
        series = Ragged.joined(
            times=times,
            values=np.ones((len(times), 1)),
            offsets=np.concatenate([[0], np.cumsum(kept.sum(1))]),
            windows=np.tile([0.0, self.length], (count, 1)),
            ids=np.arange(count),
        )
        return in_order(series, self.sizes)

    def rate(self, times: Float64[Tensor, "*shape"], phase: Tensor) -> Float64[Tensor, "*shape"]:
        """Return the rate at times (*shape), in expected events per unit of time."""
        return self.base * (1 + self.depth * torch.sin(self.turn * times + phase))

    def expected(self, window: Float64[Tensor, "batch 2"], phase: Tensor) -> Float64[Tensor, " batch"]:
        """Return the expected number of events, the integral of the rate over each window."""
        start, end = window.unbind(1)
        wave = torch.cos(self.turn * start + phase) - torch.cos(self.turn * end + phase)
        return self.base * (end - start + self.depth / self.turn * wave)

    def exact(self, batch):
        """Return log p (batch,) of the known events, as if they were all events in the window, and None."""
        phases = 2 * pi * torch.arange(PHASES if self.phase == "random" else 1).to(batch.times) / PHASES
        return log_mean_exp(torch.stack([self._log_prob(batch, phase) for phase in phases])), None

    def _log_prob(self, batch: TimeSeries, phase: Float64[Tensor, ""]) -> Float64[Tensor, " batch"]:
        log_rate = torch.where(batch.known[..., 0], self.rate(batch.times, phase).log(), 0)
        return log_rate.sum(1) - self.expected(batch.window, phase)
