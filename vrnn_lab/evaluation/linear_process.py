"""Fit a small linear-Gaussian process to each channel by its exact likelihood, as a baseline of every model."""

from collections.abc import Sequence
from dataclasses import replace
from math import pi

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.kalman import Pairs, StateSpace, log_likelihood, smooth
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.tasks import DensityTask, Own
from vrnn_lab.data.base import Ragged, generator
from vrnn_lab.models.linear_state import SPEED, Independent, Parts

HARMONICS = 3  # frequencies per known period
STEPS = 12  # L-BFGS steps, from a single start
FIT_POINTS = 60  # last points per series used to fit the hyperparameters
FIT_SERIES, FIT_ROWS = 40, 100  # most series, and series times channels, used to fit them
SIZE, NOISE = 0.5, 0.3  # initial standard deviations of the parts and the noise, in training stds
LEAST = 1e-6  # least noise variance, in squared training stds
CELLS = 2_000_000  # most entries of state covariances held in memory at once


class LinearProcess(nn.Module):
    """Model each channel separately by a small linear SDE, with hyperparameters that all series share.

    (x(t) - mean) / std = middle + level + sum_j size_j z_j(t) + e,   e ~ N(0, noise^2 + (error / std)^2),

    level ~ N(0, size_l^2) is drawn once per series; z_1 is an Ornstein-Uhlenbeck process, z_2 a Matern-3/2 process,
    and each known period adds HARMONICS damped oscillations, of its frequency and its multiples. Each z has variance
    one, so that values of a series at time distance t have the covariance (Sarkka & Solin 2019, chapter 12), without
    the noise,
    size_l^2 + size_1^2 e^(-a|t|) + size_2^2 (1 + b|t|) e^(-b|t|) + sum_k size_k^2 e^(-c_k|t|) cos(w_k t).

    The Kalman filter gives the likelihood and the smoother the predictions, in time linear in the points of a series.
    Channels are independent, and covariates other than known periods are not used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, scale: Scale, mean: Float64[Tensor, " dim"], periods: Sequence[float] = ()):
        """Initialise the process.

        scale: of the training data, whose clock is a typical window; mean: (dim,), in the data's units; periods:
        known periods, in the data's time unit.
        """
        super().__init__()
        self.clock = float(scale.clock)
        waves = [2 * pi * k * self.clock / period for period in periods for k in range(1, HARMONICS + 1)]
        parts = Parts(ou=1, matern=1, turns=len(waves))
        self.dynamics = Independent(parts, scale.dim, 0, float(scale.gap) / self.clock, waves).double()
        start = torch.tensor([*[SIZE] * (parts.count + 1), NOISE], dtype=torch.float64)
        self.log_sizes = nn.Parameter((start.log() / SPEED).expand(scale.dim, -1).clone())  # parts, level, noise
        self.middle = nn.Parameter(torch.zeros(scale.dim, dtype=torch.float64))
        self.register_buffer("mean", mean.double())
        self.register_buffer("std", scale.std.double())

    @property
    def states(self) -> int:
        """Return the number of states of a channel, its level included."""
        return self.dynamics.states + 1

    @property
    def sizes(self) -> Float64[Tensor, "dim size"]:
        """Return the standard deviations of the parts, the level and the noise, in training stds."""
        return (SPEED * self.log_sizes).exp()

    def fit(self, series: TimeSeries, steps: int = STEPS) -> "LinearProcess":
        """Maximise the likelihood of the observed values of some series, by at most `steps` of L-BFGS.

        Should a step yield values that are not finite, the hyperparameters are those of the best earlier step.
        Returns self.
        """
        count = series.seen.sum().clamp(min=1)
        best, kept = torch.inf, self.state_dict()
        search = torch.optim.LBFGS(self.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            nonlocal best, kept
            search.zero_grad()
            loss = -self.log_prob(series).sum() / count
            loss.backward()
            if loss.item() < best:
                best, kept = loss.item(), {name: each.clone() for name, each in self.state_dict().items()}
            return loss

        with torch.enable_grad():
            search.step(closure)
        self.load_state_dict(kept)
        return self

    def log_prob(self, series: TimeSeries) -> Float64[Tensor, "batch dim"]:
        """Return log p of the observed values of each series and channel, standardised, in nats."""
        return log_likelihood(self._space(series), *self._rows(series)).view(-1, len(self.std))

    @torch.no_grad()
    def forward(self, series: TimeSeries) -> Gaussian:
        """Return the distribution of each value as observed, given the observed ones of its series and channel.

        Tensors are (batch, time, dim), in the data's units. Where error bars are known, the std includes them.
        """
        size = max(1, CELLS // (series.times.shape[1] * len(self.std) * self.states**2))
        densities = [self._density(series.rows(slice(i, i + size))) for i in range(0, len(series.ids), size)]
        mean, std = (torch.cat([getattr(density, name) for density in densities]) for name in ("mean", "std"))
        return Gaussian(mean, std)

    def _density(self, series: TimeSeries) -> Gaussian:
        smoothed = smooth(self._space(series), *self._rows(series))
        mean, std = (
            x.unflatten(0, (-1, len(self.std)))[..., 0].transpose(1, 2) for x in (smoothed.mean, smoothed.std)
        )
        return Gaussian(self.mean + self.std * (self.middle + mean), self.std * std)

    def _rows(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """Return standardised values and the mask of the observed ones, one row per channel of a series."""
        values = (series.values.double() - self.mean) / self.std - self.middle
        return _by_channel(values)[..., None], _by_channel(series.seen)[..., None]

    def _space(self, series: TimeSeries) -> StateSpace:
        gap = torch.diff(series.times, dim=1, prepend=series.times[:, :1]) / self.clock
        own, cross = (x.transpose(1, 2).flatten(0, 1) for x in self.dynamics.pairs(gap[..., None]))
        still = lambda x, value: nn.functional.pad(x, (0, 1), value=value)  # the level is constant
        other = torch.cat([self.dynamics.other, self.dynamics.other.new_tensor([self.dynamics.states])])
        sizes = self.sizes
        observe = torch.cat([sizes[:, :-2] @ self.dynamics.parts.read(), sizes[:, -2:-1]], 1)
        noise = (sizes[:, -1].square() + LEAST).expand_as(series.values)
        if series.error is not None:
            noise = noise + (series.error.double() / self.std).square()
        one, observe = torch.eye(self.states, dtype=torch.float64), observe.repeat(len(series.ids), 1)
        return StateSpace(
            mean=one[0] * 0,
            covariance=one,
            transition=Pairs(still(own, 1.0), still(cross, 0.0), other),
            process=None,
            observe=observe[:, None, None].expand(-1, series.times.shape[1], -1, -1),
            noise=_by_channel(noise)[..., None],
        )


def fit_batch(series: Ragged) -> TimeSeries:
    """Return the training values used by a fit: the last FIT_POINTS of at most FIT_SERIES series, evenly chosen.

    With many channels fewer series are used, so that there are at most about FIT_ROWS rows of a series and a channel.
    """
    most = max(2, min(FIT_SERIES, FIT_ROWS // series.points.values.shape[1]))
    some = series.part(np.linspace(0, len(series) - 1, min(len(series), most)).round())
    some = replace(some, first=np.maximum(some.first, some.end - FIT_POINTS))
    index = np.arange(len(some))
    return some.batch(index, DensityTask(), Own(generator, index))  # a task that draws nothing


def _by_channel(x: Shaped[Tensor, "batch time dim"]) -> Shaped[Tensor, "rows time"]:
    return x.transpose(1, 2).flatten(0, 1)
