"""First answers: predictions of the default commands on real tables, compared with baselines and a Gaussian process.

    python experiments/first_answers.py                                     everything, then the table
    python experiments/first_answers.py sets=co2,pbcseq models=rnn questions=forecast
    python experiments/first_answers.py report                              the table of what is there

Options
  sets=       which tables, by default {sets};
              there are also {further} (physionet needs physionet2012.tar.xz in the cache folder)
  models=     by default {models}; baselines are all that need no training, gp is a Gaussian process
  questions=  by default {questions}
  seeds=      by default 0; several as 0,1,2 (of the models' training; what is held out stays the same)
  folder=     where tables, runs, logs and results go, by default outputs/first_answers
  overrides=  further overrides of every model, parted by ';': overrides="trainer.max_steps=50;optim.lr=0.01"
  jobs=       processes at a time, by default 1
  timeout=    seconds after which a fit is given up, by default 3600

Each result is a JSON file; what is there is not computed again, so a command that was killed goes on. A fit that
fails or takes too long is printed, and the others go on. Exit code: 0; 1 if something failed; 2 for a wrong option.

The protocol
  * The program is used as a user would: `vrnn_lab.Forecaster("model=...")` is fitted to a table with its default
    settings. It is told which columns are the series, the time and the covariates; for a long record data.window, at
    least twice as long as what is queried; data.period where the period is known; and nothing else. It makes its own
    split into train, val and test out of what it is given. One model is fitted for each table and question.
  * Panels (many short series). forecast: the last third of each series (by number of points) is not in the file that
    the program is given; it is queried at the times of those rows. gaps: 30 % of the points of each series, drawn at
    random, but never its first or last, are not in the file, and are queried.
  * Records (few long series). forecast: the last fifth of each series is not in the file. It is queried from several
    origins in that fifth, the points up to the origin being seen then, for a fixed number of points ahead. gaps: up
    to 11 stretches of a fixed number of points are not in the file, and are queried.
  * All methods see the same values. No covariate is given to the baselines.
  * A baseline is a normal density about its guess, with one standard deviation a channel: the root mean square of its
    errors on practice questions, which the same rules make out of the training file alone. The Gaussian process has
    one kernel a channel, shared by all series, fitted by marginal likelihood to at most 400 training points; it is
    conditioned on the 400 seen points of a series that are nearest to what is queried.
  * Scores are means over all queried values that are known. A model's CRPS is the fair estimator from 99 joint paths,
    its MSE is that of its mean, its coverage that of the interval from q05 to q95. Baselines are scored in closed
    form. With one channel, CRPS and MSE are in the data's units. With several, each channel's CRPS (MSE) is divided
    by the standard deviation (variance) of its training values, and the mean over channels is taken; report.csv has
    every channel in its own units. Coverage is over all values. Its standard error takes the series of a panel, and
    the origins or gaps of a record, as independent.
  * rnn+linear_sde are the two runs of this folder queried as one, Forecaster.load([...]); they are fitted first.
  * auto is `vrnn_lab.auto(frame, question=..., budget=120)`: it gets the table alone, guesses its columns and
    periods, and for forecasts of a record gets the horizon of the queries.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
from cheap_baselines import SharedProcess, rules, training_moments, with_spread
from held_out import QUESTIONS, HeldOut, Query, channels_of, coverage_error, hold_out, score_gaussians, score_tables
from real_sets import SETS, RealSet, table_of

MODELS = ("baselines", "gp", "rnn", "vrnn", "latent_ode", "latent_sde", "linear_sde", "rnn+linear_sde", "auto")
WITHOUT_TRAINING = MODELS[:2]
BASELINES = ("mean", "last", "drift", "half", "linear", "seasonal", "seasonal drift")
PATHS = 99
BUDGET = 120  # seconds that vrnn_lab.auto is given
HOLDS = (0.85, 0.95)  # a 90 % interval is said to hold where its coverage lies within


class OptionError(ValueError):
    """A wrong option, in one message with its cure."""


@dataclass(frozen=True)
class Options:
    sets: tuple[str, ...] = tuple(name for name, real in SETS.items() if not real.further)
    models: tuple[str, ...] = MODELS
    questions: tuple[str, ...] = QUESTIONS
    seeds: tuple[int, ...] = (0,)
    folder: Path = Path("outputs/first_answers")
    overrides: tuple[str, ...] = ()
    jobs: int = 1
    timeout: int = 3600
    report: bool = field(default=False)


def parsed(arguments: list[str]) -> Options:
    """The options of a command line; OptionError for one that is unknown or has a wrong value."""
    options = Options(report="report" in arguments)
    known = {"sets": SETS, "models": MODELS, "questions": QUESTIONS}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if argument == "report":
            continue
        if not equals or key not in (*known, "seeds", "folder", "overrides", "jobs", "timeout"):
            raise OptionError(f"'{argument}' is not understood; --help lists the options.")
        if key in known:
            names = tuple(text.split(","))
            if wrong := [name for name in names if name not in known[key]]:
                raise OptionError(
                    f"{key}={text}: there is no '{wrong[0]}'; expected some of {', '.join(known[key])}."
                )
            value: Any = names
        elif key == "folder":
            value = Path(text)
        elif key == "overrides":
            value = tuple(text.split(";")) if text else ()
        else:
            value = _whole_numbers(key, text) if key == "seeds" else _whole_numbers(key, text, 1)[0]
        options = replace(options, **{key: value})
    return options


def _whole_numbers(key: str, text: str, least: int = 0) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least or (key != "seeds" and len(numbers) > 1):
        expected = "whole numbers, as 0,1,2" if key == "seeds" else f"one whole number, at least {least}"
        raise OptionError(f"{key}={text}; expected {expected}.")
    return numbers


# ---------------------------------------------------------------------------------------------- one fit


@dataclass(frozen=True)
class Job:
    """A method on a question of a table. `extra` is an override that only this row has."""

    set: str
    question: str
    model: str
    seed: int = 0
    extra: str = ""

    @property
    def label(self) -> str:
        return f"{self.model} {self.extra.removeprefix('data.')}".strip()

    @property
    def name(self) -> str:
        return f"{self.set}-{self.question}-{self.label.replace(' ', '-').replace('=', '_')}-{self.seed}"


def jobs_of(options: Options) -> list[Job]:
    """The jobs in their order: first what needs no training."""
    jobs = []
    for model in options.models:
        seeds = (0,) if model in WITHOUT_TRAINING else options.seeds
        for name in options.sets:
            extras = (
                [""]
                if model in WITHOUT_TRAINING or model == "auto" or "+" in model
                else ["", *(key for key in SETS[name].extra if _takes(key))]
            )
            jobs += [Job(name, q, model, seed, key) for q in options.questions for seed in seeds for key in extras]
    return jobs


def _takes(override: str) -> bool:
    """Return whether data=table has the key of an override in this version of the program."""
    from vrnn_lab.data.table.dataset import Table

    return override.partition("=")[0].removeprefix("data.") in signature(Table).parameters


def overrides_of(real: RealSet, job: Job, more: Iterable[str]) -> list[str]:
    """Return the overrides that a user types behind model=<model>."""
    typed = [f"model={job.model}", f"seed={job.seed}"]
    typed += [f"data.window={real.window}"] if real.window else []
    typed += [f"data.period={real.period:g}"] if real.period and _takes("data.period=") else []
    return [*typed, *([job.extra] if job.extra else []), *more]


def run_job(job: Job, folder: Path, overrides: tuple[str, ...]) -> None:
    """Do a job and write its results."""
    real = SETS[job.set]
    task = hold_out(real, table_of(real, folder / "data"), job.question)
    began = time.perf_counter()
    if job.model == "baselines":
        moments = training_moments(real, task.given, channels_of(real, task.given))
        for name, rule in rules(real).items():
            gaussians = with_spread(real, rule, task.given, job.question, moments)
            _write(folder, replace(job, model=name), task, score_gaussians(real, task.queries, gaussians), began)
    elif job.model == "gp":
        process = SharedProcess(real, task.given, training_moments(real, task.given, channels_of(real, task.given)))
        fitted = time.perf_counter() - began
        _write(folder, job, task, score_gaussians(real, task.queries, process), began, fit_s=fitted)
    else:
        if "+" in job.model:
            forecaster, fitted, typed = together(job, folder), 0.0, []
        else:
            run = folder / "runs" / job.name
            shutil.rmtree(run, ignore_errors=True)  # what a killed fit left
            typed = overrides_of(real, job, overrides)
            if job.model == "auto":
                forecaster, fitted = chosen(real, task, job, run)
            else:
                forecaster, fitted = fit(real, task, typed, run)
        scores = score_tables(real, task.queries, lambda query: predict(real, forecaster, query))
        _write(folder, job, task, scores, began, fit_s=fitted, typed=typed, overrides=list(overrides))


def fit(real: RealSet, task: HeldOut, typed: list[str], folder: Path):
    """The fitted Forecaster and the seconds that it took."""
    import vrnn_lab

    began = time.perf_counter()
    values = channels_of(real, task.given)
    forecaster = vrnn_lab.Forecaster(*typed, folder=folder)
    forecaster.fit(task.given, id=real.id, time="time", values=values, static=real.static)
    return forecaster, time.perf_counter() - began


def chosen(real: RealSet, task: HeldOut, job: Job, folder: Path):
    """The Forecaster that vrnn_lab.auto finds, and the seconds that it took."""
    import vrnn_lab

    began = time.perf_counter()
    columns = [name for name in ("id", "time") if name in task.given] + channels_of(real, task.given)
    asked: dict[str, Any] = {"question": "fill" if job.question == "gaps" else "ahead"}
    if job.question == "forecast" and not real.panel:
        asked["horizon"] = max(map(_reach, task.queries))
    frame = task.given[[*columns, *real.static]]
    found = vrnn_lab.auto(frame, budget=BUDGET, folder=folder, seed=job.seed, **asked)
    return found, time.perf_counter() - began


def _reach(query: Query) -> Any:
    """Return the time from the last observation of a query to its last queried time."""
    times = [query.queried["time"].max(), query.seen["time"].max()]
    if isinstance(times[0], str):
        times = [pd.Timestamp(moment) for moment in times]
    return times[0] - times[1]


def together(job: Job, folder: Path) -> Any:
    """The Forecaster of several fitted runs; RuntimeError where one is not there."""
    import vrnn_lab

    runs = [folder / "runs" / replace(job, model=model).name for model in job.model.split("+")]
    if lacking := [run for run in runs if not (run / "recalibration.json").is_file()]:
        raise RuntimeError(f"{lacking[0]} is not there; fit {job.model.replace('+', ' and ')} first.")
    return vrnn_lab.Forecaster.load(runs)


def predict(real: RealSet, forecaster: Any, query: Query) -> pd.DataFrame:
    """The program's prediction at the queried times; of the queried rows it gets nothing but series and time."""
    keys = ["id", "time"] if real.id else ["time"]
    return forecaster.predict(query.seen, at=query.queried[keys], paths=PATHS)


