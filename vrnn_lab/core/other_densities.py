"""Define densities of values with heavy tails, of positive values, and of counts."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.core.densities import Density, OneScale


def by_scipy(function: Callable[..., Any], *numbers: Tensor) -> Tensor:
    """Apply a function of NumPy arrays, which has no gradient, to tensors; the result is like the first one.

    It serves predictions, and no training step: it copies the tensors to the CPU.
    """
    found = function(*(each.detach().double().cpu().numpy() for each in numbers))
    return torch.as_tensor(np.asarray(found)).to(numbers[0])


LARGE = 1e6  # expected counts above which they are drawn as continuous ones
ONE = 1e-6  # tolerance of a unit of one count
CERTAIN, RAREST = 1 - 2.0**-53, 1e-60  # limits of probabilities, so that no quantile is infinite


def tails_of(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return P(Z <= noise) and P(Z > noise) of a standard normal Z, in float64, at least RAREST."""
    tail = lambda x: torch.special.ndtr(x.double()).clamp(min=RAREST)
    return tail(noise), tail(-noise)


@dataclass(frozen=True)
class StudentT(OneScale):
    """Represent independent channels of Student's t: `loc` + `scale` * t with `df` degrees of freedom, above 2."""

    df: Float[Tensor, "*#shape dim"]

    @property
    def std(self):
        return (self.scale * (self.df / (self.df - 2)).sqrt()).expand_as(self.loc)

    def log_prob_each(self, value):
        z, half = (value - self.loc) / self.scale, 0.5 * self.df
        height = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (self.df.log() + log(pi)) - self.scale.log()
        return height - (half + 0.5) * torch.log1p(z * z / self.df)

    def cdf_each(self, value):
        from scipy.special import stdtr  # a slow import that training does not need

        return by_scipy(lambda z, df: stdtr(df, z), (value - self.loc) / self.scale, self.df)

    def draw(self, noise):
        from scipy.special import stdtrit

        _, tail = tails_of(noise.abs())  # of the nearer end, so that no draw rounds to infinity
        far = -by_scipy(lambda p, df: stdtrit(df, p), tail, self.df)
        return self.loc + self.scale * torch.sign(noise) * far.to(self.loc)


@dataclass(frozen=True)
class Gamma(Density):
    """Represent independent channels of positive values with gamma densities x^(a - 1) e^(-x / s) / (Gamma(a) s^a).

    a is the `shape`, s the `scale`; the mean is a s.
    """

    shape: Float[Tensor, "*points dim"]
    scale: Float[Tensor, "*points dim"]

    @property
    def mean(self):
        return self.shape * self.scale

    @property
    def std(self):
        return self.shape.sqrt() * self.scale

    def log_prob_each(self, value):
        # The logarithm of a value that is not above zero must not reach the gradient, not even where it is masked.
        shape, scale = self.shape.double(), self.scale.double()  # a large shape cancels in single precision
        z = torch.where(value > 0, value, 1.0) / scale
        each = (shape - 1) * z.log() - z - torch.lgamma(shape) - scale.log()
        return torch.where(value > 0, each, -torch.inf).to(value + self.scale)

    def cdf_each(self, value):
        return torch.special.gammainc(self.shape.expand_as(value + self.shape), (value / self.scale).clamp(min=0))

    def draw(self, noise):
        from scipy.special import gammainccinv, gammaincinv

        def quantile(below, above, shape):
            return np.where(below < 0.5, gammaincinv(shape, below), gammainccinv(shape, above))

        return by_scipy(quantile, *tails_of(noise), self.shape).to(self.scale) * self.scale

    def affine(self, factor, shift):
        return Gamma(self.shape.expand_as(self.scale * factor), self.scale * factor + 0 * shift)


