"""Define the state of a linear SDE: parts whose stationary distribution is N(0, I), and their transitions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from vrnn_lab.core.kalman import Pairs

SPEED = 10.0  # a parameter changes this many times as fast as other weights, since a fit has few steps
SLOWEST = 1e-3  # decay rate, in 1 / typical windows; slower parts would be levels
FASTEST = 20.0  # log of the largest rate
SEASON = 0.1  # initial decay rate of the oscillations of a known period
SHORT = 0.05  # in decay times: for shorter gaps 1 - A A' would be lost in rounding
TERMS = 14  # terms of the series used for short gaps
LEAST = 1e-200  # least variance of which a root is taken, so that its gradient is finite
JITTER = 1e-10  # added to correlation matrices, which rounding may have made singular


@dataclass(frozen=True)
class Parts:
    """Count the parts that make up one channel's state; its states are ordered as the fields."""

    ou: int  # Ornstein-Uhlenbeck: one state, correlation e^(-a t)
    matern: int  # Matern-3/2: two, (1 + a t) e^(-a t)
    turns: int  # damped oscillations: two, e^(-a t) cos(w t)

    @property
    def count(self) -> int:
        return self.ou + self.matern + self.turns

    @property
    def states(self) -> int:
        return self.ou + 2 * self.matern + 2 * self.turns

    def read(self) -> Float64[Tensor, "count states"]:
        """Return the matrix that selects the state holding the value of each part."""
        first = [*range(self.ou), *range(self.ou, self.states, 2)]
        return torch.eye(self.states, dtype=torch.float64)[first]

    def other(self) -> Int64[Tensor, " states"]:
        """Return the index of each state's partner, which is the state itself where a part has only one."""
        place = torch.arange(self.states)
        return torch.where(place < self.ou, place, self.ou + ((place - self.ou) ^ 1))


def lower_root(covariance: Float64[Tensor, "*shape state state"]) -> Float64[Tensor, "*shape state state"]:
    """Return the Cholesky factor of a covariance with entries of any size, zero included; its gradient is finite."""
    size = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=LEAST).sqrt()
    jitter = JITTER * torch.eye(size.shape[-1], dtype=size.dtype, device=size.device)
    correlation = covariance / (size[..., :, None] * size[..., None, :]) + jitter
    return size[..., :, None] * torch.linalg.cholesky_ex(correlation)[0]


class Dynamics(nn.Module, ABC):
    """Define dz = F z dt + G dW with F + F' = -G G', so that z ~ N(0, I) at any time and Q = I - A A' over a gap.

    States come in groups that evolve independently of one another.
    """

    groups: int
    states: int  # of each group

    @abstractmethod
    def move(
        self, gap: Float64[Tensor, "*shape"]
    ) -> tuple[Float64[Tensor, "*shape groups state state"], Float64[Tensor, "*shape groups state state"]]:
        """Return A = e^(F gap), and Q, to full precision however short the gap is (in typical windows)."""

    @abstractmethod
    def spread(self) -> Float64[Tensor, "groups state state"]:
        """Return G G', the variance of the states per typical window over a gap close to zero."""

    @property
    @abstractmethod
    def slowest(self) -> float:
        """Return the smallest decay rate, in 1 / typical windows."""


