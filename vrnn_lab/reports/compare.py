"""Groups of runs that differ by seed alone, and what can be said of them: means, intervals, paired differences."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, isnan, log, sqrt
from statistics import fmean, stdev
from typing import Any

from vrnn_lab.reports.naming import RowNames, identity, names, shared, written
from vrnn_lab.reports.runs import Run

HIGHER = ("accuracy", "auc", "ks_p", "steps_per_second")  # of all other metrics less is better
Seed = tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs and half of its 95 % interval by Student's t, of n - 1 degrees; none for one run."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean +- t(0.975, n - 1) s / sqrt(n)."""
    n = len(values)
    if n == 0:
        return None
    if not all(map(isfinite, values)):
        return Estimate(sum(values) / n, None, n)
    try:
        return Estimate(fmean(values), _t(n - 1) * stdev(values) / sqrt(n) if n > 1 else None, n)
    except OverflowError:  # values of more than 1e154, whose squares are no floats
        return Estimate(sum(value / n for value in values), None, n)


def _t(degrees: int) -> float:
    from scipy.special import stdtrit  # a third of a second

    return float(stdtrit(degrees, 0.975))


@dataclass(frozen=True)
class Group:
    """Runs of one config, one a seed: the row of a table."""

    name: str
    items: dict[str, str]  # what tells it apart
    facts: dict[str, Any]
    runs: dict[Seed, Run]

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs.values())

    def values(self, metric: str) -> dict[Seed, float]:
        found = {seed: run.number(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, metric: str) -> Estimate | None:
        return estimate(list(self.values(metric).values()))


def group(runs: Sequence[Run], over: Sequence[str]) -> tuple[list[Group], RowNames, int]:
    """The groups, what names them, and how many runs were left out as copies of another of the same seed."""
    sets: dict[str, dict[Seed, Run]] = defaultdict(dict)
    for run in runs:
        same = sets[identity(run, over)]
        seed = tuple(written(run.config.get(key)) for key in over)
        same[seed] = max(same[seed], run, key=_worth) if seed in same else run
    rows = [shared(list(each.values()), over) for each in sets.values()]
    naming = names(rows, {c for r in runs for c in r.choices}, {t for r in runs for t in r.typed})
    found = [
        Group(naming.name(row), naming.items(row), row, dict(sorted(each.items())))
        for row, each in zip(rows, sets.values(), strict=True)
    ]
    return found, naming, len(runs) - sum(len(g.runs) for g in found)


def _worth(run: Run) -> tuple[int, float]:
    """Of two runs of one config and seed the completed one counts, then the newer."""
    file = run.folder / "metrics.json"
    rank = ("interrupted", "pruned", "failed", "running", "completed").index(run.status)
    return rank, file.stat().st_mtime if file.exists() else 0.0


def lower_is_better(metric: str) -> bool:
    return not metric.endswith(HIGHER)


def best(groups: Iterable[Group], score: str) -> Group | None:
    """The group of the best mean score."""
    sign = 1 if lower_is_better(score) else -1
    means = [(g, e.mean) for g in groups if (e := g.estimate(score)) and not isnan(e.mean)]
    return min(means, key=lambda pair: sign * pair[1])[0] if means else None


@dataclass(frozen=True)
class Paired:
    """A row against another, seed by seed."""

    difference: Estimate | None
    ratio: float | None  # geometric mean, of positive metrics
    p: float | None  # of Student's paired t, two-sided
    lower: bool  # whether less is better

    @property
    def pairs(self) -> int:
        return self.difference.n if self.difference else 0

    @property
    def verdict(self) -> str:
        """Better or worse where the interval excludes 0."""
        found = self.difference
        if found is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
            return "undecided"
        return "better" if (found.mean < 0) == self.lower else "worse"


def paired(one: Group, other: Group, metric: str, lower: bool) -> Paired:
    """One less the other over the seeds that both have."""
    ours, theirs = one.values(metric), other.values(metric)
    both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    both = [(a, b) for a, b in both if isfinite(a) and isfinite(b)]
    found = estimate([a - b for a, b in both])
    return Paired(found, _ratio(both), _p(found), lower)


def _ratio(both: Sequence[tuple[float, float]]) -> float | None:
    """The geometric mean of positive pairs, one over the other; infinite where no float holds it."""
    if not both or any(min(pair) <= 0 for pair in both):
        return None
    try:
        return exp(fmean(log(a) - log(b) for a, b in both))
    except OverflowError:
        return inf


def _p(found: Estimate | None) -> float | None:
    if found is None or found.half is None:
        return None
    if found.half == 0:
        return 0.0 if found.mean else 1.0
    from scipy.special import stdtr

    t = found.mean / found.half * _t(found.n - 1)
    return 2 * float(stdtr(found.n - 1, -abs(t)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's p-values: with all those below 0.05 called decided, the chance of any false one is 5 %."""
    ranked = sorted((p, place) for place, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(ranked):
        largest = found[place] = max(largest, min(1.0, p * (len(ranked) - rank)))
    return found