def _write(folder: Path, job: Job, task: HeldOut, scores: dict, began: float, **more: Any) -> None:
    real = SETS[job.set]
    std = {name: moments[1] for name, moments in training_moments(real, task.given, list(scores)).items()}
    for name, of_channel in scores.items():
        of_channel["std"] = std[name]
    result = {"set": job.set, "question": job.question, "model": job.label, "seed": job.seed, **more}
    result |= {"channels": scores, "seconds": time.perf_counter() - began}
    path = folder / "results" / f"{job.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(path)


# ---------------------------------------------------------------------------------------------- all fits


def run_all(options: Options) -> int:
    """Do what is not there yet, each job in a process of its own; how many failed."""
    there = {path.stem: json.loads(path.read_text()) for path in (options.folder / "results").glob("*.json")}
    for result in there.values():
        if result.get("overrides", list(options.overrides)) != list(options.overrides):
            raise OptionError(
                f"folder={options.folder} holds results with overrides={';'.join(result['overrides']) or '(none)'}; "
                "choose another folder."
            )
    left = [job for job in jobs_of(options) if not _done(job, there)]
    for name in dict.fromkeys(job.set for job in left):
        table_of(SETS[name], options.folder / "data")
    with ThreadPoolExecutor(options.jobs) as pool:
        numbered = list(enumerate(left, 1))
        return sum(pool.map(lambda pair: _apart(pair[1], options, f"{pair[0]}/{len(left)}"), numbered))


