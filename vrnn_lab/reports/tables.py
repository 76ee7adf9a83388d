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


def plus_minus(found: Estimate | None) -> str:
    """Return a mean ± half of its interval as text, empty for None."""
    if found is None:
        return ""
    half = "" if found.half is None else f"{found.half:.0f}" if 100 <= found.half < 1e15 else f"{found.half:.2g}"
    return number(found.mean) + (half and f" ± {half}")


def heading(metric: str) -> str:
    """Return a metric's key in words: test/forecast/90 % coverage for test/forecast/coverage_90."""
    front, slash, name = metric.rpartition("/")
    return f"{front}{slash}{name.removeprefix('coverage_')} % coverage" if name.startswith("coverage_") else metric


def sheets(found: Summary, runs: bool) -> list[TextTable]:
    """Return the tables of a report: for each dataset its rows and its baselines, then the comparisons and claims.

    runs: add a table of all runs.
    """
    made: list[TextTable] = []
    if len(found.data_sets) > 1:
        for data_set in found.data_sets:
            made += [_rows_of_one_data_set(data_set, found, first=not made), *baseline_sheets(data_set, found)]
    else:
        made += [_rows(found), *(sheet for data_set in found.data_sets for sheet in baseline_sheets(data_set, found))]
    made += [_against(found)] if found.against else []
    made += [_claims(found)] if found.claims else []
    return made + ([_runs(found)] if runs else [])


def _rows(found: Summary) -> TextTable:
    body = [[_marked(g.name, g, found), *_cells(g, found)] for g in found.groups]
    return TextTable(common(found), ["", *_header(found)], body, _place_of_best(found.groups, found))


def _rows_of_one_data_set(data_set: DataSet, found: Summary, first: bool) -> TextTable:
    """Return a table of rows named by folder, with their settings; the first one's title tells what they share."""
    folders = folder_names(found.groups)
    body = [
        [_marked(folders[id(g)], g, found), settings(g, found.data_sets), *_cells(g, found)] for g in data_set.groups
    ]
    shared = common(found) if first else ""
    title = f"{shared}\ndata set {data_set.name}" if shared else f"data set {data_set.name}"
    return TextTable(title, ["folder", "settings", *_header(found)], body, _place_of_best(data_set.groups, found))


def _header(found: Summary) -> list[str]:
    return ["runs", *map(heading, (found.question.score, *found.columns))]


def _cells(group: Group, found: Summary) -> list[str]:
    return [_count(group), *(_cell(group, metric) for metric in (found.question.score, *found.columns))]


def _place_of_best(groups: Sequence[Group], found: Summary) -> int | None:
    return next((i for i, g in enumerate(groups) if found.is_best(g)), None)


def baseline_sheets(data_set: DataSet, found: Summary) -> list[TextTable]:
    """Return a table of a dataset's baselines in a list, empty where its runs have none."""
    body = []
    for each in baselines(data_set.runs):
        means = [each.scores.get(score) for score in SHOWN_OF_BASELINES]
        body.append([each.name, each.question, *(number(mean.mean) if mean else "" for mean in means)])
    of = f"data set {data_set.name}: " if len(found.data_sets) > 1 else ""
    title = f"{of}baselines on test, best CRPS first"
    return [TextTable(title, ["baseline", "question", *SHOWN_OF_BASELINES.values()], body)] if body else []


def _marked(name: str, group: Group, found: Summary) -> str:
    return f"{name} *" if found.is_best(group) else name


def common(found: Summary) -> str:
    """Return what all rows have in common, as text: their choices, and what the user typed."""
    typed = {t for r in found.runs for t in r.typed}
    told = {k for r in found.runs for k in r.choices if "/" not in k}
    named = {k: v for k, v in found.naming.common.items() if k in typed or k in told}
    return " ".join(f"{k}={written(v)}" for k, v in named.items() if v not in ("none", "off") and k != "trainer")


def _count(group: Group) -> str:
    """Return how many runs were completed and, if not all were, the total and the status of the others."""
    counts = {status: group.count(status) for status in STATUSES}
    others = [f"{n} {status}" for status, n in counts.items() if n and status != "completed"]
    return ", ".join([f"{counts['completed']} of {len(group.runs)}", *others]) if others else str(len(group.runs))


def _cell(group: Group, metric: str) -> str:
    found = group.estimate(metric)
    if found is None or metric in COST:
        return number(found.mean) if found else ""
    fewer = f" (n = {found.n})" if found.n < group.count("completed") else ""
    return plus_minus(found) + fewer


def _against(found: Summary) -> TextTable:
    assert found.baseline is not None
    body = [
        [name, str(each.pairs), *_paired(each), _p(found.holm[name]), each.verdict]
        for name, each in found.against.items()
    ]
    title = f"{found.metric}: each row less {found.baseline.name}, paired by {' and '.join(found.question.over)}"
    return TextTable(title, ["", "pairs", "difference", "ratio", "p", "p (Holm)", "verdict"], body)


def _paired(each: Paired) -> list[str]:
    return [plus_minus(each.difference), f"{each.ratio:.3g}" if each.ratio else "", _p(each.p)]


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _claims(found: Summary) -> TextTable:
    body = []
    for claim in found.claims:
        pairs, difference = (claim.result.pairs, plus_minus(claim.result.difference)) if claim.result else (0, "")
        rows = claim.why or f"{claim.better} less {claim.than}"
        body.append([claim.text, claim.verdict, difference, str(pairs), claim.metric, rows])
    title = f"claims, paired by {' and '.join(found.question.over)}"
    return TextTable(title, ["claim", "verdict", "difference", "pairs", "metric", "rows"], body)


def _runs(found: Summary) -> TextTable:
    score, over = found.question.score, found.question.over
    body = [
        [g.name, *seed, run.status, *(number(run.number(m)) for m in (score, *found.columns)), str(run.folder)]
        for g in found.groups
        for seed, run in g.runs.items()
    ]
    return TextTable("each run", ["", *over, "status", *_header(found)[1:], "folder"], body)
