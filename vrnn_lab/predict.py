"""Predict a user's own series, with intervals, by a fitted model: python -m vrnn_lab.predict."""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from vrnn_lab.cli.arguments import arguments, bool_argument, configure_logging, folders_of, int_argument, run_command
from vrnn_lab.cli.progress import tracked
from vrnn_lab.cli.result import HELP, result
from vrnn_lab.core.example import file_of

if TYPE_CHECKING:
    from vrnn_lab.forecasting.summary import PredictiveSummary

USAGE = """python -m vrnn_lab.predict run=<run folder> input=<file> [output=<file>] and one query

Predicts series with a run's best checkpoint, also series that were not in its training data. One query of
  at=<file>            the times of this CSV or Parquet file: one row per id and time
  horizon=10 every=1   times after each series' last observed one, in the data's unit of time; days, if times are
                       dates, or 2y, 3M (months), 1w, 1h, 30min, 1/24; every: by default the median gap between
                       training points
  fill=true            every empty cell of the input
  surprise=true        every observed value of the input, as if it alone were missing: value is what was observed, and
                       surprise the probability of a value at least as far out on its side, doubled, given all others
                       (for a step model given those before it). It is uniform from 0 to 1 if the model is right, so
                       that outliers and drifts have small ones. It takes one prediction for each value

With horizon=, where the model was trained with covariates that change with time (data.known):
  future=<file>        id, time and those covariates after the last observations; each row of it within the horizon is
                       predicted, or with every= only the rows at those times. Static covariates need no future=

With horizon= also the time at which a level is crossed:
  when=">=5"           or "<=5", or "temperature>=5" where there are several channels (in quotation marks): for every
                       series, the first queried time at which the channel is at or past this level. Crossings are of
                       the values that would be observed, noise included; what happens between two queried times does
                       not count. output then holds: id, time, channel, crossed (the probability that it has crossed
                       by then), and, the same in all rows of a series: already (its last observed value is past the
                       level), never (the probability of no crossing within the horizon), q05, q25, q50, q75, q95
                       (quantiles of the time of the first crossing, empty where they lie beyond the horizon).
                       draws: by default 999
  signal=false         true: crossings of the signal, which is the value without its observation noise, at any time
                       within the horizon and so also between two queried times; for model=linear_sde

  run                  the folder of a finished run, or of one interrupted after its first checkpoint; or several,
                       run=a,b,c: their predictions are mixed with equal weights, each recalibrated by its factors;
                       or the folder of vrnn_lab.auto, whose runs are mixed with its weights; or a packed run
                       (vrnn_lab.pack); or example, a run on weekly CO2 that comes with the package
  input                the series, as for training: .csv, .csv.gz or .parquet, rows in any order, empty = not observed
                       (example: the table of that run)
  output               .csv or .parquet, by default forecast.csv: id, time, channel, mean, std, q05, q25, q50, q75,
                       q95, in the data's units
  id= time= channel= value=   the columns' names, where they are not those the run was trained on; id=null: one series
  draws=99             joint draws behind the quantiles
  paths=0              how many of them to write, as columns path_1, path_2, ... (independent between windows of a
                       long series)
  figures=false        true, or for how many series: <output>_figures/<id>.png
  recalibrate          by default spreads are multiplied by the factors that the run fitted on validation, where it
                       has some; false: the model's own spreads; true: an error where there are none
  trust                for a run of your own classes: trust=my_model names their module, trust=true trusts the whole
                       folder; without it a folder from somebody else runs no code (SECURITY.md)
  seed=0               of the draws: the same seed, the same file
  stream=false         true: read in chunks, as files of more than 200 000 rows are; each series' rows together"""
USAGE += HELP

KEYS = (
    "run",
    "trust",
    "input",
    "output",
    "at",
    "horizon",
    "every",
    "future",
    "fill",
    "surprise",
    "draws",
    "paths",
    "figures",
    "seed",
    "stream",
    "recalibrate",
    "when",
    "signal",
)
COLUMNS = ("id", "time", "channel", "value")
USUAL = "forecast.csv"  # the output where none is named
READ = ("input", "at", "future")  # options that name files to read
LOG_EVERY = 10.0  # seconds between lines of progress in the log
log = logging.getLogger("vrnn_lab")


def figures_of(given: dict[str, str]) -> float:
    """Return the number of series to draw figures of, from figures=: infinite for true."""
    text = given.get("figures", "false")
    return float(text) if text.isdecimal() else inf if bool_argument(given, "figures") else 0.0