def _done(job: Job, there: dict[str, Any]) -> bool:
    names = rules(SETS[job.set]) if job.model == "baselines" else [job.model]
    return all(replace(job, model=name).name in there for name in names)


def _apart(job: Job, options: Options, place: str) -> bool:
    """Do a job in its own process; True if it failed."""
    log = options.folder / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    task = json.dumps({"job": vars(job), "folder": str(options.folder), "overrides": options.overrides})
    command = [sys.executable, __file__, "--job", task]
    began, why = time.perf_counter(), ""
    with log.open("w") as output:
        try:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=options.timeout,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=False,
            )
            why = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"no end after {options.timeout} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    end = f"FAILED ({why}): {lines[-1] if lines else ''} [{log}]" if why else "done"
    print(f"{place} {job.set} {job.question} {job.label} seed {job.seed}: {time.perf_counter() - began:.0f} s, {end}")
    return bool(why)


# ---------------------------------------------------------------------------------------------- the table


def results(folder: Path, options: Options) -> pd.DataFrame:
    """One row a set, question, model and channel: means over seeds, in the channel's units."""
    rows = []
    for path in sorted((folder / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if result["set"] in options.sets and result["question"] in options.questions:
            keys = {key: result[key] for key in ("set", "question", "model", "seed")}
            keys["fit_s"] = result.get("fit_s", 0.0)
            rows += [{**keys, "channel": channel, **scores} for channel, scores in result["channels"].items()]
    return pd.DataFrame(rows)


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a set, question and model: over channels as the protocol says, then the mean over seeds."""
    rows_of_sets = []
    for (name, kind, model, seed), each in rows.groupby(["set", "question", "model", "seed"], sort=False):
        single, count = len(each) == 1, each["values"].sum()
        unit = 1.0 if single else each["std"]
        scores = {"crps": (each["crps"] / unit).mean(), "mse": (each["mse"] / unit**2).mean()}
        scores["coverage"] = (each["coverage"] * each["values"]).sum() / count
        kept = "blocks" in each and each["blocks"].notna().all()  # not in results of earlier versions
        scores["error"] = coverage_error(each["blocks"]) if kept else float("nan")
        keys = {"set": name, "question": kind, "model": model, "seed": seed, "fit_s": each["fit_s"].iloc[0]}
        rows_of_sets.append({**keys, **scores, "values": count})
    return (
        pd.DataFrame(rows_of_sets)
        .groupby(["set", "question", "model"], sort=False)
        .agg(
            crps=("crps", "mean"),
            mse=("mse", "mean"),
            coverage=("coverage", "mean"),
            error=("error", "mean"),
            values=("values", "first"),
            seeds=("seed", "count"),
            fit_s=("fit_s", "mean"),
        )
        .reset_index()
    )


def tables(scores: pd.DataFrame) -> str:
    """Markdown: for each question an overview and a summary, then every score."""
    text = ["# First answers: default commands on real tables", ""]
    for kind in [question for question in QUESTIONS if question in set(scores["question"])]:
        of_kind = scores[scores["question"] == kind]
        text += [
            f"## {kind}: CRPS / coverage of the 90 % interval",
            "",
            *_overview(of_kind),
            "",
            *_summary(of_kind),
            "",
        ]
    text += ["## Every score", ""]
    text += ["| set | question | method | CRPS | MSE | 90 % coverage ± error | values | seeds | fit, s |"]
    text += ["|---|---|---|---|---|---|---|---|---|"]
    for (_, _), each in scores.groupby(["set", "question"], sort=False):
        for row in sorted(each.itertuples(), key=lambda row: row.crps):
            numbers = f"{row.crps:.4g} | {row.mse:.4g} | {row.coverage:.3f} ± {row.error:.3f}"
            rest = f"{row.values} | {row.seeds} | {row.fit_s:.0f}"
            text.append(f"| {row.set} | {row.question} | {row.model} | {numbers} | {rest} |")
    return "\n".join(text) + "\n"


def _overview(scores: pd.DataFrame) -> list[str]:
    """A row a set: the best baseline, the Gaussian process, and the models."""
    others = [m for m in ("gp", *MODELS[2:]) if m in set(scores["model"])]
    others += sorted(set(scores["model"]) - set(others) - set(BASELINES))
    text = [f"| set | values | best baseline | {' | '.join(others)} |", "|---" * (len(others) + 3) + "|"]
    for name, each in scores.groupby("set", sort=False):
        row = each.set_index("model")
        best = min(each["crps"])
        shown = lambda m, row=row, best=best: _cell(row.crps[m], row.coverage[m], row.crps[m] == best)
        cheap = row.crps[[m for m in BASELINES if m in row.index]]
        first = f"{cheap.idxmin()} {shown(cheap.idxmin())}" if len(cheap) else ""
        real = SETS[str(name)]
        unit = "stds" if each["several"].any() else real.unit or "its units"
        count = each["values"].iloc[0]
        cells = [shown(m) if m in row.index else "" for m in others]
        text.append(f"| {name} ({unit}) | {count} | {first} | {' | '.join(cells)} |")
    return text


def _cell(crps: float, coverage: float, best: bool) -> str:
    bold = "**" if best else ""
    return f"{bold}{crps:.3g}{bold} / {coverage:.2f}"


def _summary(scores: pd.DataFrame) -> list[str]:
    """Count how often intervals hold, and how often the best default model is as good as the best baseline."""
    by_set = {str(name): each.set_index("model") for name, each in scores.groupby("set", sort=False)}
    models = [m for m in MODELS[2:] if any(m in each.index for each in by_set.values())]
    text = []
    for model in ("gp", *models):
        coverages = [(each.coverage[model], each.error[model]) for each in by_set.values() if model in each.index]
        if coverages:
            held = sum(HOLDS[0] <= coverage <= HOLDS[1] for coverage, _ in coverages)
            errors = [0.0 if error != error else 2 * error for _, error in coverages]  # NaN: not known
            near = sum(
                HOLDS[0] - error <= coverage <= HOLDS[1] + error
                for (coverage, _), error in zip(coverages, errors, strict=True)
            )
            text.append(
                f"* {model}: coverage within {HOLDS[0]} to {HOLDS[1]} on {held} of {len(coverages)} sets, and no "
                f"more than two standard errors outside on {near}."
            )
    single = [model for model in models if model != "auto"]
    for who, ours in (("The best default model", single), ("auto", ["auto"])):
        for title, rivals in (("baseline", BASELINES), ("baseline or Gaussian process", (*BASELINES, "gp"))):
            if ratios := _ratios(by_set, ours, rivals):
                won = sum(ratio <= 1 for ratio in ratios.values())
                shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
                text.append(f"* {who} is at or below the best {title} in CRPS on {won} of {len(ratios)} sets")
                text[-1] += f" (ratios: {shown})."
    return text


def _ratios(by_set: dict[str, pd.DataFrame], ours: Iterable[str], rivals: Iterable[str]) -> dict[str, float]:
    """The lowest CRPS of some methods as a multiple of that of others, by set, where both are there."""
    ratios = {}
    for name, each in by_set.items():
        mine, theirs = ([m for m in group if m in each.index] for group in (ours, rivals))
        if mine and theirs:
            ratios[name] = each.crps[mine].min() / each.crps[theirs].min()
    return ratios


def report(options: Options) -> int:
    """Print and write the table of all results in the folder."""
    rows = results(options.folder, options)
    if rows.empty:
        print(f"error: {options.folder}/results holds no result of these sets and questions.", file=sys.stderr)
        return 1
    scores = pooled(rows)
    several = rows.groupby("set")["channel"].nunique() > 1
    scores["several"] = scores["set"].map(several)
    scores["place"] = scores["set"].map(list(SETS).index)
    text = tables(scores.sort_values(["place", "question"], kind="stable"))
    (options.folder / "table.md").write_text(text)
    rows.drop(columns="blocks", errors="ignore").to_csv(options.folder / "report.csv", index=False)
    print(text)
    print(f"written: {options.folder / 'table.md'}, and by channel, in units, {options.folder / 'report.csv'}")
    return 0


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        further = ", ".join(name for name, real in SETS.items() if real.further)
        lists = {
            "sets": ", ".join(Options().sets),
            "further": further,
            "models": ",".join(MODELS),
            "questions": ",".join(QUESTIONS),
        }
        print((__doc__ or "").format(**lists))
        return 0
    if arguments[:1] == ["--job"]:
        task = json.loads(arguments[1])
        run_job(Job(**task["job"]), Path(task["folder"]), tuple(task["overrides"]))
        return 0
    try:
        options = parsed(arguments)
        failed = 0 if options.report else run_all(options)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return report(options) or int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
