"""Write a report as one HTML page that needs no network: the template page.html with all numbers and figures."""

from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime
from math import isfinite
from os.path import commonpath
from pathlib import Path
from typing import Any

from vrnn_lab.cli.shown_text import script_json
from vrnn_lab.reports.compare import Group, Paired, lower_is_better
from vrnn_lab.reports.curves import POINTS, curve
from vrnn_lab.reports.data_sets import folder_names, keys_of_data_sets
from vrnn_lab.reports.files import content, pictures
from vrnn_lab.reports.naming import written
from vrnn_lab.reports.runs import Run
from vrnn_lab.reports.summary import STATUSES, Summary
from vrnn_lab.reports.tables import baseline_tables, common, heading, report_tables
from vrnn_lab.runs.folder import SCORE

TEMPLATE = Path(__file__).with_name("page.html")
BYTES = 60_000_000  # total size of the figures in a page, at most


def page(summary: Summary, figures: int) -> str:
    """Return the page, with at most so many figures."""
    return TEMPLATE.read_text(encoding="utf-8").replace("{{DATA}}", script_json(_data(summary, figures)))


def _data(summary: Summary, figures: int) -> dict[str, Any]:
    score = summary.question.score
    metrics = _metrics(summary)
    of_run, note = _figures(summary, figures)
    tag = _tag(summary)
    runs = [
        _run(place, seed, run, metrics, of_run.get(run.folder, []), tag)
        for place, g in enumerate(summary.groups)
        for seed, run in g.runs.items()
    ]
    thinned = [f"curves are thinned to {POINTS} points a run"] * any(len(run["curve"]) >= POINTS for run in runs)
    folders = folder_names(summary.groups)
    data_keys = keys_of_data_sets(summary.data_sets)
    place_of = {id(g): place for place, data_set in enumerate(summary.data_sets) for g in data_set.groups}
    against = {"name": summary.baseline.name, "metric": summary.metric} if summary.baseline else None
    claims = [table for table in report_tables(summary, False) if table.title.startswith("claims")]
    return {
        "title": _title(summary),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "score": score,
        "lower": lower_is_better(score),
        "over": list(summary.question.over),
        "keys": summary.naming.keys,
        "metrics": metrics,
        "columns": summary.columns,
        "statuses": STATUSES,
        "common": common(summary),
        "shared": {k: written(v) for k, v in summary.naming.common.items()},
        "headings": {m: heading(m) for m in metrics},
        "settings": [key for key in summary.naming.keys if key not in data_keys],
        "dataSets": [data_set.name for data_set in summary.data_sets],
        "baselines": [
            {"dataSet": data_set.name, "header": table.header, "rows": table.rows}
            for data_set in summary.data_sets
            for table in baseline_tables(data_set, summary)
        ],
        "groups": [
            _group(g, summary) | {"folder": folders[id(g)], "dataSet": place_of[id(g)]} for g in summary.groups
        ],
        "runs": runs,
        "tag": tag,
        "against": against,
        "claims": {"header": claims[0].header, "rows": claims[0].rows} if claims else None,
        "notes": [*summary.notes, *note, *thinned],
    }


def _title(summary: Summary) -> str:
    """Return the page's title, from the folder that holds all runs."""
    folders = [str(r.folder.absolute()) for r in summary.runs]
    return f"{Path(commonpath(folders)).name}: comparison of runs" if folders else "no runs"


def _metrics(summary: Summary) -> list[str]:
    """Return all metrics of the runs, score and columns first; those of the baselines have a table of their own."""
    first = [summary.question.score, *summary.columns]
    others = (
        k for r in summary.runs for k in r.metrics if r.number(k) is not None and not k.startswith("reference/")
    )
    return list(dict.fromkeys([*first, *others]))


def _group(group: Group, summary: Summary) -> dict[str, Any]:
    shown = dict.fromkeys([summary.question.score, *summary.columns])
    own = {k: written(v) for k, v in group.facts.items() if k not in summary.naming.common}
    return {
        "name": group.name,
        "items": {k: _plain(group.facts[k]) for k in group.items},
        "own": own,
        "best": summary.is_best(group),
        "counts": [group.count(status) for status in STATUSES],
        "cells": {m: [_finite(e.mean), _finite(e.half), e.n] for m in shown if (e := group.estimate(m))},
        "against": _against(summary.against.get(group.name), summary.holm.get(group.name)),
    }


def _against(each: Paired | None, holm: float | None) -> dict[str, Any] | None:
    if each is None:
        return None
    d = each.difference
    cell = [_finite(d.mean), _finite(d.half), d.n] if d else None
    return {"difference": cell, "ratio": _finite(each.ratio), "p": each.p, "holm": holm, "verdict": each.verdict}


def _run(place: int, seed: tuple[str, ...], run: Run, metrics: list[str], figures: list[Any], tag: str):
    return {
        "group": place,
        "seed": " ".join(seed),
        "status": run.status,
        "error": "\n".join(filter(None, [run.error, *run.not_read])),
        "folder": str(run.folder),
        "values": [_finite(run.number(m)) for m in metrics],
        "curve": _curve(run, tag),
        "figures": figures,
    }


def _finite(value: float | None) -> float | None:
    """Return a finite number to six digits, enough for display, else None: JSON holds no NaN."""
    return float(f"{value:.6g}") if value is not None and isfinite(value) else None


def _plain(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    return value if number else written(value)


def _tag(summary: Summary) -> str:
    """Return the scalar of the curves: the score, or the loss where the score was not logged in training."""
    logged = any(curve(r.folder, summary.question.score) for r in summary.runs[:3])
    return summary.question.score if logged else SCORE


def _curve(run: Run, tag: str) -> list[tuple[int, float]]:
    try:
        return [(step, float(f"{value:.6g}")) for step, value in curve(run.folder, tag) if isfinite(value)]
    except OSError:
        return []


def _figures(summary: Summary, limit: int) -> tuple[dict[Path, list[tuple[str, str]]], list[str]]:
    """Return the figures of as many runs as the limits allow, and a note on those left out.

    One run of each row comes first, the best rows before the others.
    """
    held: dict[Path, list[tuple[str, str]]] = {}
    count = size = missing = 0
    for run in _in_turn(summary.groups):
        files = pictures(run.folder)
        size_of = sum(size for _, size in files)
        if files and (count + len(files) > limit or size + size_of > BYTES):
            missing += 1
        elif files:
            held[run.folder] = [(f.stem, b64encode(content(f, run.folder, BYTES)).decode()) for f, _ in files]
            count, size = count + len(files), size + size_of
    most = f"(at most {limit} figures, {BYTES // 1_000_000} MB)"
    note = f"the figures of {missing} runs are left out of this page {most}; they are in the run folders"
    return held, [note] * (missing > 0)


def _in_turn(groups: list[Group]) -> Iterator[Run]:
    rows = [list(g.runs.values()) for g in groups]
    for place in range(max(map(len, rows), default=0)):
        yield from (row[place] for row in rows if place < len(row))
