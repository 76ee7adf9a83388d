"""Define what losses consist of: nats per series, the Gaussian KL, and measures of which latent dimensions are
active."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vrnn_lab.models.fused.vrnn import bounded


@dataclass(frozen=True)
class Latents:
    """Hold statistics of a batch that show which latent dimensions the posterior uses."""

    kl: Float[Tensor, "batch latent"]  # nats per series, by latent dimension
    draws: Float[Tensor, " batch"]  # latents drawn per series: one, or one a point
    shift: Float[Tensor, "*places latent"]  # posterior mean less prior mean, in prior stds, at each drawn latent
    there: Bool[Tensor, "*places"]  # the others are padding


@dataclass(frozen=True)
class LossTerms:
    """Hold a model's negative ELBO in two parts, in nats per series; without latents these are the NLL and zero."""

    nll: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]
    latents: Latents | None = None
    states: Float[Tensor, "samples batch time state"] | None = None  # at each point: the classifier's inputs
    penalty: Float[Tensor, " batch"] | None = None  # what training weighs in place of the KL; None: the KL


@dataclass(frozen=True)
class Normal:
    """Represent a diagonal Gaussian over a latent."""

    mean: Float[Tensor, "*shape"]
    log_std: Float[Tensor, "*shape"]

    @classmethod
    def of(cls, raw: Float[Tensor, "*shape double"]) -> "Normal":
        """Build the Gaussian from a network's output (..., 2 latent), with the log-std bounded smoothly to -7 ..
        3."""
        mean, log_std = raw.chunk(2, -1)
        return cls(mean, bounded(log_std))

    @classmethod
    def standard(cls, like: Tensor) -> "Normal":
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def detach(self) -> "Normal":
        return self.map(Tensor.detach)

    def draw(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return a draw from standard normal noise."""
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-density of a value, summed over the last axis, in nats."""
        z = (value - self.mean) * (-self.log_std).exp()
        return (-0.5 * z * z - self.log_std - 0.5 * log(2 * torch.pi)).sum(-1)

    def kl(self, other: "Normal") -> Float[Tensor, "..."]:
        """Return KL(self || other), summed over the last axis, in nats (Kingma & Welling 2014, appendix B)."""
        return self.kl_each(other).sum(-1)

    def kl_each(self, other: "Normal") -> Float[Tensor, "..."]:
        """Return KL(self || other) of each dimension, in nats."""
        ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * (-other.log_std).exp()
        return 0.5 * (torch.exp(2 * ratio) + shift * shift - 1) - ratio

    def shift(self, prior: "Normal") -> Float[Tensor, "..."]:
        """Return the distance from the prior's mean to this mean, in the prior's stds."""
        return (self.mean - prior.mean) * (-prior.log_std).exp()

    def map(self, change: Callable[[Tensor], Tensor]) -> "Normal":
        return Normal(change(self.mean), change(self.log_std))

    def where(self, mask: Tensor, other: "Normal") -> "Normal":
        """Return this Gaussian where the mask is set, and the other one elsewhere."""
        return Normal(torch.where(mask, self.mean, other.mean), torch.where(mask, self.log_std, other.log_std))


ACTIVE = 0.01
FEW = 5  # least number of latents for a variance over the data


class Activity:
    """Measure over many batches which latent dimensions are active, which reveals posterior collapse.

    A dimension is active when the variance over the data of its posterior mean exceeds ACTIVE (Burda et al. 2016,
    arXiv 1509.00519, section 5.3). The mean is measured from the prior's mean in the prior's stds, which gives the
    paper's definition where the prior is N(0, I).
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
        """Return active_units, and kl_<i>, the nats per series of each dimension; `mean` averages over DDP
        processes."""
        if not self.batches:
            return {}
        sums = (mean(torch.stack(x).sum(0)) for x in zip(*self.batches, strict=True))
        count, total, squares, kl, series = sums
        variance = squares / count.clamp(min=1) - (total / count.clamp(min=1)).square()
        kl_of_each = {f"kl_{i}": x for i, x in enumerate((kl / series.clamp(min=1)).tolist())}
        if count < FEW:  # too few for a variance
            return kl_of_each
        return {"active_units": float((variance > ACTIVE).sum()), **kl_of_each}
