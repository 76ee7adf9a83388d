"""Exact inference in linear-Gaussian state space models, every row on its own times."""

from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vrnn_lab.densities import Gaussian


@dataclass(frozen=True)
class StateSpace:
    """x_1 ~ N(mean, covariance), x_i = A_i x_(i-1) + N(0, Q_i), y_i = H x_i + N(0, diag(R)), R > 0.

    A_i and Q_i lead from point i - 1 to point i; those of the first point are not read. A process about
    another level than zero is served by taking that level off y.
    """

    mean: Float64[Tensor, " state"]
    covariance: Float64[Tensor, "state state"]
    transition: Float64[Tensor, "batch time state state"]  # A
    process: Float64[Tensor, "batch time state state"]  # Q, any positive semidefinite matrix
    observe: Float64[Tensor, "dim state"]  # H
    noise: Float64[Tensor, " dim"]  # R, variances


@dataclass(frozen=True)
class Filtered:
    """One point of the forward pass; what an unobserved channel would add to it is zero."""

    log_prob: Float64[Tensor, " batch"]  # of the point's observed values, given those of the points before
    mean: Float64[Tensor, "batch state 1"]  # of x_i given y_1 .. y_i
    covariance: Float64[Tensor, "batch state state"]
    keep: Float64[Tensor, "batch state state"]  # I - K H
    score: Float64[Tensor, "batch state 1"]  # H' S^-1 (y - H m): the slope of log_prob in the state
    information: Float64[Tensor, "batch state state"]  # H' S^-1 H


def log_likelihood(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Float64[Tensor, " batch"]:
    """log p of each row's masked values, in nats."""
    return torch.stack([point.log_prob for point in _filter(space, values, mask)]).sum(0)


def smooth(
    space: StateSpace, values: Float64[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time dim"]
) -> Gaussian:
    """Each point's noisy observation given the masked values of the row: tensors (batch, time, dim).

    At a point that is itself masked this is a second, independent measurement of the same state.
    """
    points = _filter(space, values, mask)
    slope, curvature = torch.zeros_like(points[0].mean), torch.zeros_like(points[0].covariance)
    states = []
    for i in reversed(range(len(points))):
        states.append(_smoothed(points[i], slope, curvature))
        slope, curvature = _backward(points[i], space.transition[:, i], slope, curvature)
    mean, covariance = (torch.stack(part[::-1], 1) for part in zip(*states, strict=True))
    variance = (space.observe @ covariance @ space.observe.mT).diagonal(dim1=-2, dim2=-1) + space.noise
    return Gaussian((space.observe @ mean).squeeze(-1), variance.sqrt())


def _filter(space: StateSpace, values: Tensor, mask: Tensor) -> list[Filtered]:
    mean = space.mean[:, None].expand(len(values), -1, 1)
    covariance = space.covariance.expand(len(values), -1, -1)
    points = []
    for i in range(values.shape[1]):
        if i:
            move = space.transition[:, i]
            mean, covariance = move @ mean, move @ covariance @ move.mT + space.process[:, i]
        points.append(_update(space, mean, covariance, values[:, i], mask[:, i]))
        mean, covariance = points[-1].mean, points[-1].covariance
    return points


def _update(space: StateSpace, mean: Tensor, covariance: Tensor, value: Tensor, mask: Tensor) -> Filtered:
    """Condition the state on a point's masked values: an unobserved channel is one that H does not read."""
    observe = space.observe * mask[..., None]  # (batch, dim, state)
    noise = space.noise.diag()
    error = torch.where(mask, value, 0)[..., None] - observe @ mean
    root = torch.linalg.cholesky(observe @ covariance @ observe.mT + noise)
    gain = torch.cholesky_solve(observe @ covariance, root).mT
    keep = torch.eye(len(space.mean)).to(mean) - gain @ observe
    whitened = torch.linalg.solve_triangular(root, error, upper=False).squeeze(-1)
    each = -0.5 * (whitened**2 + log(2 * pi)) - root.diagonal(dim1=-2, dim2=-1).log()
    return Filtered(
        log_prob=torch.where(mask, each, 0).sum(-1),
        mean=mean + gain @ error,
        covariance=keep @ covariance @ keep.mT + gain @ noise @ gain.mT,  # Joseph's form stays positive
        keep=keep,
        score=observe.mT @ torch.cholesky_solve(error, root),
        information=observe.mT @ torch.cholesky_solve(observe, root),
    )


def _smoothed(point: Filtered, slope: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """The state given all masked values: m + P l and P - P L P, l and L the message of the later points.

    The recursion of Bryson and Frazier. It gives what that of Rauch, Tung and Striebel gives, but never
    inverts the predicted covariance, which is singular where the state is known or only part of it moves.
    """
    covariance = point.covariance
    return point.mean + covariance @ slope, covariance - covariance @ curvature @ covariance


def _backward(point: Filtered, move: Tensor, slope: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """The message to the point before: A' (score + C' l) and A' (information + C' L C) A with C = I - K H."""
    slope = point.score + point.keep.mT @ slope
    curvature = point.information + point.keep.mT @ curvature @ point.keep
    return move.mT @ slope, move.mT @ curvature @ move
