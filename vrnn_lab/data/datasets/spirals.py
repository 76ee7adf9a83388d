"""Simulate noisy windows of two Archimedean-like spirals, and a one-dimensional version of them."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data.base import Ragged, SeriesData, generator
from vrnn_lab.data.splits import in_order

TIMES = np.linspace(0, 6 * np.pi, 500)


def curve(clockwise: np.ndarray) -> np.ndarray:
    """Return the whole curve (series, 500, 2) of which each series is a window; clockwise (series,) picks the spiral.

    Source: Chen et al. 2018 (arXiv 1806.07366) and torchdiffeq's example.
    """
    inverse = 6 * np.pi + 1 - TIMES
    one = 50 * 0.3 / inverse
    two = 0.3 * TIMES
    left = np.stack([one * np.cos(inverse) - 5, one * np.sin(inverse)], -1)
    right = np.stack([two * np.cos(TIMES) + 5, two * np.sin(TIMES)], -1)
    return np.where(clockwise[:, None, None], left, right)


class Spirals(SeriesData):
    """Simulate windows of `points` points of two spirals, with random spiral and start, plus noise N(0, noise^2).

    Each spiral has probability 1/2; the start is uniform in the range `start`. clock=own keeps a window's own time
    stamps; clock=shared gives every window the first time stamps, as the public code does. The truth beyond a window
    is known, so every model is evaluated there too. Raise ValueError for windows that leave the curve.
    Source: Chen et al. 2018 (arXiv 1806.07366), section 5.1.
    """

    phase_plane = True

    def __init__(
        self,
        train: Count = 800,
        val: Count = 100,
        test: Count = 100,
        points: Count = 100,
        start: list[Natural] | tuple[Natural, ...] = (100, 399),
        noise: Positive = 0.3,
        clock: Literal["own", "shared"] = "own",
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        if len(start) != 2 or start[0] > start[1] or start[1] + points > len(TIMES):
            raise ValueError(
                f"data.start={list(start)} with data.points={points} leaves the curve's {len(TIMES)} points; "
                f"expected [first, last] with first <= last <= {len(TIMES) - points}."
            )
        self.sizes, self.points, self.start, self.noise_std, self.clock = (
            (train, val, test),
            points,
            tuple(start),
            noise,
            clock,
        )
        self.common_time = clock == "own"

    @property
    def channels(self) -> tuple[str, ...]:
        return ("x", "y")

    def _drawn(self, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Draw the spiral (series,) of each series, True for clockwise, and the index (series,) of its start."""
        count = sum(self.sizes)
        return rng.random(count) < 0.5, rng.integers(self.start[0], self.start[1] + 1, count)

    def _clean(self, clockwise: NDArray[np.bool_], place: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the curves (series, places, dim) at some indices (series, places) of their 500 points."""
        return np.take_along_axis(curve(clockwise), place[..., None], 1)[..., : len(self.channels)]

    def make(self):
        rng = generator(self.seed, 1)
        clockwise, first = self._drawn(rng)
        count = len(first)
        place = first[:, None] + np.arange(self.points)
        clean = self._clean(clockwise, place)
        values = clean + (self.noise_std or 0.0) * rng.standard_normal(clean.shape)
        times = TIMES[place] if self.clock == "own" else np.tile(TIMES[: self.points], (count, 1))
        return in_order(Ragged.of(times, values, clean=clean), self.sizes)

    def beyond(self, split):
        """Return the series with up to one window's length of the curve added before and after, with new noise."""
        series, (clockwise, first) = self.splits[split], self._drawn(generator(self.seed, 1))
        rows, inside, around = (
            series.ids,
            slice(self.points, 2 * self.points),
            np.arange(3 * self.points) - self.points,
        )
        place = first[rows, None] + around
        there = (place >= 0) & (place < len(TIMES))
        place = place.clip(0, len(TIMES) - 1)
        clean = self._clean(clockwise[rows], place)
        noise = generator(self.seed, 16).standard_normal((len(first), *clean.shape[1:]))[rows]
        values = clean + (self.noise_std or 0.0) * noise
        times = TIMES[place] if self.clock == "own" else np.tile(TIMES[1] * around, (len(rows), 1))
        values[:, inside], times[:, inside] = (
            series.values.reshape(clean[:, inside].shape),
            series.times.reshape(-1, self.points),
        )
        offsets = np.concatenate([[0], there.sum(1).cumsum()])
        return Ragged.joined(times[there], values[there], offsets, series.windows, rows, clean=clean[there])


class Spirals1D(Spirals):
    """Simulate the x coordinate of the spirals alone (torchdiffeq issue 91).

    With shared time stamps (clock=shared) and z_0 at a common time (model.origin=common), windows that start at
    different places contradict each other; with their own time stamps (clock=own) they do not.
    """

    phase_plane = False

    @property
    def channels(self) -> tuple[str, ...]:
        return ("x",)
