"""Turn a report into text tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from vrnn_lab.reports.baselines import baselines
from vrnn_lab.reports.compare import Estimate, Group, Paired
from vrnn_lab.reports.data_sets import DataSet, folder_names, settings
from vrnn_lab.reports.naming import written
from vrnn_lab.reports.summary import COST, STATUSES, Summary

SHOWN_OF_BASELINES = {"crps": "CRPS", "mse": "MSE", "coverage_90": "90 % coverage"}


@dataclass(frozen=True)
class TextTable:
    """Hold a table of text: the first column names its rows, `marked` is the index of the best row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    marked: int | None = None


def number(value: float | None) -> str:
    """Return a number to four digits, whole from 1000 on; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def plus_minus(mean: Estimate | None) -> str:
    """Return a mean ± half of its interval as text, empty for None."""
    if mean is None:
        return ""
    half = "" if mean.half is None else f"{mean.half:.0f}" if 100 <= mean.half < 1e15 else f"{mean.half:.2g}"
    return number(mean.mean) + (half and f" ± {half}")


def heading(metric: str) -> str:
    """Return a metric's key in words: test/forecast/90 % coverage for test/forecast/coverage_90."""
    front, slash, name = metric.rpartition("/")
    return f"{front}{slash}{name.removeprefix('coverage_')} % coverage" if name.startswith("coverage_") else metric


def report_tables(summary: Summary, runs: bool) -> list[TextTable]:
    """Return the tables of a report: for each dataset its rows and its baselines, then the comparisons and claims.

    runs: add a table of all runs.
    """
    tables: list[TextTable] = []
    if len(summary.data_sets) > 1:
        for data_set in summary.data_sets:
            tables += [
                _rows_of_one_data_set(data_set, summary, first=not tables),
                *baseline_tables(data_set, summary),
            ]
    else:
        tables += [
            _rows(summary),
            *(table for data_set in summary.data_sets for table in baseline_tables(data_set, summary)),
        ]
    tables += [_against(summary)] if summary.against else []
    tables += [_claims(summary)] if summary.claims else []
    return tables + ([_runs(summary)] if runs else [])


def _rows(summary: Summary) -> TextTable:
    body = [[_marked(g.name, g, summary), *_cells(g, summary)] for g in summary.groups]
    return TextTable(common(summary), ["", *_header(summary)], body, _place_of_best(summary.groups, summary))


def _rows_of_one_data_set(data_set: DataSet, summary: Summary, first: bool) -> TextTable:
    """Return a table of rows named by folder, with their settings; the first one's title tells what they share."""
    folders = folder_names(summary.groups)
    body = [
        [_marked(folders[id(g)], g, summary), settings(g, summary.data_sets), *_cells(g, summary)]
        for g in data_set.groups
    ]
    shared = common(summary) if first else ""
    title = f"{shared}\ndata set {data_set.name}" if shared else f"data set {data_set.name}"
    return TextTable(title, ["folder", "settings", *_header(summary)], body, _place_of_best(data_set.groups, summary))


def _header(summary: Summary) -> list[str]:
    return ["runs", *map(heading, (summary.question.score, *summary.columns))]


def _cells(group: Group, summary: Summary) -> list[str]:
    return [_count(group), *(_cell(group, metric) for metric in (summary.question.score, *summary.columns))]


def _place_of_best(groups: Sequence[Group], summary: Summary) -> int | None:
    return next((i for i, g in enumerate(groups) if summary.is_best(g)), None)


def baseline_tables(data_set: DataSet, summary: Summary) -> list[TextTable]:
    """Return a table of a dataset's baselines in a list, empty where its runs have none."""
    body = []
    for baseline in baselines(data_set.runs):
        means = [baseline.scores.get(score) for score in SHOWN_OF_BASELINES]
        body.append([baseline.name, baseline.question, *(number(mean.mean) if mean else "" for mean in means)])
    of = f"data set {data_set.name}: " if len(summary.data_sets) > 1 else ""
    title = f"{of}baselines on test, best CRPS first"
    return [TextTable(title, ["baseline", "question", *SHOWN_OF_BASELINES.values()], body)] if body else []


def _marked(name: str, group: Group, summary: Summary) -> str:
    return f"{name} *" if summary.is_best(group) else name


def common(summary: Summary) -> str:
    """Return what all rows have in common, as text: their choices, and what the user typed."""
    typed = {t for r in summary.runs for t in r.typed}
    groups = {k for r in summary.runs for k in r.choices if "/" not in k}
    named = {k: v for k, v in summary.naming.common.items() if k in typed or k in groups}
    return " ".join(f"{k}={written(v)}" for k, v in named.items() if v not in ("none", "off") and k != "trainer")


def _count(group: Group) -> str:
    """Return how many runs were completed and, if not all were, the total and the status of the others."""
    counts = {status: group.count(status) for status in STATUSES}
    others = [f"{n} {status}" for status, n in counts.items() if n and status != "completed"]
    return ", ".join([f"{counts['completed']} of {len(group.runs)}", *others]) if others else str(len(group.runs))


def _cell(group: Group, metric: str) -> str:
    estimate = group.estimate(metric)
    if estimate is None or metric in COST:
        return number(estimate.mean) if estimate else ""
    fewer = f" (n = {estimate.n})" if estimate.n < group.count("completed") else ""
    return plus_minus(estimate) + fewer


def _against(summary: Summary) -> TextTable:
    assert summary.baseline is not None
    body = [
        [name, str(each.pairs), *_paired(each), _p(summary.holm[name]), each.verdict]
        for name, each in summary.against.items()
    ]
    title = (
        f"{summary.metric}: each row less {summary.baseline.name}, paired by {' and '.join(summary.question.over)}"
    )
    return TextTable(title, ["", "pairs", "difference", "ratio", "p", "p (Holm)", "verdict"], body)


def _paired(each: Paired) -> list[str]:
    return [plus_minus(each.difference), f"{each.ratio:.3g}" if each.ratio else "", _p(each.p)]


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _claims(summary: Summary) -> TextTable:
    body = []
    for claim in summary.claims:
        pairs, difference = (claim.result.pairs, plus_minus(claim.result.difference)) if claim.result else (0, "")
        rows = claim.why or f"{claim.better} less {claim.than}"
        body.append([claim.text, claim.verdict, difference, str(pairs), claim.metric, rows])
    title = f"claims, paired by {' and '.join(summary.question.over)}"
    return TextTable(title, ["claim", "verdict", "difference", "pairs", "metric", "rows"], body)


def _runs(summary: Summary) -> TextTable:
    score, over = summary.question.score, summary.question.over
    body = [
        [g.name, *seed, run.status, *(number(run.number(m)) for m in (score, *summary.columns)), str(run.folder)]
        for g in summary.groups
        for seed, run in g.runs.items()
    ]
    return TextTable("each run", ["", *over, "status", *_header(summary)[1:], "folder"], body)
