"""Compute exact likelihoods and posteriors of linear-Gaussian state space models with irregular times in every row.

Long rows are cut into blocks that are swept in parallel (`vrnn_lab.core.kalman_blocks`).
"""

from math import log, pi

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.kalman_blocks import Blocks, Sweeps
from vrnn_lab.core.kalman_sweeps import Messages, Moments, Moves, Pairs, StateSpace, Values, rows_last, summed

CACHED = 2**15  # matrix entries processed at a time, so that they stay in the processor's cache

__all__ = ["Pairs", "StateSpace", "joint_posterior", "log_likelihood", "posterior", "smooth"]


def log_likelihood(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Float64[Tensor, " batch"]:
    """Return log p (batch,) of each row's masked values, in nats.

    The gradient is computed in closed form: autograd records no graph of the loop, and one backward sweep gives the
    gradients of all parameters.
    """
    sweeps = _sweeps(space, values[..., None], mask)
    seen, moves, total = sweeps.seen, sweeps.moves, sweeps.blocks.total
    with torch.no_grad():
        moments = sweeps.forward()
        log_p = _log_prob(sweeps, moments)
    parts = [seen.y, seen.h, seen.r, *moves.parts, *([] if moves.process is None else [moves.process])]
    start = [space.mean[:, None, None], space.covariance[..., None]]
    if not (torch.is_grad_enabled() and any(each.requires_grad for each in (*parts, *start))):
        return log_p
    with torch.no_grad():
        messages = sweeps.back(moments)
        slopes = _slopes(sweeps, moments, messages)
        first = [sweeps.blocks.first(each) for each in (messages.before[0], _bend(*messages.before))]
    inside = sum((total(summed(slope * part)) for slope, part in zip(slopes, parts, strict=True)), log_p * 0)
    linear = inside + sum(summed(slope * part) for slope, part in zip(first, start, strict=True))
    return log_p + (linear - linear.detach())


def smooth(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Gaussian:
    """Return the density of each point's noisy observation given the row's masked values, tensors (batch, time, dim).

    At a point that is itself masked, the density is that of a second, independent measurement of the same state.
    """
    states, variance = posterior(space, values[..., None], mask)
    mean = space.observe.expand(*mask.shape, -1) @ states
    return Gaussian(mean[..., 0], (variance + space.noise).sqrt())


def posterior(
    space: StateSpace, values: Float64[Tensor, "batch time dim column"], mask: Bool[Tensor, "batch time dim"]
) -> tuple[Float64[Tensor, "batch time state column"], Float64[Tensor, "batch time dim"]]:
    """Return the posterior mean of every state for each column of values, and the variance of H x.

    The variance does not depend on the values, so all columns share it.
    """
    sweeps = _sweeps(space, values, mask)
    states, reach, curvature, observe = _smoothed(space, sweeps, sweeps.forward(), mask)
    less = torch.einsum("tdjb,tdjb->tdb", torch.einsum("tdib,tijb->tdjb", reach, curvature), reach)
    variance = ((reach * observe).sum(2) - less).clamp(min=0)
    return states.movedim(-1, 0), variance.movedim(-1, 0)


def joint_posterior(
    space: StateSpace, values: Float64[Tensor, "batch time dim column"], mask: Bool[Tensor, "batch time dim"]
) -> tuple[
    Float64[Tensor, "batch time state column"], Float64[Tensor, "batch time dim dim"], Float64[Tensor, " batch"]
]:
    """Return the posterior means of the states, the covariance of H x, and log p of the first column.

    The means are (batch, time, state, column), the covariance between the channels of a point is
    (batch, time, dim, dim), log p is (batch,). Autograd records both sweeps.
    """
    sweeps = _sweeps(space, values, mask)
    moments = sweeps.forward()
    states, reach, curvature, observe = _smoothed(space, sweeps, moments, mask)
    less = torch.einsum("tdjb,tejb->tdeb", torch.einsum("tdib,tijb->tdjb", reach, curvature), reach)
    covariance = torch.einsum("tdib,teib->tdeb", reach, observe) - less
    return states.movedim(-1, 0), covariance.movedim(-1, 0), _log_prob(sweeps, moments)


def _smoothed(space: StateSpace, sweeps: Sweeps, moments: Moments, mask: Tensor) -> tuple[Tensor, ...]:
    """Return the smoothed means, H P, the curvature L of the log probability of later values, and H.

    P is the filter's covariance.
    """
    channels = mask.shape[2]
    slope, curvature = (each[channels - 1 :: channels] for each in sweeps.back(moments).after)
    mean, covariance = (each[1:] for each in moments.after)
    joined = sweeps.blocks.joined
    states = joined(mean + torch.einsum("tijb,tjcb->ticb", covariance, slope))
    covariance, curvature = joined(covariance), joined(curvature)
    observe = rows_last(space.observe.expand(*mask.shape, -1))  # (time, dim, state, batch)
    return states, torch.einsum("tdib,tijb->tdjb", observe, covariance), curvature, observe


def _log_prob(sweeps: Sweeps, moments: Moments) -> Float64[Tensor, " batch"]:
    """Return log p (batch,) of the masked values of the first column."""
    error, variance = moments.error[:, 0], moments.variance
    each = -0.5 * (error.square() / variance + variance.log() + log(2 * pi))
    return sweeps.blocks.total(torch.where(sweeps.seen.mask, each, 0).sum(0))


def _sweeps(space: StateSpace, values: Float64[Tensor, "batch time dim column"], mask: Tensor) -> Sweeps:
    rows, time, _, columns = values.shape
    blocks = Blocks.of(time, rows)
    start = space.mean[:, None, None].expand(-1, columns, rows), space.covariance[..., None].expand(-1, -1, rows)
    return Sweeps(start, blocks.moves(Moves.of(space)), blocks.values(Values.of(space, values, mask)), blocks)


def _bend(slope: Tensor, curvature: Tensor) -> Tensor:
    """Return the gradient of log p with respect to the covariance P, W = (l l' - L) / 2."""
    return 0.5 * (slope * slope.transpose(-3, -2) - curvature)


def _slopes(sweeps: Sweeps, moments: Moments, messages: Messages) -> list[Tensor]:
    """Return the gradients of log p with respect to y, h, r and the parts of the moves.

    A few points are processed at a time, so that their matrices stay in the processor's cache.
    """
    matrices, channels = messages.before[1], len(sweeps.seen.y) // len(sweeps.moves)
    size, gradients = max(1, CACHED // (matrices[0].numel() * channels)), []
    for first in range(0, len(matrices), size):
        at = slice(first, first + size)
        before = moments.after[0][:-1][at], moments.after[1][:-1][at]
        slope, curvature = messages.before[0][at], messages.before[1][at]
        after = slope, _bend(slope, curvature)
        values = slice(channels * at.start, channels * at.stop)
        gradients.append(
            [*_of_values(values, sweeps.seen, moments, messages), *sweeps.moves.slopes(at, before, after)]
        )
    return [torch.cat(each) for each in zip(*gradients, strict=True)]


def _of_values(at: slice, seen: Values, moments: Moments, messages: Messages) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to y, h and r of the term that each value adds to log p.

    The term is -(e^2 / s + log s) / 2 + l'w e / s - w'W w / s, where e = y - h'm, w = P h, s = h'w + r; the slope l
    and W = (l l' - L) / 2 belong to the later values.
    """
    mean, covariance = (each[at] for each in moments.before)
    slope, curvature = (each[at] for each in messages.after)
    error, variance, reach = moments.error[at, 0], moments.variance[at], moments.reach[at]
    slope, bent = slope[:, :, 0], (curvature * reach[:, None]).sum(2)
    along = (slope * reach).sum(1)
    both = along * error + 0.5 * ((reach * bent).sum(1) - along.square())
    y = torch.where(seen.mask[at], (along - error) / variance, 0)
    r = torch.where(seen.mask[at], 0.5 * (error.square() / variance - 1) / variance - both / variance.square(), 0)
    w = (slope * (error - along)[:, None] + bent) / variance[:, None]
    h = 2 * r[:, None] * reach + (covariance * w[:, None]).sum(2) - y[:, None] * mean[:, :, 0]
    return y[:, None], h, r
