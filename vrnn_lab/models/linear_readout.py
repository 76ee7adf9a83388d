"""Define the observation matrix and the mean function of a linear SDE."""

from math import log

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from vrnn_lab.core.series import Scale, TimeSeries, Variation
from vrnn_lab.models.linear_state import SLOWEST, SPEED, Parts
from vrnn_lab.models.lines import PathLevel


class Loadings(nn.Module):
    """Compute the loadings std_c (z_c + sum_j mix_cj z_j) of one process per channel; shared: with a learned mix."""

    def __init__(self, std: Float64[Tensor, " dim"], shared: bool):
        super().__init__()
        self.log_std = nn.Parameter((std.log() / SPEED).float())
        self.mix = nn.Parameter(torch.zeros(len(std), len(std) - 1)) if shared else None

    def std(self) -> Float64[Tensor, " dim"]:
        return (SPEED * self.log_std.double()).exp()

    def shares(self) -> Float64[Tensor, "dim dim"]:
        """Return I + mix, (dim, dim)."""
        dim = len(self.log_std)
        one = torch.eye(dim, dtype=torch.float64, device=self.log_std.device)
        if self.mix is None:
            return one
        # The flattened matrix less its first entry, viewed as (dim - 1, dim + 1), has the diagonal as last column.
        off = torch.cat([self.mix.double().flatten().view(dim - 1, dim), one.new_zeros(dim - 1, 1)], 1)
        return one + SPEED * torch.cat([one.new_zeros(1), off.flatten()]).view(dim, dim)

    def forward(self) -> Float64[Tensor, "dim dim"]:
        return self.std()[:, None] * self.shares()


FADING = 0.3  # initial damping rate of trends, in 1 / typical windows
STEADY = 2.0  # pieces of a record share a trend where their mean slope exceeds this many stds of the slopes


class Readout(nn.Module):
    """Compute the observation matrix H of every point, and the mean function.

    A slope is one in (1 - e^(-k t)) / k with a learned k, a damped trend (Gardner & McKenzie 1985), since a straight
    line extrapolates badly far beyond the data.

    joint: one state for all channels of a series: all parts of the first channel, then of the second, ..., then all
    levels and all slopes. Otherwise each channel has a state of its own: its parts, its level, its slope.
    """

    read: Tensor

    def __init__(self, scale: Scale, parts: Parts, level: PathLevel, mean: str, joint: bool, every: bool):
        """Initialise the readout; every: channels read all states, not only those that are a part's value."""
        super().__init__()
        dim, self.joint = scale.dim, joint
        start = _start(scale)
        kind = _kind(scale) if level == "auto" else level
        moving = (start.wander / max(parts.count, 1) ** 0.5).clamp(0.05, 1.0)
        self.parts = nn.ModuleList(Loadings(moving, joint) for _ in range(parts.count))
        self.register_buffer("read", parts.read(), persistent=False)
        self.every = nn.Parameter(torch.zeros(dim, dim * parts.states)) if every else None
        self.level = Loadings(start.level.clamp(0.1, 3.0), joint) if kind in ("constant", "linear") else None
        self.slope = Loadings(start.slope.clamp(0.1, 3.0), joint) if kind == "linear" else None
        # Not for pieces of a record: levels outside the training range would imply slopes outside it.
        leans = kind == "linear" and scale.whole_series
        self.lean = nn.Parameter(torch.zeros(dim)) if leans else None
        rising = mean == "linear" or (mean == "auto" and _rises(scale))
        self.log_fading = None
        if rising or kind == "linear":
            self.log_fading = nn.Parameter(torch.full((dim,), log(FADING) / SPEED))
        self.rise = nn.Parameter((start.mean_slope.clamp(-3, 3) / SPEED).float()) if rising else None
        self.middle = nn.Parameter(torch.zeros(dim))
        self.of_covariates = (
            nn.Parameter(0.002 * torch.randn(len(scale.covariates), dim)) if scale.covariates else None
        )

    def mean(self, series: TimeSeries) -> Float64[Tensor, "batch time dim"]:
        """Return the mean function at every point: an offset, any damped trend, and the effect of any covariates."""
        mean = SPEED * self.middle.double().expand(*series.values.shape)
        if self.rise is not None:
            mean = mean + SPEED * self.rise.double() * self._along(series.times[..., None])
        if self.of_covariates is not None and series.covariates is not None:
            mean = mean + SPEED * (series.covariates.double() @ self.of_covariates.double())
        return mean

    def _along(self, times: Float64[Tensor, "batch time channels"]) -> Float64[Tensor, "batch time dim"]:
        """Return the function of time that multiplies slopes: (1 - e^(-k |t|)) / k with the sign of t."""
        assert self.log_fading is not None
        rate = SLOWEST + (SPEED * self.log_fading.double()).exp()
        return times.sign() * -torch.expm1(-rate * times.abs()) / rate

    def observe(
        self, times: Float64[Tensor, "batch time channels"], factor: Float64[Tensor, "batch 1 dim"] | None = None
    ) -> Float64[Tensor, "batch time dim state"]:
        """Return the observation matrix H at every point; channels: one time for all of them, or one for each.

        factor: of the loadings of the moving parts, for the rows of a mixture.
        """
        loadings = torch.stack([part() for part in self.parts], -1)
        moving = (loadings[..., None] * self.read).sum(-2)  # (dim, dim of the parts, state)
        moving = moving.flatten(1) if self.joint else moving.diagonal(dim1=0, dim2=1).T
        if self.every is not None:
            moving = moving + self.every
        still = [each if self.joint else each.sum(-1, keepdim=True) for each in self._still(times)]
        moving = moving if factor is None else moving * factor[..., None]
        return torch.cat([moving.expand(*times.shape[:2], -1, -1), *still], -1)

    def _still(self, times: Tensor) -> list[Float64[Tensor, "batch time dim dim"]]:
        """Return the columns of the observation matrix for levels and for slopes.

        With `lean`, the slope of a series is correlated with its level.
        """
        if self.level is None:
            return []
        level = self.level().expand(*times.shape[:2], -1, -1)
        if self.slope is None:
            return [level]
        along = self._along(times)[..., None]
        if self.lean is None:
            return [level, along * self.slope()]
        lean = torch.tanh(SPEED * self.lean.double())[:, None]
        by_level = along * self.slope.std()[:, None] * lean * self.level.shares()
        return [level + by_level, along * (1 - lean.square()).sqrt() * self.slope()]


def _rises(scale: Scale) -> bool:
    """Return whether the series of a dataset share a trend.

    Whole series do; pieces of a record do where the mean of their slopes exceeds STEADY times their spread.
    """
    if scale.whole_series or scale.variation is None or not scale.own_levels:
        return scale.whole_series
    return bool((scale.variation.mean_slope.abs() > STEADY * scale.variation.slope).any())


def _kind(scale: Scale) -> PathLevel:
    if not scale.own_levels:
        return "none"
    return "linear" if _rises(scale) else "constant"


def _start(scale: Scale) -> Variation:
    """Return the initial spreads, which are one where the training data were not measured."""
    if scale.variation is not None:
        return scale.variation
    one = torch.ones(scale.dim, dtype=torch.float64)
    return Variation(one, one, one, one, 0 * one, one, -one, one)
