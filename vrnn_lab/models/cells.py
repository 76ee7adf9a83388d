"""Define recurrent cells: how the state of an RNN takes in a point and evolves until the next one."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.series import Scale
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.layers import Activation, GRUCell
from vrnn_lab.models.networks import GAP_FEATURES, ODERNNCell, gap_features, with_covariates
from vrnn_lab.models.ode import ticks_in_training


class Cell(nn.Module, ABC):
    """Compute s_i = cell(x_{i-1}, known_{i-1}, gap_i, u_i, s_{i-1}), which summarises all points before point i.

    Gaps are in usual gaps of the training data (`Scale.gap`); unknown values are zero. u_i (`covariates`) are those
    of point i, where there are any.
    """

    size: int  # size of a state
    output: int  # how many of a state's first numbers are its output

    @abstractmethod
    def forward(
        self,
        values: Float[Tensor, "*rows dim"],
        known: Float[Tensor, "*rows dim"],
        gap: Float[Tensor, "*rows 1"],
        covariates: Float[Tensor, "*rows covariate"] | None,
        state: Float[Tensor, "*rows size"],
        longest: float | None = None,
    ) -> Float[Tensor, "*rows size"]:
        """Return the state at the next point; `longest` bounds the gaps where a bound is known in advance."""

    def start(self, like: Tensor, *rows: int) -> Float[Tensor, "*rows size"]:
        """Return the state before anything is known, zeros of shape (*rows, size)."""
        return like.new_zeros(*rows, self.size)

    @loop
    def over(
        self,
        values: Float[Tensor, "batch time dim"],
        known: Float[Tensor, "batch time dim"],
        gap: Float[Tensor, "batch time 1"],
        covariates: Float[Tensor, "batch time covariate"] | None = None,
        longest: float | None = None,
    ) -> Float[Tensor, "batch time size"]:
        """Return the states s_1, s_2, ... of a whole batch of sequences."""
        state, states = self.start(values, len(values)), []
        for i, (x, flag, wait) in enumerate(zip(values.unbind(1), known.unbind(1), gap.unbind(1), strict=True)):
            state = self(x, flag, wait, None if covariates is None else covariates[:, i], state, longest)
            states.append(state)
        return torch.stack(states, 1)


class GRU(Cell):
    """Apply a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078) that has the gap as an input; runs fused."""

    def __init__(self, scale: Scale, width: int):
        super().__init__()
        self.size = self.output = width
        self.memory = GRUCell(2 * scale.dim + GAP_FEATURES + len(scale.covariates), width)

    def _inputs(self, values: Tensor, known: Tensor, gap: Tensor, covariates: Tensor | None) -> Tensor:
        return with_covariates(torch.cat([values, known, gap_features(gap[..., 0])], -1), covariates)

    def forward(self, values, known, gap, covariates, state, longest=None):
        return self.memory(self.memory.gates(self._inputs(values, known, gap, covariates)), state)

    def over(self, values, known, gap, covariates=None, longest=None):
        return self.memory.over(self._inputs(values, known, gap, covariates))


def rates(*shape: int) -> Float[Tensor, "..."]:
    """Draw initial decay rates per usual gap over two decades, for both fast-forgetting and persistent units."""
    return 10 ** (-2 * torch.rand(*shape))


@loop
def decayed(
    memory: GRUCell, inputs: Float[Tensor, "batch time input"], kept: Float[Tensor, "batch time state"]
) -> Float[Tensor, "batch time state"]:
    """Return s_i = kept_i GRU(input_i, s_{i-1}), starting from the zero state."""
    state, states = inputs.new_zeros(len(inputs), memory.size), []
    for gate, keep in zip(memory.gates(inputs).unbind(1), kept.unbind(1), strict=True):
        state = keep * memory(gate, state)
        states.append(state)
    return torch.stack(states, 1)


class Decay(Cell):
    """Apply RNN-Decay: the state decays between points, each unit at its own rate (Mozer et al. 2017, arXiv
    1710.04110; the baseline of Rubanova et al. 2019, arXiv 1907.03907).

    s_i = exp(-gap_i softplus(w)) GRU([x_{i-1}, known_{i-1}], s_{i-1}); the gap enters only through the decay.
    """

    def __init__(self, scale: Scale, width: int):
        super().__init__()
        self.size = self.output = width
        self.memory = GRUCell(2 * scale.dim + len(scale.covariates), width)
        self.rate = nn.Parameter(torch.log(torch.expm1(rates(width))))  # before softplus

    def _kept(self, gap: Tensor) -> Tensor:
        return torch.exp(-gap * softplus(self.rate))

    def forward(self, values, known, gap, covariates, state, longest=None):
        gates = self.memory.gates(with_covariates(torch.cat([values, known], -1), covariates))
        return self._kept(gap) * self.memory(gates, state)

    def over(self, values, known, gap, covariates=None, longest=None):
        return decayed(self.memory, with_covariates(torch.cat([values, known], -1), covariates), self._kept(gap))


class GRUD(Cell):
    """Apply GRU-D (Che et al. 2018, Scientific Reports 8:6085, eq. 10 to 16).

    d_i is the time from each channel's last known value before point i to point i, or from the first point where
    there is no such value. A missing value decays from the last one to the mean, which is zero, and the state decays
    too:
      xhat_i = m_i x_i + (1 - m_i) g_x(d_i) x_last,    h_i = GRU([xhat_i, m_i], g_h(d_i) h_{i-1}),
      g(d) = exp(-max(0, W d + b)), W diagonal in g_x.

    The output before point i is g_h(d_i) h_{i-1}; the state holds it, x_last and d_i. Covariates are inputs of the
    GRU and do not decay.
    """

    def __init__(self, scale: Scale, width: int):
        super().__init__()
        self.dim, self.output, self.size = scale.dim, width, width + 2 * scale.dim
        self.memory = GRUCell(2 * scale.dim + len(scale.covariates), width)
        # Where W d + b < 0 the relu passes no gradient to W and b, so they start positive.
        self.input_rate = nn.Parameter(rates(scale.dim))
        self.input_shift = nn.Parameter(torch.full((scale.dim,), 0.01))
        self.state_rate = nn.Parameter(rates(width, scale.dim) / scale.dim)
        self.state_shift = nn.Parameter(torch.full((width,), 0.01))

    def _inputs(self, values: Tensor, known: Tensor, last: Tensor, since: Tensor) -> Tensor:
        fading = torch.exp(-torch.relu(since * self.input_rate + self.input_shift)) * last
        return torch.cat([torch.where(known > 0, values, fading), known], -1)

    def _kept(self, since: Tensor) -> Tensor:
        return torch.exp(-torch.relu(since @ self.state_rate.T + self.state_shift))

    def forward(self, values, known, gap, covariates, state, longest=None):
        state, last, since = state.split([self.output, self.dim, self.dim], -1)
        inputs = with_covariates(self._inputs(values, known, last, since), covariates)
        state = self.memory(self.memory.gates(inputs), state)
        last, since = torch.where(known > 0, values, last), torch.where(known > 0, 0, since) + gap
        return torch.cat([self._kept(since) * state, last, since], -1)

    def over(self, values, known, gap, covariates=None, longest=None):
        last, since = self._history(values, known, gap)
        before = lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        inputs = with_covariates(self._inputs(values, known, before(last), before(since)), covariates)
        states = decayed(self.memory, inputs, self._kept(since))
        return torch.cat([states, last, since], -1)

    def _history(self, values: Tensor, known: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Return, after each point, each channel's last known value and the time from it to the next point."""
        place = torch.arange(values.shape[1], device=values.device)[:, None].expand_as(values)
        last_place = torch.where(known > 0, place, -1).cummax(1).values
        ever, last_place = last_place >= 0, last_place.clamp(min=0)
        until = gap.double().cumsum(1)  # in float32 a long series' sum would lose its short gaps
        at = (until - gap).expand_as(values).gather(1, last_place)
        since = until - torch.where(ever, at, 0)
        return torch.where(ever, values.gather(1, last_place), 0), since.to(values)


