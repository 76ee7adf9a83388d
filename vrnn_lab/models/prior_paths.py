"""Draw joint paths of a stationary linear SDE in which every point is a function of the noise alone."""

from dataclasses import dataclass, replace
from math import ceil, log2

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.noise import ChannelNoise, Noise
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.linear_state import Dynamics, lower_root

FORGOTTEN = 40.0  # decay times after which a state is independent of its past
FINEST = -17  # cells of 2^-17 typical windows: points within one are drawn independently given its ends


@dataclass(frozen=True)
class Cells:
    """Hold intervals of time that contain points, those of a row in order, and the states at their ends."""

    number: Float64[Tensor, "batch cell"]  # from number * width to (number + 1) * width
    left: Float64[Tensor, "samples batch cell groups state"]
    right: Float64[Tensor, "samples batch cell groups state"]


class PriorPaths:
    """Draw paths by halving intervals of time (Levy's construction of Brownian motion, for any linear SDE).

    The ends of the widest cells are so far apart that they are independent. The middle of a cell is drawn given its
    ends, with noise keyed by the series and the time of the middle, down to the finest cells, in which each point is
    drawn given the ends. So a draw at one time does not depend on the other query times.
    """

    def __init__(self, dynamics: Dynamics, noise: Noise | ChannelNoise, series: TimeSeries, samples: int):
        """Take the dynamics, the noise, and a series whose rows hold the query times in increasing order."""
        self.dynamics, self.noise, self.samples = dynamics, noise, samples
        nothing = torch.zeros_like(series.seen[..., :1])
        self.points = replace(
            series, values=nothing.to(series.times), seen=nothing, scored=nothing, covariates=None, error=None
        )

    def draw(self) -> Float64[Tensor, "samples batch time groups state"]:
        level = max(FINEST + 1, ceil(log2(FORGOTTEN / self.dynamics.slowest)))
        cells, place = self._widest(2.0**level)
        while level > FINEST:
            level -= 1
            cells, place = self._halved(cells, place, 2.0**level)
        return self._within(cells, place, 2.0**level)

    def _widest(self, width: float) -> tuple[Cells, Tensor]:
        number, place = self._cells(width)
        number = number.gather(1, _first(place))
        ends = (self._noise("path", width * each) for each in (number, number + 1))
        return Cells(number, *ends), place

    def _halved(self, cells: Cells, place: Tensor, half: float) -> tuple[Cells, Tensor]:
        middle_time = half * (2 * cells.number + 1)
        gap = torch.tensor(half, dtype=torch.float64, device=middle_time.device)
        bridge = Bridge.between(*self.dynamics.move(gap), *self.dynamics.move(gap))
        middle = bridge.draw(cells.left, cells.right, self._noise("path", middle_time))
        number, finer = self._cells(half)
        first = _first(finer)
        parent, number = place.gather(1, first), number.gather(1, first)
        of_parent = lambda states: states[:, torch.arange(len(parent))[:, None], parent]
        second = (number > 2 * cells.number.gather(1, parent))[..., None, None]
        left, middle, right = (of_parent(each) for each in (cells.left, middle, cells.right))
        return Cells(number, torch.where(second, middle, left), torch.where(second, right, middle)), finer

    def _within(
        self, cells: Cells, place: Tensor, width: float
    ) -> Float64[Tensor, "samples batch time groups state"]:
        times = self.points.times
        since = times - width * cells.number.gather(1, place)
        bridge = Bridge.between(*self.dynamics.move(since), *self.dynamics.move(width - since))
        at = lambda states: states[:, torch.arange(len(place))[:, None], place]
        return bridge.draw(at(cells.left), at(cells.right), self._noise("point", times))

    def _cells(self, width: float) -> tuple[Float64[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
        """Return, for each point, the number of the cell that contains it and that cell's index in its row."""
        number = torch.floor(self.points.times / width)
        fresh = torch.diff(number, dim=1, prepend=number[:, :1]) != 0
        return number, fresh.cumsum(1)

    def _noise(self, stream: str, times: Tensor) -> Float64[Tensor, "samples batch time groups state"]:
        groups, states = self.dynamics.groups, self.dynamics.states
        nothing = torch.zeros(*times.shape, 1, dtype=torch.bool, device=times.device)
        points = replace(self.points, times=times, seen=nothing, scored=nothing, values=nothing.to(times))
        drawn = self.noise.at_points(stream, points, self.samples, groups * states, times)
        return drawn.unflatten(-1, (groups, states))


@loop
def chained(
    dynamics: Dynamics, noise: Noise, series: TimeSeries, samples: int
) -> Float64[Tensor, "samples batch time groups state"]:
    """Draw paths sequentially, from one point that counts to the next.

    A draw depends on the other query times, unlike `PriorPaths`, but it has a gradient in the dynamics, and padding
    changes nothing.
    """
    groups, states = dynamics.groups, dynamics.states
    drawn = noise.at_points("chain", series, samples, groups * states, series.times).unflatten(-1, (groups, states))
    start = noise.of_series("chain start", series, samples, groups * states, series.times)
    state = start.unflatten(-1, (groups, states))
    move, spread = dynamics.move(_held_times(series).diff(dim=1, prepend=_held_times(series)[:, :1]))
    jumps = torch.einsum("btgij,sbtgj->sbtgi", lower_root(spread), drawn).unbind(2)
    path = []
    for step, jump in zip(move.unbind(1), jumps, strict=True):
        state = torch.einsum("bgij,sbgj->sbgi", step, state) + jump
        path.append(state)
    return torch.stack(path, 2)


def _held_times(series: TimeSeries) -> Float64[Tensor, "batch time"]:
    """Return the time of the last point that counts, or of the first one before it; zero in rows without points."""
    at = lambda otherwise: torch.where(series.counts, series.times, otherwise)
    first = at(torch.inf).amin(1, keepdim=True)
    held = torch.maximum(at(-torch.inf).cummax(1).values, first)
    return torch.where(held.isfinite(), held, 0)


def _first(place: Int64[Tensor, "batch time"]) -> Int64[Tensor, "batch cell"]:
    """Return the index of the first point in each cell; rows with fewer cells are padded by repetition."""
    cell = torch.arange(int(place.max()) + 1, device=place.device).expand(len(place), -1)
    return torch.searchsorted(place, cell.contiguous()).clamp(max=place.shape[1] - 1)


@dataclass(frozen=True)
class Bridge:
    """Represent the distribution of the state between two known ones: N(from_left l + from_right r, root root')."""

    from_left: Float64[Tensor, "*shape state state"]
    from_right: Float64[Tensor, "*shape state state"]
    root: Float64[Tensor, "*shape state state"]

    @classmethod
    def between(cls, move: Tensor, noise: Tensor, onward: Tensor, later: Tensor) -> "Bridge":
        """Build the bridge from A and Q of the gap to the middle (move, noise) and from it (onward, later)."""
        reach = noise @ onward.mT
        total = onward @ reach + later
        # Entries of Q may be of different orders in the gap, so the system is solved for correlations.
        size = total.diagonal(dim1=-2, dim2=-1).sqrt()
        scale = size[..., :, None] * size[..., None, :]
        gain = torch.linalg.solve(total / scale, (reach / size[..., None, :]).mT).mT / size[..., None, :]
        return cls(move - gain @ onward @ move, gain, _root(noise - gain @ reach.mT))

    def draw(self, left: Tensor, right: Tensor, noise: Tensor) -> Tensor:
        times = lambda matrix, x: torch.einsum("...ij,...j->...i", matrix, x)
        return times(self.from_left, left) + times(self.from_right, right) + times(self.root, noise)


def _root(covariance: Float64[Tensor, "*shape state state"]) -> Float64[Tensor, "*shape state state"]:
    """Return a matrix R with R R' equal to a covariance, which may be singular."""
    size = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    values, vectors = torch.linalg.eigh(covariance / (size[..., :, None] * size[..., None, :]))
    return size[..., :, None] * (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
