"""How to fit any model: optimizer, learning-rate schedule, weight of the KL."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from vrnn_lab.checks import Decay, Natural, NonNegative, Share


@dataclass(frozen=True)
class Recipe:
    """optimizer(parameters), schedule(optimizer, total_steps), beta(step, total_steps): a run is fitted with them."""

    optim: Callable
    schedule: Callable
    beta: Callable[[int, int], float]


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The learning rate stays as it is."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, total_steps: int, warmup: Share = 0.02, final: Share = 0.01) -> LRScheduler:
    """Up linearly over the first share of the steps, then down along a cosine to `final` of the peak."""
    rise = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, total_steps - rise))
        return final + (1 - final) * 0.5 * (1 + cos(pi * done))

    return LambdaLR(optimizer, factor)


def onecycle(optimizer: Optimizer, total_steps: int, rise: Share = 0.3) -> LRScheduler:
    """One cycle (Smith & Topin 2018): from lr / 25 up to lr over a share of the steps, then down to nothing."""
    total = total_steps + 1  # one more than are taken: the scheduler raises when it is called beyond its end
    peak = [group["lr"] for group in optimizer.param_groups]
    share = rise if rise * total != 1 else 1.5 / total  # a rise of exactly one step divides by zero in torch
    return OneCycleLR(optimizer, max_lr=peak, total_steps=total, pct_start=share, cycle_momentum=False)


def exponential(optimizer: Optimizer, total_steps: int, final: Decay = 0.1) -> LRScheduler:
    """Down by one factor every step, to `final` of the rate at the end."""
    return LambdaLR(optimizer, lambda step: final ** (step / max(1, total_steps)))


def plateau(optimizer: Optimizer, total_steps: int, factor: Decay = 0.5, patience: Natural = 5) -> ReduceLROnPlateau:
    """Down by a factor whenever val/loss has not improved for some validations."""
    # Absolute: relative to a negative loss, standing still would count as better.
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold_mode="abs")


@dataclass(frozen=True)
class ConstantBeta:
    """The KL counts by `weight`; 1 is the bound itself."""

    weight: NonNegative = 1.0

    def __call__(self, step: int, total_steps: int) -> float:
        return self.weight


@dataclass(frozen=True)
class WarmupBeta:
    """The weight of the KL grows linearly from 0 to 1 over the first share of the steps."""

    share: Decay = 0.2

    def __call__(self, step: int, total_steps: int) -> float:
        return min(1.0, step / (self.share * max(1, total_steps)))
