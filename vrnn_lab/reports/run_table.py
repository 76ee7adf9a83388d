"""Print the table at the end of a run: its scores next to those of the baselines."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vrnn_lab.cli.terminal import Terminal
from vrnn_lab.core import run_files
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.calibration import DISTANCE, PIT_BINS, bins, stretch
from vrnn_lab.reports.baselines import NAMES
from vrnn_lab.runs.build import TABLE
from vrnn_lab.runs.folder import config_of

QUESTIONS = {
    "interpolation": "interpolation",
    "forecast": "forecast",
    "before": "before the window",
    "after": "after the window",
}
WIDTH = 120  # columns of a table in a file
HEADINGS = {  # of the columns, in at most two short lines, so that a table has at most 100 columns of text
    "nll": "neg. log-\nlikelihood",
    "brier": "Brier\nscore",
    "mse": "squared\nerror",
    "mse_clean": "noise-free\nsq. error",
    "nmse": "relative\nsq. error",
    "crps": "CRPS",
    "ncrps": "relative\nCRPS",
    "energy": "energy\nscore",
    "coverage_50": "inside\n50 %",
    "coverage_90": "inside\n90 %",
    "pit": "PIT",
}
MARK = "*"  # before the name of the row with the lowest CRPS
ENOUGH = 1000  # with at least so many steps, too short a fit is not the likely cause of poor coverage
FEW = 30  # validation values that a recalibration needs
COLUMNS = ("nll", "brier", "mse", "mse_clean", "nmse", "crps", "energy", "coverage_50", "coverage_90")
MIXED = ("nll", "brier", "nmse", "ncrps", "energy", "coverage_50", "coverage_90")  # for channels of different units
COVERAGE = ("coverage_50", "coverage_90")
SOLVER_ERROR = 0.01  # of a path's spread; above it a run's table mentions it
DIVERGED = 100.0  # multiple of the training mean's squared error that no successful fit reaches
OUTSIDE = 0.05  # above this fraction outside the training range, that is a likely cause of poor coverage


def paper() -> Terminal:
    """Return a console: the terminal, or a file wide enough that no number is cut off."""
    console = Terminal(record=True)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def print_run(
    folders: Sequence[Path],
    metrics: dict[str, Any],
    split: str = "test",
    data: SeriesData | None = None,
    weights: object | None = None,
) -> str:
    """Print the scores of the model and of the baselines on held-out points, then the paths; return the printed text.

    folders: of the run, or of the runs of an ensemble. weights: of these runs, None for equal ones. data: adds the
    calibration of the intervals, by distance to the observed points and by channel.
    """
    console = paper()
    mixed = has_units(folders[0]) and several(metrics, split)
    if (shown := table(metrics, split, mixed)).row_count:
        console.print(shown)
    if mixed and data is None and (shown := by_channel(metrics, split)).row_count:
        console.print(shown)
    for calibration in intervals(metrics, split, data.channels, data.time_unit) if data else []:
        console.print(calibration)
    console.print(facts(metrics, split), soft_wrap=True)
    if len(folders) > 1:
        how = "equal weights" if weights is None else f"the weights {weights}"
        console.print(f"ensemble {len(folders)} runs with {how}: 'this model' is their mixture")
    for folder in folders:
        console.print(f"run      {folder}", soft_wrap=True)
    for figure in sorted((folders[0] / run_files.FIGURES).glob("*.png")) if len(folders) == 1 else []:
        console.print(f"figure   {figure}", soft_wrap=True)
    return console.export_text()


def rows(metrics: dict[str, Any], split: str) -> list[tuple[str, str]]:
    """Return (name, key prefix) of the model, of the recalibrated model, and of each baseline."""
    names = dict.fromkeys(k.split("/")[1] for k in metrics if k.startswith("reference/"))
    ours = [("this model", split), ("recalibrated", f"recalibrated/{split}")]
    return ours + [(name, f"reference/{name}") for name in names]


def has_units(folder: Path) -> bool:
    """Return whether the run is of a user's table, whose channels may have different units."""
    return config_of(folder).data.get("_target_") == TABLE


def several(metrics: dict[str, Any], split: str) -> bool:
    return any(key.startswith(f"{split}/") and "/channel/" in key for key in metrics)


