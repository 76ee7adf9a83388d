"""Exact inference in linear-Gaussian state space models, every row on its own times.

Values are taken in one by one, which needs no matrix to be inverted: with reach w = P h and variance s = h'w + r,
m += w (y - h'm) / s and P -= w w' / s. Inside, rows are the last axis, so that small matrices of many rows are
multiplied as long vectors.
"""

from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from vrnn_lab.densities import Gaussian
from vrnn_lab.loops import loop


@dataclass(frozen=True)
class Pairs:
    """Matrices A of which row i has entries in column i (own) and in column other_i (cross) alone."""

    own: Float64[Tensor, "*shape state"]
    cross: Float64[Tensor, "*shape state"]
    other: Int64[Tensor, " state"]  # other[other] is each state itself

    def matrices(self) -> Float64[Tensor, "*shape state state"]:
        return torch.diag_embed(self.own) + torch.diag_embed(self.cross)[..., self.other]


@dataclass(frozen=True)
class StateSpace:
    """x_1 ~ N(mean, covariance), x_i = A_i x_(i-1) + N(0, Q_i), y_i = H_i x_i + N(0, diag(R_i)), R > 0.

    A_i and Q_i lead from point i - 1 to point i; those of the first point are not read. A process about another level
    than zero is served by taking that level off y. H and R may be those of all rows and points.
    """

    mean: Float64[Tensor, " state"]
    covariance: Float64[Tensor, "state state"]
    transition: Float64[Tensor, "batch time state state"] | Pairs  # A
    process: Float64[Tensor, "batch time state state"] | None  # Q >= 0; None: covariance is stationary, and constant
    observe: Float64[Tensor, "*rows dim state"]  # H
    noise: Float64[Tensor, "*rows dim"]  # R, variances


class Moves:
    """The transitions of a batch."""

    def __init__(self, space: StateSpace):
        found = space.transition
        self.other = found.other if isinstance(found, Pairs) else None
        parts = (found.own, found.cross) if isinstance(found, Pairs) else (found,)
        self.parts = [_rows_last(part) for part in parts]
        self.steps = list(zip(*(part.unbind(0) for part in self.parts), strict=True))
        self.process = None if space.process is None else _rows_last(space.process)
        # Q = V - A V A', of which the rest follows as P - V alone moves.
        self.stationary = torch.zeros_like(space.covariance) if self.process is not None else space.covariance

    def __len__(self) -> int:
        return len(self.steps)

    def forward(self, i: int, x: Float64[Tensor, "state column batch"]) -> Float64[Tensor, "state column batch"]:
        """A_i x."""
        if self.other is None:
            return (self.steps[i][0][:, :, None] * x).sum(1)
        own, cross = self.steps[i]
        return torch.addcmul(own[:, None] * x, cross[:, None], x.index_select(0, self.other))

    def back(self, i: int, x: Float64[Tensor, "state column batch"]) -> Float64[Tensor, "state column batch"]:
        """A_i' x."""
        if self.other is None:
            return (self.steps[i][0][:, :, None] * x[:, None]).sum(0)
        own, cross = self.steps[i]
        return torch.addcmul((cross[:, None] * x).index_select(0, self.other), own[:, None], x)

    def covariance(self, i: int, covariance: Float64[Tensor, "state state batch"]) -> Tensor:
        """A_i P A_i' + Q_i."""
        limit = self.stationary[..., None]
        both = self.forward(i, self.forward(i, covariance - limit).transpose(0, 1))
        return both + (limit if self.process is None else self.process[i])

    def inner(self, mean: Tensor, covariance: Tensor, slope: Tensor, bend: Tensor) -> Float64[Tensor, " batch"]:
        """Has the gradient, in all A and Q but the first, of sum_i l_i'A_i m_(i-1) + tr W_i (A_i P_(i-1) A_i' + Q_i).

        mean, covariance: m and P of all points but the last; slope, bend: l and W of all but the first.
        """
        moving = covariance - self.stationary[..., None]
        parts = [part[1:] for part in self.parts]
        with torch.no_grad():
            slopes = self._slopes(parts, mean, moving, slope, bend)
        total = torch.stack([_sum(one * other) for one, other in zip(slopes, parts, strict=True)]).sum(0)
        return total if self.process is None else total + _sum(bend * self.process[1:])

    def _slopes(self, parts: list[Tensor], mean: Tensor, moving: Tensor, slope: Tensor, bend: Tensor) -> list[Tensor]:
        """l m' + 2 W A P at the entries of A."""
        if self.other is None:
            moved = torch.einsum("tijb,tjkb,tklb->tilb", bend, parts[0], moving)
            return [torch.einsum("tikb,tjkb->tijb", slope, mean) + 2 * moved]
        own, cross = parts
        moved = own[:, :, None] * moving + cross[:, :, None] * moving[:, self.other]
        at = lambda m, x: (slope * m).sum(2) + 2 * (bend * x.transpose(1, 2)).sum(2)
        return [at(mean, moved), at(mean[:, self.other], moved[:, :, self.other])]