class ODE(Cell):
    """Apply an ODE-RNN (Rubanova et al. 2019, arXiv 1907.03907, Algorithm 1), forwards in time.

    s_i = GRU([x_{i-1}, known_{i-1}], s_{i-1}) carried along dh/dt = f(h) over gap_i. Each row integrates over its own
    gap, in Runge-Kutta steps of at most 1 / nodes typical training windows.
    """

    def __init__(
        self,
        scale: Scale,
        width: int,
        field_width: Count = 64,
        field_depth: Natural = 1,
        activation: Activation = "tanh",
        rate: Positive = 1.0,
        nodes: Count = 10,
    ):
        super().__init__()
        self.size = self.output = width
        inputs = 2 * scale.dim + len(scale.covariates)
        self.memory = ODERNNCell(inputs, width, field_width, field_depth, activation, rate, nodes)
        self.usual_gap, self.reach = (scale.gap / scale.clock).item(), (scale.longest / scale.clock).item()

    def forward(self, values, known, gap, covariates, state, longest=None):
        rows = lambda x: x.reshape(-1, 1, x.shape[-1])
        covariates = covariates if covariates is None else rows(covariates)
        states = self.over(rows(values), rows(known), rows(gap), covariates, longest, rows(state)[:, 0])
        return states.view(state.shape)

    def over(self, values, known, gap, covariates=None, longest=None, start=None):
        start = self.start(values, len(values)) if start is None else start
        most = None
        if longest is not None:  # in training a row's gaps add up to at most a training window
            most = ticks_in_training(gap.shape[1], self.reach, self.memory.step, longest * self.usual_gap)
        inputs = with_covariates(torch.cat([values, known], -1), covariates)
        return self.memory(inputs, gap[..., 0] * self.usual_gap, start, most)[1]
