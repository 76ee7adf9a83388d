"""How the state of an RNN takes in a point and waits for the next one: what the recurrent models differ in."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.networks import GAP_FEATURES, Memory, gap_features
from vrnn_lab.series import Scale


class Cell(nn.Module, ABC):
    """s_i = cell(x_{i-1}, known_{i-1}, gap_i, s_{i-1}): s_i is all that is told of the points before point i.

    Gaps are in usual gaps of the training data (`Scale.gap`); what is not known of a point is zero.
    """

    size: int  # numbers a state holds
    output: int  # of which the first so many are there to be read

    @abstractmethod
    def forward(
        self,
        values: Float[Tensor, "*rows dim"],
        known: Float[Tensor, "*rows dim"],
        gap: Float[Tensor, "*rows 1"],
        state: Float[Tensor, "*rows size"],
        longest: float | None = None,
    ) -> Float[Tensor, "*rows size"]:
        """The state one point on; `longest`, where it is known without asking the device, bounds the gaps."""

    def start(self, like: Tensor, *rows: int) -> Float[Tensor, "*rows size"]:
        """The state before anything is known."""
        return like.new_zeros(*rows, self.size)

    def over(
        self,
        values: Float[Tensor, "batch time dim"],
        known: Float[Tensor, "batch time dim"],
        gap: Float[Tensor, "batch time 1"],
        longest: float | None = None,
    ) -> Float[Tensor, "batch time size"]:
        """The states s_1, s_2, ... from all points at once."""
        state, states = self.start(values, len(values)), []
        for x, flag, wait in zip(values.unbind(1), known.unbind(1), gap.unbind(1), strict=True):
            state = self(x, flag, wait, state, longest)
            states.append(state)
        return torch.stack(states, 1)


class GRU(Cell):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078) that is told the gap; runs fused over a series."""

    def __init__(self, scale: Scale, size: int):
        super().__init__()
        self.size = self.output = size
        self.memory = Memory(2 * scale.dim + GAP_FEATURES, size)

    def _inputs(self, values: Tensor, known: Tensor, gap: Tensor) -> Tensor:
        return torch.cat([values, known, gap_features(gap[..., 0])], -1)

    def forward(self, values, known, gap, state, longest=None):
        return self.memory(self.memory.gates(self._inputs(values, known, gap)), state)

    def over(self, values, known, gap, longest=None):
        return self.memory.over(self._inputs(values, known, gap))
