"""Approximate the posterior of a linear-Gaussian state by Gaussian sites, for any output density."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn

from vrnn_lab.core.densities import Density
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.supports import BINARY, COUNTS, POSITIVE
from vrnn_lab.models.heads import Head, last_bias
from vrnn_lab.models.layers import mlp
from vrnn_lab.models.networks import with_covariates

FEATURES = 5  # the recognition network's inputs per point and channel
WIDEST = 3.0  # log of the largest factor by which the network changes a site's std
SMALL = 0.1  # initial scale of the network's last layer, relative to the default


@dataclass(frozen=True)
class Site:
    """Hold for each point and channel the Gaussian N(value; u, variance), as a function of the signal u."""

    value: Float64[Tensor, "batch time dim"]
    variance: Float64[Tensor, "batch time dim"]

    def log_prob(
        self, signal: Float64[Tensor, "*samples batch time dim"], mask: Bool[Tensor, "batch time dim"]
    ) -> Float64[Tensor, "*samples batch"]:
        """Return sum log N(value; signal, variance) over the masked values, in nats per series."""
        return self._sum((self.value - signal).square(), mask)

    def expected(
        self,
        mean: Float64[Tensor, "batch time dim"],
        variance: Float64[Tensor, "batch time dim"],
        mask: Bool[Tensor, "batch time dim"],
    ) -> Float64[Tensor, " batch"]:
        """Return the expectation of `log_prob` over signals of a given mean and variance, in nats per series."""
        return self._sum((self.value - mean).square() + variance, mask)

    def _sum(self, squares: Tensor, mask: Tensor) -> Tensor:
        log_probs = -0.5 * (squares / self.variance + self.variance.log() + log(2 * pi))
        return torch.where(mask, log_probs, 0).sum((-1, -2))


class Sites(nn.Module):
    """Compute the sites of q(z) = p(z) prod_i N(y_i; u_i, v_i) / Z over the observed points i by a network.

    Sites start from the head's density of a point at its own value, y = x and v = Var(x | u = x), which is exact for
    a Gaussian head; for binary values from y = 4 x - 2 and v = 4, the bound of Jaakkola & Jordan (2000) at u = 0; for
    positive values and counts, whose mean is e^u, from y = log x and v = Var(x | u = y) / x^2, half a count being
    added to counts. The smoother's marginals under these sites inform the network about each point's neighbours; it
    then shifts y, in stds of the site, and scales the site's std.
    """

    added: Tensor  # to counts, before their logarithm is taken

    def __init__(self, scale: Scale, width: int):
        super().__init__()
        self.support, self.errors = scale.support, scale.errors
        added = 0.5 / scale.std if scale.support == COUNTS else torch.zeros_like(scale.std)
        self.register_buffer("added", added, persistent=False)
        inputs = (FEATURES + scale.errors) * scale.dim + len(scale.covariates)
        self.network = mlp(inputs, width, 2 * scale.dim, 1, "tanh")
        shrink(self.network)

    def start(self, series: TimeSeries, decode: Callable[[Tensor], Density]) -> Site:
        """Return the initial sites; decode: the density at a signal (batch, time, dim), without error bars."""
        values = torch.where(series.seen, series.values, 0)
        if self.support == BINARY:
            value = 4 * values.double() - 2
            return Site(value, torch.full_like(value, 4.0))
        if self.support in (POSITIVE, COUNTS):
            above = values.double() + self.added
            value = torch.where(above > 0, above, 1.0).log()  # zero where nothing is observed
            density = decode(value.to(values))
            return Site(value, (density.std / density.mean).double().square())
        return Site(values.double(), decode(values).with_measurement_error(series.error).std.double().square())

    def forward(
        self,
        series: TimeSeries,
        start: Site,
        mean: Float64[Tensor, "batch time dim"],
        variance: Float64[Tensor, "batch time dim"],
    ) -> Site:
        """Return the sites, given the mean and variance of the signal under the initial sites."""
        seen, std = series.seen.double(), start.variance.sqrt()
        rest = seen * (start.value - mean) / (start.variance + variance).sqrt()
        inputs = [seen * start.value, seen, rest, mean, torch.log1p(variance / start.variance)]
        if self.errors:
            inputs.append(torch.zeros_like(std) if series.error is None else seen * series.error.double())
        raw = self.network(with_covariates(torch.cat(inputs, -1).to(series.values), series.covariates)).double()
        moved, widened = raw.chunk(2, -1)
        factor = torch.exp(2 * WIDEST * torch.tanh(widened / WIDEST))
        return Site(start.value + std * moved, start.variance * factor)


def decoder(scale: Scale, head: Head, width: int, depth: int) -> nn.Sequential | None:
    """Return the network whose output is added to the signal's own place among the head's raw numbers.

    None where that place alone is enough: `depth` 0, and a head with one number per channel.
    """
    if depth == 0 and head.width == scale.dim:
        return None
    return head.begin(shrink(mlp(scale.dim + len(scale.covariates), width, head.width, depth, "tanh")))


def shrink(network: nn.Sequential) -> nn.Sequential:
    """Scale down the last layer of a new network, set its bias to zero, and return the network."""
    with torch.no_grad():
        network[-1].get_parameter("weight").mul_(SMALL)
        last_bias(network).zero_()
    return network
