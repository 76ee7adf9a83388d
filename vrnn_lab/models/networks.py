"""Define network parts that several models share."""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn.functional import softplus

from vrnn_lab.core.series import pick
from vrnn_lab.models.layers import Activation, GRUCell, VectorField, mlp
from vrnn_lab.models.ode import integrate_with_jumps

GAP_FEATURES = 2


def gap_features(gap: Float[Tensor, "..."]) -> Float[Tensor, "... 2"]:
    """Return features of elapsed time in usual gaps: log(1 + gap), and exp(-gap), the remainder of an exponential
    decay."""
    return torch.stack([torch.log1p(gap), torch.exp(-gap)], -1)


def with_covariates(inputs: Float[Tensor, "*rows inputs"], covariates: Tensor | None) -> Float[Tensor, "*rows more"]:
    """Concatenate inputs with the covariates of their points; return the inputs alone where there are no
    covariates."""
    if covariates is None:
        return inputs
    return torch.cat([inputs, covariates.to(inputs).expand(*inputs.shape[:-1], -1)], -1)


class Levels(nn.Module):
    """Model the level of each channel by `count` latents, each decaying at a learned rate of its own.

    level_c(t) = sum_j z_cj exp(-r_cj t), t in typical windows; initial rates range from almost constant to fast
    decay.
    """

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
    """Return features of a time within its window, from coarse to fine, as in positional encodings."""
    turns = 2 * torch.pi * elapsed[..., None] * 2.0 ** torch.arange(4, device=elapsed.device, dtype=elapsed.dtype)
    return torch.cat([2 * elapsed[..., None] - 1, turns.sin(), turns.cos()], -1)


def rnn_inputs(values: Tensor, known: Tensor, gap: Tensor) -> Tensor:
    """Return the inputs of an RNN at points: values, a mask of the known ones, and features of the gap in usual
    gaps."""
    return torch.cat([values, known.to(values), gap_features(gap)], -1)


class ODERNNCell(nn.Module):
    """Apply a GRU whose state follows an ODE between its inputs (ODE-RNN; Rubanova et al. 2019, Algorithm 1).

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
        """Return (j, s); `most` bounds the solver's steps where a bound is known without synchronising with the
        device."""
        return integrate_with_jumps(self.field, self.memory, self.memory.gates(inputs), gap, start, self.step, most)


class Classifier(nn.Module):
    """Compute class logits, for every point from its state, or for the series from the mean and the last of its
    states."""

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
