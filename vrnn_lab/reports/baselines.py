"""Collect the scores of the baselines that runs record next to those of their models."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vrnn_lab.reports.compare import Estimate, estimate
from vrnn_lab.reports.runs import Run

QUESTIONS = ("interpolation", "forecast")
SCORES = ("crps", "nll", "mse", "coverage_50", "coverage_90")
NAMES = {
    "constant": "mean",
    "last": "last value",
    "blend": "half last + half mean",
    "linear": "linear interpolation",
    "exact": "exact answer",
}


@dataclass(frozen=True)
class Baseline:
    """Hold the scores of a baseline on one question, as means over the runs on one dataset."""

    name: str  # in plain words
    question: str  # interpolation or forecast
    key: str  # where metrics.json has its scores: reference/blend/forecast
    scores: dict[str, Estimate]  # those of SCORES that the runs have


def baselines(runs: Sequence[Run]) -> list[Baseline]:
    """Return the baselines of runs on one dataset, question by question, best CRPS first."""
    ranked = []
    for question in QUESTIONS:
        keys = {k.rpartition("/")[0] for run in runs for k in run.metrics if _is_crps(k, question)}
        rows = [_baseline(runs, key) for key in keys]
        ranked += sorted((row for row in rows if "crps" in row.scores), key=lambda b: (b.scores["crps"].mean, b.name))
    return ranked


def _is_crps(key: str, question: str) -> bool:
    return re.fullmatch(rf"reference/[^/]+/{question}/crps", key) is not None


def _baseline(runs: Sequence[Run], key: str) -> Baseline:
    _, name, question = key.split("/")
    values = {score: [x for run in runs if (x := run.number(f"{key}/{score}")) is not None] for score in SCORES}
    scores = {score: mean for score, each in values.items() if (mean := estimate(each))}
    return Baseline(NAMES.get(name, name), question, key, scores)
