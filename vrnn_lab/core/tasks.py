"""Define tasks, which choose the observed values that a model may see and those that are scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Natural, Range, Share

Amount = Share | Natural | Range  # a fraction (0.5, 1.0), a number (30), or a range of fractions ([0.1, 0.9])
Mask = NDArray[np.bool_]


class Draws(ABC):
    """Draw random numbers for the rows of a batch."""

    @abstractmethod
    def uniform(self, low: float, high: float) -> NDArray[np.float64]:
        """Return uniform draws (batch,) from [low, high)."""

    @abstractmethod
    def below(self, count: int) -> NDArray[np.int64]:
        """Return uniform integers (batch,) from 0 to count - 1."""

    @abstractmethod
    def subset(self, candidates: Mask, counts: NDArray[np.int64]) -> Mask:
        """Choose at random counts (batch,) of each row's candidates (batch, places), or all if there are fewer."""

    @abstractmethod
    def rows(self, index: NDArray[np.int64]) -> "Draws":
        """Return the draws restricted to the rows in `index`."""

    @abstractmethod
    def generators(self) -> Iterator[np.random.Generator]:
        """Yield one generator per row."""


class Shared(Draws):
    """Draw for all rows from one generator: fast, but a row's draws depend on the other rows."""

    def __init__(self, rng: np.random.Generator, count: int):
        self.rng, self.count = rng, count

    def uniform(self, low, high):
        return self.rng.uniform(low, high, self.count)

    def below(self, count):
        return self.rng.integers(count, size=self.count)

    def subset(self, candidates, counts):
        if (counts >= candidates.sum(1)).all():
            return candidates
        key = np.where(candidates, self.rng.random(candidates.shape), 1.0)
        counts = np.minimum(counts, candidates.sum(1))
        last = np.sort(key, 1)[np.arange(len(key)), np.maximum(counts, 1) - 1]
        return candidates & (key <= np.where(counts, last, -1.0)[:, None])

    def rows(self, index):
        return Shared(self.rng, len(index))

    def generators(self):
        return repeat(self.rng, self.count)


class Own(Draws):
    """Draw for each row from its own generator, created on first use, so that rows do not affect each other."""

    def __init__(
        self,
        make: Callable[[int], np.random.Generator],
        index: Sequence[int] | NDArray[np.int64],
        made: dict[int, np.random.Generator] | None = None,
    ):
        self.make, self.index = make, np.asarray(index)
        self.made = {} if made is None else made

    def uniform(self, low, high):
        return np.array([rng.uniform(low, high) for rng in self.generators()])

    def below(self, count):
        return np.array([rng.integers(count) for rng in self.generators()], np.int64)

    def subset(self, candidates, counts):
        chosen = candidates.copy()
        for row in np.flatnonzero(counts < candidates.sum(1)):
            there = np.flatnonzero(candidates[row])
            chosen[row] = False
            chosen[row, self._of(int(self.index[row])).permutation(there)[: counts[row]]] = True
        return chosen

    def rows(self, index):
        return Own(self.make, self.index[index], self.made)

    def generators(self):
        return map(self._of, self.index.tolist())

    def _of(self, row: int) -> np.random.Generator:
        if row not in self.made:
            self.made[row] = self.make(row)
        return self.made[row]


