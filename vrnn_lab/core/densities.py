"""Define the densities that models predict for the values of points."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import log, sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LOG_2PI = log(2 * torch.pi)


def log_mean_exp(log_weights: Float[Tensor, "samples ..."]) -> Float[Tensor, "..."]:
    """Return the importance-weighted bound (...) of each series from its log weights (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(log_weights, 0) - log(log_weights.shape[0])


@dataclass(frozen=True)
class Density(ABC):
    """Represent a joint density over the channels of each point.

    The fields are tensors whose leading axes are those of the points; `dim` is the number of channels.
    """

    @property
    @abstractmethod
    def mean(self) -> Float[Tensor, "*shape dim"]: ...

    @property
    @abstractmethod
    def std(self) -> Float[Tensor, "*shape dim"]: ...

    @property
    def narrowest(self) -> Float[Tensor, "*shape dim"]:
        """Return the smallest std of any component, which heads compare with their floor."""
        return self.std

    @property
    def draws(self) -> int:
        """Return how many standard normal numbers one draw of a point takes."""
        return self.mean.shape[-1]

    @abstractmethod
    def log_prob_each(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the marginal log density (..., dim) of each channel at a value (..., dim)."""

    def cdf_each(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the marginal probability (..., dim) of each channel being at most a value (..., dim).

        Raise ValueError for a density of values that are not real.
        """
        raise ValueError(f"{type(self).__name__} is no density of real values, so a value has no tail probability.")

    def log_prob(self, value: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return each point's joint log density (...) over its masked channels, here taken as independent."""
        return torch.where(mask, self.log_prob_each(value), 0).sum(-1)

    def given(self, value: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> "Density":
        """Return the density conditioned on the masked channels of each point; unchanged for independent channels."""
        return self

    def with_measurement_error(self, error: Float[Tensor, "..."] | None) -> "Density":
        """Return the density of the value plus independent noise N(0, error^2), error (..., dim) or None for none.

        Raise ValueError for a density without a closed form of that sum.
        """
        return self if error is None else self._plus_noise(error)

    def _plus_noise(self, error: Tensor) -> "Density":
        raise ValueError(f"{type(self).__name__} has no density of a value plus Gaussian noise; use a Gaussian head.")

    def exponential_moments(self) -> tuple[Float[Tensor, "*shape dim"], Float[Tensor, "*shape dim"]]:
        """Return mean and std of the exponential of each channel, e^x.

        Raise ValueError for a density of which they are infinite or have no closed form.
        """
        raise ValueError(f"the exponential of a value of {type(self).__name__} has no mean; use a Gaussian head.")

    @abstractmethod
    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Transform standard normal noise (..., draws) into one draw (..., dim) of each point."""

    @abstractmethod
    def affine(self, factor: Tensor, shift: Tensor) -> "Density":
        """Return the density of factor * x + shift; factor and shift are scalars, (dim,) or (..., dim)."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Density":
        """Return a copy with `change` applied to each tensor of the density."""
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def stack(cls, steps: list["Density"], join: Callable[[list[Tensor]], Tensor]) -> "Density":
        """Combine the densities of single points into one; `join` combines a list of tensors of one shape."""
        return cls(**{f.name: join([getattr(d, f.name) for d in steps]) for f in fields(cls)})


@dataclass(frozen=True)
class OneScale(Density):
    """Represent independent channels of a location-scale family: each is `loc` + `scale` * standard variable."""

    wide: ClassVar[float]  # std of the standard variable, which has scale 1

    loc: Float[Tensor, "*shape dim"]
    scale: Float[Tensor, "*#shape dim"]

    @property
    def mean(self):
        return self.loc

    @property
    def std(self):
        return self.wide * self.scale.expand_as(self.loc)

    def affine(self, factor, shift):
        return replace(self, loc=self.loc * factor + shift, scale=self.scale * factor)


class Gaussian(OneScale):
    """Represent independent Gaussians over a point's channels, with mean `loc` and std `scale`."""

    wide = 1.0

    def log_prob_each(self, value):
        z = (value - self.loc) / self.scale
        return -0.5 * z * z - self.scale.log() - 0.5 * LOG_2PI

    def cdf_each(self, value):
        return torch.special.ndtr((value - self.loc) / self.scale)

    def _plus_noise(self, error):
        return replace(self, scale=torch.hypot(self.scale, error))

    def exponential_moments(self):
        return log_normal_moments(self.loc, self.scale.expand_as(self.loc))

    def draw(self, noise):
        return self.loc + self.scale * noise


def log_normal_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std of e^x for normal x: e^(m + s^2 / 2), and that times sqrt(e^(s^2) - 1)."""
    moment = torch.exp(mean + 0.5 * std.square())
    return moment, moment * torch.expm1(std.square()).sqrt()


class Laplace(OneScale):
    """Represent independent Laplace densities exp(-|x - loc| / scale) / (2 scale), whose NLL is an L1 loss."""

    wide = sqrt(2)

    def log_prob_each(self, value):
        return -(value - self.loc).abs() / self.scale - self.scale.log() - log(2)

    def cdf_each(self, value):
        z = (value - self.loc) / self.scale
        tail = 0.5 * torch.exp(-z.abs())
        return torch.where(z < 0, tail, 1 - tail)

    def draw(self, noise):
        # The quantile is computed from the log of the normal tail, so that no draw rounds to infinity.
        far = -(torch.special.log_ndtr(-noise.abs()) + log(2))
        return self.loc + self.scale * torch.sign(noise) * far


@dataclass(frozen=True)
class Mixture(Density):
    """Represent a mixture of Gaussians, sum_k w_k N(x; mean_k, diag(std_k^2)), over a point's channels jointly.

    All channels of a point come from the same component, so they are dependent. For two channels, a nonzero
    `correlation` gives each component a full covariance.
    """

    log_weight: Float[Tensor, "*shape k"]  # log w_k, normalised
    means: Float[Tensor, "*shape k dim"]
    stds: Float[Tensor, "*shape k dim"]
    correlation: Float[Tensor, "*shape k"]  # zero: independent within a component

    @property
    def mean(self):
        return (self.log_weight.exp()[..., None] * self.means).sum(-2)

    @property
    def std(self):
        return self._moments(self.means, self.stds)[1]

    def _moments(self, means: Tensor, stds: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std of a mixture with these weights, from the means and stds of its components."""
        weight = self.log_weight.exp()[..., None]
        mean = (weight * means).sum(-2)
        spread = (means - mean[..., None, :]).square() + stds.square()
        return mean, (weight * spread).sum(-2).sqrt()

    @property
    def narrowest(self):
        return self.stds.amin(-2)

    @property
    def draws(self):
        return self.means.shape[-1] + 1  # the first one chooses the component

    def _standard(self, value: Tensor) -> Tensor:
        return (value[..., None, :] - self.means) / self.stds

    def log_prob_each(self, value):
        z = self._standard(value)
        each = -0.5 * z * z - self.stds.log() - 0.5 * LOG_2PI
        return torch.logsumexp(self.log_weight[..., None] + each, -2)

    def cdf_each(self, value):
        return (self.log_weight.exp()[..., None] * torch.special.ndtr(self._standard(value))).sum(-2)

    def _log_components(self, value: Tensor, mask: Tensor) -> Tensor:
        """Return the joint log density (..., k) of the masked channels under each component."""
        z = self._standard(value)
        mask = mask[..., None, :]
        joint = torch.where(mask, -0.5 * z * z - self.stds.log() - 0.5 * LOG_2PI, 0).sum(-1)
        if value.shape[-1] != 2:
            return joint
        rho, rest = self.correlation, 1 - self.correlation.square()
        extra = 0.5 * (z.square().sum(-1) - (z.square().sum(-1) - 2 * rho * z.prod(-1)) / rest) - 0.5 * rest.log()
        return joint + torch.where(mask.all(-1), extra, 0)

    def log_prob(self, value, mask):
        both = self.log_weight + self._log_components(torch.where(mask, value, self.mean), mask)
        return torch.where(mask.any(-1), torch.logsumexp(both, -1), 0)

    def given(self, value, mask):
        filled = torch.where(mask, value, self.mean)
        log_weight = (self.log_weight + self._log_components(filled, mask)).log_softmax(-1)
        if value.shape[-1] != 2:
            return replace(self, log_weight=log_weight)
        # The other channel, given this one: mean + rho std z, std sqrt(1 - rho^2).
        other = torch.where(mask[..., None, :], self._standard(filled), 0).flip(-1)
        other_known = mask.flip(-1)[..., None, :]
        rho = self.correlation[..., None]
        means = torch.where(other_known, self.means + rho * self.stds * other, self.means)
        stds = torch.where(other_known, self.stds * (1 - rho.square()).sqrt(), self.stds)
        correlation = torch.where(mask.any(-1, keepdim=True), 0, self.correlation)
        return Mixture(log_weight, means, stds, correlation)

    def _plus_noise(self, error):
        """Add diag(error^2) to the covariance of every component."""
        stds = torch.hypot(self.stds, error[..., None, :])
        if error.shape[-1] != 2:
            return replace(self, stds=stds)
        return replace(self, stds=stds, correlation=self.correlation * (self.stds / stds).prod(-1))

    def exponential_moments(self):
        return self._moments(*log_normal_moments(self.means, self.stds))

    def draw(self, noise):
        chance = torch.special.ndtr(noise[..., :1])
        component = (chance > self.log_weight.exp().cumsum(-1)[..., :-1]).sum(-1)
        pick = lambda x: x.gather(-2, component[..., None, None].expand(*component.shape, 1, x.shape[-1]))[..., 0, :]
        noise = noise[..., 1:]
        if noise.shape[-1] == 2:
            rho = self.correlation.gather(-1, component[..., None])
            second = rho * noise[..., :1] + (1 - rho.square()).sqrt() * noise[..., 1:]
            noise = torch.cat([noise[..., :1], second], -1)
        return pick(self.means) + pick(self.stds) * noise

    def affine(self, factor, shift):
        factor, shift = (x[..., None, :] if x.ndim > 1 else x for x in (factor, shift))  # for every component
        return replace(self, means=self.means * factor + shift, stds=self.stds * factor)


@dataclass(frozen=True)
class Bernoulli(Density):
    """Represent independent binary channels with P(1) = sigmoid(logit)."""

    logit: Float[Tensor, "*shape dim"]

    @property
    def mean(self):
        return torch.sigmoid(self.logit)

    @property
    def std(self):
        return torch.sigmoid(self.logit).mul(torch.sigmoid(-self.logit)).sqrt()

    def log_prob_each(self, value):
        return value * self.logit - F.softplus(self.logit)

    def draw(self, noise):
        return (torch.special.ndtr(noise) < self.mean).to(self.logit)

    def affine(self, factor, shift):
        return self  # zeros and ones have no units; their scale is 1


@dataclass(frozen=True)
class Event(Density):
    """Represent events, whose value is always 1: only their times carry information, so the log density is 0."""

    ones: Float[Tensor, "*shape dim"]

    @property
    def mean(self):
        return self.ones

    @property
    def std(self):
        return torch.zeros_like(self.ones)

    def log_prob_each(self, value):
        return torch.zeros_like(self.ones + value)

    def draw(self, noise):
        return self.ones

    def affine(self, factor, shift):
        return self


@dataclass(frozen=True)
class Stacked(Density):
    """Concatenate densities of any kinds along the first axis of their points."""

    parts: tuple[Density, ...]

    @property
    def mean(self):
        return torch.cat([part.mean for part in self.parts])

    @property
    def std(self):
        return torch.cat([part.std for part in self.parts])

    @property
    def narrowest(self):
        return torch.cat([part.narrowest for part in self.parts])

    @property
    def draws(self):
        return max(part.draws for part in self.parts)

    def log_prob_each(self, value):
        return torch.cat([part.log_prob_each(value) for part in self.parts])

    def cdf_each(self, value):
        return torch.cat([part.cdf_each(value) for part in self.parts])

    def draw(self, noise):
        parts = noise.split([len(part.mean) for part in self.parts])
        return torch.cat([p.draw(each[..., : p.draws]) for p, each in zip(self.parts, parts, strict=True)])

    def affine(self, factor, shift):
        return Stacked(tuple(part.affine(factor, shift) for part in self.parts))
