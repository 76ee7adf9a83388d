"""What a model says about points, each density once."""

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
    """Return the importance-weighted bound of each series from its log weights (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(log_weights, 0) - log(log_weights.shape[0])


@dataclass(frozen=True)
class Density(ABC):
    """What a model says of points: a joint density over a point's channels. Its fields are tensors whose leading
    axes are those of the points."""

    @property
    @abstractmethod
    def mean(self) -> Float[Tensor, "*shape dim"]: ...

    @property
    @abstractmethod
    def std(self) -> Float[Tensor, "*shape dim"]: ...

    @property
    def narrowest(self) -> Float[Tensor, "*shape dim"]:
        """The smallest scale in it, to be held against the floor."""
        return self.std

    @abstractmethod
    def log_prob_each(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Each channel's marginal log density."""

    def log_prob(self, value: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A point's joint log density over its masked channels; here of independent ones."""
        return torch.where(mask, self.log_prob_each(value), 0).sum(-1)

    def given(self, value: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> "Density":
        """Of the unmasked channels, given the masked ones of the same point; here independent of them."""
        return self

    def with_measurement_error(self, error: Float[Tensor, "..."] | None) -> "Density":
        """Of the value plus independent noise N(0, error^2), error (..., dim): of what an error bar stands beside."""
        return self if error is None else self._blurred(error)

    def _blurred(self, error: Tensor) -> "Density":
        raise ValueError(f"{type(self).__name__} has no density of a value plus Gaussian noise; use a Gaussian head.")

    @abstractmethod
    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A draw (..., dim) from standard normals (..., draws)."""

    @abstractmethod
    def affine(self, factor: Tensor, shift: Tensor) -> "Density":
        """The density of factor * x + shift; each one number, one a channel, or one a channel of every point."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Density":
        """With `change` applied to each of its tensors."""
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def stack(cls, steps: list["Density"], join: Callable[[list[Tensor]], Tensor]) -> "Density":
        """One density from those of single points; `join` joins a list of like tensors."""
        return cls(**{f.name: join([getattr(d, f.name) for d in steps]) for f in fields(cls)})


@dataclass(frozen=True)
class OneScale(Density):
    """Independent channels of one shape, each moved to `loc` and stretched by `scale`."""

    wide: ClassVar[float]  # the std of that shape at scale 1

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
    """Independent Gaussians over a point's channels: means and stds."""

    wide = 1.0

    def log_prob_each(self, value):
        z = (value - self.loc) / self.scale
        return -0.5 * z * z - self.scale.log() - 0.5 * LOG_2PI

    def _blurred(self, error):
        return replace(self, scale=torch.hypot(self.scale, error))

    def draw(self, noise):
        return self.loc + self.scale * noise


class Laplace(OneScale):
    """Independent Laplace densities exp(-|x - loc| / scale) / (2 scale): their NLL is an L1 loss."""

    wide = sqrt(2)

    def log_prob_each(self, value):
        return -(value - self.loc).abs() / self.scale - self.scale.log() - log(2)

    def draw(self, noise):
        # The tails by the logarithm of the normal's: nothing rounds to infinity.
        far = -(torch.special.log_ndtr(-noise.abs()) + log(2))
        return self.loc + self.scale * torch.sign(noise) * far


@dataclass(frozen=True)
class Mixture(Density):
    """sum_k w_k N(x; mean_k, diag(std_k^2)): one component for all of a point's channels, so they hang together.

    With `correlation` (two channels) each component has a full covariance.
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
        weight = self.log_weight.exp()[..., None]
        spread = (self.means - self.mean[..., None, :]).square() + self.stds.square()
        return (weight * spread).sum(-2).sqrt()

    @property
    def narrowest(self):
        return self.stds.amin(-2)

    def _standard(self, value: Tensor) -> Tensor:
        return (value[..., None, :] - self.means) / self.stds

    def log_prob_each(self, value):
        z = self._standard(value)
        each = -0.5 * z * z - self.stds.log() - 0.5 * LOG_2PI
        return torch.logsumexp(self.log_weight[..., None] + each, -2)

    def _log_components(self, value: Tensor, mask: Tensor) -> Tensor:
        """(..., k): the joint log density of the masked channels under each component."""
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
        told = mask.flip(-1)[..., None, :]
        rho = self.correlation[..., None]
        means = torch.where(told, self.means + rho * self.stds * other, self.means)
        stds = torch.where(told, self.stds * (1 - rho.square()).sqrt(), self.stds)
        correlation = torch.where(mask.any(-1, keepdim=True), 0, self.correlation)
        return Mixture(log_weight, means, stds, correlation)

    def _blurred(self, error):
        """Every component's covariance plus diag(error^2)."""
        stds = torch.hypot(self.stds, error[..., None, :])
        if error.shape[-1] != 2:
            return replace(self, stds=stds)
        return replace(self, stds=stds, correlation=self.correlation * (self.stds / stds).prod(-1))

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
        factor, shift = (x[..., None, :] if x.ndim > 1 else x for x in (factor, shift))  # of each component alike
        return replace(self, means=self.means * factor + shift, stds=self.stds * factor)


@dataclass(frozen=True)
class Bernoulli(Density):
    """Independent zeros and ones."""

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
    """Points whose value is always 1: all they tell is their time."""

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
    """Densities of any kinds, one after the other along the first axis of their points."""

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

    def log_prob_each(self, value):
        return torch.cat([part.log_prob_each(value) for part in self.parts])

    def draw(self, noise):
        raise ValueError("densities of different kinds need different noise; draw from each of the parts.")

    def affine(self, factor, shift):
        return Stacked(tuple(part.affine(factor, shift) for part in self.parts))
