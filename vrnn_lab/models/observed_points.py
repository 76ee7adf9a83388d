"""Read masks of observed values where that costs nothing, and leave out what is not observed."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vrnn_lab.core.kalman import Pairs, StateSpace, log_likelihood

SHORTER = 3  # rows are filtered together down to a third of the longest one's number of points
ENOUGH = 30_000  # points in a batch from which that saves more than the further calls cost


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


def log_likelihood_by_length(
    space: StateSpace, values: Float64[Tensor, "rows time 1"], mask: Bool[Tensor, "rows time 1"]
) -> Float64[Tensor, " rows"]:
    """Return log p of each row's masked values, which come first, filtering rows of like lengths together.

    Where one channel is observed often and most others seldom, the rows of the others need few of its steps.
    """
    transition = space.transition
    if not _readable(mask) or mask.numel() < ENOUGH or not isinstance(transition, Pairs):
        return log_likelihood(space, values, mask)
    counts = mask[..., 0].sum(1)
    parts, longest = [], mask.shape[1]
    while longest:
        shorter = longest // SHORTER
        rows = (counts <= longest) & (counts > shorter) if shorter else counts <= longest
        if len(index := rows.nonzero()[:, 0]):
            own, cross, observe, noise, some_values, some_mask = (
                x[index, :longest]
                for x in (transition.own, transition.cross, space.observe, space.noise, values, mask)
            )
            part = replace(space, transition=replace(transition, own=own, cross=cross), observe=observe, noise=noise)
            parts.append((index, log_likelihood(part, some_values, some_mask)))
        longest = shorter
    places = torch.cat([index for index, _ in parts])
    return torch.cat([log_probs for _, log_probs in parts])[places.argsort()]


def _readable(mask: Tensor) -> bool:
    """Return whether a mask can be read at no cost; on a GPU, or in a graph, that would wait for the device."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling()


def some(mask: Bool[Tensor, "..."]) -> bool:
    """Return whether any entry may be set; True where reading the mask is expensive (on a GPU, in a graph)."""
    return bool(mask.numpy().any()) if _readable(mask) else True
