"""Define the linear-Gaussian signal of a linear SDE, and its distribution given Gaussian observations."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from vrnn_lab.core.kalman import Pairs, StateSpace, joint_posterior
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.gaussian_sites import Site
from vrnn_lab.models.linear_mixture import Factors
from vrnn_lab.models.linear_readout import Readout
from vrnn_lab.models.linear_state import Coupled, Independent


@dataclass(frozen=True)
class Smoothed:
    """Hold the distribution of the signal given the observed values, in the state space's rows and channels."""

    means: Float64[Tensor, "rows time channels column"]  # means of the signal less the mean function
    covariance: Float64[Tensor, "rows time channels channels"]  # across the channels of a point
    log_z: Float64[Tensor, " batch"]  # log p of the observed first column; of sites, their integral


class LinearSignal(SequenceModel):
    """Model points through u(t) = H(t) z(t) + mean(t), where z is a stationary linear-Gaussian process.

    The observations of u are Gaussian, one per point and channel (`Site`): the data, or sites in their place. The
    state space of a batch has one row per series, or, where channels are separate (`joint` false), one row per
    channel of a series.
    """

    dynamics: Independent | Coupled
    readout: Readout
    joint: bool  # whether the channels of a series share one state

    def _space(
        self,
        times: Float64[Tensor, "batch time channels"],
        variance: Float64[Tensor, "batch time dim"],
        factors: Factors | None = None,
    ) -> StateSpace:
        """Return the state space at the times of all channels (channels = 1) or, not `joint`, at those of each.

        factors: those of the rows of a mixture, which are in the variance already.
        """
        observe = self.readout.observe(times, None if factors is None else factors.signal)
        observe = observe if self.joint else observe.transpose(1, 2).flatten(0, 1)[:, :, None]
        one = torch.eye(observe.shape[-1], dtype=observe.dtype, device=observe.device)
        variance = self._split(variance[..., None])[..., 0]
        gap = torch.diff(times, dim=1, prepend=times[:, :1])
        gap = gap if factors is None else gap * factors.speed[..., None]
        return StateSpace(one[0] * 0, one, self._transition(gap, len(one)), None, observe, variance)

    def _transition(self, gap: Float64[Tensor, "batch time channels"], size: int) -> Tensor | Pairs:
        """Return the transition over each gap; levels and slopes, which are the last states, stay constant."""
        pad = nn.functional.pad
        if isinstance(self.dynamics, Coupled):
            still = size - self.dynamics.states
            more = (torch.arange(size, device=gap.device) >= self.dynamics.states).double().diag()
            return pad(self.dynamics.matrices(gap[..., 0]), (0, still, 0, still)) + more
        rows = lambda x: x.flatten(2) if self.joint else x.transpose(1, 2).flatten(0, 1)
        own, cross = (rows(x) for x in self.dynamics.pairs(gap))
        still = size - own.shape[-1]
        other = torch.arange(size, device=gap.device)
        partner = self.dynamics.other + other[: own.shape[-1] : self.dynamics.states, None]
        other = torch.cat([partner.flatten(), other[own.shape[-1] :]])
        return Pairs(pad(own, (0, still), value=1.0), pad(cross, (0, still)), other)

    def _split(self, x: Shaped[Tensor, "batch time dim column"]) -> Shaped[Tensor, "rows time channels column"]:
        return x if self.joint else x.transpose(1, 2).flatten(0, 1)[:, :, None]

    def _join(self, x: Float64[Tensor, "rows time channels column"]) -> Float64[Tensor, "batch time dim column"]:
        return x if self.joint else x[:, :, 0].unflatten(0, (-1, self.scale.dim)).transpose(1, 2)

    def _smoothed(self, series: TimeSeries, site: Site, others: Tensor | None = None) -> Smoothed:
        """Return the distribution of the signal given the observed sites.

        others: (samples, batch, time, dim), further values less the mean function, each sample smoothed like the
        sites.
        """
        space, seen = self._space(series.times[..., None], site.variance), self._split(series.seen[..., None])[..., 0]
        columns = (site.value - self.readout.mean(series))[..., None]
        columns = columns if others is None else torch.cat([columns, others.movedim(0, -1)], -1)
        states, covariance, log_p = joint_posterior(space, self._split(columns), seen)
        means = space.observe.expand(*states.shape[:2], -1, -1) @ states
        return Smoothed(means, covariance, log_p.view(len(series.ids), -1).sum(-1))

    def _marginals(self, series: TimeSeries, smoothed: Smoothed) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of each point's channels, (batch, time, dim) each."""
        variance = smoothed.covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0)
        mean = self._join(smoothed.means[..., :1])[..., 0] + self.readout.mean(series)
        return mean, self._join(variance[..., None])[..., 0]
