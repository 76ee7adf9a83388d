"""Keep the level of a step model: read and predict values as changes from the last known ones."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vrnn_lab.core.densities import Density
from vrnn_lab.core.series import Scale

StepLevel = Literal["auto", "last", "none"]


class LastValue(nn.Module):
    """Keep the level of every channel, so that a series may lie outside the training range.

    With l_i the last known value of a channel before point i and c the root mean square of its changes in training,
    the network reads a known value x_i as [x_i clipped to the training range, (x_i - l_i) / c], and its output is the
    density of (x_i - l_i) / c. So p(x_i | past) is the head's density, shifted and scaled by functions of the past
    alone, and stays normalised. Before a channel's first known value l = 0 and c = 1. Channels that are not `kept`
    are read and predicted unchanged.
    """

    kept: Tensor
    low: Tensor
    high: Tensor
    change: Tensor

    def __init__(self, scale: Scale, kept: Bool[Tensor, " dim"], stretch: bool = True):
        """Take the channels to keep; stretch=False: the head's spread is one of values, which is shifted by l but not
        scaled."""
        super().__init__()
        self.stretch = stretch
        self.register_buffer("kept", kept)
        nothing = scale.std.new_ones(scale.dim)
        variation = scale.variation
        low, high, change = (
            (-nothing, nothing, nothing) if variation is None else (variation.low, variation.high, variation.change)
        )
        for name, numbers in (("low", low), ("high", high), ("change", change.clamp(min=SMALLEST_CHANGE))):
            self.register_buffer(name, numbers.float())

    def read(
        self, values: Float[Tensor, "*rows dim"], known: Tensor, last: Tensor, ever: Tensor
    ) -> Float[Tensor, "*rows twice"]:
        """Return the network's inputs from values (zero where unknown), the last values before them, and whether
        these exist."""
        flag = known.to(values)
        within = torch.where(self.kept, torch.minimum(torch.maximum(values, self.low), self.high), values)
        change = torch.where(ever & self.kept, values - last, 0) / self.change
        return torch.cat([within * flag, change * flag], -1)

    def move(self, density: Density, last: Tensor, ever: Tensor) -> Density:
        """Convert the density of changes into the density of values."""
        factor = torch.where(ever & self.kept & self.stretch, self.change, 1.0)
        return density.affine(factor, torch.where(self.kept, last, 0))


def last_values(
    values: Float[Tensor, "batch time dim"], known: Bool[Tensor, "batch time dim"]
) -> tuple[Float[Tensor, "batch time dim"], Bool[Tensor, "batch time dim"]]:
    """Return, before every point, each channel's last known value (zero where there is none), and whether there is
    one."""
    place = torch.arange(values.shape[1], device=values.device)[:, None].expand_as(values)
    latest = torch.where(known, place, -1).cummax(1).values
    latest = torch.cat([torch.full_like(latest[:, :1], -1), latest[:, :-1]], 1)
    ever = latest >= 0
    return torch.where(ever, values.gather(1, latest.clamp(min=0)), 0), ever


SMALLEST_CHANGE = 0.01  # training standard deviations
PERSISTENT = 0.4  # training stds: channels that change by less from value to value are predicted from the last one


def kept_channels(level: StepLevel, scale: Scale) -> Bool[Tensor, " dim"]:
    """Return the channels whose level a step model keeps.

    With `auto` these are the channels of a user's table that change by less than PERSISTENT training standard
    deviations from one known value to the next, apart from the slope that all series share. Elsewhere the last value
    is mostly noise or out of date: on seasonal series with noise, changes were measured to be harder to predict than
    values, while on growth they were easier.
    """
    every = torch.ones(scale.dim, dtype=torch.bool)
    if level == "last" or scale.support != "real":
        return every & (scale.support == "real")
    if level == "none" or not scale.own_levels:
        return ~every
    return every if scale.variation is None else scale.variation.wander < PERSISTENT
