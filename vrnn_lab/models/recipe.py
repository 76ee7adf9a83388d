"""Define how to train a model: optimizer, learning-rate schedule, objective, weight of the KL, labels."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from vrnn_lab.core.types import Count, Decay, Natural, NonNegative, Positive, Share
from vrnn_lab.models.losses import LossTerms, Normal


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Keep the learning rate constant."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, total_steps: int, warmup: Share = 0.02, final: Share = 0.01) -> LRScheduler:
    """Raise the rate linearly over the fraction `warmup` of the steps, then lower it by a cosine to `final` lr."""
    rise = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, total_steps - rise))
        return final + (1 - final) * 0.5 * (1 + cos(pi * done))

    return LambdaLR(optimizer, factor)


def onecycle(optimizer: Optimizer, total_steps: int, rise: Share = 0.3) -> LRScheduler:
    """Run one cycle (Smith & Topin 2018): from lr / 25 to lr over a fraction of the steps, then to almost zero."""
    total = total_steps + 1  # one more than are run: the scheduler raises when it is called beyond its end
    peak = [group["lr"] for group in optimizer.param_groups]
    share = rise if rise * total != 1 else 1.5 / total  # a rise of exactly one step divides by zero in torch
    return OneCycleLR(optimizer, max_lr=peak, total_steps=total, pct_start=share, cycle_momentum=False)


def exponential(optimizer: Optimizer, total_steps: int, final: Decay = 0.1) -> LRScheduler:
    """Lower the rate by one factor per step, to `final` of its initial value at the end."""
    return LambdaLR(optimizer, lambda step: final ** (step / max(1, total_steps)))


def plateau(optimizer: Optimizer, total_steps: int, factor: Decay = 0.5, patience: Natural = 5) -> ReduceLROnPlateau:
    """Lower the rate by `factor` whenever val/loss has not improved for `patience` validations."""
    # Absolute: with a threshold relative to a negative loss, no change would count as an improvement.
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold_mode="abs")


@dataclass(frozen=True)
class KLWeight:
    """Weight the KL of the ELBO in training; validation and test always measure the bound itself."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the weight at a step."""
        return 1.0

    def penalty(self, terms: LossTerms) -> Tensor | None:
        """Return what is weighed in place of the KL, in nats per series; None: the KL itself."""
        return None

    def kl_each(self, posterior: Normal, prior: Normal) -> Tensor:
        """Return the KL of each dimension from a learned prior; a subclass may change its gradient, not its value."""
        return posterior.kl_each(prior)


@dataclass(frozen=True)
class ConstantBeta(KLWeight):
    """Weight the KL by the constant `weight`; 1 gives the bound itself."""

    weight: NonNegative = 1.0

    def __call__(self, step: int, total_steps: int) -> float:
        return self.weight


@dataclass(frozen=True)
class WarmupBeta(KLWeight):
    """Raise the weight of the KL linearly from 0 to 1 over the first fraction `share` of the steps."""

    share: Decay = 0.2

    def __call__(self, step: int, total_steps: int) -> float:
        return min(1.0, step / (self.share * max(1, total_steps)))


@dataclass(frozen=True)
class CyclicBeta(KLWeight):
    """Raise the weight of the KL from 0 to 1 several times (Fu et al. 2019, arXiv 1903.10145, section 4).

    In each of `cycles` equal parts of the training the weight rises linearly over the fraction `rise` of the part,
    and stays at 1 for the rest of it.
    """

    cycles: Count = 4
    rise: Decay = 0.5

    def __call__(self, step: int, total_steps: int) -> float:
        if step >= total_steps:
            return 1.0
        done = self.cycles * step / total_steps % 1
        return min(1.0, done / self.rise)


@dataclass(frozen=True)
class FreeBits(KLWeight):
    """Leave the KL of a latent dimension unpenalised below `nats` a latent, so that using it costs nothing at first
    (Kingma et al. 2016, arXiv 1606.04934, eq. 15).

    A series' term is sum_j max(KL_j, nats * draws), with KL_j summed over the `draws` latents of the series: one a
    series, or one a point. The paper takes the mean of KL_j over the batch, which is unknown to processes that hold
    parts of a batch (DDP).
    """

    nats: Positive = 0.02

    def penalty(self, terms: LossTerms) -> Tensor:
        assert terms.latents is not None  # the model's constructor refuses this weight where there are no latents
        least = self.nats * terms.latents.draws[:, None]
        above = (terms.latents.kl - least).clamp(min=0)
        # The KL's parts that belong to no dimension, such as that of a random line, count as they are.
        return terms.kl + (above + least - terms.latents.kl).sum(-1)


@dataclass(frozen=True)
class BalancedKL(KLWeight):
    """Train a learned prior towards the posterior faster than the posterior towards the prior (Hafner et al. 2021,
    arXiv 2010.02193, algorithm 2).

    The KL is share KL(stop(q) || p) + (1 - share) KL(q || stop(p)), where stop lets no gradient through; its value is
    that of the KL.
    """

    share: Share = 0.8

    def kl_each(self, posterior: Normal, prior: Normal) -> Tensor:
        of_prior, of_posterior = posterior.detach().kl_each(prior), posterior.kl_each(prior.detach())
        return self.share * of_prior + (1 - self.share) * of_posterior


@dataclass(frozen=True)
class ELBO:
    """Train on the evidence lower bound with `samples` draws (Kingma & Welling 2014, arXiv 1312.6114)."""

    samples: Count = 1

    def __call__(self, model: Any, series) -> LossTerms:
        return model._loss_terms(series, self.samples)


@dataclass(frozen=True)
class IWAE:
    """Train on the importance-weighted bound, log 1/K sum_k w_k of each series (Burda et al. 2016, arXiv 1509.00519).

    It does not split into a likelihood and a KL, so the KL is reported as zero. Models with one code of the observed
    values have doubly reparameterised gradients (Tucker et al. 2019, arXiv 1810.04152).
    """

    samples: Count = 10

    def __call__(self, model: Any, series) -> LossTerms:
        bound = model._importance_bound(series, self.samples)
        return LossTerms(-bound, bound.new_zeros(len(bound)))


@dataclass(frozen=True)
class FIVO:
    """Train on the particle filter's bound, which resamples IWAE's samples along a series.

    It needs a model with a latent at every step (Maddison et al. 2017, arXiv 1705.09279).
    """

    samples: Count = 10

    def __call__(self, model: Any, series) -> LossTerms:
        bound = model._filter_bound(series, self.samples)
        return LossTerms(-bound, bound.new_zeros(len(bound)))


@dataclass(frozen=True)
class Labels:
    """Configure a classifier on a model's states, trained jointly with `weight` times its nats per label."""

    weight: NonNegative = 1.0
    width: Count = 64  # hidden units


@dataclass(frozen=True)
class Recipe:
    """Hold how to train: optim(parameters), schedule(optimizer, total_steps), beta(step, total_steps).

    ValueError where an objective other than ELBO is combined with a KL weight or with labels.
    """

    optim: Callable
    schedule: Callable
    beta: KLWeight = ConstantBeta()
    objective: Callable[[Any, Any], LossTerms] = ELBO()
    labels: Labels = Labels(weight=0.0)

    def __post_init__(self):
        if isinstance(self.objective, ELBO):
            return
        name = type(self.objective).__name__.lower()
        if self.beta != ConstantBeta(1.0):
            raise ValueError(f"objective={name} has no KL term to weight; set beta=constant with beta.weight=1.")
        if self.labels.weight:
            raise ValueError(
                f"labels can be learned with objective=elbo only, not with objective={name}; set labels=none or "
                "objective=elbo."
            )
