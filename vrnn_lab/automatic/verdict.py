"""Compare the candidates of a study, their mixture and the baselines in a table, and say what to use."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from vrnn_lab.automatic.stacking import FEWEST, Choice
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.evaluate import held_out_scores
from vrnn_lab.forecasting.ensemble import load_runs
from vrnn_lab.forecasting.forecast import recalibration_of
from vrnn_lab.forecasting.mixture_folder import expanded
from vrnn_lab.reports.baselines import NAMES
from vrnn_lab.reports.run_table import number
from vrnn_lab.runs import baseline_folder
from vrnn_lab.runs.build import Parts
from vrnn_lab.runs.folder import metrics_of

LEVEL = 0.03  # relative difference of two CRPS up to which they are called about equal
SQUARED = 0.15  # the same for two squared errors
WORDS = {"interpolation": "gaps", "forecast": "forecasts"}


@dataclass(frozen=True)
class Verdict:
    """Hold what was chosen for each question, its scores, and those of the runs it was chosen from."""

    parts: Parts
    choices: dict[str, Choice]  # by question
    scores: dict[str, float]  # of what was chosen, recalibrated, on val and test
    metrics: dict[str, dict[str, Any]]  # by candidate
    members: tuple[str, ...]  # the candidates, and after them baselines, as the weights of the choices count them
    names: dict[str, str]  # how a member that is a baseline is called

    @property
    def unit(self) -> str:
        """Return the CRPS that is shown: in the data's units, or for several channels in training stds."""
        return "ncrps" if len(self.parts.data.channels) > 1 else "crps"

    def name(self, question: str) -> str:
        """Return what was chosen for a question: a model, or a mixture with its weights."""
        named = zip(self.members, self.choices[question].weights, strict=True)
        kept = [(self.names.get(member, member), weight) for member, weight in named if weight]
        words = " + ".join(f"{weight:.2g} {model}" for model, weight in kept)
        return kept[0][0] if len(kept) == 1 else f"the mixture {words}"

    def best_baseline(self, question: str) -> tuple[str, float] | None:
        """Return the baseline with the lowest CRPS on validation, and that CRPS; None without baselines."""
        first = next(iter(self.metrics.values()))
        pattern = re.compile(rf"reference/([^/]+)/{question}/val_{self.unit}")
        rows = {match[1]: value for key, value in first.items() if (match := pattern.fullmatch(key))}
        best = min(rows, key=lambda name: rows[name], default=None)
        return None if best is None else (best, rows[best])


def verdict(
    folder: Path, models: Sequence[str], members: Sequence[str], choices: dict[str, Choice], data: SeriesData
) -> Verdict:
    """Score what a study chose on validation and test, with the recalibration that `predict` applies.

    members: the models, then baselines. choices: by question. data: of the study, which is not read again.
    """
    mixture = expanded([folder])
    parts = replace(load_runs(mixture.folders, weights=mixture.unequal), data=data)
    factors = recalibration_of(parts.model, None, mixture.folders[0])
    scores: dict[str, float] = {}
    for split in ("val", "test"):
        change = factors.apply if factors else None
        scores |= held_out_scores(parts.model, parts.data, split, parts.protocol, parts.config.seed, change)
    metrics = {model: metrics_of(folder / model) for model in models}
    names = {member: f"the baseline '{_called(folder / member)}'" for member in members if member not in metrics}
    return Verdict(parts, choices, scores, metrics, tuple(members), names)


def _called(folder: Path) -> str:
    name = baseline_folder.name_of(folder)
    return NAMES.get(name, name)


