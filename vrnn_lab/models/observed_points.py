"""Read masks of observed values where that costs nothing, and leave out what is not observed."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from vrnn_lab.core.kalman import StateSpace, log_likelihood

SHORTER = 3  # rows are processed together down to a third of the longest one's number of points
ENOUGH = 30_000  # points in a batch from which that saves more than the further calls cost


def observed_alone(
    mask: Bool[Tensor, "batch time dim"],
    times: Float64[Tensor, "batch time 1"],
    values: Float64[Tensor, "batch time dim"],
    variance: Float64[Tensor, "batch time dim"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments with only the masked points of each channel, as `masked_alone`.

    The arguments are unchanged where reading the mask is expensive.
    """
    if not _readable(mask):
        return mask, times, values, variance
    mask, times, values, variance = masked_alone(mask, times, values, variance)
    return mask, times, values, variance


def masked_alone(
    mask: Bool[Tensor, "batch time dim"],
    times: Float64[Tensor, "batch time 1"],
    *others: Shaped[Tensor, "batch time dim"],
) -> list[Tensor]:
    """Return the arguments with only the masked points of each channel, moved to the front; (batch, most, dim) each.

    A channel with a state of its own needs no step at the points of other channels. In tables of many channels that
    are seldom observed together, most points have one value: 41 channels of PhysioNet have 3 to 60 values each at
    over 100 points of a series. Points that fill up a channel have the time of its last masked one.
    """
    counts = (mask.numpy() if _readable(mask) else mask).sum(1)  # an operation of torch would count as a wait
    most = max(1, int(counts.max()))
    order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    there, at, *alone = (x.expand(mask.shape).gather(1, order) for x in (mask, times, *others))
    return [there, torch.where(there, at, at[:, :1]).cummax(1).values, *alone]


def by_length(
    counts: Int64[Tensor, " rows"], at_once: int | float = torch.inf
) -> Iterator[tuple[Int64[Tensor, " some"], int]]:
    """Yield the indices of rows with like numbers of points, and the largest of these numbers, the longest first.

    Rows without points are left out. at_once: the most rows times points, unless a single row has more.
    """
    order = counts.argsort(descending=True)[: int((counts > 0).sum())]
    lengths, first = counts[order].tolist(), 0
    while first < len(lengths):
        longest, last = lengths[first], first + 1
        while last < len(lengths) and lengths[last] > longest // SHORTER and (last + 1 - first) * longest <= at_once:
            last += 1
        yield order[first:last], longest
        first = last


def log_likelihood_by_length(
    space: StateSpace, values: Float64[Tensor, "rows time 1"], mask: Bool[Tensor, "rows time 1"]
) -> Float64[Tensor, " rows"]:
    """Return log p of each row's masked values, which come first, filtering rows of like lengths together.

    Where one channel is observed often and most others seldom, the rows of the others need few of its steps.
    """
    if not _readable(mask) or mask.numel() < ENOUGH or not some(mask):
        return log_likelihood(space, values, mask)
    parts = [
        (rows, log_likelihood(space.part(rows, longest), values[rows, :longest], mask[rows, :longest]))
        for rows, longest in by_length(mask[..., 0].sum(1))
    ]
    log_probs = torch.zeros_like(values[:, 0, 0])
    return log_probs.index_put((torch.cat([rows for rows, _ in parts]),), torch.cat([each for _, each in parts]))


def _readable(mask: Tensor) -> bool:
    """Return whether a mask can be read at no cost; on a GPU, or in a graph, that would wait for the device."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling()


def some(mask: Bool[Tensor, "..."]) -> bool:
    """Return whether any entry may be set; True where reading the mask is expensive (on a GPU, in a graph)."""
    return bool(mask.numpy().any()) if _readable(mask) else True
