"""Score a run again from its folder alone, or backtest it: python -m vrnn_lab.evaluate."""

import logging
import sys
from pathlib import Path

from vrnn_lab.cli.arguments import arguments, bool_argument, configure_logging, folders_of, int_argument, run_command
from vrnn_lab.cli.result import HELP, result

USAGE = """python -m vrnn_lab.evaluate run=<run folder> [evaluate.<key>=<value> ...] [data.path=<file>] [split=val]
python -m vrnn_lab.evaluate run=<run folder> backtest=true backtest.horizon=24 [output=<csv>]

Scores the best checkpoint of a run again and prints its table, and the calibration of its intervals: coverage by the
distance to the nearest observation and by channel, and PIT histograms. Writes only the files that are named below.
  run                  the folder of a finished run, or of one interrupted after its first checkpoint; or several,
                       run=a,b,c: the mixture of their predictions with equal weights, scored by the protocol of the
                       first run; nll is that of the mixture (a bound where one of theirs is; a mixture has no loss).
                       The folder of vrnn_lab.auto stands for its runs with their weights. A packed run
                       (vrnn_lab.pack) is taken in place of a folder
                       Their data keys must be the same, so that none was trained on a test series. Each is
                       recalibrated by its own factors, in a backtest too; nothing is fitted
  evaluate.forecast.seen=30, evaluate.interpolation.seen=0.1, evaluate.samples=1000, ...   another protocol
  data.<key>           other data of the same channels
  trust                for a run of your own classes: trust=my_model names their module, trust=true trusts the whole
                       folder; without it a folder from somebody else runs no code (SECURITY.md)
  split                test (default) or val: whose scores the table shows
  recalibrate=false    leaves out the row 'recalibrated', which has the factors in <run folder>/recalibration.json
  recalibrate=true     fits on validation the factors that multiply the spread of predictions: for each channel one
                       for points up to the last observed one and one for those after it; prints the table with and
                       without, and writes the factors to that file, for predict. Every run of real values does so
                       when it ends.
  backtest=true        instead, a backtest of forecasts from rolling origins: at each origin a series is observed
                       up to it (over a window as long as those of training) and scored up to a horizon after it.
                       Where series are split in time, the part before the split's own is observed too. With
                       recalibrate=true forecasts are recalibrated.
  backtest.horizon     how far ahead, in the data's time unit
  backtest.every       time between origins (default: the horizon)
  backtest.folds       origins a series, the last a horizon before its end (default: 5)
  output               a CSV of every scored value of the backtest: id, origin, time, channel, value, mean, std,
                       q05, q25, q50, q75, q95, nll, crps"""
USAGE += HELP
log = logging.getLogger("vrnn_lab")
KEYS = ("run", "trust", "split", "recalibrate", "backtest", "output", "backtest.", "evaluate.", "data.")


def main() -> int:
    given = arguments(USAGE, KEYS, sys.argv[1:])
    configure_logging()

    from vrnn_lab.cli.suggestions import did_you_mean
    from vrnn_lab.config.compose import from_overrides
    from vrnn_lab.config.errors import ConfigError
    from vrnn_lab.config.plain import flatten, to_dict
    from vrnn_lab.forecasting.ensemble import check_splits, load_runs
    from vrnn_lab.forecasting.forecast import recalibration_of
    from vrnn_lab.forecasting.mixture_folder import expanded
    from vrnn_lab.reports.run_table import print_run
    from vrnn_lab.runs.build import score
    from vrnn_lab.runs.folder import config_to_build
    from vrnn_lab.runs.provenance import data_changed
    from vrnn_lab.runs.trust import trust_of

    mixture, split = expanded(folders_of(given)), given.get("split", "test")
    folders = list(mixture.folders)
    if split not in ("val", "test"):
        raise ConfigError(f"split={split}: expected val or test.")
    refit, plan = bool_argument(given, "recalibrate"), plan_of(given)
    if refit and len(folders) > 1:
        raise ConfigError(
            f"recalibrate=true fits the factors of one run, and run= names {len(folders)}; do it run by run: "
            f"run={folders[0]} recalibrate=true. Each run's own factors are used here without it."
        )
    if refit and not folders_of(given)[0].is_dir():
        raise ConfigError(
            f"recalibrate=true writes into the run folder, and run={given['run']} is a packed run, which stays as it "
            "is; unpack it: python -m vrnn_lab.pack run=<file>.zip output=<folder>"
        )
    trust = trust_of(given.get("trust", ""))
    keys = flatten(to_dict(config_to_build(folders[0], trust)))
    changes = {k: v for k, v in given.items() if k.startswith(("evaluate.", "data."))}
    for key in changes:
        if key not in keys:
            raise ConfigError(f"{key}: the run's config has no such key.{did_you_mean(key, keys)}")
    if len(folders) > 1 and "data.path" not in changes and (moved := [k for k in changes if k.startswith("data.")]):
        raise ConfigError(
            f"{moved[0]}: with several runs it could make training series of one run test series of all; drop it, or "
            "name a file that none was trained on: data.path=<file>."
        )
    if plan and not refit and (idle := [k for k in changes if k.startswith("evaluate.") and k != "evaluate.draws"]):
        raise ConfigError(f"a backtest does not use {idle[0]}; the only evaluate.* key it reads is evaluate.draws.")
    check_splits(folders)
    changed = from_overrides([f"{key}={value}" for key, value in changes.items()])
    parts = load_runs(folders, changed, trust, mixture.unequal)
    if not any(key.startswith("data.") for key in changes) and data_changed(folders[0], parts.config):
        log.warning(
            "warning: the file %s has changed since %s was trained; the scores are of its present content, "
            "which may include series that the run was trained on.",
            parts.config.data.get("path"),
            folders[0],
        )
    factors = recalibration(parts, folders[0]) if refit else None
    if "recalibrate" not in given and (len(folders) > 1 or not plan):
        factors = recalibration_of(parts.model, None, folders[0])
    if plan:
        print_backtest(parts, plan, split, factors, given.get("output"))
    else:
        scores = score(parts) | _recalibrated(parts, split, factors)
        print_run(folders, scores, split, parts.data, mixture.unequal)
        result(runs=[str(folder) for folder in folders_of(given)], **scores)
    return 0


