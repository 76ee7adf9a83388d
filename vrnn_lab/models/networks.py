"""Parts that models share."""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn.functional import softplus

from vrnn_lab.core.series import pick
from vrnn_lab.models.layers import Activation, GRUCell, VectorField, mlp
from vrnn_lab.models.ode import through

GAP_FEATURES = 2


def gap_features(gap: Float[Tensor, "..."]) -> Float[Tensor, "... 2"]:
    """Elapsed time, in usual gaps, as an RNN can use it: its logarithm and what an exponential decay leaves."""
    return torch.stack([torch.log1p(gap), torch.exp(-gap)], -1)


def beside(inputs: Float[Tensor, "*rows inputs"], covariates: Tensor | None) -> Float[Tensor, "*rows more"]:
    """The inputs with the covariates of their points, where there are any."""
    if covariates is None:
        return inputs
    return torch.cat([inputs, covariates.to(inputs).expand(*inputs.shape[:-1], -1)], -1)


class Levels(nn.Module):
    """What is each channel's own: of `count` latents a channel those that last and those that fade, each at a rate of
    its own: level_c(t) = sum_j z_cj exp(-r_cj t), t in typical windows."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.shape = count, dim
        self.rate = nn.Parameter(
            torch.logspace(-2, 0.5, count).expm1().log()[:, None].repeat(1, dim)
        )  # before softplus

    def forward(
        self, z: Float[Tensor, "samples batch levels"], elapsed: Float64[Tensor, "batch time"]
    ) -> Float[Tensor, "samples batch time dim"]:
        kept = torch.exp(-softplus(self.rate) * elapsed.clamp(min=0).to(z)[..., None, None])
        return torch.einsum("sbjd,btjd->sbtd", z.unflatten(-1, self.shape), kept)


CLOCK_FEATURES = 9


def clock_features(elapsed: Float[Tensor, "..."]) -> Float[Tensor, "... 9"]:
    """Where in a window a time lies, as a network can tell it: coarse to fine, as in positional encodings."""
    turns = 2 * torch.pi * elapsed[..., None] * 2.0 ** torch.arange(4, device=elapsed.device, dtype=elapsed.dtype)
    return torch.cat([2 * elapsed[..., None] - 1, turns.sin(), turns.cos()], -1)


def rnn_inputs(values: Tensor, known: Tensor, gap: Tensor) -> Tensor:
    """What an RNN reads of points: values, which of them are known, features of a gap in usual gaps."""
    return torch.cat([values, known.to(values), gap_features(gap)], -1)


class ODERNNCell(nn.Module):
    """A GRU whose state follows an ODE between its inputs (ODE-RNN; Rubanova et al. 2019, Algorithm 1).

    j_i = GRU(input_i, s_{i-1}),    s_i = j_i carried along dh/dt = f(h) over gap_i, in typical windows.
    """

    def __init__(
        self, inputs: int, state: int, width: int, depth: int, activation: Activation, rate: float, nodes: int
    ):
        super().__init__()
        self.memory = GRUCell(inputs, state)
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
