"""Group runs that differ by seed alone, and compare the groups: means, intervals, paired differences."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, isnan, log, sqrt
from statistics import fmean, stdev
from typing import Any

from vrnn_lab.core import run_files
from vrnn_lab.reports.naming import RowNames, identity, names, shared, written
from vrnn_lab.reports.runs import Run

HIGHER = ("accuracy", "auc", "ks_p", "steps_per_second")  # higher is better; lower is for all other metrics
Seed = tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over n runs and half of its 95 % interval by Student's t with n - 1 degrees of freedom.

    half is None for a single run, and where values are not finite.
    """

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
    """Return mean +- t(0.975, n - 1) s / sqrt(n) of some values, None for no values."""
    n = len(values)
    if n == 0:
        return None
    if not all(map(isfinite, values)):
        return Estimate(sum(values) / n, None, n)
    try:
        return Estimate(fmean(values), _t(n - 1) * stdev(values) / sqrt(n) if n > 1 else None, n)
    except OverflowError:  # the squares of values above 1e154 overflow
        return Estimate(sum(value / n for value in values), None, n)


def _t(degrees: int) -> float:
    from scipy.special import stdtrit  # imported here, since it takes a third of a second

    return float(stdtrit(degrees, 0.975))


@dataclass(frozen=True)
class Group:
    """Hold the runs of one config, one a seed: a row of the report's table."""

    name: str
    items: dict[str, str]  # key -> value of what distinguishes it from other groups
    facts: dict[str, Any]
    runs: dict[Seed, Run]

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs.values())

    def values(self, metric: str) -> dict[Seed, float]:
        """Return {seed: value} of a metric over the completed runs that have it."""
        numbers = {seed: run.number(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in numbers.items() if value is not None}

    def estimate(self, metric: str) -> Estimate | None:
        return estimate(list(self.values(metric).values()))


def group(runs: Sequence[Run], over: Sequence[str]) -> tuple[list[Group], RowNames, int]:
    """Return the groups of some runs, what names them, and the number of runs left out as copies of another.

    over: the keys over which a config is repeated. Of several runs of one config and seed the one of most worth is
    kept: a completed one first, then the newest.
    """
    sets: dict[str, dict[Seed, Run]] = defaultdict(dict)
    for run in runs:
        same = sets[identity(run, over)]
        seed = tuple(written(run.config.get(key)) for key in over)
        same[seed] = max(same[seed], run, key=_worth) if seed in same else run
    rows = [shared(list(each.values()), over) for each in sets.values()]
    naming = names(rows, {c for r in runs for c in r.choices}, {t for r in runs for t in r.typed})
    groups = [
        Group(naming.name(row), naming.items(row), row, dict(sorted(each.items())))
        for row, each in zip(rows, sets.values(), strict=True)
    ]
    return groups, naming, len(runs) - sum(len(g.runs) for g in groups)


def _worth(run: Run) -> tuple[int, float]:
    """Return a sort key of runs of one config and seed: a completed run counts most, then the newer."""
    file = run.folder / run_files.METRICS
    rank = ("interrupted", "pruned", "failed", "running", "completed").index(run.status)
    return rank, file.stat().st_mtime if file.exists() else 0.0


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of a metric are better: all but accuracy, AUC, p-values and speed."""
    return not metric.endswith(HIGHER)


def best(groups: Iterable[Group], score: str) -> Group | None:
    """Return the group with the best mean score, None where no group has one."""
    sign = 1 if lower_is_better(score) else -1
    means = [(g, e.mean) for g in groups if (e := g.estimate(score)) and not isnan(e.mean)]
    return min(means, key=lambda pair: sign * pair[1])[0] if means else None


@dataclass(frozen=True)
class Paired:
    """Hold the comparison of a row with another, paired by seed."""

    difference: Estimate | None
    ratio: float | None  # geometric mean of the ratios, for positive metrics
    p: float | None  # two-sided p-value of Student's paired t-test
    lower: bool  # whether lower is better

    @property
    def pairs(self) -> int:
        return self.difference.n if self.difference else 0

    @property
    def verdict(self) -> str:
        """Return better or worse where the 95 % interval of the difference excludes 0, else undecided."""
        d = self.difference
        if d is None or d.low is None or d.high is None or d.low <= 0 <= d.high:
            return "undecided"
        return "better" if (d.mean < 0) == self.lower else "worse"


def paired(one: Group, other: Group, metric: str, lower: bool) -> Paired:
    """Compare two groups: the difference one - other over the seeds that both have."""
    ours, theirs = one.values(metric), other.values(metric)
    both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    both = [(a, b) for a, b in both if isfinite(a) and isfinite(b)]
    difference = estimate([a - b for a, b in both])
    return Paired(difference, _ratio(both), _p(difference), lower)


def _ratio(both: Sequence[tuple[float, float]]) -> float | None:
    """Return the geometric mean of one / other over positive pairs: infinity on overflow, None where undefined."""
    if not both or any(min(pair) <= 0 for pair in both):
        return None
    try:
        return exp(fmean(log(a) - log(b) for a, b in both))
    except OverflowError:
        return inf


def _p(difference: Estimate | None) -> float | None:
    if difference is None or difference.half is None:
        return None
    if difference.half == 0:
        return 0.0 if difference.mean else 1.0
    from scipy.special import stdtr

    t = difference.mean / difference.half * _t(difference.n - 1)
    return 2 * float(stdtr(difference.n - 1, -abs(t)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, None kept: the familywise error of calling those below 0.05 decided is 5 %."""
    ranked = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(ranked):
        largest = adjusted[place] = max(largest, min(1.0, p * (len(ranked) - rank)))
    return adjusted
