"""The state of a linear SDE: blocks whose stationary law is N(0, I), and what they do over a gap."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

SPEED = 10.0  # how many times as fast as other weights a parameter changes: a fit has few of them, and few steps
SLOWEST = 1e-3  # decay rate, in 1 / typical windows: anything slower is a level
FASTEST = 20.0  # log of a rate
SEASON = 0.1  # decay rate at which the waves of a known period begin
SHORT = 0.05  # of a decay time: 1 - A A' of so short a gap would be lost in rounding
TERMS = 14  # of the series that takes its place


@dataclass(frozen=True)
class Parts:
    """What one channel's state is made of; states in this order."""

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
        """Which state is the value of each part."""
        first = [*range(self.ou), *range(self.ou, self.states, 2)]
        return torch.eye(self.states, dtype=torch.float64)[first]


class Dynamics(nn.Module, ABC):
    """dz = F z dt + G dW with F + F' = -G G', so that z ~ N(0, I) at any time and Q = I - A A' over a gap.

    States come in groups that move independently of one another.
    """

    groups: int
    states: int  # of each group

    @abstractmethod
    def move(
        self, gap: Float64[Tensor, "*shape"]
    ) -> tuple[Float64[Tensor, "*shape groups state state"], Float64[Tensor, "*shape groups state state"]]:
        """A = e^(F gap), and Q, to full precision however short the gap is."""

    @property
    @abstractmethod
    def slowest(self) -> float:
        """The smallest rate at which anything is forgotten."""


class Independent(Dynamics):
    """A group a channel, its parts independent of one another: everything is in closed form."""

    frequency: Tensor
    places: Tensor

    def __init__(
        self, parts: Parts, decay: Float64[Tensor, "dim count"], frequency: Float64[Tensor, "dim free"], known: Tensor
    ):
        """frequency: of the first turns, learned; known: of the others; in radians a typical window."""
        super().__init__()
        self.parts, self.groups, self.states = parts, len(decay), parts.states
        self.log_decay = nn.Parameter(((decay - SLOWEST).clamp(min=1e-4).log() / SPEED).float())
        self.log_frequency = nn.Parameter((frequency.log() / SPEED).float()) if frequency.numel() else None
        self.register_buffer("frequency", known)
        places = _places((parts.ou, parts.matern, parts.turns), (1, 2, 2))
        self.register_buffer("places", places, persistent=False)

    @classmethod
    def spread(cls, parts: Parts, dim: int, learned: int, gap: float, known: Sequence[float]) -> "Independent":
        """Parts whose time scales lie evenly, on a log scale, between a typical window and the usual gap.

        learned: turns of free frequency; known: the frequencies of the others.
        """
        between = lambda count: min(gap, 1.0) ** -((torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1))
        frequency, fixed = pi * between(learned), torch.tensor(known, dtype=torch.float64)
        turns = torch.cat([0.25 * frequency, torch.full_like(fixed, SEASON)])
        decay = torch.cat([between(parts.ou), 2 * between(parts.matern), turns])
        return cls(parts, decay.expand(dim, -1).clone(), frequency.expand(dim, -1).clone(), fixed)

    def decay(self) -> Float64[Tensor, "dim count"]:
        return SLOWEST + (SPEED * self.log_decay.double()).clamp(max=FASTEST).exp()

    def turning(self) -> Float64[Tensor, "dim turns"]:
        known = self.frequency.expand(self.groups, -1)
        if self.log_frequency is None:
            return known
        return torch.cat([(SPEED * self.log_frequency.double()).clamp(max=FASTEST).exp(), known], 1)

    def move(self, gap):
        ou, matern, turns = self.parts.ou, self.parts.matern, self.parts.turns
        passed = gap[..., None, None] * self.decay()  # (..., dim, count), in decay times
        left = (-passed).exp()
        lost = -torch.expm1(-2 * passed)
        _, passed, _ = passed.split([ou, matern, turns], -1)
        kept, smooth, turned = left.split([ou, matern, turns], -1)
        fresh, _, rest = lost.split([ou, matern, turns], -1)
        angle = gap[..., None, None] * self.turning()
        cos, sin, none = turned * angle.cos(), turned * angle.sin(), torch.zeros_like(rest)
        move = self._joined(kept[..., None, None], _matern(passed, smooth), _square(cos, -sin, sin, cos))
        noise = _matern_noise(passed, smooth)
        return move, self._joined(fresh[..., None, None], noise, _square(rest, none, none, rest))

    def _joined(self, *blocks: Tensor) -> Float64[Tensor, "*shape groups state state"]:
        """One matrix with all the blocks on its diagonal."""
        flat = torch.cat([_entries(block) for block in blocks], -1)
        square = flat.new_zeros(*flat.shape[:-1], self.states**2).scatter(-1, self.places.expand(flat.shape), flat)
        return square.unflatten(-1, (self.states, self.states))

    def drift(self) -> Float64[Tensor, "groups state state"]:
        """F."""
        sizes = [self.parts.ou, self.parts.matern, self.parts.turns]
        first, second, third = self.decay().split(sizes, -1)
        turning, none = self.turning(), torch.zeros_like(second)
        matern, turns = _square(none, second, -second, -2 * second), _square(-third, -turning, turning, -third)
        return self._joined(-first[..., None, None], matern, turns)

    @property
    def slowest(self):
        return self.decay().min().item()


