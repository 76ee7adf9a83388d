"""Simulate noisy points on a closed curve in many dimensions, with one latent number behind all channels."""

from functools import cached_property
from math import ceil, log, log2, pi

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.densities import LOG_2PI
from vrnn_lab.core.types import Count, Decay, Natural, Positive
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order

AT_ONCE = 2**21  # rows x grid points: bounds the memory of the exact likelihood
CURVE = 11  # seed of the curve, which does not depend on the seed of the data


class Curves(SeriesData):
    """Simulate x_t = curve(u_t) + N(0, noise^2 I) in `dim` channels, u_t on a circle of length 1, t = 0, 1, ...

    u_0 ~ U[0, 1); with probability `jump` u_t is a new draw from U[0, 1), else u_(t-1) + drift + N(0, step^2),
    wrapped. The curve is a sum of `harmonics` sines and cosines per channel, with fixed random coefficients, scaled
    so that each channel has std 1 over the circle.

    Given the past, x_t lies along an arc (or anywhere on the curve), thin in all directions but one. A Gaussian must
    cover the volume through which the arc bends, a mixture needs a Gaussian every few noise widths, but one latent
    number describes it fully. So the best achievable likelihoods are ordered: RNN with a Gaussian < RNN with a
    mixture < VRNN (Chung et al. 2015, arXiv 1506.02216, table 1, found this order on speech).

    The exact likelihood is computed by the forward algorithm on a grid of u. Integrals over the circle are sums over
    equal steps, exact up to rounding once the grid resolves the integrands; the transition of u is a product in
    Fourier space.
    """

    def __init__(
        self,
        train: Count = 1000,
        val: Count = 200,
        test: Count = 500,
        points: Count = 30,
        dim: Count = 8,
        harmonics: Count = 3,
        noise: Positive = 0.1,
        drift: float = 0.1,
        step: Positive = 0.1,
        jump: Decay = 0.1,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.sizes, self.points, self.dim = (train, val, test), points, dim
        self.noise = self.noise_std = noise
        self.drift, self.step, self.jump = drift, step, jump
        self.turns = 2 * pi * np.arange(1, harmonics + 1)
        weights = generator(CURVE).standard_normal((2 * harmonics, dim))
        self.weights = weights / np.sqrt((weights**2).sum(0) / 2)

    @property
    def channels(self):
        return tuple(f"x{i}" for i in range(self.dim))

    def curve(self, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate the curve (..., dim) at places (...) on the circle."""
        angle = place[..., None] * self.turns
        return np.concatenate([np.cos(angle), np.sin(angle)], -1) @ self.weights

    def make(self):
        rng = generator(self.seed, 12)
        shape = (self.points, sum(self.sizes))
        fresh, jumps = rng.random(shape), rng.random(shape) < self.jump
        moves = self.drift + self.step * rng.standard_normal(shape)
        places = [fresh[0]]
        for i in range(1, self.points):
            places.append(np.where(jumps[i], fresh[i], (places[-1] + moves[i]) % 1))
        clean = self.curve(np.stack(places, 1))
        values = clean + self.noise * rng.standard_normal(clean.shape)
        times = np.tile(np.arange(self.points, dtype=np.float64), (shape[1], 1))
        return in_order(Ragged.of(times, values, clean=clean), self.sizes)

    @cached_property
    def grid(self) -> int:
        """Return the number of grid points on the circle: at least two per width of p(x | u) and of the transition.

        The error of the sums is then e^(-8 pi^2) = 5e-35.
        """
        places = np.arange(4096) / 4096
        speed = np.linalg.norm(np.diff(self.curve(places), axis=0), axis=1).max() * 4096
        return 2 ** ceil(log2(2 * max(speed / self.noise, 1 / self.step)))

    def exact(self, batch):
        rows = max(1, AT_ONCE // self.grid)
        parts = zip(*(x.split(rows) for x in (batch.times, batch.values, batch.known)), strict=True)
        return torch.cat([self._forward(times, values.double(), known) for times, values, known in parts]), None

    def _forward(
        self,
        times: Float64[Tensor, "batch time"],
        values: Float64[Tensor, "batch time dim"],
        known: Bool[Tensor, "batch time dim"],
    ) -> Float64[Tensor, " batch"]:
        """Return log p (batch,) of the known values by the forward algorithm.

        Each step takes p(u_t | x_<t) to p(x_t | x_<t) and p(u_t | x_<=t).
        """
        curve = torch.from_numpy(self.curve(np.arange(self.grid) / self.grid)).to(values)
        density, total = values.new_ones(len(values), self.grid), values.new_zeros(len(values))
        for i, gap in enumerate(times.diff(dim=1, prepend=times[:, :1]).unbind(1)):
            density = self._moved(density, gap[:, None]) if i else density
            log_emission = self._log_emission(curve, values[:, i], known[:, i])
            highest = log_emission.amax(1, keepdim=True)
            joint = density * (log_emission - highest).exp()
            mean = joint.mean(1, keepdim=True)
            density, total = joint / mean, total + (mean.log() + highest)[:, 0]
        return total

    def _log_emission(self, curve: Tensor, value: Tensor, known: Tensor) -> Float64[Tensor, "batch grid"]:
        """Return log p(known channels of a point | u) at every grid point."""
        value, mask = torch.where(known, value, 0), known.to(value)
        square = (value**2).sum(1, keepdim=True) - 2 * value @ curve.mT + mask @ (curve**2).mT
        return -0.5 * square / self.noise**2 - mask.sum(1, keepdim=True) * (log(self.noise) + 0.5 * LOG_2PI)

    def _moved(self, density: Tensor, gap: Float64[Tensor, "batch 1"]) -> Float64[Tensor, "batch grid"]:
        """Return the density of u `gap` steps later: multiply wave k by E exp(-2 pi i k (u_t - u_0)), 1 for k = 0."""
        wave = 2 * pi * torch.arange(self.grid // 2 + 1).to(density)
        stay = (1 - self.jump) ** gap
        factor = stay * torch.exp(torch.complex(-0.5 * gap * (wave * self.step) ** 2, -gap * wave * self.drift))
        factor[:, 0] = 1
        moved = torch.fft.irfft(torch.fft.rfft(density) * factor, n=self.grid)
        return torch.maximum(moved, 1 - stay)  # jumps give this much everywhere; less is a rounding error
