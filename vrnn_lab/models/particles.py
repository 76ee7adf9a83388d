"""Resample the particles of a particle filter."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def choose_ancestors(
    log_weight: Float[Tensor, "samples batch"], chance: Float[Tensor, " batch"]
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """Return each particle's ancestor (samples, batch), and which rows are resampled (batch,).

    A row is resampled, systematically with one uniform number, where its effective number of particles is below half
    of them; in the other rows each particle is its own ancestor.
    """
    count = len(log_weight)
    weight = log_weight.softmax(0)
    resampled = 1 / weight.square().sum(0) < count / 2
    place = (torch.arange(count, device=chance.device)[None] + chance[:, None]) / count
    ends = weight.cumsum(0).T.contiguous()
    chosen = torch.searchsorted(ends / ends[:, -1:], place).clamp(max=count - 1).T
    own = torch.arange(count, device=chance.device)[:, None].expand_as(chosen)
    return torch.where(resampled, chosen, own), resampled
