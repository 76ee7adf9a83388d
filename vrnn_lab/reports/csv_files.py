"""Give a report's numbers, unrounded, as CSV and for JSON."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from vrnn_lab.cli.shown_text import spreadsheet
from vrnn_lab.reports.baselines import SCORES, baselines
from vrnn_lab.reports.compare import Estimate, Group
from vrnn_lab.reports.data_sets import folder_names
from vrnn_lab.reports.runs import Run
from vrnn_lab.reports.summary import STATUSES, Summary

Table = tuple[Sequence[str], list[Sequence[Any]]]  # a header, and lines as long


def rows(summary: Summary) -> str:
    """Return a CSV with a line for each row of the report."""
    return _csv(*row_table(summary))


def row_table(summary: Summary) -> Table:
    """Return a table with a line for each row of the report.

    Its columns are the row's keys, dataset and runs by status, and mean, interval and n of each metric. Rows of one
    dataset are consecutive; `best` is best within its dataset.
    """
    metrics = list(dict.fromkeys([summary.question.score, *summary.columns]))
    header = ["name", *summary.naming.keys, "data set", "folder", "best", "n", *STATUSES]
    header += [f"{m}{part}" for m in metrics for part in ("", " low", " high", " n")]
    parts = ("difference", "low", "high", "pairs", "ratio", "p", "p (Holm)", "verdict")
    header += [f"{summary.metric} against baseline: {part}" for part in parts if summary.against]
    folders = folder_names(summary.groups)
    return header, [
        [
            *_named(g, summary),
            data_set.name,
            folders[id(g)],
            g is data_set.best,
            len(g.runs),
            *map(g.count, STATUSES),
            *_numbers(g, metrics),
            *_compared(g, summary),
        ]
        for data_set in summary.data_sets
        for g in data_set.groups
    ]


def baseline_rows(summary: Summary) -> str:
    """Return a CSV with a line for each baseline and question of a dataset; empty where no run has a baseline."""
    header, lines = baseline_table(summary)
    return _csv(header, lines) if lines else ""


def baseline_table(summary: Summary) -> Table:
    """Return a table with a line for each baseline and question of a dataset: mean, interval and n of each score.

    `key` is where metrics.json of a run holds the scores.
    """
    header = ["data set", "baseline", "question", "key"]
    header += [f"{score}{part}" for score in SCORES for part in ("", " low", " high", " n")]
    return header, [
        [
            data_set.name,
            baseline.name,
            baseline.question,
            baseline.key,
            *_parts([baseline.scores.get(score) for score in SCORES]),
        ]
        for data_set in summary.data_sets
        for baseline in baselines(data_set.runs)
    ]


def as_dicts(summary: Summary, with_runs: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of a report as lists of {column: value}, empty cells as None.

    They are `rows`, `baselines`, where wanted `runs`, and `claims` where claims were made.
    """
    tables = {"rows": row_table(summary), "baselines": baseline_table(summary)}
    tables |= {"runs": run_table(summary)} if with_runs else {}
    named = lambda header, line: {key: None if cell == "" else cell for key, cell in zip(header, line, strict=True)}
    dicts = {name: [named(header, line) for line in lines] for name, (header, lines) in tables.items()}
    claims = [{"claim": claim.text, "metric": claim.metric, "verdict": claim.verdict} for claim in summary.claims]
    return dicts | ({"claims": claims} if claims else {})


def _named(group: Group, summary: Summary) -> list[str]:
    return [group.name, *(group.items.get(key, "") for key in summary.naming.keys)]


def _numbers(group: Group, metrics: Sequence[str]) -> list[Any]:
    return _parts([group.estimate(metric) for metric in metrics])


def _parts(estimates: Sequence[Estimate | None]) -> list[Any]:
    return [x for e in estimates for x in ((e.mean, e.low, e.high, e.n) if e else ("", "", "", 0))]


def _compared(group: Group, summary: Summary) -> list[Any]:
    comparison = summary.against.get(group.name)
    if comparison is None:
        return [""] * 8 if summary.against else []
    difference = comparison.difference
    numbers = [difference.mean, difference.low, difference.high] if difference else ["", "", ""]
    return [*numbers, comparison.pairs, comparison.ratio, comparison.p, summary.holm[group.name], comparison.verdict]


def runs(summary: Summary) -> str:
    """Return a CSV with a line for each run."""
    return _csv(*run_table(summary))


def run_table(summary: Summary) -> Table:
    """Return a table with a line for each run: the keys that distinguish the rows, and the metrics shown."""
    metrics = list(dict.fromkeys([summary.question.score, *summary.columns]))
    header = ["name", *summary.naming.keys, *summary.question.over, "status", *metrics, "error", "folder"]
    line = lambda g, seed, run: [
        *_named(g, summary),
        *seed,
        run.status,
        *_values(run, metrics),
        run.error,
        str(run.folder),
    ]
    return header, [line(g, seed, run) for g in summary.groups for seed, run in g.runs.items()]


def _values(run: Run, metrics: Sequence[str]) -> list[float | None]:
    return [run.number(metric) for metric in metrics]


def _csv(header: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(map(spreadsheet, row) for row in [header, *rows])
    return text.getvalue()
