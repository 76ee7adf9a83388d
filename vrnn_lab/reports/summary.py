"""Compute a report before it is written: rows, their order, the best, comparisons, claims and notes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.reports.claims import Claim, judge
from vrnn_lab.reports.compare import Group, Paired, best, group, holm, lower_is_better, paired
from vrnn_lab.reports.data_sets import DataSet, data_sets
from vrnn_lab.reports.filters import only, parse, select, values_of
from vrnn_lab.reports.naming import RowNames
from vrnn_lab.reports.runs import Run
from vrnn_lab.runs.folder import SCORE

SHOWN = (
    "test/nll",
    *(
        f"test/{question}/{score}"
        for question in ("interpolation", "forecast")
        for score in ("mse", "crps", "coverage_90")
    ),
    "test/labels/accuracy",
)
COST = ("fit/seconds", "model/parameters")
ORIGINS = {"code": "code", "data": "contents of the data file", "torch": "version of torch"}
ABSENT = object()
STATUSES = ("completed", "failed", "pruned", "running", "interrupted")


@dataclass(frozen=True)
class ReportQuery:
    """Hold the options of a report."""

    over: Sequence[str] = ("seed",)
    score: str = SCORE
    columns: Sequence[str] = ()
    sort: str = ""
    where: Sequence[str] = ()
    baseline: str = ""
    metric: str = ""
    claims: Sequence[dict[str, Any]] = ()


@dataclass
class Summary:
    """Hold the content of a report."""

    question: ReportQuery
    runs: list[Run]
    groups: list[Group]
    naming: RowNames
    columns: list[str]
    data_sets: list[DataSet] = field(default_factory=list)
    baseline: Group | None = None
    against: dict[str, Paired] = field(default_factory=dict)  # a row's name -> its difference from the baseline
    holm: dict[str, float | None] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """Return the metric by which rows are compared with the baseline."""
        return self.question.metric or self.question.score

    def is_best(self, group: Group) -> bool:
        """Return whether a row has the best score of those on its dataset."""
        return any(group is each.best for each in self.data_sets)


def summarise(runs: list[Run], question: ReportQuery) -> Summary:
    """Return the report on some runs; raise ConfigError where an option cannot be met."""
    metrics = _metrics(runs)
    _check_score(question.score, metrics)
    claimed = (str(claim.get("metric", "")) for claim in question.claims if "lower" not in claim)
    for key in (question.metric, *claimed):
        _check_direction("metric", key)
    for key in filter(None, [*question.columns, question.metric]):
        _check_metric(key, metrics)
    keys = {k for r in runs for k in r.config}
    for key in question.over if runs else ():
        if key not in keys:
            raise ConfigError(f"over={key}: no run has such a key.{did_you_mean(key, keys)}")
    chosen = select(runs, parse(question.where, runs, "where") if runs else [])
    groups, naming, copies = group(chosen, question.over)
    columns = [c for c in question.columns if c != question.score] or [m for m in (*SHOWN, *COST) if m in metrics]
    summary = Summary(question, [r for g in groups for r in g.runs.values()], groups, naming, columns)
    if runs and not chosen:
        summary.notes.append(_nothing(runs, question.where))
    summary.data_sets = data_sets(groups, question.over)
    apart: dict[str, None] = {}
    for data_set in summary.data_sets:
        differ = _questions_differ(data_set.groups, naming, question.score)
        scored = [g for g in data_set.groups if g.estimate(question.score)]
        data_set.best = best(scored, question.score) if len(scored) > 1 and not differ else None
        data_set.groups = _sorted(data_set.groups, summary, metrics)
        apart |= dict.fromkeys(differ)
    summary.groups = [g for data_set in summary.data_sets for g in data_set.groups]
    _compare(summary)
    everything = group(runs, question.over)[0] if question.claims else []  # claims ignore the table's filters
    summary.claims = [judge(claim, runs, everything, question.score) for claim in question.claims]
    summary.notes += _notes(summary, copies, list(apart))
    return summary


def _metrics(runs: Sequence[Run]) -> set[str]:
    return {k for r in runs for k in r.metrics if r.number(k) is not None}


def _check_score(score: str, metrics: set[str]) -> None:
    if score.startswith("test/"):
        raise ConfigError(
            f"score={score}: test metrics must not choose a model, or they would no longer measure how it does on "
            f"new data; choose by a val/ metric such as {score.replace('test/', 'val/', 1)}, and show the test "
            f"metric as a column: columns={score}."
        )
    if not score.startswith("val/"):
        raise ConfigError(f"score={score}: expected a val/ metric.{did_you_mean(score, metrics)}")
    _check_direction("score", score)
    _check_metric(score, metrics)


def _check_direction(option: str, metric: str) -> None:
    if "coverage" in metric:
        raise ConfigError(f"{option}={metric}: neither a lower nor a higher coverage is better; use nll or crps.")


def _check_metric(key: str, metrics: set[str]) -> None:
    if metrics and key not in metrics:
        raise ConfigError(f"{key}: no completed run has such a metric.{did_you_mean(key, metrics)}")


def _nothing(runs: Sequence[Run], where: Sequence[str]) -> str:
    keys = [f.key for f in parse(where, runs, "where")]
    there = "; ".join(f"{k} is {values_of(runs, k)}" for k in dict.fromkeys(keys) if k not in _metrics(runs))
    return f"none of {len(runs)} runs matches where={','.join(where)}; in these runs {there}"


def _questions_differ(groups: Sequence[Group], naming: RowNames, score: str) -> list[str]:
    """Return the choices in which rows of one dataset differ so that their scores answer different questions."""
    group_of_keys = "task" if score == SCORE else "evaluate"
    keys = [k for k in (*naming.keys, *naming.follow) if k.split(".")[0] == group_of_keys]
    return [k for k in keys if any(g.facts.get(k, ABSENT) != groups[0].facts.get(k, ABSENT) for g in groups)]


def _sorted(groups: Sequence[Group], summary: Summary, metrics: set[str]) -> list[Group]:
    """Return the rows sorted by a column, by default the best score first; rows without a value come last."""
    word = summary.question.sort or summary.question.score
    key, down = word.removeprefix("-"), word.startswith("-")
    if not summary.question.sort:
        down = not lower_is_better(key)
    of = _order_by(key, summary, metrics)
    known = sorted((g for g in groups if of(g) is not None), key=of, reverse=down)
    return known + [g for g in groups if of(g) is None]


def _order_by(key: str, summary: Summary, metrics: set[str]) -> Callable[[Group], Any]:
    allowed = {*metrics, "name", "runs", *(k for g in summary.groups for k in g.facts)}
    if key == "name":
        return lambda g: g.name
    if key == "runs":
        return lambda g: len(g.runs)
    if key in metrics or not metrics:
        return lambda g: None if (e := g.estimate(key)) is None or isnan(e.mean) else e.mean
    if key not in allowed and summary.groups:
        raise ConfigError(f"sort={key}: there is no such column or key.{did_you_mean(key, allowed)}")
    numbers = all(isinstance(g.facts.get(key), (int, float)) for g in summary.groups if key in g.facts)
    return lambda g: None if key not in g.facts else g.facts[key] if numbers else str(g.facts[key])


def _compare(summary: Summary) -> None:
    if not summary.question.baseline:
        return
    summary.baseline = only(summary.groups, summary.runs, summary.question.baseline, "baseline")
    lower = lower_is_better(summary.metric)
    same_data = next(each for each in summary.data_sets if any(g is summary.baseline for g in each.groups))
    others = [g for g in same_data.groups if g is not summary.baseline]
    summary.against = {g.name: paired(g, summary.baseline, summary.metric, lower) for g in others}
    adjusted = holm([each.p for each in summary.against.values()])
    summary.holm = dict(zip(summary.against, adjusted, strict=True))


def _notes(summary: Summary, copies: int, apart: list[str]) -> list[str]:
    score, notes = summary.question.score, []
    several = len(summary.data_sets) > 1
    if several:
        notes.append(f"{len(summary.data_sets)} data sets: scores of one are not compared with scores of another")
    if apart:
        where = " on one data set" if several else ""
        notes.append(
            f"rows{where} differ in {', '.join(apart)}: their {score} answer different questions, so none is best"
        )
    if any(each.best for each in summary.data_sets):
        scored = sum(g.estimate(score) is not None for g in summary.groups)
        of = "its data set" if several else f"{scored} rows"
        notes.append(f"* best {score} of {of}; ± half of the 95 % interval over {_over(summary)}")
    if summary.naming.follow:
        by = Counter(causes for causes in summary.naming.follow.values())
        for causes in by:
            keys = [k for k, c in summary.naming.follow.items() if c == causes and not k.endswith("_target_")]
            if keys:
                notes.append(f"not named above, since {' and '.join(causes)} set them: {', '.join(keys)}")
    if copies:
        what = "1 run is a copy" if copies == 1 else f"{copies} runs are copies"
        notes.append(f"{what} of another in config and {_over(summary)}; only the newest of each is used")
    notes += [f"not read: {run.folder}: {sentence}" for run in summary.runs for sentence in run.not_read]
    for part, what in ORIGINS.items():
        made = {(_source(r, part), r.origin[part]) for r in summary.runs if r.origin.get(part)}
        if len(made) > len({source for source, _ in made}):
            notes.append(
                f"these runs were not all made with the same {what}, which may explain differences between them"
            )
    judged = sum(claim.result is not None for claim in summary.claims)
    compared = sum(each.p is not None for each in summary.against.values())
    for count, name in ((compared, "comparison"), (judged, "claim")):
        if count:
            chance = f"if no row differed from another, about {count * 0.05:.2g} would be decided by chance"
            notes.append(f"{count} {name}{'s' * (count > 1)} at 95 %: {chance}")
    return [*notes, "p (Holm) is p corrected for the number of comparisons"] if summary.against else notes


def _source(run: Run, part: str) -> Any:
    """Return what a hash of provenance covers: the user's own classes, or the path of the data file."""
    if part == "data":
        return run.config.get("data.path")
    targets = {str(v) for k, v in run.config.items() if k.endswith("_target_")} if part == "code" else set()
    return frozenset(t for t in targets if not t.startswith(("vrnn_lab.", "torch.", "lightning.")))


def _over(summary: Summary) -> str:
    return " and ".join(summary.question.over)
