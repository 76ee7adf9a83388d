"""Read masks of observed values where that costs nothing, and leave out what is not observed."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


def observed_alone(
    mask: Bool[Tensor, "batch time dim"],
    times: Float64[Tensor, "batch time 1"],
    values: Float64[Tensor, "batch time dim"],
    variance: Float64[Tensor, "batch time dim"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments with only the masked points of each channel, moved to the front; (batch, most, dim) each.

    A channel with a state of its own needs no step at the points of other channels. In tables of many channels that
    are seldom observed together, most points have one value: 41 channels of PhysioNet have 3 to 60 values each at
    over 100 points of a series. The arguments are unchanged where reading the mask is expensive.
    """
    if not _readable(mask):
        return mask, times, values, variance
    most = max(1, int(mask.numpy().sum(1).max()))
    order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    mask, times, values, variance = (x.expand(mask.shape).gather(1, order) for x in (mask, times, values, variance))
    return mask, torch.where(mask, times, times[:, :1]).cummax(1).values, values, variance


def _readable(mask: Tensor) -> bool:
    """Return whether a mask can be read at no cost; on a GPU, or in a graph, that would wait for the device."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling()


def some(mask: Bool[Tensor, "..."]) -> bool:
    """Return whether any entry may be set; True where reading the mask is expensive (on a GPU, in a graph)."""
    return bool(mask.numpy().any()) if _readable(mask) else True
