"""Tasks: which of the observed values may be seen, and which the model is held to."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.checks import Natural, Range, Share

Amount = Share | Natural | Range  # a share (0.5, 1.0), a number (30), or a share drawn between two ([0.1, 0.9])
Mask = NDArray[np.bool_]


def settle(wanted: Amount, rng: np.random.Generator) -> float | int:
    """The amount for this series: a range becomes a draw from it."""
    return wanted if isinstance(wanted, (int, float)) else float(rng.uniform(wanted[0], wanted[1]))


class Task(ABC):
    """Makes `seen` and `scored` of one series out of what was observed."""

    @abstractmethod
    def __call__(
        self, times: NDArray[np.float64], known: Mask, window: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[Mask, Mask]:
        """(seen, scored), each (time, dim), from times (time,), known (time, dim) and window (2,)."""


def _score(known: Mask, seen: Mask, scored: str) -> Mask:
    return known & ~seen if scored == "held_out" else known


class Density(Task):
    """All seen, all scored: the task of log-likelihoods."""

    def __call__(self, times, known, window, rng):
        return known, known


class Interpolate(Task):
    """A random part of the points (or of the single values) is seen, in no order."""

    def __init__(
        self,
        seen: Amount = 0.5,
        unit: Literal["point", "value"] = "point",
        scored: Literal["known", "held_out"] = "known",
    ):
        self.seen, self.unit, self.scored = seen, unit, scored

    def __call__(self, times, known, window, rng):
        if self.unit == "point":
            seen = known & choose(observed(known), self.seen, rng)[:, None]
        else:
            seen = choose(known.ravel(), self.seen, rng).reshape(known.shape)
        return seen, _score(known, seen, self.scored)


class Forecast(Task):
    """Seen up to a moment: a share of the window's length, or a number of points.

    `seen` thins the past to a random share or number of its points.
    """

    def __init__(self, until: Amount = 0.5, seen: Amount = 1.0, scored: Literal["known", "held_out"] = "known"):
        self.until, self.seen, self.scored = until, seen, scored

    def __call__(self, times, known, window, rng):
        past = before(times, known, window, settle(self.until, rng))
        seen = known & choose(past & observed(known), self.seen, rng)[:, None]
        scored = _score(known, seen, self.scored)
        if self.scored == "held_out":
            scored = scored & ~past[:, None]  # a thinned point of the past is no forecast
        return seen, scored


class Within(Task):
    """Another task on the first part of each series alone: what lies later is neither seen nor scored."""

    def __init__(self, task: Task, until: Amount = 0.5):
        self.task, self.until = task, until

    def __call__(self, times, known, window, rng):
        past = before(times, known, window, settle(self.until, rng))
        end = times[past].max(initial=window[0])
        return self.task(times, known & past[:, None], np.array([window[0], end]), rng)


class Mixed(Task):
    """Each row draws one of several tasks: one model for all questions."""

    def __init__(self, tasks: list[Task]):
        if not tasks:
            raise ValueError("task.tasks is empty; name at least one task to draw from.")
        self.tasks = tasks

    def __call__(self, times, known, window, rng):
        return self.tasks[rng.integers(len(self.tasks))](times, known, window, rng)


def observed(known: Mask) -> Mask:
    """The points of which anything is known."""
    return np.asarray(known.any(1))


def choose(candidates: Mask, wanted: Amount, rng: np.random.Generator) -> Mask:
    """A random subset of the marked places, of the wanted share or number."""
    places = np.flatnonzero(candidates)
    wanted = settle(wanted, rng)
    count = wanted if isinstance(wanted, int) else round(wanted * len(places))
    chosen = np.zeros_like(candidates)
    chosen[rng.permutation(places)[:count]] = True
    return chosen


def before(times, known: Mask, window, until: float | int) -> Mask:
    """The points up to a moment: a share of the window (float), or the first n observed points (int)."""
    if isinstance(until, int):
        return np.cumsum(known.any(1)) <= until
    return times <= window[0] + until * (window[1] - window[0])
