"""Output heads: what a network's last layer says about a point, each density once."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import log, sqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vrnn_lab.checks import Count, Positive
from vrnn_lab.series import Scale

FLOOR = 1e-3  # of every predicted std, in training standard deviations of its channel; there is no other
LOG_2PI = log(2 * torch.pi)


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

    @abstractmethod
    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A draw (..., dim) from standard normals (..., draws)."""

    @abstractmethod
    def affine(self, factor: Tensor, shift: Tensor) -> "Density":
        """The density of factor * x + shift."""

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


class Head(nn.Module, ABC):
    """Turns raw network outputs (..., width) into a density over a point's channels (..., dim)."""

    support: ClassVar[str]  # real, binary or events: what values it can speak of
    width: int  # raw numbers a point
    draws: int  # standard normals one draw of a point needs

    @abstractmethod
    def forward(self, raw: Float[Tensor, "*shape width"]) -> Density: ...


def floored(log_std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """sqrt(exp(2 r) + FLOOR^2): the std of an unbounded r, in training standard deviations."""
    floor = torch.full_like(log_std, 2 * log(FLOOR))
    return torch.exp(0.5 * torch.logaddexp(2 * log_std.clamp(max=40.0), floor))


class OneScaleHead(Head):
    """A head whose raw numbers are a location per channel, and a spread per point, per channel or one for all.

    A global or channel spread is learned (global: one in training standard deviations), or fixed to `fixed`, in
    the data's own units.
    """

    support = "real"

    def __init__(
        self,
        scale: Scale,
        noise: Literal["point", "channel", "global"] = "point",
        fixed: Positive | None = None,
    ):
        super().__init__()
        if fixed is not None and noise == "point":
            raise ValueError(
                "head.fixed gives one std for all points, head.noise=point one for each; "
                "set head.noise=channel, or head.fixed=null."
            )
        self.noise, self.draws = noise, scale.dim
        self.width = 2 * scale.dim if noise == "point" else scale.dim
        if fixed is not None:
            inside = fixed / scale.std
            if (inside < FLOOR).any():
                raise ValueError(
                    f"head.fixed={fixed} lies below the floor of {FLOOR} training standard deviations "
                    f"(smallest allowed here: {FLOOR * scale.std.max().item():.3g})."
                )
            self.register_buffer("log_std", 0.5 * torch.log(inside**2 - FLOOR**2).float())
        elif noise != "point":
            # Small at first: from a wide start a path model learns to call everything noise, and stays there.
            self.log_std = nn.Parameter(torch.full((scale.dim if noise == "channel" else 1,), log(0.05)))

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Location and std."""
        mean, log_std = raw.chunk(2, -1) if self.noise == "point" else (raw, self.log_std)
        return mean, floored(log_std).expand_as(mean)


class GaussianHead(OneScaleHead):
    """A Gaussian with a mean per point and a std per point, per channel or one for all (global)."""

    def forward(self, raw):
        return Gaussian(*self._split(raw))


class LaplaceHead(OneScaleHead):
    """A Laplace density: the L1 loss, with a scale per point, per channel or one for all. `fixed` is its std."""

    def forward(self, raw):
        mean, std = self._split(raw)
        return Laplace(mean, std / sqrt(2))


class MixtureHead(Head):
    """A mixture of Gaussians, joint over a point's channels (Bishop 1994; RNN-GMM of arXiv 1506.02216).

    covariance=full, for two channels: correlation tanh(r) within each component, as pen strokes want it
    (Graves 2013, arXiv 1308.0850, eq. 24).
    """

    support = "real"

    def __init__(self, scale: Scale, components: Count = 5, covariance: Literal["diagonal", "full"] = "diagonal"):
        super().__init__()
        if covariance == "full" and scale.dim != 2:
            raise ValueError(
                f"head.covariance=full is for two channels, the data has {scale.dim}; set head.covariance=diagonal."
            )
        self.components, self.dim, self.full = components, scale.dim, covariance == "full"
        self.width = components * (1 + 2 * scale.dim + self.full)
        self.draws = scale.dim + 1
        # Components that start alike stay alike: their centres start apart.
        spread = torch.linspace(-1, 1, components)[:, None] if components > 1 else torch.zeros(1, 1)
        self.start: Tensor
        self.register_buffer("start", spread.expand(-1, scale.dim).clone())

    def forward(self, raw):
        each = raw.unflatten(-1, (self.components, -1))
        means, log_std = each[..., 1 : 1 + 2 * self.dim].chunk(2, -1)
        rho = 0.999 * torch.tanh(each[..., -1]) if self.full else torch.zeros_like(each[..., 0])
        return Mixture(each[..., 0].log_softmax(-1), means + self.start, floored(log_std), rho)


class BernoulliHead(Head):
    """Zeros and ones: a logit per channel."""

    support = "binary"

    def __init__(self, scale: Scale):
        super().__init__()
        self.width = self.draws = scale.dim

    def forward(self, raw):
        return Bernoulli(raw)


class EventHead(Head):
    """Events: their times are all, so a point needs no raw numbers."""

    support = "events"
    width = draws = 0

    def __init__(self, scale: Scale):
        super().__init__()
        self.dim = scale.dim

    def forward(self, raw):
        return Event(raw.new_ones(*raw.shape[:-1], self.dim))


def on_floor(density: Density, std: Tensor) -> Bool[Tensor, "..."]:
    """Which predicted stds the floor decides more than the model does."""
    return density.narrowest < sqrt(2) * FLOOR * std
