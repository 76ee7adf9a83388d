"""What losses are made of: per-series nats, the Gaussian KL, the importance-weighted bound, latents at work."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vrnn_lab.models.fused.vrnn import bounded


@dataclass(frozen=True)
class Latents:
    """What a batch shows of a posterior at work."""

    kl: Float[Tensor, "batch latent"]  # nats a series, by latent dimension
    shift: Float[Tensor, "*places latent"]  # from prior to posterior mean, in prior stds, wherever one is drawn
    there: Bool[Tensor, "*places"]  # the others are padding


@dataclass(frozen=True)
class LossTerms:
    """A model's negative ELBO in two parts, in nats a series; without latents the NLL and zero."""

    nll: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]
    latents: Latents | None = None
    states: Float[Tensor, "samples batch time state"] | None = None  # at each point: what labels are told from


@dataclass(frozen=True)
class Normal:
    """A diagonal Gaussian over a latent."""

    mean: Float[Tensor, "*shape"]
    log_std: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, raw: Float[Tensor, "*shape double"]) -> "Normal":
        """From a network's output; the log-std is kept within -7 .. 3, smoothly."""
        mean, log_std = raw.chunk(2, -1)
        return cls(mean, bounded(log_std))

    @classmethod
    def standard(cls, like: Tensor) -> "Normal":
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def detach(self) -> "Normal":
        return self.map(Tensor.detach)

    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Summed over the last axis."""
        z = (value - self.mean) * (-self.log_std).exp()
        return (-0.5 * z * z - self.log_std - 0.5 * log(2 * torch.pi)).sum(-1)

    def kl(self, other: "Normal") -> Float[Tensor, "..."]:
        """KL(self || other), summed over the last axis (Kingma & Welling 2014, appendix B)."""
        return self.kl_each(other).sum(-1)

    def kl_each(self, other: "Normal") -> Float[Tensor, "..."]:
        """KL(self || other) of each dimension."""
        ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * (-other.log_std).exp()
        return 0.5 * (torch.exp(2 * ratio) + shift * shift - 1) - ratio

    def shift(self, prior: "Normal") -> Float[Tensor, "..."]:
        """From the prior's mean to its own, in the prior's stds."""
        return (self.mean - prior.mean) * (-prior.log_std).exp()

    def map(self, change: Callable[[Tensor], Tensor]) -> "Normal":
        return Normal(change(self.mean), change(self.log_std))

    def where(self, mask: Tensor, other: "Normal") -> "Normal":
        """Itself where the mask is set, the other elsewhere."""
        return Normal(torch.where(mask, self.mean, other.mean), torch.where(mask, self.log_std, other.log_std))


ACTIVE = 0.01
FEW = 5  # latents from which a variance over the data is reported


class Activity:
    """Which latent dimensions are at work, over many batches: collapse is shown.

    A dimension is active when the variance over the data of its posterior mean exceeds ACTIVE (Burda et al.
    2016, arXiv 1509.00519, section 5.3), measured from the prior's mean in the prior's stds, which is
    theirs where the prior is N(0, I).
    """

    def __init__(self):
        self.batches: list[tuple[Tensor, ...]] = []

    def add(self, latents: Latents | None, weight: int = 1) -> None:
        if latents is not None:
            shift = latents.shift[latents.there].double()
            moments = (shift.new_tensor(len(shift)), shift.sum(0), shift.square().sum(0))
            sums = (*moments, latents.kl.double().sum(0), shift.new_tensor(len(latents.kl)))
            self.batches.append(tuple(weight * x for x in sums))

    def result(self, mean: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
        """active_units, and kl_<i>: nats a series of each dimension. mean: over the processes that have a share."""
        if not self.batches:
            return {}
        sums = (mean(torch.stack(x).sum(0)) for x in zip(*self.batches, strict=True))
        count, total, squares, kl, series = sums
        variance = squares / count.clamp(min=1) - (total / count.clamp(min=1)).square()
        each = {f"kl_{i}": x for i, x in enumerate((kl / series.clamp(min=1)).tolist())}
        if count < FEW:  # a variance over so few says nothing
            return each
        return {"active_units": float((variance > ACTIVE).sum()), **each}
