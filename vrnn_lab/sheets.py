"""A report as tables of text: on the terminal, in Markdown, in LaTeX; and its numbers, unrounded, as CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vrnn_lab.compare import Estimate, Group, Paired
from vrnn_lab.naming import written
from vrnn_lab.runs import Run
from vrnn_lab.summary import COST, STATUSES, Summary


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
    return number(found.mean) + (f" ± {found.half:.2g}" if found.half is not None else "")


def sheets(found: Summary, runs: bool) -> list[Sheet]:
    made = [_rows(found)]
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


# ---- terminal


WIDTH = 24
WORDS = ("", "claim", "rows", "metric", "status", "verdict", "folder")  # the columns that may be folded


def print_sheets(made: Sequence[Sheet], console: Console) -> None:
    """Each as a table; a number that does not fit is left out with its column, and said to be, never cut."""
    for sheet in made:
        shown = list(range(len(sheet.header)))
        while _least(_table(sheet, shown), console) > console.width and (spare := _spare(sheet, shown)):
            shown.remove(spare)
        if sheet.title:
            console.print(Text(sheet.title))
        fits = _least(_table(sheet, shown), console) <= console.width
        console.print(_table(sheet, shown, WIDTH if fits else 1))
        if missing := [name for place, name in enumerate(sheet.header) if place not in shown]:
            say = f"no room in {console.width} columns for {', '.join(missing)}; choose with columns=, or see output="
            console.print(say, soft_wrap=True, markup=False)


def _least(table: Table, console: Console) -> int:
    """The least width of a table, were the terminal wider."""
    return console.measure(table, options=console.options.update(width=10_000)).minimum


def _spare(sheet: Sheet, shown: list[int]) -> int | None:
    """The last column of numbers beyond those that a row cannot do without."""
    return next((place for place in reversed(shown[3:]) if sheet.header[place] not in WORDS), None)


def _table(sheet: Sheet, shown: list[int], least: int = WIDTH) -> Table:
    """Some columns of a sheet; those of words are folded, but to no less than a width."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in shown:
        name = sheet.header[place]
        words = name in WORDS
        heading = name if words or len(name) < 14 else name.replace("/", "/\n")
        longest = max(map(len, [*heading.split("\n"), *(row[place] for row in sheet.rows)]))
        table.add_column(
            Text(heading),
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
            min_width=min(longest, least) if words else longest,
        )
    for place, row in enumerate(sheet.rows):
        table.add_row(*(Text(row[p]) for p in shown), style="bold" if place == sheet.marked else None)
    return table


# ---- Markdown and LaTeX


def markdown(made: Sequence[Sheet], notes: Sequence[str]) -> str:
    parts = []
    for sheet in made:
        lines = [sheet.header, ["---"] + ["---:"] * (len(sheet.header) - 1)]
        rows = [list(map(_markdown, row)) for row in [sheet.header, *sheet.rows]]
        if sheet.marked is not None:
            rows[sheet.marked + 1] = [f"**{cell}**" if cell else "" for cell in rows[sheet.marked + 1]]
        rows.insert(1, lines[1])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"{_markdown(sheet.title)}\n\n{table}" if sheet.title else table)
    return "\n\n".join([*parts, *map(_markdown, notes)]) + "\n"


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}


def latex(made: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Tables of booktabs; the notes as comments."""
    parts = ["% \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    for sheet in made:
        rows = [list(map(_latex, row)) for row in sheet.rows]
        if sheet.marked is not None:
            rows[sheet.marked] = [f"\\textbf{{{cell}}}" for cell in rows[sheet.marked]]
        line = lambda row: " & ".join(row) + r" \\"
        parts += [f"% {' '.join(sheet.title.split())}", f"\\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}"]
        parts += [r"\toprule", line(map(_latex, sheet.header)), r"\midrule", *map(line, rows)]
        parts += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def _latex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in " ".join(text.split()))


# ---- CSV


def csv_rows(found: Summary) -> str:
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


def csv_runs(found: Summary) -> str:
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


WRITERS: dict[str, Callable[[Sequence[Sheet], Sequence[str]], str]] = {".md": markdown, ".tex": latex}


def write(found: Summary, file: Path, runs: bool) -> dict[Path, str]:
    """What goes into which file, by its ending; the runs of a CSV stand in a file beside."""
    if file.suffix == ".csv":
        beside = {file.with_suffix(".runs.csv"): csv_runs(found)} if runs else {}
        return {file: csv_rows(found), **beside}
    return {file: WRITERS[file.suffix](sheets(found, runs), found.notes)}
