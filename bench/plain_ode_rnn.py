"""Run an ODE-RNN over the union of a batch's times, as in the papers' public code: all rows at every time.

All rows take one Euler step from each time of the union to the next, and the GRU is applied to all rows; its result
is kept where a row has a point. The weights are those of our model, so that only the way of stepping differs.
"""

import torch
from torch import Tensor

from vrnn_lab.models.networks import ODERNNCell


def over_union(memory: ODERNNCell, inputs: Tensor, times: Tensor) -> Tensor:
    """Return each row's state at the last time of the union; inputs (batch, place, input), times (batch, place)."""
    union, place = times.unique(return_inverse=True)
    state = inputs.new_zeros(len(inputs), memory.memory.size)
    observed = torch.zeros(len(union), len(inputs), dtype=torch.bool, device=inputs.device)
    inputs_at = inputs.new_zeros(len(union), *inputs[:, 0].shape)
    row = torch.arange(len(inputs), device=inputs.device)[:, None].expand_as(place)
    observed[place, row], inputs_at[place, row] = True, inputs
    before = union[0]
    for time, now, inputs_now in zip(union, observed, inputs_at, strict=True):
        state = state + (time - before).to(state) * memory.field(time, state)
        jumped = memory.memory(memory.memory.gates(inputs_now), state)
        state = torch.where(now[:, None], jumped, state)
        before = time
    return state
