"""A report's numbers, unrounded, as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from vrnn_lab.reports.compare import Group
from vrnn_lab.reports.runs import Run
from vrnn_lab.reports.summary import STATUSES, Summary


def rows(found: Summary) -> str:
    """A line a row: what tells it apart, its runs by status, of each metric mean, interval and n."""
    metrics = list(dict.fromkeys([found.question.score, *found.columns]))
    header = ["name", *found.naming.keys, "best", "n", *STATUSES]
    header += [f"{m}{part}" for m in metrics for part in ("", " low", " high", " n")]
    parts = ("difference", "low", "high", "pairs", "ratio", "p", "p (Holm)", "verdict")
    header += [f"{found.metric} against baseline: {part}" for part in parts if found.against]
    return _csv(header, ([*_start(g, found), *_numbers(g, metrics), *_compared(g, found)] for g in found.groups))


def _start(group: Group, found: Summary) -> list[Any]:
    named = [group.items.get(key, "") for key in found.naming.keys]
    return [group.name, *named, group is found.best, len(group.runs), *map(group.count, STATUSES)]


def _numbers(group: Group, metrics: Sequence[str]) -> list[Any]:
    found = [group.estimate(metric) for metric in metrics]
    return [x for e in found for x in ((e.mean, e.low, e.high, e.n) if e else ("", "", "", 0))]


def _compared(group: Group, found: Summary) -> list[Any]:
    each = found.against.get(group.name)
    if each is None:
        return [""] * 8 if found.against else []
    d = each.difference
    numbers = [d.mean, d.low, d.high] if d else ["", "", ""]
    return [*numbers, each.pairs, each.ratio, each.p, found.holm[group.name], each.verdict]


def runs(found: Summary) -> str:
    """A line a run, with the keys that tell them apart and the metrics shown."""
    metrics = list(dict.fromkeys([found.question.score, *found.columns]))
    header = ["name", *found.naming.keys, *found.question.over, "status", *metrics, "error", "folder"]
    line = lambda g, seed, run: [
        *_start(g, found)[: 1 + len(found.naming.keys)],
        *seed,
        run.status,
        *_values(run, metrics),
        run.error,
        str(run.folder),
    ]
    return _csv(header, (line(g, seed, run) for g in found.groups for seed, run in g.runs.items()))


def _values(run: Run, metrics: Sequence[str]) -> list[float | None]:
    return [run.number(metric) for metric in metrics]


def _csv(header: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