class Task(ABC):
    """Choose the seen and the scored values of a series among its observed values."""

    @abstractmethod
    def __call__(
        self, times: NDArray[np.float64], known: Mask, window: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[Mask, Mask]:
        """Return masks (seen, scored), each (time, dim), from times (time,), known (time, dim) and window (2,)."""

    def together(
        self,
        times: NDArray[np.float64],
        known: Mask,
        windows: NDArray[np.float64],
        lengths: NDArray[np.int64],
        draws: Draws,
    ) -> tuple[Mask, Mask]:
        """Return masks (seen, scored), each (batch, time, dim), of series that are padded after `lengths` (batch,).

        This default calls the task for each row.
        """
        seen, scored = np.zeros_like(known), np.zeros_like(known)
        for row, (length, rng) in enumerate(zip(lengths, draws.generators(), strict=True)):
            own = row, slice(length)
            seen[own], scored[own] = self(times[own], known[own], windows[row], rng)
        return seen, scored


class Vectorised(Task):
    """Define a task by its method `together`, for all rows of a batch at once."""

    @abstractmethod
    def together(self, times, known, windows, lengths, draws) -> tuple[Mask, Mask]: ...

    def __call__(self, times, known, window, rng):
        draws = Own(lambda row: rng, [0])
        seen, scored = self.written(times[None], known[None], window[None], np.array([len(times)]), draws)
        return seen[0], scored[0]

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "together" in vars(cls):
            cls.written = cls.together
        elif "__call__" in vars(cls):  # a user's subclass of a built-in task that redefines it for one series
            cls.together = Task.together

    written = together


def _score(known: Mask, seen: Mask, scored: str) -> Mask:
    return known & ~seen if scored == "held_out" else known


class DensityTask(Vectorised):
    """Mark all known values as both seen and scored, to compute log-likelihoods."""

    def together(self, times, known, windows, lengths, draws):
        return known, known


class Interpolate(Vectorised):
    """Show a random subset of the points (unit="point") or of the single values (unit="value").

    seen: its fraction or number. scored: all known values, or only those held out (not seen).
    """

    def __init__(
        self,
        seen: Amount = 0.5,
        unit: Literal["point", "value"] = "point",
        scored: Literal["known", "held_out"] = "known",
    ):
        self.seen, self.unit, self.scored = seen, unit, scored

    def together(self, times, known, windows, lengths, draws):
        if self.unit == "point":
            seen = known & choose(known.any(2), self.seen, draws)[..., None]
        else:
            seen = choose(known.reshape(len(known), -1), self.seen, draws).reshape(known.shape)
        return seen, _score(known, seen, self.scored)


class Forecast(Vectorised):
    """Show the values up to a cutoff, which is a fraction of the window's length or a number of observed points.

    `seen` thins the past to a random fraction or number of its points. scored: all known values, or only those after
    the cutoff ("held_out").
    """

    def __init__(self, until: Amount = 0.5, seen: Amount = 1.0, scored: Literal["known", "held_out"] = "known"):
        self.until, self.seen, self.scored = until, seen, scored

    def together(self, times, known, windows, lengths, draws):
        past = before(times, known, windows, self.until, draws)
        seen = known & choose(past & known.any(2), self.seen, draws)[..., None]
        scored = _score(known, seen, self.scored)
        if self.scored == "held_out":
            scored = scored & ~past[..., None]  # predicting a past point that was thinned out is not a forecast
        return seen, scored


class Within(Vectorised):
    """Apply another task to the part of each series before a cutoff; later values are neither seen nor scored."""

    def __init__(self, task: Task, until: Amount = 0.5):
        self.task, self.until = task, until

    def together(self, times, known, windows, lengths, draws):
        past = before(times, known, windows, self.until, draws)
        start = windows[:, :1]
        end = np.where(past, times, start).max(1, keepdims=True, initial=-np.inf)
        cut = np.concatenate([start, np.maximum(start, end)], 1)
        return self.task.together(times, known & past[..., None], cut, lengths, draws)


class Beyond(Vectorised):
    """Show all values inside the window and score those before it, or those after it."""

    def __init__(self, side: Literal["before", "after"]):
        self.side = side

    def together(self, times, known, windows, lengths, draws):
        start, end = windows.T[..., None]
        early, late = times < start, times > end
        seen = known & ~(early | late)[..., None]
        return seen, known & (early if self.side == "before" else late)[..., None]


class Mixed(Vectorised):
    """Apply to each row one of several tasks, drawn at random, to train one model for all of them."""

    def __init__(self, tasks: list[Task]):
        if not tasks:
            raise ValueError("task.tasks is empty; name at least one task to draw from.")
        self.tasks = tasks

    def together(self, times, known, windows, lengths, draws):
        seen, scored, drawn = np.zeros_like(known), np.zeros_like(known), draws.below(len(self.tasks))
        for number, task in enumerate(self.tasks):
            i = np.flatnonzero(drawn == number)
            if len(i):
                seen[i], scored[i] = task.together(times[i], known[i], windows[i], lengths[i], draws.rows(i))
        return seen, scored


def choose(candidates: Mask, wanted: Amount, draws: Draws) -> Mask:
    """Return a random subset (batch, places) of each row's candidates, of the wanted fraction or number."""
    number = candidates.sum(1)
    if isinstance(wanted, int):
        return draws.subset(candidates, np.full_like(number, wanted))
    return draws.subset(candidates, np.rint(settle(wanted, draws) * number).astype(np.int64))


def settle(wanted: Amount, draws: Draws) -> float | NDArray[np.float64]:
    """Return the wanted fraction: a scalar as it is, a range as one uniform draw (batch,) per row."""
    return wanted if isinstance(wanted, (int, float)) else draws.uniform(wanted[0], wanted[1])


def before(times, known: Mask, windows, until: Amount, draws: Draws) -> Mask:
    """Mark the points (batch, time) up to a cutoff: a fraction of the window, or the first n observed points."""
    if isinstance(until, int):
        return np.cumsum(known.any(2), 1) <= until
    start, end = windows.T[..., None]
    share = np.reshape(settle(until, draws), (-1, 1))
    return times <= start + share * (end - start)
