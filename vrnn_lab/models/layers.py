"""Define the layers that solvers, loops and models share."""

import itertools
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.models.fused.gru import GatedSequence
from vrnn_lab.models.fused.tape import QuickTanh, Weights, fused_enabled

LARGE = 20_000  # numbers from which tanh via sigmoid is faster
Activation = Literal["tanh", "relu", "elu", "silu", "softplus"]


class Tanh(nn.Module):
    """Compute tanh; for large float32 tensors on a CPU as 2 sigmoid(2 x) - 1, within 2e-7, in a third of the time."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if x.numel() < LARGE or x.device.type != "cpu" or x.dtype != torch.float32 or not fused_enabled():
            return torch.tanh(x)
        return QuickTanh.apply(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def mlp(inputs: int, width: int, outputs: int, depth: int, activation: Activation) -> nn.Sequential:
    """Build an MLP with `depth` hidden layers of `width` units; depth 0 is one linear map."""
    sizes = [inputs] + [width] * depth
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def hooked(layers: Iterable[nn.Module]) -> bool:
    """Return whether a layer carries hooks, which a fused function would not call."""
    return any(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks for layer in layers)


def weights_of(network: nn.Sequential, activation: Activation) -> Weights | None:
    """Return the weights of an unmodified `mlp`; None where its layers were changed or carry hooks."""
    layers = list(network)
    kinds = [ACTIVATIONS[activation] if i % 2 else nn.Linear for i in range(len(layers))]
    linear = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
    if hooked(layers) or [type(layer) for layer in layers] != kinds or any(layer.bias is None for layer in linear):
        return None
    return Weights(activation, tuple(layer.weight for layer in linear), tuple(layer.bias for layer in linear))


class VectorField(nn.Module):
    """Compute dz/dt = rate f(z), t in typical windows: an untrained field moves a state of size one by about `rate`
    per window."""

    def __init__(self, state: int, width: int, depth: int, activation: Activation, rate: float):
        super().__init__()
        self.layers, self.rate = mlp(state, width, state, depth, activation), rate
        self.activation: Activation = activation

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return self.rate * self.layers(state)

    def weights(self) -> Weights | None:
        """Return the weights of the field as one network, `rate` included; None where it is not a plain `mlp`."""
        weights = weights_of(self.layers, self.activation)
        return weights if weights is None else weights.times(self.rate)


class GRUCell(nn.Module):
    """Compute a gated recurrent unit (Cho et al. 2014) in two parts: gates of the input, and the update of the state.

    Input gates can be computed for all times at once, so that only what depends on the state stays in a loop. Where
    all inputs are known beforehand, `over` runs the whole sequence in one fused function. The equations are
    torch.nn.GRU's.
    """

    def __init__(self, inputs: int, state: int):
        super().__init__()
        self.gates, self.recur, self.size = nn.Linear(inputs, 3 * state), nn.Linear(state, 3 * state), state

    def forward(
        self, gates: Float[Tensor, "*#rows three"], state: Float[Tensor, "*#rows state"]
    ) -> Float[Tensor, "*#rows state"]:
        """Return the next state from the input's gates, self.gates(input), and the current state."""
        gates, both = gates.to(state), self.recur(state).to(state)  # under bf16-mixed the linear maps return bf16
        split = 2 * self.size
        reset, keep = torch.sigmoid(gates[..., :split] + both[..., :split]).chunk(2, -1)
        new = torch.tanh(torch.addcmul(gates[..., split:], reset, both[..., split:]))
        return torch.lerp(new, state, keep)

    @loop
    def over(self, inputs: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time state"]:
        """Return the states after each of a sequence of inputs, starting from the zero state."""
        if inputs.device.type == "cpu" and fused_enabled():  # on a GPU torch.gru is a single kernel
            gates = self.gates(inputs.transpose(0, 1))
            start = gates.new_zeros(len(inputs), self.size)
            arguments = (torch.is_grad_enabled(), gates, start, self.recur.weight, self.recur.bias)
            return GatedSequence.apply(*arguments).transpose(0, 1)
        start = inputs.new_zeros(1, len(inputs), self.size)
        weights = [self.gates.weight, self.recur.weight, self.gates.bias, self.recur.bias]
        return torch.gru(inputs, start, weights, True, 1, 0.0, False, False, True)[0]
