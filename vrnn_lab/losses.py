"""What losses are made of: per-series nats, the Gaussian KL, and the importance-weighted bound."""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """A model's negative ELBO in two parts, in nats a series; without latents the NLL and zero."""

    nll: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Normal:
    """A diagonal Gaussian over a latent."""

    mean: Float[Tensor, "*shape"]
    log_std: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, raw: Float[Tensor, "*shape double"]) -> "Normal":
        """From a network's output; the log-std is kept within -7 .. 3, smoothly."""
        mean, log_std = raw.chunk(2, -1)
        return cls(mean, 5 * torch.tanh((log_std + 2) / 5) - 2)

    @classmethod
    def standard(cls, like: Tensor) -> "Normal":
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Summed over the last axis."""
        z = (value - self.mean) * (-self.log_std).exp()
        return (-0.5 * z * z - self.log_std - 0.5 * log(2 * torch.pi)).sum(-1)

    def kl(self, other: "Normal") -> Float[Tensor, "..."]:
        """KL(self || other), summed over the last axis (Kingma & Welling 2014, appendix B)."""
        ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * (-other.log_std).exp()
        return (0.5 * (torch.exp(2 * ratio) + shift * shift - 1) - ratio).sum(-1)

    def where(self, mask: Tensor, other: "Normal") -> "Normal":
        """Itself where the mask is set, the other elsewhere."""
        return Normal(torch.where(mask, self.mean, other.mean), torch.where(mask, self.log_std, other.log_std))


def log_mean_exp(log_weights: Float[Tensor, "samples ..."]) -> Float[Tensor, "..."]:
    """The importance-weighted bound of each series from its log weights (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(log_weights, 0) - log(log_weights.shape[0])