def by_channel(metrics: dict[str, Any], split: str) -> Table:
    """Return a table of the scores of each channel in its own unit, with the CRPS of the best baseline."""
    shown = Table(title=f"{split}: by channel, in its own unit", title_justify="left", box=None)
    for i, column in enumerate(("", "mse", "crps", "best baseline's CRPS", *COVERAGE)):
        shown.add_column(label(column), justify="right" if i else "left", no_wrap=True)
    for question, heading in QUESTIONS.items():
        start = f"{split}/{question}/channel/"
        channels = dict.fromkeys(k[len(start) :].rpartition("/")[0] for k in metrics if k.startswith(start))
        channels = [channel for channel in channels if f"{start}{channel}/crps" in metrics]
        if channels:
            shown.add_row(heading, style="italic")
        for channel in channels:
            mse, crps, half, most = (
                metrics.get(f"{start}{channel}/{score}") for score in ("mse", "crps", "coverage_50", "coverage_90")
            )
            others = {
                name: metrics[f"{prefix}/{question}/channel/{channel}/crps"]
                for name, prefix in rows(metrics, split)
                if prefix.startswith("reference/")
                and name != "exact"
                and f"{prefix}/{question}/channel/{channel}/crps" in metrics
            }
            best = min(others, key=lambda name: others[name], default=None)
            best_baseline = "" if best is None else f"{number(others[best])} ({NAMES.get(best, best)})"
            shown.add_row(f"  {channel}", number(mse), number(crps), best_baseline, number(half), number(most))
    return shown


@dataclass(frozen=True)
class Row:
    """Hold a row of the table of scores."""

    name: str
    own: bool  # whether it is the model as it is
    best: bool  # whether no other row of the question has a lower CRPS
    cells: list[float | None]


def columns_of(metrics: dict[str, Any], mixed: bool) -> list[str]:
    """Return the scores that a run has, as keys. mixed: only those that have no unit."""
    return [c for c in (MIXED if mixed else COLUMNS) if any(k.endswith(f"/{c}") for k in metrics)]


