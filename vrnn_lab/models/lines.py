"""Model a level and a slope of each series as latents, in addition to those of a path."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.densities import Density
from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import Scale, TimeSeries

PathLevel = Literal["auto", "constant", "linear", "none"]


@dataclass(frozen=True)
class Line:
    """Hold draws of the straight lines of a batch, and their KL and log ratio, in nats per series."""

    expected: Float[Tensor, "batch time dim"]  # posterior mean of the line at every point
    drawn: Float[Tensor, "samples batch time dim"]
    kl: Float[Tensor, " batch"]  # KL(q || p) of level and slope
    log_ratio: Float[Tensor, "samples batch"]  # log p - log q of the draws

    def remove(self, series: TimeSeries) -> TimeSeries:
        """Return the series less its expected line, for an encoder."""
        rest = torch.where(series.seen, series.values - self.expected, series.values)
        return replace(series, values=rest)

    def add(self, density: Density) -> Density:
        """Return the density shifted by the drawn lines."""
        return density.affine(self.drawn.new_ones(()), self.drawn)


class Lines(nn.Module):
    """Add a straight line to each channel of each series: the random intercept and slope of a mixed model (Laird &
    Ware 1982), as latents with an exact posterior.

    line_c(t) = level_c a + (mean_c + slope_c b) t,  a, b ~ N(0, 1),  t in typical windows from the row's window start

    q(a, b | seen) is the exact posterior if the observed values are line + independent N(0, rest_c^2). kind=constant:
    mean_c = slope_c = 0.

    level_c, mean_c, slope_c and rest_c are learned, starting from moments of the training series. Series may lie
    outside the training range, since a path and its encoder see only the residual of the line. A bound stays a bound
    for any rest_c, which only determines how close q is to the true posterior.
    """

    def __init__(self, scale: Scale, kind: Literal["constant", "linear"]):
        super().__init__()
        one = torch.ones(scale.dim)
        variation = scale.variation
        level, slope, rest = (
            (one, one, one) if variation is None else (variation.level, variation.slope, variation.residual)
        )
        start = lambda numbers, least: nn.Parameter(numbers.float().clamp(least, 3.0).log())
        self.log_level, self.log_rest = start(level, 0.1), start(rest, 0.05)
        self.log_slope = self.mean_slope = None
        if kind == "linear":
            mean = 0 * one if variation is None else variation.mean_slope.float().clamp(-3, 3)
            self.log_slope, self.mean_slope = start(slope, 0.1), nn.Parameter(mean)

    @classmethod
    def of(cls, level: PathLevel, scale: Scale) -> "Lines | None":
        """Build the lines for a model's key `level`; None for none. auto: linear for a user's table, none elsewhere.

        ValueError where a line is requested for values that are not real.
        """
        kind = ("linear" if scale.own_levels else "none") if level == "auto" else level
        if scale.support != "real":
            if level in ("constant", "linear"):
                raise ValueError(
                    f"model.level={level} adds a line to real values, but the values of the data set are "
                    f"{scale.support}; set model.level=none."
                )
            return None
        return None if kind == "none" else cls(scale, kind)

    def forward(self, series: TimeSeries, samples: int, noise: Noise) -> Line:
        """Draw `samples` lines per series from q(a, b | seen)."""
        times = series.times.to(series.values)[..., None]
        across = self.log_level.exp()
        along = times * (torch.zeros_like(across) if self.log_slope is None else self.log_slope.exp())
        common = times * (torch.zeros_like(across) if self.mean_slope is None else self.mean_slope)
        values = series.values - common
        # Precision of (a, b), a Gaussian with prior N(0, I): I + A'A / rest^2, A = [across, along].
        weight = series.seen.to(series.values) * (-2 * self.log_rest).exp()
        sum_of = lambda x: (weight * x).sum(1)
        one, cross, two = 1 + sum_of(across**2), sum_of(across * along), 1 + sum_of(along**2)
        root = one.sqrt()  # Cholesky factor [[root, 0], [under, corner]]
        under = cross / root
        corner = (two - under**2).sqrt()
        # The posterior mean by forward and back substitution: L u = A'x / rest^2, L' mean = u.
        first = sum_of(across * values) / root
        second = (sum_of(along * values) - under * first) / corner
        mean_b = second / corner
        mean_a = (first - under * mean_b) / root
        line = lambda a, b: common + across * a[..., None, :] + along * b[..., None, :]
        dim = series.values.shape[-1]
        eps_a, eps_b = noise.of_series("line", series, samples, 2 * dim, series.values).split(dim, -1)
        move_b = eps_b / corner
        a, b = mean_a + (eps_a - under * move_b) / root, mean_b + move_b
        log_det = root.log() + corner.log()
        trace = 1 / root**2 + (1 + (under / root) ** 2) / corner**2
        kl = (0.5 * (trace + mean_a**2 + mean_b**2 - 2) + log_det).sum(-1)
        ratio = (0.5 * (eps_a**2 + eps_b**2 - a**2 - b**2) - log_det).sum(-1)
        return Line(line(mean_a, mean_b), line(a, b), kl, ratio)