def files_of(given: dict[str, str]) -> tuple[Path, Path]:
    """Return the paths of input= and output=.

    Raise ValueError where the input is missing, where the output is also read, and where no output is named and the
    usual one exists.
    """
    for key in ("input", "output"):
        if not given.get(key, USUAL if key == "output" else ""):
            raise ValueError(f"{key}=<file> is missing.")
    if "output" not in given and Path(USUAL).exists():
        raise ValueError(f"{USUAL} exists already; name the file to write: output=<file>, also output={USUAL}.")
    source, output = file_of(given["input"]), Path(given.get("output", USUAL)).expanduser()
    if output.absolute() in [file_of(given[key]).absolute() for key in READ if key in given]:
        raise ValueError(f"output={output} is also an input; name another file.")
    return source, output


def main() -> int:
    given = arguments(USAGE, (*KEYS, *COLUMNS), sys.argv[1:])
    folders, (source, output), most = folders_of(given), files_of(given), figures_of(given)
    stream, fill, surprise = (bool_argument(given, key) for key in ("stream", "fill", "surprise"))
    recalibrate = bool_argument(given, "recalibrate") if "recalibrate" in given else None
    if "when" in given and (idle := [key for key in ("paths", "figures") if key in given]):
        raise ValueError(
            f"{idle[0]}= belongs to a table of predictions, but when= writes one of crossings; leave one of them out."
        )
    configure_logging()
    from vrnn_lab.data.table.columns import column_names
    from vrnn_lab.data.table.time_format import spans
    from vrnn_lab.forecasting.crossings import DRAWS, Level
    from vrnn_lab.forecasting.writer import check_ending

    check_ending(output)
    for key in READ:
        if key in given:
            column_names(file_of(given[key]), key)
    from vrnn_lab.forecasting.ensemble import load_runs
    from vrnn_lab.forecasting.forecast import Forecasts, Query, schema_of
    from vrnn_lab.forecasting.mixture_folder import expanded
    from vrnn_lab.runs.trust import trust_of

    trust = trust_of(given.get("trust", ""))
    at, future = (file_of(given[key]) if key in given else None for key in READ[1:])
    signal = bool_argument(given, "signal")
    if "signal" in given and "when" not in given:
        raise ValueError("signal= says of what when= counts the crossings; give when= too, or leave signal= out.")
    when = replace(Level.of(given["when"]), signal=signal) if "when" in given else None
    counts = {
        "draws": int_argument(given, "draws", DRAWS if when else 99, 1),
        "paths": int_argument(given, "paths", 0, 0),
    }
    ahead = spans(given.get("horizon"), given.get("every"))
    seed = int_argument(given, "seed", 0, 0)
    query = Query(
        at,
        *ahead,
        fill,
        seed=seed,
        recalibrate=recalibrate,
        surprise=surprise,
        future=future,
        when=when,
        draws=counts["draws"],
        paths=counts["paths"],
    )
    mixture = expanded(folders)
    parts = load_runs(mixture.folders, trust=trust, weights=mixture.unequal)
    named = {key: None if given[key] == "null" else given[key] for key in COLUMNS if key in given}
    forecasts = Forecasts.of(parts, source, query, schema_of(parts.config, named), mixture.folders[0])
    write(forecasts, output, most, in_memory=not stream and forecasts.small)
    return 0


def write(forecasts, output: Path, most: float, in_memory: bool) -> None:
    """Write the table of predictions and the figures, and log the progress."""
    from vrnn_lab.forecasting import forecast_figures
    from vrnn_lab.forecasting.writer import writing

    labels = forecast_figures.PanelLabels.of(forecasts.parts)
    figures = forecast_figures.ForecastFigures(output.parent / f"{output.stem}_figures", most, labels)
    rows, logged_at = 0, monotonic()
    with writing(output) as out:
        series = (lambda: len(forecasts.given.ids())) if in_memory else None
        for summary in tracked(forecasts.summaries(in_memory), "predicting series", series, counting()):
            out(forecasts.frame(summary, text=output.suffix.lower() == ".csv"))
            figures.add(summary, forecasts.clock)
            rows += len(summary.owner)
            if summary.windows and monotonic() - logged_at > LOG_EVERY:
                logged_at = monotonic()
                log.info("%d rows, at series '%s'", rows, summary.windows[-1].name)
        figures.close(forecasts.clock)
    print(f"forecast {output}, {rows} rows")
    if figures.written:
        print(f"figures  {figures.folder}, {len(figures.written)}")
    result(output=str(output), rows=rows, figures=[str(file) for file in figures.written])


def counting() -> Callable[["PredictiveSummary"], int]:
    """Return a function that counts the series of summaries; one that continues in the next summary counts once."""
    last: list[str | None] = [None]

    def count(summary: "PredictiveSummary") -> int:
        names = [*last, *(window.name for window in summary.windows)]
        last[:] = names[-1:]
        return sum(before != name for before, name in pairwise(names))

    return count


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
