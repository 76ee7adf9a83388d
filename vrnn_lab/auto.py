"""Find a good model for a table by itself, within a stated time: python -m vrnn_lab.auto."""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vrnn_lab.cli.arguments import arguments, configure_logging, int_argument, outlive_readers, run_command
from vrnn_lab.cli.result import HELP, result
from vrnn_lab.cli.shown_text import say
from vrnn_lab.cli.signals import install
from vrnn_lab.core.example import file_of
from vrnn_lab.predict import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

    from vrnn_lab.forecaster import Forecaster

USAGE = """python -m vrnn_lab.auto input=<file> [horizon=<H>] [budget=2m]

Reads a table of irregular series, guesses what its columns are, trains a few models within the budget, chooses the
best of them, a simple baseline, or a mixture on validation data, and says what to use. The folder that it writes is a
run= for vrnn_lab.predict and vrnn_lab.evaluate, and vrnn_lab.report compares the runs in it.
  input                .csv, .csv.gz or .parquet, one row per time, or one per time and channel (the long form)
  horizon              how far ahead to forecast, in the data's unit of time; days, if times are dates, or 2y, 3M, 1w,
                       1h; forecasts of all series are then written to <folder>/forecast.csv
  future               a file with the covariates (data.known=[...]) at the times within the horizon
  question             fill (gaps), ahead (forecasts) or both; by default ahead if a horizon is given, else both
  budget=120           seconds, or 2m, 1h: of all training and scoring together, as close as it can be kept. To
                       resume an interrupted command with what is left, repeat it
  output               the folder, by default outputs/auto/<name of the file>-<code of the other arguments>
  models               the candidates, such as models=linear_sde,rnn; by default chosen by the size of the data
  id= time= channel= value=   columns, where the guess is wrong; id=null: the file is one series
  data.<key>           any other key of data=table, such as data.period=365.25 or data.known=[holiday]
  trainer=cpu, optim.<key>, ...   any other override of vrnn_lab.run, for all candidates
  seed=0               of weights, training and noise

Periods of a few long records are searched by a periodogram. Channels of positive values are modelled by their
logarithms where a cheap forecast of these is better (data.log=[] leaves this out). Candidates are recalibrated on
validation. Forecasts of many short series are judged by a second fit without the second half of each series, since a
split by series never asks for what lies beyond the times of training. The mixture has the weights with the best log
score on validation (stacking), and is taken only where such weights are better on validation series that they were
not fitted on."""
USAGE += HELP

PARTS = ("data.", "trainer.", "optim.", "schedule.", "evaluate.", "model.", "logger.")  # whose keys may be set
KEYS = ("input", "horizon", "future", "question", "budget", "output", "models", "seed")
OWN = ("model", "data", "data.path", "trainer.max_time", "hydra.run.dir", "sweep", "resume")
BUDGET = "120"


