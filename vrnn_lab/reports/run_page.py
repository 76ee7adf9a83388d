"""Write one self-contained HTML page about one run: scores, advice, figures, losses, config, and its command.

The page asks no other file and no server, and runs no script. Every text of the run folder, which may be somebody
else's, is escaped, and its files are read as `reports.files` reads them.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite, log10
from pathlib import Path
from typing import Any

from vrnn_lab.cli.shown_text import one_line, terminal
from vrnn_lab.core import run_files
from vrnn_lab.core.files import write_whole
from vrnn_lab.evaluation.calibration import DISTANCE, bins, stretch
from vrnn_lab.reports.curves import curve
from vrnn_lab.reports.files import content, parsed_json, pictures
from vrnn_lab.reports.run_table import (
    MARK,
    columns_of,
    facts,
    has_units,
    label,
    number,
    score_rows,
    several,
    units_of,
)
from vrnn_lab.reports.runs import Run, read
from vrnn_lab.runs.folder import command_of, name_of

LARGEST = 16_000_000  # bytes of a file of the run that the page holds
SPLIT = "test"
ALTERNATIVES = {  # what the figures of a run show, for those who do not see them
    "interpolation": "Series of the test set with the predictive bands where values in between were hidden",
    "forecast": "Series of the test set with the predictive bands after the last seen value",
    "calibration": "Coverage of the intervals against their nominal level, and histograms of the PIT",
    "samples": "Series drawn from the model",
    "phase_plane": "Test series in the plane of two channels, with paths drawn before and after the observed window",
    "reconstructions": "Test images, and below each what the model draws after reading it",
}
CURVES = {"train/loss": "training", "val/loss": "validation"}
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #767676; --soft: #f2f2f2; --one: #0b5cad; --two: #a34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #161616; --line: #999; --soft: #262626; --one: #7db8f5; --two: #f0a05a; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: .5rem 0; } th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--soft); }
th[scope=row], th[scope=rowgroup], td.text { text-align: left; font-weight: normal; } th[scope=rowgroup] { font-style: italic; }
tr.own > * { font-weight: bold; } pre { background: var(--soft); padding: .7rem; overflow-x: auto; } img { max-width: 100%; background: #fff; }
th[scope=row] { white-space: nowrap; } h1, p { overflow-wrap: anywhere; } figure { margin: 1rem 0; } svg { width: 40rem; max-width: 100%; height: auto; } summary { cursor: pointer; } a { color: var(--one); }
"""  # noqa: E501 - rules of CSS, one a line


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run to a file, by default report.html in its folder; return its path.

    Raise ValueError where the folder holds no run.
    """
    output = output or folder / run_files.PAGE
    write_whole(output, page(read(folder)))
    return output


def page(run: Run) -> str:
    """Return the page of a run as HTML."""
    known = run.metrics | _calibration(run.folder)
    metrics = {key: value for key, value in known.items() if isinstance(value, (int, float))}
    mixed = has_units(run.folder) and several(metrics, SPLIT)
    name = one_line(name_of(run.folder))
    said = terminal(facts(metrics, SPLIT)) if run.status == "completed" else terminal(run.error)
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{escape(_summary(run, metrics))}</p>",
        _section("Scores", _scores(metrics, mixed)),
        _section("Notes on the scores", f'<pre tabindex="0">{escape(said)}</pre>'),
        _section("Calibration", _by_distance(metrics)),
        _section("Figures", "".join(_figures(run.folder))),
        _section("Losses", _losses(run.folder)),
        _section(
            "The command that repeats the run", f'<pre tabindex="0">{escape(terminal(command_of(run.folder)))}</pre>'
        ),
        _section("Config", _config(run)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main>\n{chr(10).join(filter(None, parts))}\n</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _summary(run: Run, metrics: dict[str, Any]) -> str:
    """Return a sentence on a run: its model, data and optimizer, and how it ended."""
    chosen = ", ".join(
        f"{group} {run.choices[group]}" for group in ("model", "data", "optim") if group in run.choices
    )
    text = f"A run of {chosen}. Status: {run.status}."
    if {"fit/steps", "fit/seconds", "model/parameters"} <= metrics.keys():
        text += f" {metrics['fit/steps']:.0f} training steps in {metrics['fit/seconds']:.0f} s"
        text += f", {metrics['model/parameters']:,.0f} parameters."
    return one_line(text)


def _scores(metrics: dict[str, Any], mixed: bool) -> str:
    """Return the table of the scores of a model and of the baselines on each question."""
    columns, body = columns_of(metrics, mixed), []
    for heading, made in score_rows(metrics, SPLIT, columns):
        body.append(f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}">{heading}</th></tr>')
        for row in made:
            title, own = f"{row.name} {MARK}" if row.best else row.name, ' class="own"' if row.own else ""
            cells = "".join(f"<td>{number(cell)}</td>" for cell in row.cells)
            body.append(f"<tr{own}>{_row_head(title)}{cells}</tr>")
    caption = (
        f"Held-out points of the test set, {units_of(mixed)}. {MARK} marks the lowest CRPS of a question. Lower is "
        "better; the shares inside the 50 % and 90 % intervals should be 0.5 and 0.9."
    )
    return _table(caption, ["method", *(label(c).replace("\n", " ") for c in columns)], body) if body else ""


def _by_distance(metrics: dict[str, Any]) -> str:
    """Return the tables of coverage by the distance to the nearest observation, for each question."""
    made = []
    for question, (name, _) in DISTANCE.items():
        places = [("all", f"{SPLIT}/{question}")]
        places += [(stretch(metrics, place), place) for place in bins(metrics, f"{SPLIT}/{question}/{name}")]
        body = [
            f"<tr>{_row_head(title)}<td>{number(covered)}</td><td>{number(metrics.get(f'{place}/crps'))}</td></tr>"
            for title, place in places
            if (covered := metrics.get(f"{place}/coverage_90")) is not None
        ]
        if len(body) > 1:
            made.append(_table(f"{question}, by {name}", [name, "inside 90 %", "CRPS"], body))
    return "".join(made)


def _table(caption: str, heads: Sequence[str], body: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>{inside}</table></div>'
    )


def _row_head(text: str) -> str:
    return f'<th scope="row">{escape(one_line(text))}</th>'


def _calibration(folder: Path) -> dict[str, Any]:
    """Return the numbers of calibration.json, empty where there is no such file."""
    file = folder / run_files.CALIBRATION
    return parsed_json(content(file, folder, LARGEST)) if file.is_file() else {}


def _figures(folder: Path) -> Iterable[str]:
    for file, size in pictures(folder):
        if size <= LARGEST:
            data = b64encode(content(file, folder, LARGEST)).decode()
            alternative = ALTERNATIVES.get(file.stem, f"Figure {one_line(file.stem)}")
            yield f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></figure>'


def _losses(folder: Path) -> str:
    """Return the curves of the losses as an SVG, with the last values as text."""
    drawn = {tag: [(s, v) for s, v in curve(folder, tag) if isfinite(v)] for tag in CURVES}
    points = [point for line in drawn.values() for point in line]
    if not points or (last := max(step for step, _ in points)) == 0:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    span = high - low or 1.0
    x, y = (lambda step: 60 + 520 * step / last), (lambda value: 210 - 190 * (value - low) / span)
    digits = max(0, 2 - int(log10(span))) if span < 100 else 0
    parts = [f'<text x="55" y="{y(v) + 4:.0f}" text-anchor="end">{v:.{digits}f}</text>' for v in (low, high)]
    parts += [f'<text x="{x(s):.0f}" y="232" text-anchor="middle">{s}</text>' for s in (0, last)]
    parts.append('<text x="320" y="232" text-anchor="middle">step</text>')
    parts.append('<path d="M60 15 V212 H585" fill="none" stroke="var(--line)"/>')
    said = []
    for (tag, word), colour, dash in zip(CURVES.items(), ("one", "two"), ("", "6 3"), strict=True):
        if line := drawn[tag]:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-dasharray="{dash}"/>'
            )
            drawing = "solid" if not dash else "dashed"
            said.append(f"{word} ({drawing}): {number(line[-1][1])} at step {line[-1][0]}")
    style = 'style="font: 12px sans-serif; fill: currentColor"'
    words = f"Losses in nats a value: {', '.join(said)}."
    return f'<svg viewBox="0 0 600 240" role="img" aria-label="{words}" {style}>{"".join(parts)}</svg><p>{words}</p>'


def _config(run: Run) -> str:
    """Return every key of the config in a table that opens on demand."""
    body = [
        f'<tr>{_row_head(key)}<td class="text">{escape(one_line(json.dumps(value)))}</td></tr>'
        for key, value in run.config.items()
    ]
    return f"<details><summary>Every key</summary>{_table('The config of the run', ['key', 'value'], body)}</details>"
