"""Predict a user's own series, with intervals, by a fitted model: python -m vrnn_lab.predict."""

import logging
import sys
from math import inf
from pathlib import Path
from time import monotonic

from vrnn_lab.cli.arguments import arguments, bool_argument, configure_logging, folders_of, int_argument, run_command

USAGE = """python -m vrnn_lab.predict run=<run folder> input=<file> output=<file> and one question

Asks a run's best checkpoint about series it need never have seen. One question of
  at=<file>            at the times of this CSV or Parquet file: a row an id and time
  horizon=10 every=1   from each series' last observed time on, in the data's unit of time; days, if times are dates,
                       or 2y, 3M (months), 1w, 1h, 30min, 1/24; every: by default the usual gap in training
  fill=true            in every empty cell of the input

With horizon= also: when does it cross?
  when=">=5"           or "<=5", or "temperature>=5" where there are several channels (in quotation marks): of every
                       series when the channel is first at or past this level at one of the asked times. What crosses
                       are the values that would be observed, noise included; between two asked times nothing is seen.
                       output then holds: id, time, channel, crossed (the probability that it has crossed by then),
                       and, the same in all rows of a series: already (its last seen value is past the level), never
                       (the probability of no crossing within the horizon), q05, q25, q50, q75, q95 (quantiles of the
                       time of the first crossing, empty where they lie beyond the horizon). draws: by default 999

  run                  the folder of a finished run, or of one cut short after its first checkpoint; or several,
                       run=a,b,c: their predictions are mixed with equal shares, each recalibrated by its own factors
  input                the series, as for training: .csv, .csv.gz or .parquet, rows in any order, empty = not observed
  output               .csv or .parquet: id, time, channel, mean, std, q05, q25, q50, q75, q95, in the data's units
  id= time= channel= value=   the columns' names, where they are not those the run was trained on; id=null: one series
  draws=99             joint draws behind the quantiles
  paths=0              so many of them as columns path_1, path_2, ... (independent between windows of a long series)
  figures=false        true, or for how many series: <output>_figures/<id>.png
  recalibrate          by default spreads are multiplied by the factors that the run fitted on validation, where it
                       has some; false: the model's own spreads; true: an error where there are none
  trust                for a run of your own classes: trust=my_model names their module, trust=true trusts the whole
                       folder; without it a folder from somebody else runs no code (SECURITY.md)
  seed=0               of the draws: the same seed, the same file
  stream=false         true: read bit by bit, as files of more than 200 000 rows are, each series' rows together"""

KEYS = (
    "run",
    "trust",
    "input",
    "output",
    "at",
    "horizon",
    "every",
    "fill",
    "draws",
    "paths",
    "figures",
    "seed",
    "stream",
    "recalibrate",
    "when",
)
FORM = ("id", "time", "channel", "value")
SAID = 10.0  # seconds from one line of progress to the next
log = logging.getLogger("vrnn_lab")


def figures_of(found: dict[str, str]) -> float:
    """Return the number of series to draw figures of, from figures=: infinite for true."""
    text = found.get("figures", "false")
    return float(text) if text.isdecimal() else inf if bool_argument(found, "figures") else 0.0


def files_of(found: dict[str, str]) -> tuple[Path, Path]:
    """Return the paths of input= and output=; raise ValueError where one is missing or the output is also read."""
    for key in ("input", "output"):
        if not found.get(key):
            raise ValueError(f"{key}=<file> is missing.")
    source, output = Path(found["input"]).expanduser(), Path(found["output"]).expanduser()
    if output.absolute() in [Path(found[key]).expanduser().absolute() for key in ("input", "at") if key in found]:
        raise ValueError(f"output={output} is a file that is read; name another.")
    return source, output


def main() -> int:
    found = arguments(USAGE, (*KEYS, *FORM), sys.argv[1:])
    folders, (source, output), most = folders_of(found), files_of(found), figures_of(found)
    stream, fill = bool_argument(found, "stream"), bool_argument(found, "fill")
    recalibrate = bool_argument(found, "recalibrate") if "recalibrate" in found else None
    if "when" in found and (idle := [key for key in ("paths", "figures") if key in found]):
        raise ValueError(f"{idle[0]}= belongs to a table of predictions, when= asks for another; drop one of them.")
    configure_logging()
    from vrnn_lab.data.table.columns import column_names
    from vrnn_lab.data.table.time_format import spans
    from vrnn_lab.forecasting.crossings import DRAWS, Level
    from vrnn_lab.forecasting.writer import check_ending

    check_ending(output)
    for key in ("input", "at"):
        if key in found:
            column_names(Path(found[key]).expanduser(), key)
    from vrnn_lab.forecasting.ensemble import load_runs
    from vrnn_lab.forecasting.forecast import Forecasts, Query, form_of
    from vrnn_lab.runs.trust import trust_of

    trust = trust_of(found.get("trust", ""))
    at = Path(found["at"]).expanduser() if "at" in found else None
    when = Level.of(found["when"]) if "when" in found else None
    counts = {
        "draws": int_argument(found, "draws", DRAWS if when else 99, 1),
        "paths": int_argument(found, "paths", 0, 0),
    }
    ahead = spans(found.get("horizon"), found.get("every"))
    asked = Query(
        at, *ahead, fill, seed=int_argument(found, "seed", 0, 0), recalibrate=recalibrate, when=when, **counts
    )
    parts = load_runs(folders, trust=trust)
    named = {key: None if found[key] == "null" else found[key] for key in FORM if key in found}
    forecasts = Forecasts.of(parts, source, asked, form_of(parts.config, named), folders[0])
    write(forecasts, output, most, in_memory=not stream and forecasts.small)
    return 0


def write(forecasts, output: Path, most: float, in_memory: bool) -> None:
    """Write the table of predictions and the figures, and log the progress."""
    from vrnn_lab.forecasting import forecast_figures
    from vrnn_lab.forecasting.writer import writing

    labels = forecast_figures.PanelLabels.of(forecasts.parts)
    figures = forecast_figures.Album(output.parent / f"{output.stem}_figures", most, labels)
    rows, said = 0, monotonic()
    with writing(output) as out:
        for answer in forecasts.answers(in_memory):
            out(forecasts.frame(answer, text=output.suffix.lower() == ".csv"))
            figures.add(answer, forecasts.clock)
            rows += len(answer.owner)
            if answer.questions and monotonic() - said > SAID:
                said = monotonic()
                log.info("%d rows, at series '%s'", rows, answer.questions[-1].name)
        figures.close(forecasts.clock)
    print(f"forecast {output}, {rows} rows")
    if figures.written:
        print(f"figures  {figures.folder}, {len(figures.written)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
