"""Tasks: which of the observed values may be seen, and which the model is held to."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.core.types import Natural, Range, Share

Amount = Share | Natural | Range  # a share (0.5, 1.0), a number (30), or a share drawn between two ([0.1, 0.9])
Mask = NDArray[np.bool_]


class Draws(ABC):
    """The random numbers of the rows of a batch."""

    @abstractmethod
    def uniform(self, low: float, high: float) -> NDArray[np.float64]:
        """(batch,): between low and high."""

    @abstractmethod
    def below(self, count: int) -> NDArray[np.int64]:
        """(batch,): from 0 to before `count`."""

    @abstractmethod
    def subset(self, candidates: Mask, counts: NDArray[np.int64]) -> Mask:
        """(batch, places): of each row so many of its candidates, or all if there are fewer."""

    @abstractmethod
    def rows(self, index: NDArray[np.int64]) -> "Draws":
        """Those of some of the rows."""

    @abstractmethod
    def generators(self) -> Iterator[np.random.Generator]:
        """One a row."""


class Shared(Draws):
    """All rows draw from one generator: quick, and what a row gets depends on the others."""

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
    """Each row draws from a generator of its own, made when it first draws: what it gets is its alone."""

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
    """Makes `seen` and `scored` of one series out of what was observed."""

    @abstractmethod
    def __call__(
        self, times: NDArray[np.float64], known: Mask, window: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[Mask, Mask]:
        """(seen, scored), each (time, dim), from times (time,), known (time, dim) and window (2,)."""

    def together(
        self,
        times: NDArray[np.float64],
        known: Mask,
        windows: NDArray[np.float64],
        lengths: NDArray[np.int64],
        draws: Draws,
    ) -> tuple[Mask, Mask]:
        """(seen, scored), each (batch, time, dim), of series padded behind their lengths (batch,): row by row."""
        seen, scored = np.zeros_like(known), np.zeros_like(known)
        for row, (length, rng) in enumerate(zip(lengths, draws.generators(), strict=True)):
            own = row, slice(length)
            seen[own], scored[own] = self(times[own], known[own], windows[row], rng)
        return seen, scored


class Vectorised(Task):
    """A task that is written for all rows of a batch at once."""

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
        elif "__call__" in vars(cls):  # a built-in one that a user changed for one series
            cls.together = Task.together

    written = together


def _score(known: Mask, seen: Mask, scored: str) -> Mask:
    return known & ~seen if scored == "held_out" else known


class DensityTask(Vectorised):
    """All seen, all scored: the task of log-likelihoods."""

    def together(self, times, known, windows, lengths, draws):
        return known, known


class Interpolate(Vectorised):
    """A random part of the points (or of the single values) is seen, in no order."""

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
    """Seen up to a moment: a share of the window's length, or a number of points.

    `seen` thins the past to a random share or number of its points.
    """

    def __init__(self, until: Amount = 0.5, seen: Amount = 1.0, scored: Literal["known", "held_out"] = "known"):
        self.until, self.seen, self.scored = until, seen, scored

    def together(self, times, known, windows, lengths, draws):
        past = before(times, known, windows, self.until, draws)
        seen = known & choose(past & known.any(2), self.seen, draws)[..., None]
        scored = _score(known, seen, self.scored)
        if self.scored == "held_out":
            scored = scored & ~past[..., None]  # a thinned point of the past is no forecast
        return seen, scored


class Within(Vectorised):
    """Another task on the first part of each series alone: what lies later is neither seen nor scored."""

    def __init__(self, task: Task, until: Amount = 0.5):
        self.task, self.until = task, until

    def together(self, times, known, windows, lengths, draws):
        past = before(times, known, windows, self.until, draws)
        start = windows[:, :1]
        end = np.where(past, times, start).max(1, keepdims=True, initial=-np.inf)
        cut = np.concatenate([start, np.maximum(start, end)], 1)
        return self.task.together(times, known & past[..., None], cut, lengths, draws)


class Beyond(Vectorised):
    """The whole window is seen; the points before it, or those after it, are asked."""

    def __init__(self, side: Literal["before", "after"]):
        self.side = side

    def together(self, times, known, windows, lengths, draws):
        start, end = windows.T[..., None]
        early, late = times < start, times > end
        seen = known & ~(early | late)[..., None]
        return seen, known & (early if self.side == "before" else late)[..., None]


class Mixed(Vectorised):
    """Each row draws one of several tasks: one model for all questions."""

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
    """(batch, places): of each row a random subset of the marked places, of the wanted share or number."""
    number = candidates.sum(1)
    if isinstance(wanted, int):
        return draws.subset(candidates, np.full_like(number, wanted))
    return draws.subset(candidates, np.rint(settle(wanted, draws) * number).astype(np.int64))


def settle(wanted: Amount, draws: Draws) -> float | NDArray[np.float64]:
    """The share, for each row: a range becomes a draw from it."""
    return wanted if isinstance(wanted, (int, float)) else draws.uniform(wanted[0], wanted[1])


def before(times, known: Mask, windows, until: Amount, draws: Draws) -> Mask:
    """(batch, time): the points up to a moment: a share of the window, or the first n observed points (int)."""
    if isinstance(until, int):
        return np.cumsum(known.any(2), 1) <= until
    start, end = windows.T[..., None]
    share = np.reshape(settle(until, draws), (-1, 1))
    return times <= start + share * (end - start)
