"""Exact inference in linear-Gaussian state space models, every row on its own times.

Values are taken in one by one, which needs no matrix to be inverted: with reach w = P h and variance s = h'w + r,
m += w (y - h'm) / s and P = (I - w h'/s) P (I - w h'/s)' + r w w'/s^2, Joseph's form, which stays positive.
"""

from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vrnn_lab.densities import Gaussian
from vrnn_lab.loops import loop


@dataclass(frozen=True)
class StateSpace:
    """x_1 ~ N(mean, covariance), x_i = A_i x_(i-1) + N(0, Q_i), y_i = H_i x_i + N(0, diag(R_i)), R > 0.

    A_i and Q_i lead from point i - 1 to point i; those of the first point are not read. A process about another level
    than zero is served by taking that level off y. Leading axes that are left out are those of all rows or points.
    """

    mean: Float64[Tensor, "*batch state"]
    covariance: Float64[Tensor, "*batch state state"]
    transition: Float64[Tensor, "batch time state state"]  # A
    process: Float64[Tensor, "batch time state state"]  # Q, any positive semidefinite matrix
    observe: Float64[Tensor, "*batch_time dim state"]  # H
    noise: Float64[Tensor, "*batch_time dim"]  # R, variances


@dataclass(frozen=True)
class Values:
    """All values of a row in a sequence, the channels of a point one after the other.

    Of a value that is not observed h is zero, so that it changes nothing.
    """

    y: Float64[Tensor, "batch value 1 column"]
    h: Float64[Tensor, "batch value state 1"]
    r: Float64[Tensor, "batch value 1 1"]
    mask: Bool[Tensor, "batch value"]

    @classmethod
    def of(cls, space: StateSpace, values: Tensor, mask: Tensor) -> "Values":
        """From values (batch, time, dim, column)."""
        y = torch.where(mask[..., None], values, 0)[..., None, :]
        h = (space.observe * mask[..., None])[..., None]
        r = space.noise.expand(mask.shape)[..., None, None]
        return cls(*(each.flatten(1, 2) for each in (y, h, r, mask)))


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the state given what came earlier."""

    before: tuple[Tensor, Tensor]  # each value: (batch, value, state, column), (batch, value, state, state)
    after: tuple[Tensor, Tensor]  # all values of each point


@dataclass(frozen=True)
class Messages:
    """Slope l and curvature L, in the state, of the log probability of what comes later.

    The recursion of Bryson and Frazier: the state given all is m + P l, with covariance P - P L P. The slope of log p
    in m is l, the one in P is (l l' - L) / 2.
    """

    before: tuple[Tensor, Tensor]  # all values of each point: these are later
    after: tuple[Tensor, Tensor]  # each value


def log_likelihood(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Float64[Tensor, " batch"]:
    """log p of each row's masked values, in nats.

    Its gradient is in closed form: no tape is kept of the loop, and one sweep back serves all parameters.
    """
    seen = Values.of(space, values[..., None], mask)
    with torch.no_grad():
        moments = _filter(space, seen)
    here = _log_prob(seen, moments)
    parts = (space.mean, space.covariance, space.transition, space.process, seen.y, seen.h, seen.r)
    if not (torch.is_grad_enabled() and any(each.requires_grad for each in parts)):
        return here
    with torch.no_grad():
        messages = _sweep_back(space, seen, moments)
    later = _later(seen, moments, messages) + _of_moves(space, moments, messages)
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
    seen = Values.of(space, values, mask)
    moments = _filter(space, seen)
    slope, curvature = (
        each[:, mask.shape[2] - 1 :: mask.shape[2]] for each in _sweep_back(space, seen, moments).after
    )
    mean, covariance = moments.after
    reach = space.observe.expand(*mask.shape, -1) @ covariance
    variance = (reach * space.observe).sum(-1) - (reach * (reach @ curvature)).sum(-1)
    return mean + covariance @ slope, variance.clamp(min=0)


def _log_prob(seen: Values, moments: Moments) -> Float64[Tensor, " batch"]:
    """log p, the moments being constants: it depends on h, r and y."""
    error, variance, _ = _innovation(seen, moments)
    each = -0.5 * (error.square() / variance + variance.log() + log(2 * pi))
    return torch.where(seen.mask, each[..., 0, 0], 0).sum(1)


def _innovation(seen: Values, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """y - h'm, its variance and P h, of every value."""
    mean, covariance = moments.before
    reach = covariance @ seen.h
    return seen.y - seen.h.mT @ mean, (seen.h * reach).sum(-2, keepdim=True) + seen.r, reach


def _later(seen: Values, moments: Moments, messages: Messages) -> Float64[Tensor, " batch"]:
    """Has the gradient, in h, r and y, of what later values say of the state that takes the value in.

    That state is m + w e / s with covariance P - w w' / s, to which Joseph's form comes down.
    """
    slope, curvature = messages.after
    error, variance, reach = _innovation(seen, moments)
    along = (slope * reach).sum(-2, keepdim=True)
    bent = (reach * (curvature @ reach)).sum(-2, keepdim=True) - along.square()
    return ((along * error + 0.5 * bent) / variance).sum((1, 2, 3))


def _of_moves(space: StateSpace, moments: Moments, messages: Messages) -> Float64[Tensor, " batch"]:
    """Has the gradient in the first state, A and Q: each times the slope of log p in it."""
    slope, curvature = messages.before
    of_covariance = 0.5 * (slope @ slope.mT - curvature)
    mean, covariance = (each[:, :-1] for each in moments.after)
    move = space.transition[:, 1:]
    of_move = slope[:, 1:] @ mean.mT + 2 * of_covariance[:, 1:] @ move.detach() @ covariance
    inner = lambda one, other: (one * other).flatten(1).sum(1)
    first = inner(slope[:, 0, :, 0], space.mean) + inner(of_covariance[:, 0], space.covariance)
    return first + inner(of_move, move) + inner(of_covariance[:, 1:], space.process[:, 1:])


@loop
def _filter(space: StateSpace, seen: Values) -> Moments:
    rows, state, columns = len(seen.y), space.observe.shape[-1], seen.y.shape[-1]
    mean = space.mean[..., None].expand(rows, state, columns)
    covariance = space.covariance.expand(rows, state, state)
    one = torch.eye(state).to(covariance).expand(rows, -1, -1)
    moves = list(zip(space.transition.unbind(1), space.process.unbind(1), strict=True))
    channels = seen.y.shape[1] // len(moves)
    before, after = [], []
    for i, (y, h, r) in enumerate(zip(seen.y.unbind(1), seen.h.unbind(1), seen.r.unbind(1), strict=True)):
        if i and i % channels == 0:
            move, process = moves[i // channels]
            mean, covariance = move @ mean, torch.baddbmm(process, move @ covariance, move.mT)
        before.append((mean, covariance))
        reach = covariance @ h
        gain = reach / torch.baddbmm(r, h.mT, reach)
        keep = torch.baddbmm(one, gain, h.mT, alpha=-1)
        mean = torch.baddbmm(mean, gain, y - h.mT @ mean)
        covariance = torch.baddbmm(keep @ covariance @ keep.mT, gain, r * gain.mT)
        after.append((mean, covariance))
    return Moments(_stacked(before), _stacked(after[channels - 1 :: channels]))


@loop
def _sweep_back(space: StateSpace, seen: Values, moments: Moments) -> Messages:
    error, variance, reach = _innovation(seen, moments)
    whitened, gain = seen.h / variance, reach / variance
    keep = torch.eye(reach.shape[2]).to(reach) - gain @ seen.h.mT
    known = [each.unbind(1) for each in (whitened @ error, whitened @ seen.h.mT, keep)]
    slope, curvature = torch.zeros_like(known[0][0]), torch.zeros_like(known[1][0])
    moves = space.transition.unbind(1)
    channels = len(known[0]) // len(moves)
    before, after = [], []
    for i in reversed(range(len(known[0]))):
        after.append((slope, curvature))
        score, information, keep = (each[i] for each in known)
        slope = torch.baddbmm(score, keep.mT, slope)
        curvature = torch.baddbmm(information, keep.mT @ curvature, keep)
        if i % channels == 0:
            before.append((slope, curvature))
            move = moves[i // channels]
            slope, curvature = move.mT @ slope, move.mT @ curvature @ move
    return Messages(_stacked(before[::-1]), _stacked(after[::-1]))


def _stacked(steps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    mean, covariance = zip(*steps, strict=True)
    return torch.stack(mean, 1), torch.stack(covariance, 1)