@dataclass(frozen=True)
class Values:
    """All values of a row in a sequence, the channels of a point one after the other.

    Of a value that is not observed h is zero, so that it changes nothing.
    """

    y: Float64[Tensor, "value column batch"]
    h: Float64[Tensor, "value state batch"]
    r: Float64[Tensor, "value batch"]
    mask: Bool[Tensor, "value batch"]

    @classmethod
    def of(cls, space: StateSpace, values: Tensor, mask: Tensor) -> "Values":
        """From values (batch, time, dim, column)."""
        y = torch.where(mask[..., None], values, 0)
        h, r = space.observe * mask[..., None], space.noise.expand(mask.shape)
        return cls(*(_rows_last(each.flatten(1, 2)) for each in (y, h, r, mask)))


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the state given what came earlier, before each value and after all values of a point."""

    before: tuple[Float64[Tensor, "value state column batch"], Float64[Tensor, "value state state batch"]]
    after: tuple[Float64[Tensor, "time state column batch"], Float64[Tensor, "time state state batch"]]


@dataclass(frozen=True)
class Messages:
    """Slope l and curvature L, in the state, of the log probability of what comes later, before all values of a point
    and after each value.

    The recursion of Bryson and Frazier: the state given all is m + P l, with covariance P - P L P. The slope of log p
    in m is l, the one in P is (l l' - L) / 2.
    """

    before: tuple[Float64[Tensor, "time state column batch"], Float64[Tensor, "time state state batch"]]
    after: tuple[Float64[Tensor, "value state column batch"], Float64[Tensor, "value state state batch"]]


def log_likelihood(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Float64[Tensor, " batch"]:
    """log p of each row's masked values, in nats.

    Its gradient is in closed form: no tape is kept of the loop, and one sweep back serves all parameters.
    """
    moves, seen = Moves(space), Values.of(space, values[..., None], mask)
    with torch.no_grad():
        moments = _filter(space, moves, seen)
    here = _log_prob(seen, moments)
    parts = (space.mean, space.covariance, *moves.parts, moves.process, seen.h, seen.r, seen.y)
    if not (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in parts)):
        return here
    with torch.no_grad():
        messages = _sweep_back(moves, seen, moments)
    later = _later(seen, moments, messages) + _of_states(space, moves, moments, messages)
    return here + (later - later.detach())


def smooth(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Gaussian:
    """Each point's noisy observation given the masked values of the row: tensors (batch, time, dim).

    At a point that is itself masked this is a second, independent measurement of the same state.
    """
    states, variance = posterior(space, values[..., None], mask)
    mean = space.observe.expand(*mask.shape, -1) @ states
    return Gaussian(mean[..., 0], (variance + space.noise).sqrt())


def posterior(
    space: StateSpace, values: Float64[Tensor, "batch time dim column"], mask: Bool[Tensor, "batch time dim"]
) -> tuple[Float64[Tensor, "batch time state column"], Float64[Tensor, "batch time dim"]]:
    """The mean of every state given the masked values of each column, and the variance of H x, which all share."""
    moves, seen = Moves(space), Values.of(space, values, mask)
    moments = _filter(space, moves, seen)
    channels = mask.shape[2]
    slope, curvature = (each[channels - 1 :: channels] for each in _sweep_back(moves, seen, moments).after)
    mean, covariance = moments.after
    observe = _rows_last(space.observe.expand(*mask.shape, -1))  # (time, dim, state, batch)
    reach = torch.einsum("tdib,tijb->tdjb", observe, covariance)
    less = torch.einsum("tdib,tijb,tdjb->tdb", reach, curvature, reach)
    variance = ((reach * observe).sum(2) - less).clamp(min=0)
    states = mean + torch.einsum("tijb,tjcb->ticb", covariance, slope)
    return states.movedim(-1, 0), variance.movedim(-1, 0)


def _rows_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous()


def _sum(x: Float64[Tensor, "... batch"]) -> Float64[Tensor, " batch"]:
    return x.flatten(0, -2).sum(0)


def _log_prob(seen: Values, moments: Moments) -> Float64[Tensor, " batch"]:
    """log p, the moments being constants: it depends on h, r and y."""
    error, variance, _ = _innovation(seen, moments)
    each = -0.5 * (error[:, 0].square() / variance + variance.log() + log(2 * pi))
    return torch.where(seen.mask, each, 0).sum(0)


def _innovation(seen: Values, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """y - h'm, its variance and P h, of every value."""
    mean, covariance = moments.before
    reach = (covariance * seen.h[:, None]).sum(2)
    error = seen.y - (mean * seen.h[:, :, None]).sum(1)
    return error, (seen.h * reach).sum(1).clamp(min=0) + seen.r, reach


def _later(seen: Values, moments: Moments, messages: Messages) -> Float64[Tensor, " batch"]:
    """Has the gradient, in h, r and y, of what later values say of the state that takes a value in: of
    l'(w e / s) - w'W w / s with W = (l l' - L) / 2."""
    slope, curvature = messages.after
    error, variance, reach = _innovation(seen, moments)
    along = (slope[:, :, 0] * reach).sum(1)
    bent = (reach * (curvature * reach[:, None]).sum(2)).sum(1) - along.square()
    return ((along * error[:, 0] + 0.5 * bent) / variance).sum(0)


def _of_states(space: StateSpace, moves: Moves, moments: Moments, messages: Messages) -> Float64[Tensor, " batch"]:
    """Has the gradient in the first state and in all moves."""
    slope, curvature = messages.before
    bend = 0.5 * (slope * slope.transpose(1, 2) - curvature)
    mean, covariance = (each[:-1] for each in moments.after)
    first = _sum(slope[0] * space.mean[:, None, None]) + _sum(bend[0] * space.covariance[..., None])
    return first + moves.inner(mean, covariance, slope[1:], bend[1:])


@loop
def _filter(space: StateSpace, moves: Moves, seen: Values) -> Moments:
    channels, (_, columns, rows) = len(seen.y) // len(moves), seen.y.shape
    mean = space.mean[:, None, None].expand(-1, columns, rows)
    covariance = space.covariance[..., None].expand(-1, -1, rows)
    before, after = [], []
    for i, (y, h, r) in enumerate(zip(seen.y.unbind(0), seen.h.unbind(0), seen.r.unbind(0), strict=True)):
        if i and i % channels == 0:
            mean = moves.forward(i // channels, mean)
            covariance = moves.covariance(i // channels, covariance)
        before.append((mean, covariance))
        reach = (covariance * h).sum(1)
        gain = reach / ((h * reach).sum(0).clamp(min=0) + r)
        mean = torch.addcmul(mean, gain[:, None], y - (h[:, None] * mean).sum(0))
        covariance = torch.addcmul(covariance, gain[:, None], reach, value=-1)
        if (i + 1) % channels == 0:
            after.append((mean, covariance))
    return Moments(_stacked(before), _stacked(after))


@loop
def _sweep_back(moves: Moves, seen: Values, moments: Moments) -> Messages:
    error, variance, reach = _innovation(seen, moments)
    parts = (seen.h, reach / variance[:, None], error / variance[:, None], 1 / variance)
    steps = list(zip(*(part.unbind(0) for part in parts), strict=True))
    slope, curvature = (torch.zeros_like(each[0]) for each in moments.after)
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
    return Messages(_stacked(before[::-1]), _stacked(after[::-1]))


def _stacked(steps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    mean, covariance = zip(*steps, strict=True)
    return torch.stack(mean), torch.stack(covariance)