@dataclass(frozen=True)
class Counts(Density):
    """Represent independent channels of counts k = 0, 1, 2, ..., in a unit: the value of a point is k times `unit`.

    Log densities are log probabilities of k, in nats, so they do not depend on the unit.
    """

    rate: Float[Tensor, "*points dim"]  # the expected count
    unit: Float[Tensor, "*points dim"]

    @property
    def mean(self):
        return self.rate * self.unit

    def count(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the counts, in float64, from values in the density's unit."""
        return (value / self.unit).double().round()

    def affine(self, factor, shift):
        unit = self.unit * factor + 0 * shift
        # A unit of one count, but for the precision of a model's numbers, is exactly one.
        return self._with_unit(torch.where((unit - 1).abs() < ONE, 1.0, unit))

    @abstractmethod
    def _with_unit(self, unit: Tensor) -> "Counts":
        """Return the same counts in another unit (..., dim)."""


def large_counts(noise: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return quantiles, at the levels of standard normal noise, of counts so large that they are nearly continuous.

    They are those of the gamma density of the same mean and variance; SciPy's own search for such counts may not end.
    """
    shape, scale = mean.double().square() / variance.double(), variance.double() / mean.double()
    return Gamma(shape, scale).draw(noise.double()).round()


@dataclass(frozen=True)
class Poisson(Counts):
    """Represent counts with Poisson probabilities rate^k e^-rate / k!."""

    @property
    def std(self):
        return self.rate.sqrt() * self.unit

    def log_prob_each(self, value):
        k, rate = self.count(value), self.rate.double()
        return (torch.xlogy(k, rate) - rate - torch.lgamma(k + 1)).to(self.rate)

    def cdf_each(self, value):
        k = self.count(value)
        return torch.special.gammaincc(k + 1, self.rate.double().expand_as(k))

    def draw(self, noise):
        from scipy.stats import poisson

        def quantile(p, rate):
            return poisson.ppf(np.minimum(p, CERTAIN), np.minimum(rate, LARGE))

        small = by_scipy(quantile, tails_of(noise)[0], self.rate)
        count = torch.where(self.rate > LARGE, large_counts(noise, self.rate, self.rate), small)
        return count.to(self.rate) * self.unit

    def _with_unit(self, unit):
        return Poisson(self.rate.expand_as(unit), unit)


@dataclass(frozen=True)
class NegativeBinomial(Counts):
    """Represent counts with negative binomial probabilities of mean m = `rate` and variance m + m^2 / `size`.

    It is the Poisson distribution whose rate is gamma distributed with shape `size`: overdispersed counts.
    """

    size: Float[Tensor, "*points dim"]

    @property
    def std(self):
        return (self.rate + self.rate.square() / self.size).sqrt() * self.unit

    @property
    def chance(self) -> Float[Tensor, "*points dim"]:
        """Return the success probability size / (size + rate) of SciPy's nbinom."""
        return self.size.double() / (self.size.double() + self.rate.double())

    def log_prob_each(self, value):
        k, size, rate = self.count(value), self.size.double(), self.rate.double()
        ways = torch.lgamma(k + size) - torch.lgamma(size) - torch.lgamma(k + 1)
        both = -size * torch.log1p(rate / size) + torch.xlogy(k, rate / (size + rate))
        return (ways + both).to(self.rate)

    def cdf_each(self, value):
        from scipy.special import betainc

        return by_scipy(lambda k, n, p: betainc(n, k + 1, p), self.count(value), self.size, self.chance)

    def draw(self, noise):
        from scipy.stats import nbinom

        def quantile(p, size, chance, large):
            return nbinom.ppf(np.where(large, 0.5, np.minimum(p, CERTAIN)), size, np.where(large, 0.5, chance))

        large = self.rate > LARGE
        small = by_scipy(quantile, tails_of(noise)[0], self.size, self.chance, large.expand_as(noise + self.rate))
        variance = self.rate.double() + self.rate.double().square() / self.size.double()
        count = torch.where(large, large_counts(noise, self.rate, variance), small)
        return count.to(self.rate) * self.unit

    def _with_unit(self, unit):
        return NegativeBinomial(self.rate.expand_as(unit), unit, self.size.expand_as(unit))