def plan_of(given: dict[str, str]):
    """Return the backtest plan of the arguments, None where no backtest is wanted.

    Raise ValueError for keys that do not go together.
    """
    settings = {key.removeprefix("backtest."): value for key, value in given.items() if key.startswith("backtest.")}
    if not bool_argument(given, "backtest"):
        if misplaced := [key for key in given if key == "output" or key.startswith("backtest.")]:
            raise ValueError(f"{misplaced[0]} belongs to a backtest; set backtest=true, or drop it.")
        return None
    if unknown := settings.keys() - {"horizon", "every", "folds"}:
        raise ValueError(f"backtest.{min(unknown)}: expected backtest.horizon, backtest.every or backtest.folds.")
    if "horizon" not in settings:
        raise ValueError("backtest.horizon is missing; set how far ahead to forecast, in the data's time unit.")
    from vrnn_lab.data.table.time_format import Span
    from vrnn_lab.forecasting.backtest import BacktestPlan

    every = Span.of("backtest.every", settings["every"]) if "every" in settings else None
    return BacktestPlan(
        Span.of("backtest.horizon", settings["horizon"]), every, int_argument(given, "backtest.folds", 5, 1)
    )


def print_backtest(parts, plan, split: str, factors, output: str | None) -> None:
    """Run a backtest, print its table, and write its values to `output`, a CSV, where one is named."""
    from vrnn_lab.core.files import write_whole
    from vrnn_lab.data.table.time_format import Clock
    from vrnn_lab.forecasting.backtest import run
    from vrnn_lab.reports.run_table import backtest, paper

    scores, values = run(parts, plan, split, factors and factors.apply)
    result(split=split, output=output, **scores)
    unit = f" {parts.data.time_unit}" if parts.data.time_unit else ""
    title = f"{split}: {values['origin'].nunique()} origins, {plan.horizon:g}{unit} ahead, {len(values)} values"
    paper().print(backtest(scores, title + (", recalibrated" if factors else "")))
    if output:
        for name in ("origin", "time") if parts.data.dates else ():
            values[name] = Clock.of_training(parts.data).texts(values[name].to_numpy("datetime64[us]"))
        write_whole(Path(output), values.to_csv(index=False))
        print(f"written  {output}")


def recalibration(parts, folder: Path):
    """Fit the recalibration factors on validation, print them, and save them in the run folder."""
    from vrnn_lab.training.fit_recalibration import recalibrate
    from vrnn_lab.training.out_of_time import measured

    factors = recalibrate(parts, measured(parts, folder))
    print("\n".join(factors.lines()))
    print(f"written  {factors.save(folder)}\n")
    return factors


def _recalibrated(parts, split: str, factors) -> dict[str, float]:
    """Return the scores of recalibrated predictions as recalibrated/<split>/..., empty without factors."""
    if factors is None:
        return {}
    from vrnn_lab.evaluation.evaluate import held_out_scores

    scores = held_out_scores(parts.model, parts.data, split, parts.protocol, parts.config.seed, factors.apply)
    return {f"recalibrated/{key}": value for key, value in scores.items()}


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
