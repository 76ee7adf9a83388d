"""Run the two sweeps over time of exact inference in linear-Gaussian state space models: filter and backward sweep.

Values are conditioned on one by one, which avoids inverting matrices: with reach w = P h and variance s = h'w + r,
m += w (y - h'm) / s and P -= w w' / s. Internally rows are the last axis, so that the small matrices of many rows are
multiplied as long vectors.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from vrnn_lab.core.compile_loops import loop

# The mean and covariance of a state, or the slope and curvature of a log probability with respect to a state.
State = tuple[Float64[Tensor, "_state _column _batch"], Float64[Tensor, "_state _state _batch"]]


@dataclass(frozen=True)
class Pairs:
    """Hold sparse matrices A whose row i has entries only in column i (own) and in column other_i (cross)."""

    own: Float64[Tensor, "*shape state"]
    cross: Float64[Tensor, "*shape state"]
    other: Int64[Tensor, " state"]  # other[other] is each state itself

    def matrices(self) -> Float64[Tensor, "*shape state state"]:
        return torch.diag_embed(self.own) + torch.diag_embed(self.cross)[..., self.other]


@dataclass(frozen=True)
class StateSpace:
    """Define x_1 ~ N(mean, covariance), x_i = A_i x_(i-1) + N(0, Q_i), y_i = H_i x_i + N(0, diag(R_i)), R > 0.

    A_i and Q_i lead from point i - 1 to point i; those of the first point are not read. For a process with a nonzero
    mean level, subtract that level from y. H and R may be shared by all rows and points.
    """

    mean: Float64[Tensor, " state"]
    covariance: Float64[Tensor, "state state"]
    transition: Float64[Tensor, "batch time state state"] | Pairs  # A
    process: Float64[Tensor, "batch time state state"] | None  # Q >= 0; None: covariance is stationary, and constant
    observe: Float64[Tensor, "*rows dim state"]  # H
    noise: Float64[Tensor, "*rows dim"]  # R, variances

    def part(self, rows: Int64[Tensor, " some"], points: int) -> "StateSpace":
        """Return some rows up to a number of points; H and R must be given for every row and point."""
        of = lambda x: x[rows, :points]
        moves, process = self.transition, None if self.process is None else of(self.process)
        moves = replace(moves, own=of(moves.own), cross=of(moves.cross)) if isinstance(moves, Pairs) else of(moves)
        return replace(self, transition=moves, process=process, observe=of(self.observe), noise=of(self.noise))


class Moves:
    """Hold the transitions of a batch, with time as the first axis and rows as the last."""

    def __init__(
        self, parts: list[Tensor], process: Tensor | None, stationary: Tensor, other: Int64[Tensor, " state"] | None
    ):
        """Take the transitions as `parts`: [own, cross] of Pairs, each (time, state, batch), or one tensor
        (time, state, state, batch). stationary: V where Q = V - A V A', so that A P A' + Q = A (P - V) A' + V;
        zeros where the process noise is given."""
        self.parts, self.process, self.stationary, self.other = parts, process, stationary, other

    @cached_property
    def steps(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(part.unbind(0) for part in self.parts), strict=True))

    @classmethod
    def of(cls, space: StateSpace) -> "Moves":
        """Build the moves of a state space model; a row's first move, which has no predecessor, changes nothing."""
        transition = space.transition
        parts = (transition.own, transition.cross) if isinstance(transition, Pairs) else (transition,)
        other = transition.other if isinstance(transition, Pairs) else None
        process, stationary = None, space.covariance
        if space.process is not None:
            process = rows_last(space.process)
            process = torch.cat([torch.zeros_like(process[:1]), process[1:]])
            stationary = torch.zeros_like(stationary)
        still = stay(len(stationary), other is not None, parts[0])
        parts = [rows_last(part) for part in parts]
        parts = [torch.cat([x.expand(1, *part.shape[1:]), part[1:]]) for x, part in zip(still, parts, strict=True)]
        return cls(parts, process, stationary, other)

    def __len__(self) -> int:
        return len(self.parts[0])

    def forward(self, i: int, x: Float64[Tensor, "state column batch"]) -> Float64[Tensor, "state column batch"]:
        """Return A_i x."""
        if self.other is None:
            return (self.steps[i][0][:, :, None] * x).sum(1)
        own, cross = self.steps[i]
        return torch.addcmul(own[:, None] * x, cross[:, None], x.index_select(0, self.other))

    def back(self, i: int, x: Float64[Tensor, "state column batch"]) -> Float64[Tensor, "state column batch"]:
        """Return A_i' x."""
        if self.other is None:
            return (self.steps[i][0][:, :, None] * x[:, None]).sum(0)
        own, cross = self.steps[i]
        return torch.addcmul((cross[:, None] * x).index_select(0, self.other), own[:, None], x)

    def covariance(self, i: int, covariance: Float64[Tensor, "state state batch"]) -> Tensor:
        """Return A_i P A_i' + Q_i, (state, state, batch)."""
        limit = self.stationary[..., None]
        both = self.forward(i, self.forward(i, covariance - limit).transpose(0, 1))
        return both + (limit if self.process is None else self.process[i])

    def onward(self, i: int, state: State) -> State:
        """Return the mean and covariance of A_i x + N(0, Q_i)."""
        return self.forward(i, state[0]), self.covariance(i, state[1])

    def slopes(self, at: slice, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Return the gradients of the sum of l'A m + tr W (A P A' + Q) over the moves `at`, with respect to their
        parts, and to Q where it is given.

        before: m and P before each move, (time, ...); after: l and W after it.
        """
        (mean, covariance), (slope, bend) = before, after
        moving, parts = covariance - self.stationary[..., None], [part[at] for part in self.parts]
        if self.other is None:
            moved = torch.einsum("tikb,tklb->tilb", torch.einsum("tijb,tjkb->tikb", bend, parts[0]), moving)
            gradients = [torch.einsum("tikb,tjkb->tijb", slope, mean) + 2 * moved]
        else:
            own, cross = parts
            moved = own[:, :, None] * moving + cross[:, :, None] * moving.index_select(1, self.other)
            gradient = lambda m, x: (slope * m).sum(2) + 2 * (bend * x.transpose(1, 2)).sum(2)
            partners = mean[:, self.other], moved.index_select(2, self.other)
            gradients = [gradient(mean, moved), gradient(*partners)]
        return gradients if self.process is None else [*gradients, bend]


@dataclass(frozen=True)
class Values:
    """Hold all values of a row as one sequence, the channels of a point one after the other.

    A value that is not observed has h = 0, so that it changes nothing.
    """

    y: Float64[Tensor, "value column batch"]
    h: Float64[Tensor, "value state batch"]
    r: Float64[Tensor, "value batch"]
    mask: Bool[Tensor, "value batch"]

    @classmethod
    def of(cls, space: StateSpace, values: Tensor, mask: Tensor) -> "Values":
        """Build the sequence from values (batch, time, dim, column) and their mask (batch, time, dim)."""
        y = torch.where(mask[..., None], values, 0)
        h, r = space.observe * mask[..., None], space.noise.expand(mask.shape)
        return cls(*(rows_last(each.flatten(1, 2)) for each in (y, h, r, mask)))


@dataclass(frozen=True)
class Moments:
    """Hold the filter's mean and covariance of the state: `before` each value, given all earlier ones; `after` all
    values of each point, with the start before the first move at index 0. Each value also has its error y - h'm, its
    variance s and its reach P h."""

    before: tuple[Float64[Tensor, "value state column batch"], Float64[Tensor, "value state state batch"]]
    after: tuple[Float64[Tensor, "times state column batch"], Float64[Tensor, "times state state batch"]]
    error: Float64[Tensor, "value column batch"]
    variance: Float64[Tensor, "value batch"]
    reach: Float64[Tensor, "value state batch"]


@dataclass(frozen=True)
class Messages:
    """Hold the slope l and curvature L, in the state, of the log probability of later values: `before` all values of
    a point and `after` each value.

    They follow the recursion of Bryson and Frazier: the smoothed state has mean m + P l and covariance P - P L P. The
    gradient of log p with respect to m is l, the one with respect to P is (l l' - L) / 2.
    """

    before: tuple[Float64[Tensor, "time state column batch"], Float64[Tensor, "time state state batch"]]
    after: tuple[Float64[Tensor, "value state column batch"], Float64[Tensor, "value state state batch"]]


def rows_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous()


def summed(x: Float64[Tensor, "... batch"]) -> Float64[Tensor, " batch"]:
    return x.flatten(0, -2).sum(0)


def stay(states: int, pairs: bool, like: Tensor) -> list[Tensor]:
    """Return the parts of a move that leaves the state unchanged, in the dtype and on the device of `like`."""
    if pairs:
        return [like.new_ones(()), like.new_zeros(())]
    return [torch.eye(states, dtype=like.dtype, device=like.device)[..., None]]


def take_in(state: State, y: Tensor, h: Tensor, r: Tensor) -> tuple[State, tuple[Tensor, Tensor, Tensor]]:
    """Condition the state on a value y (column, batch) = h'x + N(0, r).

    Return the new state and the tuple (error y - h'm, its variance, P h).
    """
    mean, covariance = state
    reach = (covariance * h).sum(1)
    error, variance = y - (h[:, None] * mean).sum(0), (h * reach).sum(0).clamp(min=0) + r
    gain = reach / variance
    mean = torch.addcmul(mean, gain[:, None], error)
    return (mean, torch.addcmul(covariance, gain[:, None], reach, value=-1)), (error, variance, reach)


@loop
def sweep_forward(start: State, moves: Moves, seen: Values) -> Moments:
    """Run the Kalman filter over all values, from the state before the first move."""
    channels, state, before, after, innovations = len(seen.y) // len(moves), start, [], [start], []
    for i, (y, h, r) in enumerate(zip(seen.y.unbind(0), seen.h.unbind(0), seen.r.unbind(0), strict=True)):
        if i % channels == 0:
            state = moves.onward(i // channels, state)
        before.append(state)
        state, innovation = take_in(state, y, h, r)
        innovations.append(innovation)
        if (i + 1) % channels == 0:
            after.append(state)
    return Moments(stacked(before), stacked(after), *map(torch.stack, zip(*innovations, strict=True)))


@loop
def sweep_back(
    end: State,
    moves: Moves,
    seen: Values,
    moments: Moments,
) -> Messages:
    """Compute the messages of later values, backward from the slope and curvature after the last point."""
    variance = moments.variance
    parts = (seen.h, moments.reach / variance[:, None], moments.error / variance[:, None], 1 / variance)
    steps = list(zip(*(part.unbind(0) for part in parts), strict=True))
    slope, curvature = end
    channels, before, after = len(steps) // len(moves), [], []
    for i in reversed(range(len(steps))):
        after.append((slope, curvature))
        h, gain, score, precision = steps[i]
        bent = (curvature * gain).sum(1)
        weight = h * ((bent * gain).sum(0) + precision) - bent
        # (I - k h')'L (I - k h') + h h' / s and its slope
        curvature = torch.addcmul(torch.addcmul(curvature, h[:, None], weight), bent[:, None], h, value=-1)
        slope = torch.addcmul(slope, h[:, None], score - (gain[:, None] * slope).sum(0))
        if i % channels == 0:
            before.append((slope, curvature))
            slope = moves.back(i // channels, slope)
            curvature = moves.back(i // channels, moves.back(i // channels, curvature).transpose(0, 1))
    return Messages(stacked(before[::-1]), stacked(after[::-1]))


def stacked(steps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    mean, covariance = zip(*steps, strict=True)
    return torch.stack(mean), torch.stack(covariance)