def _matern(passed: Tensor, left: Tensor) -> Tensor:
    """A of value and scaled slope."""
    return _square(left * (1 + passed), left * passed, -left * passed, left * (1 - passed))


def _matern_noise(passed: Tensor, left: Tensor) -> Tensor:
    """Q of value and scaled slope; that of the value is of third order in the gap, where 1 - A A' would round."""
    squared = left.square()
    value = torch.where(passed < 0.1, _third_order(passed), 1 - squared * (1 + 2 * passed + 2 * passed.square()))
    both = 2 * passed.square() * squared
    slope = -torch.expm1(-2 * passed) + 2 * passed * (1 - passed) * squared
    return _square(value, both, both, slope)


def _third_order(passed: Tensor) -> Tensor:
    """1 - e^(-x) (1 + x + x^2 / 2) for small x = 2 passed: e^(-x) times the rest of the exponential's series."""
    x = 2 * passed.clamp(max=0.1)
    term = x**3 / 6
    total = term
    for k in range(4, 15):
        term = term * x / k
        total = total + term
    return (-x).exp() * total


def _square(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]]."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def _places(counts: Sequence[int], widths: Sequence[int]) -> Int64[Tensor, " entries"]:
    """Where the entries of blocks on a diagonal lie in the flattened matrix, in the order of `_entries`."""
    size, at, found = sum(c * w for c, w in zip(counts, widths, strict=True)), 0, []
    for count, width in zip(counts, widths, strict=True):
        first = at + width * torch.arange(count)
        found += [(first + row) * size + first + column for row in range(width) for column in range(width)]
        at += count * width
    return torch.cat(found)


def _entries(block: Float64[Tensor, "*shape count width width"]) -> Float64[Tensor, "*shape entries"]:
    return block.movedim(-3, -1).flatten(-3)


class Coupled(Dynamics):
    """One group: F = S - G G' / 2 with any skew S and any G, so any stable linear SDE in the coordinates in which its
    stationary law is N(0, I). It begins at independent parts."""

    base: Tensor
    skew_start: Tensor
    root_start: Tensor

    def __init__(self, start: Independent):
        super().__init__()
        self.groups, self.states = 1, start.groups * start.states
        with torch.no_grad():
            drift = torch.block_diag(*start.drift())
        skew = 0.5 * (drift - drift.mT)
        lost = -(drift + drift.mT).diagonal()
        base = torch.maximum(lost, drift.abs().amax(1)).sqrt()
        self.register_buffer("base", base)
        self.register_buffer("skew_start", skew)
        self.register_buffer("root_start", lost.clamp(min=0).sqrt().diag())
        self.skew, self.root = (nn.Parameter(torch.zeros(self.states, self.states)) for _ in range(2))

    def _drift(self) -> tuple[Tensor, Tensor]:
        """F and G G'."""
        scale = self.base[:, None] * self.base
        skew = self.skew_start + scale * (self.skew - self.skew.mT)
        root = self.root_start + self.base[:, None] * self.root
        spread = root @ root.mT
        return skew - 0.5 * spread, spread

    def move(self, gap):
        drift, spread = self._drift()
        gap = gap[..., None, None]
        move = torch.matrix_exp(gap * drift)
        noise = torch.eye(self.states).to(move) - move @ move.mT
        if not torch.is_grad_enabled():
            short = gap * drift.norm() < SHORT
            noise = torch.where(short, _series(drift, spread, torch.where(short, gap, 0)), noise)
        return move[..., None, :, :], noise[..., None, :, :]

    @property
    def slowest(self):
        drift, _ = self._drift()
        return max(-torch.linalg.eigvals(drift).real.max().item(), SLOWEST)


def _series(drift: Tensor, spread: Tensor, gap: Tensor) -> Tensor:
    """Q = the integral of e^(F s) G G' e^(F' s) over s from 0 to a short gap: sum_k gap^(k + 1) L^k(G G') / (k + 1)!
    with L(X) = F X + X F'."""
    total, term, power = torch.zeros_like(gap * spread), spread, gap
    for k in range(1, TERMS):
        total = total + power * term
        term, power = drift @ term + term @ drift.mT, power * gap / (k + 1)
    return total