def parsed(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings of a call, and the overrides of all candidates; raise ValueError for anything else."""
    from vrnn_lab.config.compose import from_overrides
    from vrnn_lab.config.options import groups
    from vrnn_lab.data.table.columns import column_names

    known = (*KEYS, *COLUMNS, *(group for group in groups() if group not in ("model", "data")))
    given = arguments(USAGE, (*known, *PARTS), list(argv))
    if "input" not in given:
        raise ValueError("input=<file> is missing.")
    more = [f"{key}={value}" for key, value in given.items() if key not in (*KEYS, *COLUMNS)]
    if taken := [word for word in more if word.partition("=")[0] in OWN]:
        raise ValueError(f"{taken[0]}: vrnn_lab.auto sets this key itself; leave it out.")
    if named := [key for key in COLUMNS if f"data.{key}" in given]:
        raise ValueError(f"data.{named[0]}= names a column; give it as {named[0]}=<column>.")
    if given.get("question", "both") not in ("fill", "ahead", "both"):
        raise ValueError(f"question={given['question']}: expected fill, ahead or both.")
    if "future" in given:
        if "horizon" not in given:
            raise ValueError("future= holds covariates at the times that horizon= asks for; give horizon=<H> too.")
        names = column_names(file_of(given["future"]), "future")
        known = from_overrides([word for word in more if word.startswith("data.known=")])
        known = list(known.data.known) if known else []
        if not known:
            raise ValueError("future= holds covariates, and data.known=[...] does not say which columns these are.")
        if lacking := [name for name in known if name not in names]:
            raise ValueError(f"future={given['future']} has no column '{lacking[0]}', which data.known names.")
    if given.get("question") == "fill" and "horizon" in given:
        raise ValueError("horizon= asks for forecasts, and question=fill for gaps; leave one of them out.")
    return given, more


def folder_of(given: Mapping[str, str], more: Sequence[str]) -> Path:
    """Return the folder of a call: the same for the same arguments but the budget."""
    if "output" in given:
        return Path(given["output"]).expanduser()
    fixed = {k: v for k, v in given.items() if k not in ("budget", "output")}
    code = hashlib.sha256(json.dumps([fixed, sorted(more)], sort_keys=True).encode()).hexdigest()[:8]
    return Path("outputs/auto", f"{Path(given['input']).name.split('.')[0]}-{code}")


def start(argv: Sequence[str]) -> Path:
    """Run a call of the command, print its result, and return its folder."""
    began = monotonic()  # the imports below belong to the budget
    given, more = parsed(argv)
    from vrnn_lab.config.duration import seconds_of

    try:
        seconds = seconds_of(given.get("budget", BUDGET))
    except ValueError as error:
        raise ValueError(f"budget={error}") from None
    folder = folder_of(given, more)
    configure_logging()
    from vrnn_lab.automatic.budget_display import Once

    log, once = logging.getLogger("vrnn_lab"), Once()
    log.addFilter(once)
    try:
        _study(given, more, [*argv], folder, seconds, began)
    finally:
        log.removeFilter(once)
    return folder


def _study(
    given: Mapping[str, str], more: Sequence[str], argv: list[str], folder: Path, seconds: float, began: float
) -> None:
    """Begin or resume the study of a call in its folder; began: when the call did, by time.monotonic."""
    from vrnn_lab.automatic.budget import Budget, recorded
    from vrnn_lab.automatic.budget_display import BudgetDisplay
    from vrnn_lab.automatic.plan import study_of
    from vrnn_lab.runs.folder import run_lock

    paths = {key: file_of(given[key]).absolute() for key in ("input", "future") if key in given}
    words = [word for word in argv if not word.startswith(("budget=", "output=", "input=", "future="))]
    words += [f"{key}={path}" for key, path in paths.items()]  # absolute, so that resume= works in any folder
    before = recorded(folder).get("arguments")
    if before is not None and sorted(before) != sorted(words):
        raise ValueError(
            f"output={folder} holds a study of other arguments: {' '.join(before)}. Name another folder, or repeat "
            "those arguments."
        )
    study, lines = study_of(given, more, folder, int_argument(dict(given), "seed", 0, 0))
    with run_lock(folder, wait=False):
        budget = Budget.of(folder, seconds, began)
        budget.save(arguments=words, budget=seconds)
        display = BudgetDisplay(seconds)
        for line in lines:
            display(line)
        if before is not None:
            display(f"resumed  {folder}, with {max(0.0, budget.left):.0f} of {seconds:.0f} s left")
        try:
            _spend(study, budget, display, given)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("to resume with what is left of the budget, repeat the command") from None


def _spend(study: Any, budget: Any, display: Any, given: Mapping[str, str]) -> None:
    """Train, choose, score and draw."""
    from vrnn_lab.automatic.mixing import mix
    from vrnn_lab.automatic.study import beyond_wanted, train
    from vrnn_lab.automatic.verdict import sentences, table, verdict
    from vrnn_lab.core import run_files
    from vrnn_lab.figures import model_figures
    from vrnn_lab.reports.run_table import paper

    with display.shown(budget.used):
        parts = study.parts()
        done = train(study, study.candidates, beyond_wanted(study, parts), budget, display)
        chosen, members = mix(study, done, parts.data)
        found = verdict(study.folder, done, members, chosen, parts.data)
        tasks = {name: found.parts.protocol.questions[name] for name in found.choices}
        drawn = model_figures.figures(found.parts.model, parts.data, study.seed, tasks=tasks)
        kept = {name: figure for name, figure in drawn.items() if name in tasks}
        files = model_figures.write(kept, study.folder / run_files.FIGURES)
        budget.save()
        display.progress(budget.used)
    paper().print(table(found))
    said = sentences(found)
    for sentence in said:
        say(sentence)
    for file in files:
        say(f"figure   {file}")
    if "horizon" in given:
        _forecast(study, found, given)
    say(f"run      {study.folder} ({budget.used:.0f} s)")
    result(run=str(study.folder), seconds=budget.used, figures=[str(file) for file in files], advice=said)


def _forecast(study: Any, found: Any, given: Mapping[str, str]) -> None:
    """Write the forecasts of all series of the input."""
    from vrnn_lab.data.table.time_format import spans
    from vrnn_lab.forecasting.forecast import Forecasts, Query, schema_of
    from vrnn_lab.forecasting.mixture_folder import expanded
    from vrnn_lab.predict import write

    folder = expanded([study.folder]).folders[0]
    future = file_of(given["future"]) if "future" in given else None
    query = Query(None, *spans(given["horizon"], None), seed=study.seed, future=future)
    try:
        source = file_of(given["input"])
        forecasts = Forecasts.of(found.parts, source, query, schema_of(found.parts.config, {}), folder)
    except ValueError as error:  # such as covariates that are not known ahead
        say(f"forecast not written: {error}")
        return
    write(forecasts, study.folder / "forecast.csv", 0.0, in_memory=forecasts.small)


def auto(
    source: "pd.DataFrame | str | Path",
    horizon: float | int | str | timedelta | None = None,
    question: str | None = None,
    budget: float | int | str = 120,
    folder: str | Path | None = None,
    models: Sequence[str] = (),
    seed: int = 0,
    overrides: Sequence[str] = (),
    future: "pd.DataFrame | str | Path | None" = None,
    **columns: str | None,
) -> "Forecaster":
    """Find a good model for a data frame or file, as the command does; return it as a fitted Forecaster.

    columns: id, time, channel, value, where the guess is wrong; id=None: one series. overrides: as on the command
    line, such as "data.period=365.25". future: covariates within the horizon, a file, or a frame beside a frame.
    folder: of the study, which a repeated call resumes; for a frame it keeps the frame as data.csv. Raise ValueError
    where the arguments, or the table, cannot work.
    """
    from datetime import datetime

    from vrnn_lab.core.files import write_whole
    from vrnn_lab.core.run_files import FRAME, FUTURE
    from vrnn_lab.forecaster import Forecaster
    from vrnn_lab.forecasting.frames import as_pandas

    if unknown := columns.keys() - set(COLUMNS):
        raise TypeError(f"auto() has no argument '{min(unknown)}'; its names of columns are {', '.join(COLUMNS)}.")
    if future is not None and horizon is None:
        raise ValueError("future= holds covariates at the times that horizon= asks for; give horizon too.")
    if future is not None and not isinstance(future, (str, Path)):
        if isinstance(source, (str, Path)):
            raise TypeError("future= is no file, but the table is one; name a file of covariates too.")
        future = as_pandas(future, "future")
    words = [] if folder is None else [f"output={folder}"]
    if not isinstance(source, (str, Path)):
        source = as_pandas(source, "source")
        top = Path(folder or f"outputs/auto/frame-{datetime.now():%Y-%m-%d_%H-%M-%S}")
        written = source.to_csv(index=False, lineterminator="\n")
        if (top / FRAME).exists() and (top / FRAME).read_text() != written:
            raise ValueError(f"folder={top} holds a study of another frame; name another folder.")
        write_whole(top / FRAME, written)
        words, source = [f"output={top}"], top / FRAME
        if future is not None and not isinstance(future, (str, Path)):
            write_whole(top / FUTURE, future.to_csv(index=False, lineterminator="\n"))
            future = top / FUTURE
    settings = {"input": source, "horizon": horizon, "question": question, "budget": budget, "seed": seed}
    settings |= {"future": future}
    words += [f"{key}={value}" for key, value in settings.items() if value is not None]
    words += [f"models={','.join(models)}"] if models else []
    words += [f"{key}={'null' if name is None else name}" for key, name in columns.items()]
    return Forecaster.load(start([*words, *overrides]))


def resume(folder: Path, changes: Sequence[str]) -> int:
    """Resume a study from its folder; of its arguments only budget= may change."""
    from vrnn_lab.automatic.budget import recorded

    if wrong := [word for word in changes if not word.startswith("budget=")]:
        raise ValueError(f"{wrong[0]}: {folder} holds a study of vrnn_lab.auto, of which only budget= may change.")
    known = recorded(folder)
    start([*known["arguments"], f"output={folder}", *(changes or [f"budget={known['budget']:g}"])])
    return 0


def main() -> int:
    install()
    start(sys.argv[1:])
    return 0


class _Callable(ModuleType):
    """Let `vrnn_lab.auto(frame)` call the function of this module, whose name the module has."""

    def __call__(self, *args: Any, **keys: Any) -> "Forecaster":
        return auto(*args, **keys)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    outlive_readers()
    sys.exit(run_command(main, scripts=True))