def score_rows(metrics: dict[str, Any], split: str, columns: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each question that has scores, in words, with its rows: the model, recalibrated, and the baselines."""
    for question, heading in QUESTIONS.items():
        best, made = best_rows(metrics, split, question), []
        for name, prefix in rows(metrics, split):
            cells = [metrics.get(f"{prefix}/{question}/{c}") for c in columns]
            if any(cell is not None for cell in cells):
                made.append(Row(NAMES.get(name, name), prefix == split, prefix in best, cells))
        if made:
            yield heading, made


def units_of(mixed: bool) -> str:
    """Return the unit of the scores, in words. mixed: the channels' units may differ."""
    return "each channel in its training std" if mixed else "in the data's units"


def table(metrics: dict[str, Any], split: str, mixed: bool = False) -> Table:
    """Return a table of the scores on each question over all channels.

    mixed: scores are in training stds, since the channels' units may differ.
    """
    shown = Table(title=f"{split}: held-out points, {units_of(mixed)}", title_justify="left", box=None)
    shown.add_column("", no_wrap=True)
    for column in (columns := columns_of(metrics, mixed)):
        shown.add_column(label(column), justify="right", no_wrap=True)
    for heading, made in score_rows(metrics, split, columns):
        shown.add_row(heading, style="italic")
        for row in made:
            name = f"{MARK if row.best else ' '} {row.name}"
            shown.add_row(name, *map(number, row.cells), style="bold" if row.own else None)
    return shown


def best_rows(metrics: dict[str, Any], split: str, question: str) -> list[str]:
    """Return the key prefixes of the rows with the lowest CRPS on a question, the exact answer apart."""
    prefixes = [prefix for _, prefix in rows(metrics, split) if prefix != "reference/exact"]
    for score in ("crps", "ncrps"):
        scored = {p: metrics[key] for p in prefixes if (key := f"{p}/{question}/{score}") in metrics}
        if scored:
            return [prefix for prefix, value in scored.items() if value == min(scored.values())]
    return []


def _extents(metrics: dict[str, Any], split: str) -> list[str]:
    """Return a line with the number of series and values that the scores of each question are means over."""
    counted = [f"{heading}: {counts}" for question, heading in QUESTIONS.items()
               if (counts := _extent(metrics, f"{split}/{question}"))]  # fmt: skip
    return [f"scored   {'; '.join(counted)}"] if counted else []


def _extent(metrics: dict[str, Any], at: str) -> str:
    counts = [f"{metrics[f'{at}/{what}']:.0f} {what}" for what in ("series", "values") if f"{at}/{what}" in metrics]
    return ", ".join(counts)


def backtest(scores: dict[str, float], title: str) -> Table:
    """Return a table of a backtest: every row over all values, by horizon and by cutoff."""
    shown = Table(title=title, title_justify="left", box=None)
    shown.add_column("", no_wrap=True)
    columns = [c for c in ("values", *COLUMNS) if any(k.count("/") == 2 and k.endswith(f"/{c}") for k in scores)]
    for column in columns:
        shown.add_column(label(column), justify="right", no_wrap=True)
    keys = [key.split("/") for key in scores]
    for part in dict.fromkeys(key[1] for key in keys):
        shown.add_row(part, style="italic")
        for name in dict.fromkeys(key[0] for key in keys):
            cells = [scores.get(f"{name}/{part}/{c}") for c in columns]
            style = "bold" if name == "this model" else None
            shown.add_row(f"  {NAMES.get(name, name)}", *map(number, cells), style=style)
    return shown


def intervals(metrics: dict[str, Any], split: str, channels: Sequence[str], unit: str) -> list[Table]:
    """Return calibration tables, by distance and by channel with the PIT, for each question, raw and recalibrated."""
    made = []
    for prefix in (split, f"recalibrated/{split}"):
        for question, (name, _) in DISTANCE.items():
            at = f"{prefix}/{question}"
            title = f"{at}: by {name}{f' in {unit}' if unit else ''}, by channel"
            shown = _intervals(metrics, at, name, channels, title)
            made += [shown] if shown.row_count else []
    return made


def _intervals(metrics: dict[str, Any], at: str, name: str, channels: Sequence[str], title: str) -> Table:
    shown = Table(title=title, title_justify="left", box=None)
    shown.add_column("", no_wrap=True)
    by_distance = bins(metrics, f"{at}/{name}")
    columns = [c for c in ("share", *COLUMNS) if any(f"{place}/{c}" in metrics for place in by_distance)]
    for column in [*columns, "pit"]:
        shown.add_column(label(column), justify="right", no_wrap=True)
    places = [("all", at), *((stretch(metrics, place), place) for place in by_distance)]
    places += [(channel, f"{at}/channel/{channel}") for channel in channels]
    for row, place in places:
        cells = [metrics.get(f"{place}/{c}") for c in columns]
        if any(c is not None for c in cells):
            levels = [metrics[key] for i in range(PIT_BINS) if (key := f"{place}/pit/{i + 1}") in metrics]
            shown.add_row(f"  {row}", *map(number, cells), " ".join(f"{100 * x:.0f}" for x in levels))
    return shown


def label(column: str) -> str:
    """Return the heading of a score's column, in words: inside, and below it 90 %, for coverage_90."""
    return HEADINGS.get(column, column.replace("_", " "))


def number(value: float | None) -> str:
    """Return a number to four digits, empty for None."""
    return "" if value is None else f"{value:.4g}"


def _coverage_hints(metrics: dict[str, Any], split: str) -> list[str]:
    """Return a hint that names the likely cause, and the cure, where coverage is far from nominal; else nothing."""
    shares = [metrics.get(f"{split}/{question}/coverage_90") for question in DISTANCE]
    if all(share is None or abs(share - 0.9) < 0.05 for share in shares):
        return []
    hint = "hint: the coverage of this model's 90 % intervals is far from 0.9"
    if metrics.get("fit/steps", ENOUGH) < ENOUGH:
        return [
            f"{hint}: the fit had only {metrics['fit/steps']:.0f} steps. Train longer: leave out what limits it "
            "(trainer.max_epochs, trainer.max_steps, trainer.max_time), or raise it."
        ]
    if (share := metrics.get(f"{split}/outside_range", 0.0)) > OUTSIDE:
        return [
            f"{hint}: {share:.0%} of the values lie outside the range of the training values. Give the training "
            "split series that reach as far, or a model that keeps each series' level and slope: model=latent_ode."
        ]
    if (share := metrics.get(f"{split}/longer_windows", 0.0)) > OUTSIDE:
        return [
            f"{hint}: {share:.0%} of the series are longer than any of training, so predictions reach beyond what "
            "was trained. Give the training split longer series, or cut all of them: data.window=<points>."
        ]
    values = [v for k, v in metrics.items() if k.startswith("recalibration/") and k.endswith("/values")]
    if any(key.startswith(f"recalibrated/{split}/") for key in metrics) and min(values, default=FEW) >= FEW:
        return [f"{hint}: predict multiplies its spreads by factors fitted on validation (row 'recalibrated')."]
    if values:
        return [
            f"{hint}, and validation has {min(values):.0f} values, too few to recalibrate it. Give it more series."
        ]
    return [f"{hint}; recalibrate it on validation: python -m vrnn_lab.evaluate run=<folder> recalibrate=true"]


def _diverged(metrics: dict[str, Any], split: str) -> list[str]:
    """Return a warning that training diverged, where the MSE is above DIVERGED times that of the training mean."""
    for question, heading in QUESTIONS.items():
        ours = metrics.get(f"{split}/{question}/nmse", metrics.get(f"{split}/{question}/mse"))
        score = "nmse" if f"{split}/{question}/nmse" in metrics else "mse"
        mean = metrics.get(f"reference/constant/{question}/{score}")
        if ours is not None and mean and not ours <= DIVERGED * mean:
            return [
                f"warning: training diverged: the {score} of this model ({heading}) is {number(ours)}, "
                f"{number(ours / mean)} times that of the training mean ({number(mean)}). Lower the learning rate "
                "(optim.lr), or clip gradients (trick=clip), and train again."
            ]
    return []


def _out_of_time(metrics: dict[str, Any]) -> list[str]:
    """Return lines on forecasts beyond the times of training, from a second fit without the ends of the series."""
    key = re.compile(r"out_of_time/(.+)/nmse")
    nmse = {name[1]: value for k, value in metrics.items() if (name := key.fullmatch(k))}
    if not nmse:
        return []
    model = nmse.pop("model")
    best = min(nmse, key=lambda name: nmse[name])
    lines = [
        f"beyond   the times of training: nmse {number(model)}, {metrics['out_of_time/coverage_90']:.0%} in the 90 % "
        f"interval before recalibration; best baseline: {best}, nmse {number(nmse[best])} "
        f"({metrics['out_of_time/values']:.0f} values at the ends of series, from a second fit without them)"
    ]
    if nmse[best] < model:
        lines.append(
            f"hint: beyond the times of training the baseline '{best}' forecast better than this model; try another "
            "model, or take the baseline, before you rely on such forecasts."
        )
    return lines


def validation_comparison(metrics: dict[str, Any]) -> list[str]:
    """Return a line for forecasts and one for gaps: the row of the lowest CRPS on validation, and the model's.

    The rows are compared in training stds, and shown in the data's units where there is one channel. A difference
    within two standard errors over series (`reference/<row>/<question>/val_ncrps_above_se`) is called level.
    """
    lines, unit = [], "ncrps" if several(metrics, "val") else "crps"
    for question, start in (("forecast", "ahead"), ("interpolation", "gaps")):
        pattern = re.compile(rf"reference/([^/]+)/{question}/val_ncrps")
        rows = {match[1]: value for key, value in metrics.items() if (match := pattern.fullmatch(key))}
        ours = metrics.get(f"val/{question}/{unit}")
        if ours is None or not rows:
            continue
        best = min(rows, key=lambda name: rows[name])
        at, row = f"reference/{best}/{question}/val", f"'{NAMES.get(best, best)}'"
        above, error = metrics[f"{at}_ncrps_above"], metrics.get(f"{at}_ncrps_above_se")
        theirs, ours = number(metrics[f"{at}_{unit}"]), number(ours)
        score = "CRPS" if unit == "crps" else "CRPS in training stds"
        more = f"{abs(above) / rows[best]:.0%}".replace("%", " %") if rows[best] else "more"
        if error is not None and abs(above) <= 2 * error:
            text = (
                f"this model ({ours}) and the best baseline, {row} ({theirs}), are level by {score}: the difference "
            )
            text += f"of {more} is within two standard errors"
        elif above > 0:
            text = f"the best method by {score} is {row} ({theirs}); this model has {ours}: {more} worse. Use {row}, "
            text += "try another model, or train longer"
        else:
            text = f"this model is the best method by {score} ({ours}); the best baseline, {row}, has {theirs}: this "
            text += f"model is {more} better"
        alone = "" if error is not None else " (there is one series, so no standard error)"
        lines.append(f"{start:8} on validation, {text}{alone}")
    return lines


def facts(metrics: dict[str, Any], split: str) -> str:
    get = lambda key: number(metrics.get(key))
    k = int(metrics.get(f"{split}/nll_samples", 0))
    lines = _extents(metrics, split) + _diverged(metrics, split) + validation_comparison(metrics)
    if any(best_rows(metrics, split, question) for question in QUESTIONS):
        lines.append(
            f"{MARK}        the row with the lowest CRPS, the error of a predicted distribution, on its question"
        )
    if any(key.endswith("/coverage_50") for key in metrics):
        lines.append("inside   the share of values inside the central 50 % and 90 % intervals of their predictions")
        lines += _coverage_hints(metrics, split)
    if any(key.endswith("/energy") for key in metrics):
        lines.append(
            "energy   the energy score of joint draws of a series; it and the relative scores are in training stds"
        )
    if any("/pit/" in key for key in metrics):
        lines.append(
            "PIT      % of the values in each tenth of their predictive distribution, 10 everywhere if calibrated"
        )
    lines += _out_of_time(metrics)
    kinds = {"nll": "a value, all points", "nll_events": "an event, their times", "nll_joint": "a value, with times"}
    how = "exact for this model" if metrics.get(f"{split}/nll_is_exact") else f"bound with K = {k} samples"
    if not k:
        lines.append("nll      none: a baseline is a part of this mixture, and has no density of whole series")
    for name, each in kinds.items():
        if f"{split}/{name}" in metrics:
            lines.append(
                f"{name:8} {get(f'{split}/{name}')} nats {each} ({how})"
                + (
                    f"; exact {get(f'reference/exact/{name}')}, above it by {get(f'{split}/{name}_above_exact')} "
                    f"+- {get(f'{split}/{name}_above_exact_se')}"
                    if f"{split}/{name}_above_exact" in metrics
                    else ""
                )
            )
        if name == "nll" and f"{split}/nll_point" in metrics:
            lines.append(f"         {get(f'{split}/nll_point')} nats a point")
    if f"{split}/events/ks" in metrics:
        lines.append(
            f"events   waiting times rescaled by the rate lie {get(f'{split}/events/ks')} from unit exponentials "
            f"(Kolmogorov-Smirnov, p {get(f'{split}/events/ks_p')})"
        )
    if f"{split}/labels/nll" in metrics:
        named = [f"{name} {get(f'{split}/labels/{name}')}" for name in ("accuracy", "auc", "nll")]
        lines.append(f"labels   {', '.join(named)}")
    if f"{split}/latent/active_units" in metrics:
        each = [v for k, v in metrics.items() if k.startswith(f"{split}/latent/kl_")]
        lines.append(
            f"latent   {get(f'{split}/latent/active_units')} of {len(each)} dimensions active (their mean varies "
            f"with the data), {number(sum(each))} nats a series in all"
        )
        if not metrics[f"{split}/latent/active_units"]:
            lines.append(
                "warning: the latents are not used (posterior collapse), so the model predicts as one without "
                "latents; a remedy may be beta=warmup, cyclic or free_bits, and for model=vrnn "
                "model.posterior=smooth or model.dropout=0.3"
            )
    if (error := metrics.get(f"{split}/solver_error", 0.0)) > SOLVER_ERROR:
        lines.append(
            f"solver   the path on its solver steps differs by {error:.1%} of its spread from that on steps of half "
            "the length: the model is what these steps compute, not the solution of the ODE. Its scores hold for "
            "that model; more steps (model.nodes) bring the two together"
        )
    floored = [v for k, v in metrics.items() if k.startswith(f"{split}/") and k.endswith("/on_floor")]
    if floored:
        floor = f"scale floor 1e-3 of the training std: {max(floored):.1%} of predicted stds lie on it"
        lines.append(("warning: " if max(floored) > 0.01 else "") + floor)
    if "noise_floor" in metrics:
        lines.append(f"noise    {get('noise_floor')} is the mse that observation noise alone causes")
    if "fit/seconds" in metrics:
        lines.append(
            f"fit      {metrics['fit/epochs']:.0f} epochs, {metrics['fit/steps']:.0f} steps in "
            f"{metrics['fit/seconds']:.0f} s, {get('fit/steps_per_second')} steps a second, "
            f"{metrics['model/parameters']:.0f} parameters"
        )
    if metrics.get("model/causal"):
        lines.append("causal   this is a step model: a prediction uses no observation after its own time")
    return "\n".join(lines)
