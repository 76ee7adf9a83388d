"""Output heads: what a network's last layer says about a point, each density once."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log, sqrt
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vrnn_lab.checks import Positive
from vrnn_lab.series import Scale

FLOOR = 1e-3  # of every predicted std, in training standard deviations of its channel; there is no other


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians over a point's channels."""

    mean: Float[Tensor, "*shape dim"]
    std: Float[Tensor, "*#shape dim"]

    def log_prob_each(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Each channel's marginal log density."""
        z = (value - self.mean) / self.std
        return -0.5 * z * z - self.std.log() - 0.5 * log(2 * torch.pi)

    def log_prob(self, value: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A point's joint log density over its masked channels."""
        return torch.where(mask, self.log_prob_each(value), 0).sum(-1)

    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.mean + self.std * noise

    def affine(self, factor: Tensor, shift: Tensor) -> "Gaussian":
        """The density of factor * x + shift."""
        return Gaussian(self.mean * factor + shift, self.std * factor)

    def map(self, change) -> "Gaussian":
        """With `change` applied to each parameter, spread out to full shape first."""
        return Gaussian(change(self.mean), change(self.std.expand_as(self.mean)))

    @staticmethod
    def stack(steps: list["Gaussian"], join) -> "Gaussian":
        """One density from those of single points; `join` joins a list of like tensors."""
        return Gaussian(join([d.mean for d in steps]), join([d.std.expand_as(d.mean) for d in steps]))


class Head(nn.Module, ABC):
    """Turns raw network outputs (..., width) into a density over a point's channels (..., dim)."""

    support: ClassVar[str]  # real, binary or events: what values it can speak of
    width: int  # raw numbers a point
    draws: int  # standard normals one draw of a point needs

    @abstractmethod
    def forward(self, raw: Float[Tensor, "*shape width"]) -> Gaussian: ...


class GaussianHead(Head):
    """A Gaussian with a mean per point and a std per point, per channel or one for all (global).

    A global or channel std is learned (global: one in training standard deviations), or fixed to `fixed`, in
    the data's own units. Every std is
    sqrt(exp(2 r) + FLOOR^2) with r unbounded, in training standard deviations.
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

    def forward(self, raw):
        mean, log_std = raw.chunk(2, -1) if self.noise == "point" else (raw, self.log_std)
        floor = torch.full_like(log_std, 2 * log(FLOOR))
        std = torch.exp(0.5 * torch.logaddexp(2 * log_std.clamp(max=40.0), floor))
        return Gaussian(mean, std.expand_as(mean) if self.noise == "global" else std)


def on_floor(density: Gaussian, std: Tensor) -> Bool[Tensor, "..."]:
    """Which predicted stds the floor decides more than the model does."""
    return density.std < sqrt(2) * FLOOR * std