class Independent(Dynamics):
    """Evolve each channel as a group of independent parts, in closed form."""

    frequency: Tensor
    other: Tensor

    def __init__(self, parts: Parts, dim: int, learned: int, gap: float, known: Sequence[float]):
        """Initialise time scales evenly, on a log scale, between a typical window and the usual gap.

        learned: the number of oscillations with a learned frequency; known: the frequencies of the others, in radians
        per typical window.
        """
        super().__init__()
        self.parts, self.groups, self.states = parts, dim, parts.states
        between = lambda count: min(gap, 1.0) ** -((torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1))
        frequency, fixed = pi * between(learned), torch.tensor(known, dtype=torch.float64)
        turns = torch.cat([0.25 * frequency, torch.full_like(fixed, SEASON)])
        decay = torch.cat([between(parts.ou), 2 * between(parts.matern), turns])
        start = lambda rate: nn.Parameter((rate.log() / SPEED).float().expand(dim, -1).clone())
        self.log_decay = start(decay)
        self.log_frequency = start(frequency) if learned else None
        self.register_buffer("frequency", fixed)
        self.register_buffer("other", parts.other(), persistent=False)

    def decay(self) -> Float64[Tensor, "dim count"]:
        """Return the decay rate of each part, in 1 / typical windows."""
        return SLOWEST + (SPEED * self.log_decay.double()).clamp(max=FASTEST).exp()

    def turning(self) -> Float64[Tensor, "dim turns"]:
        """Return the frequency of each oscillation, in radians per typical window."""
        known = self.frequency.expand(self.groups, -1)
        if self.log_frequency is None:
            return known
        return torch.cat([(SPEED * self.log_frequency.double()).clamp(max=FASTEST).exp(), known], 1)

    def pairs(self, gap: Float64[Tensor, "*shape channels"]) -> tuple[Tensor, Tensor]:
        """Return A by its entries, (*shape, dim, state) each: the diagonal, and the coupling of partners.

        gap: one for all channels (channels = 1), or one for each.
        """
        passed = gap[..., None] * self.decay()  # in decay times
        left, (_, matern, _) = self._split((-passed).exp()), self._split(passed)
        angle = gap[..., None] * self.turning()
        cos, sin = left[2] * angle.cos(), left[2] * angle.sin()
        own = _in_turn(left[0], (left[1] * (1 + matern), left[1] * (1 - matern)), (cos, cos))
        step = left[1] * matern
        return own, _in_turn(torch.zeros_like(left[0]), (step, -step), (-sin, sin))

    def move(self, gap):
        own, cross = self.pairs(gap[..., None])
        passed = gap[..., None, None] * self.decay()
        lost, (_, matern, _) = self._split(-torch.expm1(-2 * passed)), self._split(passed)
        both = 2 * (matern * (-matern).exp()).square()
        noise = _in_turn(lost[0], _matern_noise(matern), (lost[2], lost[2]))
        shared = _in_turn(torch.zeros_like(lost[0]), (both, both), (0 * lost[2], 0 * lost[2]))
        return Pairs(own, cross, self.other).matrices(), Pairs(noise, shared, self.other).matrices()

    def _split(self, x: Float64[Tensor, "... count"]) -> tuple[Tensor, Tensor, Tensor]:
        ou, matern, turns = x.split([self.parts.ou, self.parts.matern, self.parts.turns], -1)
        return ou, matern, turns

    def drift(self) -> Float64[Tensor, "dim state state"]:
        """Return F, (dim, state, state)."""
        ou, matern, turns = self._split(self.decay())
        own = _in_turn(-ou, (0 * matern, -2 * matern), (-turns, -turns))
        cross = _in_turn(0 * ou, (matern, -matern), (-self.turning(), self.turning()))
        return Pairs(own, cross, self.other).matrices()

    def spread(self):
        drift = self.drift()
        return -(drift + drift.mT)

    @property
    def slowest(self):
        return self.decay().min().item()

    def of(self, channel: Int64[Tensor, " rows"]) -> "RowDynamics":
        """Return the dynamics of rows that have one channel each."""
        return RowDynamics(self, channel)


class RowDynamics(Independent):
    """Evolve rows of one channel each, as one group: what `move` returns is (rows, time, 1, state, state)."""

    def __init__(self, source: Independent, channel: Int64[Tensor, " rows"]):
        nn.Module.__init__(self)
        self.parts, self.groups, self.states, self.other = source.parts, 1, source.states, source.other
        self.rates = tuple(each()[channel][:, None, None] for each in (source.decay, source.turning))
        self.least = source.slowest

    def decay(self):
        return self.rates[0]

    def turning(self):
        return self.rates[1]

    @property
    def slowest(self):
        """Return the smallest decay rate of all channels, so that a row's draws do not depend on the other rows."""
        return self.least


