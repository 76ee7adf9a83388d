"""Parts that models share."""

import itertools
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vrnn_lab.loops import loop
from vrnn_lab.ode import through
from vrnn_lab.series import pick

Activation = Literal["tanh", "relu", "elu", "silu", "softplus"]
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "softplus": nn.Softplus}


def mlp(inputs: int, width: int, outputs: int, depth: int, activation: Activation) -> nn.Sequential:
    """`depth` hidden layers of `width` units; depth 0 is one linear map."""
    sizes = [inputs] + [width] * depth
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class VectorField(nn.Module):
    """dz/dt = rate f(z), t in windows: fresh weights move a state of size one `rate` times in a window."""

    def __init__(self, state: int, width: int, depth: int, activation: Activation, rate: float):
        super().__init__()
        self.layers, self.rate = mlp(state, width, state, depth, activation), rate

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return self.rate * self.layers(state)


GAP_FEATURES = 2


def gap_features(gap: Float[Tensor, "..."]) -> Float[Tensor, "... 2"]:
    """Elapsed time, in usual gaps, as an RNN can use it: its logarithm and what an exponential decay leaves."""
    return torch.stack([torch.log1p(gap), torch.exp(-gap)], -1)


CLOCK_FEATURES = 9


def clock_features(elapsed: Float[Tensor, "..."]) -> Float[Tensor, "... 9"]:
    """Where in a window a time lies, as a network can tell it: coarse to fine, as in positional encodings."""
    turns = 2 * torch.pi * elapsed[..., None] * 2.0 ** torch.arange(4, device=elapsed.device, dtype=elapsed.dtype)
    return torch.cat([2 * elapsed[..., None] - 1, turns.sin(), turns.cos()], -1)


def rnn_inputs(values: Tensor, known: Tensor, gap: Tensor) -> Tensor:
    """What an RNN reads of points: values, which of them are known, features of a gap in usual gaps."""
    return torch.cat([values, known.to(values), gap_features(gap)], -1)


class Memory(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) whose two halves stand apart.

    Input gates can be made for all times at once, so that only what depends on the state stays in a loop;
    where all inputs are known beforehand, `over` runs the whole sequence fused. torch.nn.GRU's equations.
    """

    def __init__(self, inputs: int, state: int):
        super().__init__()
        self.gates, self.recur, self.size = nn.Linear(inputs, 3 * state), nn.Linear(state, 3 * state), state

    def forward(
        self, gates: Float[Tensor, "*#rows three"], state: Float[Tensor, "*#rows state"]
    ) -> Float[Tensor, "*#rows state"]:
        """The next state from the input's gates, self.gates(input), and the state."""
        gates, both = gates.to(state), self.recur(state).to(state)  # of less precision under bf16-mixed
        split = 2 * self.size
        reset, keep = torch.sigmoid(gates[..., :split] + both[..., :split]).chunk(2, -1)
        new = torch.tanh(torch.addcmul(gates[..., split:], reset, both[..., split:]))
        return torch.lerp(new, state, keep)

    @loop
    def over(self, inputs: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time state"]:
        """The states after each of a sequence of inputs, from the zero state."""
        start = inputs.new_zeros(1, len(inputs), self.size)
        weights = [self.gates.weight, self.recur.weight, self.gates.bias, self.recur.bias]
        return torch.gru(inputs, start, weights, True, 1, 0.0, False, False, True)[0]


class FlowingMemory(nn.Module):
    """A GRU whose state follows an ODE between its inputs (ODE-RNN; Rubanova et al. 2019, Algorithm 1).

    j_i = GRU(input_i, s_{i-1}),    s_i = j_i carried along dh/dt = f(h) over gap_i, in typical windows.
    """

    def __init__(
        self, inputs: int, state: int, width: int, depth: int, activation: Activation, rate: float, nodes: int
    ):
        super().__init__()
        self.memory = Memory(inputs, state)
        self.field = VectorField(state, width, depth, activation, rate)
        self.step = 1 / nodes

    def forward(
        self,
        inputs: Float[Tensor, "batch place input"],
        gap: Float[Tensor, "batch place"],
        start: Float[Tensor, "batch state"],
        most: int | None = None,
    ) -> tuple[Float[Tensor, "batch place state"], Float[Tensor, "batch place state"]]:
        """(j, s); `most` bounds the solver's ticks where that is known without asking the device."""
        return through(self.field, self.memory, self.memory.gates(inputs), gap, start, self.step, most)


class Classifier(nn.Module):
    """Logits of each class: of every point from its state, or of the series from the mean and the last of them."""

    def __init__(self, state: int, width: int, classes: int, of_points: bool):
        super().__init__()
        self.of_points = of_points
        self.layers = mlp(state if of_points else 2 * state, width, classes, 1, "relu")

    def forward(
        self, states: Float[Tensor, "samples batch time state"], there: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "samples batch *time classes"]:
        if self.of_points:
            return self.layers(states)
        real = torch.where(there[..., None], states, 0)
        mean = real.sum(2) / there.sum(1)[:, None].clamp(min=1)
        place = torch.arange(there.shape[1], device=there.device)
        last = torch.where(there, place, 0).amax(1)[:, None]
        return self.layers(torch.cat([mean, pick(real, last.expand(len(last), 1), 2)[:, :, 0]], -1))