def table(found: Verdict) -> Table:
    """Return the test scores of every candidate, of what was chosen, and of the baselines best on validation."""
    stds = " in training stds" if found.unit == "ncrps" else ""
    shown = Table(title=f"test scores: CRPS{stds} and coverage of 90 % intervals", title_justify="left", box=None)
    shown.add_column("", no_wrap=True)
    for question in found.choices:
        for column in ("weight", "CRPS", "coverage"):
            shown.add_column(f"{WORDS[question]}\n{column}", justify="right", no_wrap=True)
    shown.add_column("fit, s", justify="right")
    for place, (model, metrics) in enumerate(found.metrics.items()):
        cells = []
        for question, choice in found.choices.items():
            cells += [number(choice.weights[place]), *_recalibrated(metrics, question, found.unit)]
        shown.add_row(model, *cells, f"{metrics['fit/seconds']:.0f}")
    for place, member in enumerate(found.members[len(found.metrics) :], len(found.metrics)):
        weights = [choice.weights[place] for choice in found.choices.values()]
        if any(weights):
            cells = [c for weight in weights for c in (number(weight), "", "")]
            shown.add_row(found.names[member].removeprefix("the "), *cells, "")
    cells = [c for question in found.choices for c in ("", *_cells(found.scores, "test", question, found.unit))]
    shown.add_row("chosen", *cells, "", style="bold")
    first = next(iter(found.metrics.values()))
    best = [row[0] for question in found.choices if (row := found.best_baseline(question))]
    for name in dict.fromkeys(best):
        cells = [c for question in found.choices
                 for c in ("", *_cells(first, f"reference/{name}", question, found.unit))]  # fmt: skip
        shown.add_row(f"best baseline: {NAMES.get(name, name)}", *cells, "")
    return shown


def _recalibrated(metrics: Mapping[str, Any], question: str, unit: str) -> list[str]:
    prefix = "recalibrated/test" if f"recalibrated/test/{question}/{unit}" in metrics else "test"
    return _cells(metrics, prefix, question, unit)


def _cells(metrics: Mapping[str, Any], prefix: str, question: str, unit: str) -> list[str]:
    return [number(metrics.get(f"{prefix}/{question}/{score}")) for score in (unit, "coverage_90")]


def sentences(found: Verdict) -> list[str]:
    """Return, for each question, what to use and why, and how it stands against the baselines on validation."""
    lines = []
    for question, choice in found.choices.items():
        text = f"For {WORDS[question]} use {found.name(question)}"
        if choice.values < FEWEST:
            text += f" (validation has only {choice.values} values, so this choice is uncertain)"
        elif choice.mixed and choice.gain > 0:
            text += (
                f", by {choice.gain:.2g} nats a value better than the best single one on validation series that "
                "its weights were not fitted on"
            )
        elif choice.mixed:
            text += ": on validation it is about as good as the best single one, and it is the safer choice"
        elif len(choice.weights) > 1:
            text += ", the best candidate on validation; a mixture is not better"
        ours, best = found.scores.get(f"val/{question}/{found.unit}"), found.best_baseline(question)
        weighed = zip(found.members, choice.weights, strict=True)
        alone = all(member in found.names for member, weight in weighed if weight)  # a baseline is the answer
        compared = "" if ours is None or best is None or alone else _against(ours, *best)
        if question == "forecast":
            compared = _beyond(found) or compared
        lines.append(f"{text}. {compared}".rstrip())
    return lines


def _against(ours: float, baseline: str, theirs: float) -> str:
    name = f"the best baseline, '{NAMES.get(baseline, baseline)}' ({number(theirs)})"
    text = f"Its CRPS on validation, {number(ours)}, is "
    if ours > (1 + LEVEL) * theirs:
        return f"{text}worse than that of {name}: give the study more data or time, or use that baseline."
    if ours >= (1 - LEVEL) * theirs:
        return f"{text}about that of {name}."
    return f"{text}{1 - ours / theirs:.0%} below that of {name}."


def _beyond(found: Verdict) -> str:
    """Return a sentence on forecasts beyond the times of training, where a second fit measured them, else nothing."""
    weights = found.choices["forecast"].weights
    chosen = [model for model, weight in zip(found.members, weights, strict=True) if weight]
    if any(model in found.names for model in chosen):  # a baseline is a part of the answer already
        return ""
    pattern = re.compile(r"out_of_time/(.+)/nmse")
    rows = {match[1]: value for key, value in found.metrics[chosen[0]].items() if (match := pattern.fullmatch(key))}
    if not rows:
        return ""
    best = min((name for name in rows if name != "model"), key=lambda name: rows[name])
    key = "out_of_time/model/nmse"
    ours = {model: found.metrics[model][key] for model in chosen if key in found.metrics[model]}
    named = " and ".join(f"{number(value)} ({model})" for model, value in ours.items())
    least, theirs = min(ours.values()), f"that of the best baseline, '{NAMES.get(best, best)}' ({number(rows[best])})"
    text = f"Beyond the times of training its squared error in training variances, {named}, is "
    if least > (1 + SQUARED) * rows[best]:
        return f"{text}above {theirs}: prefer it for such forecasts."
    return f"{text}{'about' if least >= (1 - SQUARED) * rows[best] else 'below'} {theirs}."
