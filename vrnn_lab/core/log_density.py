"""Define the density of values of which some channels are modelled by their logarithms."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.densities import Density


def logs_of(values: Float[Tensor, "*points dim"], channels: Bool[Tensor, " dim"]) -> Float[Tensor, "*points dim"]:
    """Return the values, with the logarithm of those above zero in some channels.

    A value of zero in those channels stays zero: it stands where nothing is known.
    """
    return torch.where(channels.to(values.device) & (values > 0), values.log(), values)


def log_array(values: NDArray[np.float64], channels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return values (points, dim), with the logarithm of those of some channels (dim,); NaN stays NaN."""
    return np.where(channels, np.log(np.where(channels, values, 1.0)), values) if channels.any() else values


@dataclass(frozen=True)
class LogDensity(Density):
    """Represent the density of values x of which some channels are exponentials: x = e^y, y of the inner density.

    By the change of variables log p(x) = log p(y) - sum y, where the sum is over the known values of those channels;
    so all nats are those of the values themselves, and no value of such a channel is zero or below.
    """

    inner: Density
    channels: Bool[Tensor, " dim"]  # which channels are exponentials

    @property
    def mean(self):
        return torch.where(self.channels, self.inner.exponential_moments()[0], self.inner.mean)

    @property
    def std(self):
        return torch.where(self.channels, self.inner.exponential_moments()[1], self.inner.std)

    @property
    def narrowest(self):
        """Return the smallest std of any component, of logarithms where a channel is an exponential."""
        return self.inner.narrowest

    @property
    def draws(self):
        return self.inner.draws

    def on_log_scale(self, value: Float[Tensor, "*points dim"]) -> Float[Tensor, "*points dim"]:
        """Return the values of the inner density; zero for the logarithm of a value that is not above zero."""
        return torch.where(self.possible(value), logs_of(value, self.channels), 0)

    def possible(self, value: Float[Tensor, "*points dim"]) -> Bool[Tensor, "*points dim"]:
        """Return which values are not excluded: all those of other channels, and those above zero."""
        return ~self.channels | (value > 0)

    def exponential(self, inner: Float[Tensor, "*points dim"]) -> Float[Tensor, "*points dim"]:
        """Return the values from values of the inner density."""
        return torch.where(self.channels, inner.exp(), inner)

    def log_prob_each(self, value):
        inner = self.on_log_scale(value)
        each = self.inner.log_prob_each(inner) - torch.where(self.channels, inner, 0)
        return torch.where(self.possible(value), each, -torch.inf)

    def cdf_each(self, value):
        return torch.where(self.possible(value), self.inner.cdf_each(self.on_log_scale(value)), 0)

    def log_prob(self, value, mask):
        inner = self.on_log_scale(value)
        joint = self.inner.log_prob(inner, mask) - torch.where(mask & self.channels, inner, 0).sum(-1)
        return torch.where((mask & ~self.possible(value)).any(-1), -torch.inf, joint)

    def given(self, value, mask):
        return replace(self, inner=self.inner.given(self.on_log_scale(value), mask))

    def _plus_noise(self, error):
        raise ValueError(
            "a value whose logarithm is modelled has no closed form with Gaussian noise added to it; leave its error "
            "bars out (data.error), or its channel out of data.log."
        )

    def draw(self, noise):
        return self.exponential(self.inner.draw(noise))

    def affine(self, factor, shift):
        raise ValueError("a density of exponentials is not of the same kind after a shift; change its inner density.")

    def map(self, change):
        return replace(self, inner=self.inner.map(change))

    @classmethod
    def stack(cls, steps, join):
        each = [step for step in steps if isinstance(step, cls)]
        return cls(each[0].inner.stack([step.inner for step in each], join), each[0].channels)
