"""An ODE-RNN over the union of a batch's times, as the papers' public code walks it: all rows at every time.

One Euler step of all rows from each time of the union to the next, the GRU on all rows, its result kept where a row
has a point. With our weights, so that what differs from ours is the walk alone.
"""

import torch
from torch import Tensor

from vrnn_lab.models.networks import ODERNNCell


def over_union(memory: ODERNNCell, inputs: Tensor, times: Tensor) -> Tensor:
    """The state of each row at the last time of the union; inputs (batch, place, input), times (batch, place)."""
    union, place = times.unique(return_inverse=True)
    state = inputs.new_zeros(len(inputs), memory.memory.size)
    observed = torch.zeros(len(union), len(inputs), dtype=torch.bool, device=inputs.device)
    told = inputs.new_zeros(len(union), *inputs[:, 0].shape)
    row = torch.arange(len(inputs), device=inputs.device)[:, None].expand_as(place)
    observed[place, row], told[place, row] = True, inputs
    before = union[0]
    for time, now, tell in zip(union, observed, told, strict=True):
        state = state + (time - before).to(state) * memory.field(time, state)
        jumped = memory.memory(memory.memory.gates(tell), state)
        state = torch.where(now[:, None], jumped, state)
        before = time
    return state
