"""A report as tables of text."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from vrnn_lab.reports.compare import Estimate, Group, Paired, estimate
from vrnn_lab.reports.naming import written
from vrnn_lab.reports.runs import Run
from vrnn_lab.reports.summary import COST, STATUSES, Summary

SAME_DATA = ("data.seed", "data.batch_size")
BASELINE = r"reference/[^/]+/{}/crps"


@dataclass(frozen=True)
class Sheet:
    """A table of text: the first column names its rows, `marked` is the place of the best."""

    title: str
    header: list[str]
    rows: list[list[str]]
    marked: int | None = None


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if isfinite(value) and abs(value) >= 1000 else f"{value:.4g}"


def plus_minus(found: Estimate | None) -> str:
    if found is None:
        return ""
    half = "" if found.half is None else f"{found.half:.0f}" if found.half >= 100 else f"{found.half:.2g}"
    return number(found.mean) + (half and f" ± {half}")


def sheets(found: Summary, runs: bool) -> list[Sheet]:
    made = [_rows(found)]
    made += [each for runs_of_one in _by_data(found.runs) if (each := _baselines(runs_of_one)).rows]
    made += [_against(found)] if found.against else []
    made += [_claims(found)] if found.claims else []
    return made + ([_runs(found)] if runs else [])


def _rows(found: Summary) -> Sheet:
    score = found.question.score
    body = [
        [_marked(g, found), _count(g), _cell(g, score), *(_cell(g, column) for column in found.columns)]
        for g in found.groups
    ]
    place = next((i for i, g in enumerate(found.groups) if g is found.best), None)
    return Sheet(common(found), ["", "runs", score, *found.columns], body, place)


def _by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each data set; its seed and the size of batches make no other one."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        own = {k: v for k, v in run.config.items() if k.startswith("data.") and k not in SAME_DATA}
        found.setdefault(json.dumps(own, default=str, sort_keys=True), []).append(run)
    return list(found.values())


def _baselines(runs: Sequence[Run]) -> Sheet:
    """The baselines of one data set, best CRPS first for each question, as means over its runs."""
    body = []
    for question in ("interpolation", "forecast"):
        names = {k.split("/")[1] for run in runs for k in run.metrics if re.fullmatch(BASELINE.format(question), k)}
        rows = []
        for name in names:
            keys = [f"reference/{name}/{question}/{score}" for score in ("crps", "mse", "coverage_90")]
            cells = [estimate([x for run in runs if (x := run.number(key)) is not None]) for key in keys]
            if cells[0]:
                rows.append((cells[0].mean, name, [number(c.mean) if c else "" for c in cells]))
        body += [[name, question, *cells] for _, name, cells in sorted(rows)]
    folders = sorted(run.folder.name for run in runs)
    more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    title = f"baselines on test, best CRPS first, of {', '.join(folders[:3])}{more}"
    return Sheet(title, ["baseline", "question", "crps", "mse", "coverage_90"], body)


def _marked(group: Group, found: Summary) -> str:
    return f"{group.name} *" if group is found.best else group.name


def common(found: Summary) -> str:
    """What all rows have in common: their choices, and what the user typed; nothing where that is all there is."""
    typed = {t for r in found.runs for t in r.typed}
    told = {k for r in found.runs for k in r.choices if "/" not in k}
    named = {k: v for k, v in found.naming.common.items() if k in typed or k in told}
    return " ".join(f"{k}={written(v)}" for k, v in named.items() if v not in ("none", "off") and k != "trainer")


def _count(group: Group) -> str:
    """How many runs were completed, of how many if not all were, and what became of the others."""
    counts = {status: group.count(status) for status in STATUSES}
    others = [f"{n} {status}" for status, n in counts.items() if n and status != "completed"]
    return ", ".join([f"{counts['completed']} of {len(group.runs)}", *others]) if others else str(len(group.runs))


def _cell(group: Group, metric: str) -> str:
    found = group.estimate(metric)
    if found is None or metric in COST:
        return number(found.mean) if found else ""
    fewer = f" (n = {found.n})" if found.n < group.count("completed") else ""
    return plus_minus(found) + fewer


def _against(found: Summary) -> Sheet:
    assert found.baseline is not None
    body = [
        [name, str(each.pairs), *_paired(each), _p(found.holm[name]), each.verdict]
        for name, each in found.against.items()
    ]
    title = f"{found.metric}: each row less {found.baseline.name}, paired by {' and '.join(found.question.over)}"
    return Sheet(title, ["", "pairs", "difference", "ratio", "p", "p (Holm)", "verdict"], body)


def _paired(each: Paired) -> list[str]:
    return [plus_minus(each.difference), f"{each.ratio:.3g}" if each.ratio else "", _p(each.p)]


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _claims(found: Summary) -> Sheet:
    body = []
    for claim in found.claims:
        pairs, difference = (claim.result.pairs, plus_minus(claim.result.difference)) if claim.result else (0, "")
        rows = claim.why or f"{claim.better} less {claim.than}"
        body.append([claim.text, claim.verdict, difference, str(pairs), claim.metric, rows])
    title = f"claims, paired by {' and '.join(found.question.over)}"
    return Sheet(title, ["claim", "verdict", "difference", "pairs", "metric", "rows"], body)


def _runs(found: Summary) -> Sheet:
    score, over = found.question.score, found.question.over
    body = [
        [g.name, *seed, run.status, *(number(run.number(m)) for m in (score, *found.columns)), str(run.folder)]
        for g in found.groups
        for seed, run in g.runs.items()
    ]
    return Sheet("each run", ["", *over, "status", score, *found.columns, "folder"], body)
