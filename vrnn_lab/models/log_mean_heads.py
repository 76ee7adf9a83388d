"""Define output heads of positive values and of counts, which predict the logarithm of a mean."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.other_densities import Gamma, NegativeBinomial, Poisson
from vrnn_lab.core.series import Scale
from vrnn_lab.core.supports import COUNTS, POSITIVE
from vrnn_lab.core.types import Positive
from vrnn_lab.models.heads import Head

LOG_MEAN = 30.0  # limit of the log of a predicted mean, in training means, so that a wild network overflows nothing
LOG_SHAPE = -7.0, 21.0  # limits of the log of a shape: stds from 33 times the mean to 3e-5 of it


class LogMeanHead(Head):
    """Predict the logarithm of a mean per channel, in training means, and a shape per point, per channel, or one for
    all (global).

    The larger the shape, the narrower the density. A global or channel shape is exp(speed * parameter), for the
    reason given at `OneScaleHead`.
    """

    unit: Tensor

    def __init__(self, scale: Scale, noise: Literal["point", "channel", "global"] = "point", speed: Positive = 1.0):
        super().__init__()
        self.noise, self.speed, self.draws = noise, speed, scale.dim
        self.width = 2 * scale.dim if noise == "point" else scale.dim
        self.register_buffer("unit", (1 / scale.std).float(), persistent=False)  # of a count, in training means
        if noise != "point":
            self.log_shape = nn.Parameter(torch.zeros(scale.dim if noise == "channel" else 1))

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Split raw numbers into the mean and the shape, both (..., dim)."""
        log_mean, log_shape = raw.chunk(2, -1) if self.noise == "point" else (raw, self.speed * self.log_shape)
        return mean_of(log_mean), log_shape.clamp(*LOG_SHAPE).exp().expand_as(log_mean)


class GammaHead(LogMeanHead):
    """Predict gamma densities, for values above zero whose std grows with their mean."""

    support = POSITIVE

    def forward(self, raw):
        mean, shape = self._split(raw)
        return Gamma(shape, mean / shape)


class NegativeBinomialHead(LogMeanHead):
    """Predict negative binomial probabilities, for counts that vary more than Poisson ones.

    Its shape is the size r of the variance m + m^2 / r.
    """

    support = COUNTS

    def forward(self, raw):
        mean, shape = self._split(raw)
        return NegativeBinomial(mean / self.unit, self.unit.expand_as(mean), shape)


class PoissonHead(Head):
    """Predict Poisson probabilities, for counts of independent events, from one log rate per channel."""

    support = COUNTS
    unit: Tensor

    def __init__(self, scale: Scale):
        super().__init__()
        self.width = self.draws = scale.dim
        self.register_buffer("unit", (1 / scale.std).float(), persistent=False)

    def forward(self, raw):
        mean = mean_of(raw)
        return Poisson(mean / self.unit, self.unit.expand_as(mean))


def mean_of(log_mean: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return a mean, in training means, from its logarithm, with a limit that no sensible prediction reaches."""
    return log_mean.clamp(-LOG_MEAN, LOG_MEAN).exp()