def _in_turn(ou: Tensor, matern: tuple[Tensor, Tensor], turns: tuple[Tensor, Tensor]) -> Float64[Tensor, "... state"]:
    """Concatenate the entries of all states in the order of `Parts`."""
    return torch.cat([ou, *(torch.stack(two, -1).flatten(-2) for two in (matern, turns))], -1)


def _matern_noise(passed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal of Q of a Matern-3/2 part's value and scaled slope.

    The value's variance is of third order in the gap, and therefore a series where the gap is short.
    """
    squared, twice = (-2 * passed).exp(), 2 * passed
    value = torch.where(passed < SHORT, _third_order(twice), 1 - squared * (1 + twice + 0.5 * twice.square()))
    return value, -torch.expm1(-twice) + twice * (1 - passed) * squared


def _third_order(x: Tensor) -> Tensor:
    """Return 1 - e^(-x) (1 + x + x^2 / 2) for small x, as e^(-x) times the rest of the exponential's series."""
    x = x.clamp(max=2 * SHORT)
    total = term = x**3 / 6
    for k in range(4, TERMS):
        term = term * x / k
        total = total + term
    return (-x).exp() * total


class Coupled(Dynamics):
    """Evolve all channels as one group: F = S - G G' / 2 with any skew S and any G.

    This is any stable linear SDE, in the coordinates in which its stationary distribution is N(0, I). It is
    initialised at independent parts.
    """

    base: Tensor
    skew_start: Tensor
    root_start: Tensor

    def __init__(self, start: Independent):
        super().__init__()
        self.groups, self.states = 1, start.groups * start.states
        with torch.no_grad():
            drift = torch.block_diag(*start.drift())
        lost = -(drift + drift.mT).diagonal()
        self.register_buffer("base", torch.maximum(lost, drift.abs().amax(1)).sqrt())
        self.register_buffer("skew_start", 0.5 * (drift - drift.mT))
        self.register_buffer("root_start", lost.clamp(min=0).sqrt().diag())
        self.skew, self.root = (nn.Parameter(torch.zeros(self.states, self.states)) for _ in range(2))

    def _drift(self) -> tuple[Tensor, Tensor]:
        """Return F and G G'."""
        scale = self.base[:, None] * self.base
        skew = self.skew_start + scale * (self.skew - self.skew.mT)
        root = self.root_start + self.base[:, None] * self.root
        spread = root @ root.mT
        return skew - 0.5 * spread, spread

    def move(self, gap):
        drift, spread = self._drift()
        gap = gap[..., None, None]
        move = torch.matrix_exp(gap * drift)
        noise = torch.eye(self.states, dtype=move.dtype, device=move.device) - move @ move.mT
        short = gap * drift.norm() < SHORT
        noise = torch.where(short, _series(drift, spread, torch.where(short, gap, 0)), noise)
        return move[..., None, :, :], noise[..., None, :, :]

    def matrices(self, gap: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape state state"]:
        """Return A without Q."""
        return torch.matrix_exp(gap[..., None, None] * self._drift()[0])

    def spread(self):
        return self._drift()[1][None]

    @property
    def slowest(self):
        return max(-torch.linalg.eigvals(self._drift()[0]).real.max().item(), SLOWEST)


def _series(drift: Tensor, spread: Tensor, gap: Tensor) -> Tensor:
    """Return Q over a short gap, the integral of e^(F s) G G' e^(F' s) over s from 0 to the gap, as a power series.

    It is sum_k gap^(k + 1) L^k(G G') / (k + 1)! with L(X) = F X + X F'.
    """
    total, term, power = torch.zeros_like(gap * spread), spread, gap
    for k in range(1, TERMS):
        total = total + power * term
        term, power = drift @ term + term @ drift.mT, power * gap / (k + 1)
    return total
