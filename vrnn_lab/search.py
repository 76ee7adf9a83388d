"""Search for good values of a model's keys: python -m vrnn_lab.search; the same command resumes the same search."""

import hashlib
import importlib.util
import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from vrnn_lab.cli.arguments import configure_logging, outlive_readers, refuse_repeated, run_command
from vrnn_lab.cli.result import HELP, result
from vrnn_lab.cli.shown_text import complain, say, terminal_cell
from vrnn_lab.cli.signals import install
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.compose import NEWER, choices, compose, is_volatile
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, groups
from vrnn_lab.config.plain import flatten, to_dict
from vrnn_lab.config.validate import target
from vrnn_lab.training import length

USAGE = """python -m vrnn_lab.search [model=vrnn] [data=curves] [trials=40] [<setting>=<value>] [<key>=<value>] ...

Trains trial after trial, each with values that earlier ones make promising, chosen by val/loss. Trial 0 is the config
as it is. The same command resumes the same search, also after a crash, and ends at the same total.

Settings
  trials=40         in all; the same command with more goes on
  seeds=1           runs a trial; its score is their mean
  study=<name>      by default made of model, data and a hash of all that is fixed and searched
  storage=<url>     any database Optuna knows, by default sqlite:///outputs/search/<study>/study.db; with one that
                    several machines reach, each started with the same command, they share the search
  workers=1         processes; several need a launcher: hydra/launcher=joblib, submitit_local, submitit_slurm, ray
  failures=5        stop after so many failed trials in a row
  pruner=median     stop trials that are behind the median of the others at the same step or epoch | none
  startup=5         trials that end before any is pruned
  warmup=<n>        training steps of a trial before it may be pruned (epochs where trainer.max_epochs is set, percent
                    of the time where trainer.max_time is set); by default a fifth of all
  sampler=tpe       tree-structured Parzen estimator, seeded | random

The space is conf/search/<model>.yaml. Narrow it, or take another file:
  space.model.width=[32,64]  space.optim.lr.low=1e-4  space.optim.lr.high=1e-3  space=my_space.yaml
Any other key=value is fixed and leaves the space: optim.lr=1e-3, trainer.max_epochs=40, experiment=order, seed=3.
--config-dir <folder> adds configs of your own, with search/<model>.yaml among them.

View it, while it runs or later:  optuna-dashboard sqlite:///outputs/search/<study>/study.db"""
USAGE += "\n" + HELP

SETTINGS = {
    "trials": 40,
    "seeds": 1,
    "workers": 1,
    "failures": 5,
    "startup": 5,
    "warmup": None,
    "study": None,
    "storage": None,
    "sampler": "tpe",
    "pruner": "median",
    "space": None,
}
LEAST = {"trials": 1, "seeds": 1, "workers": 1, "failures": 1, "startup": 0, "warmup": 0}
ENOUGH = 10  # completed trials that importances need to be informative
LAUNCHING = ("hydra/launcher=", "hydra.launcher.", "hydra.job.")


class Call:
    """Sort a command line into settings, changes of the space, fixed overrides, and those for the launcher.

    Raise ConfigError for what it cannot place.
    """

    def __init__(self, argv: list[str]):
        self.settings: dict[str, Any] = dict(SETTINGS)
        self.changes: list[str] = []
        self.fixed: list[str] = []
        self.launching: list[str] = []
        refuse_repeated(word for word in argv if not word.startswith("-"))
        dirs: list[str] = []
        rest = iter(argv)
        for word in rest:
            flag, equals, value = word.partition("=")
            if flag in ("--config-dir", "-cd"):
                dirs.append(value if equals else next(rest, ""))
            else:
                self._sort(word)
        self.dirs = tuple(str(Path(d).absolute()) for d in dirs)

    def _sort(self, word: str) -> None:
        key, equals, value = word.partition("=")
        if word.startswith("-") or not equals:
            raise ConfigError(
                f"'{word}' is not understood; expected key=value.{did_you_mean(word.lstrip('-'), SETTINGS)}"
            )
        if key in SETTINGS:
            self.settings[key] = _whole(key, value) if key in LEAST else value
        elif key.startswith("space."):
            self.changes.append(word)
        elif key.startswith("hydra"):
            if not word.startswith(LAUNCHING):
                raise ConfigError(
                    f"{key}: a search does not use this key; of Hydra's it takes hydra/launcher and that launcher's."
                )
            self.launching.append(word)
        else:
            self.fixed.append(_fixable(key, word))


def _whole(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < LEAST[key]:
        raise ConfigError(f"{key}={value}: expected a whole number from {LEAST[key]}.")
    return int(value)


def _parsed(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(f"{word}: expected key=value, such as model=vrnn or optim.lr=1e-3.") from error


def _fixable(key: str, word: str) -> str:
    if key in ("sweep", "resume", "retry"):
        raise ConfigError(
            f"{key}= is for vrnn_lab.run; a search is named by study=<name>, and the same command resumes it."
        )
    known = [*SETTINGS, *groups(), "seed"]
    if "." not in key and key.lstrip("+~") not in known and did_you_mean(key, SETTINGS):
        raise ConfigError(f"{word}: there is no such setting or group.{did_you_mean(key, known)} --help lists all.")
    if _parsed(word).is_sweep_override():
        values = word.partition("=")[2]
        raise ConfigError(f"{word}: a search does not sweep over values; set space.{key}=[{values}] to search them.")
    return word


def plan_of(call: Call) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the plan of a search, the facts that identify it, and the values of its first trial.

    Raise ConfigError where the search cannot work.
    """
    from vrnn_lab.sweeps import search_space
    from vrnn_lab.sweeps.study import PRUNERS, SAMPLERS, SearchPlan

    for key, allowed in {"sampler": SAMPLERS, "pruner": PRUNERS}.items():
        if call.settings[key] not in allowed:
            raise ConfigError(f"{key}={call.settings[key]}: expected one of {', '.join(allowed)}.")
    parallel = [w for w in call.launching if w.startswith("hydra/launcher=") and not w.endswith("=basic")]
    if call.settings["workers"] > 1 and not parallel:
        raise ConfigError(
            f"workers={call.settings['workers']} need a launcher: hydra/launcher=joblib (pip install "
            "hydra-joblib-launcher), submitit_local, submitit_slurm or ray."
        )
    chosen = choices(call.fixed, call.dirs)
    file = call.settings["space"]
    searched = search_space.read(Path(file) if file else search_space.file_of(chosen["model"], call.dirs))
    searched = search_space.changed(searched, call.changes, call.fixed)
    base = search_space.vet(searched, call.fixed, call.dirs)
    config = {k: v for k, v in flatten(to_dict(base)).items() if not is_volatile(k)}
    config = {k: v for k, v in config.items() if k not in NEWER or v != NEWER[k]}
    facts = {"config": config, "space": searched, "seeds": call.settings["seeds"]}
    code = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    study = call.settings["study"] or f"{chosen['model']}-{chosen['data']}-{code}"
    folder = Path("outputs/search", study).absolute()
    model: Any = target(base.model["_target_"], "model")
    total = length.total(base.trainer, model.usual_steps or length.STEPS)
    plan = SearchPlan(
        study=study,
        storage=_storage(call.settings["storage"], folder),
        folder=folder,
        **{key: call.settings[key] for key in ("trials", "failures", "seeds", "sampler", "pruner", "startup")},
        warmup=total // 5 if call.settings["warmup"] is None else call.settings["warmup"],
        fixed=tuple(call.fixed),
        dirs=call.dirs,
        space=searched,
        seed=base.seed,
        bar=not call.launching and sys.stderr.isatty(),
        since=datetime.now(),
    )
    return plan, facts, search_space.defaults(searched, flatten(to_dict(base)) | chosen)


def _storage(url: str | None, folder: Path) -> str:
    if url is None:
        return f"sqlite:///{folder / 'study.db'}"
    scheme, slashes, path = url.partition(":///")
    if scheme == "sqlite" and slashes and path:  # workers may start in another folder
        return f"sqlite:///{Path(path).absolute()}"
    return url


def launch(plan: Any, workers: int, launching: list[str]) -> None:
    """Run the workers as jobs of a Hydra sweep by the chosen launcher; without one, work in this process."""
    from vrnn_lab.sweeps.trial import work

    if not launching:
        work(plan)
        return
    import hydra

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if "hydra/launcher=joblib" in launching and not any(w.startswith("hydra.launcher.n_jobs=") for w in launching):
        launching = [*launching, f"hydra.launcher.n_jobs={workers}"]
    numbers = ",".join(map(str, range(workers)))
    where = [f"hydra.sweep.dir='{plan.folder}'", "hydra.sweep.subdir=."]
    sys.argv[1:] = ["-m", *launching, *where, f"+worker={numbers}"]

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def worker(config) -> None:
        work(plan)

    worker()  # pyright: ignore[reportCallIssue] - Hydra gives the config


# ---- results ------------------------------------------------------------------------------------------------


def show(plan: Any) -> int:
    """Print the best trials, the keys' importances, and the winner as a command and as an experiment.

    Return the exit code: 1 after too many failed trials in a row.
    """
    from optuna.trial import TrialState

    from vrnn_lab.sweeps.study import failures_in_a_row, open_study, planned_trials, reason

    study = open_study(plan)
    ended = [(slot.number, slot.end) for slot in planned_trials(study, plan) if slot.end]
    kinds = {state: [(n, t) for n, t in ended if t.state == state] for state in TrialState}
    complete, failed = kinds[TrialState.COMPLETE], kinds[TrialState.FAIL]
    counts = {"completed": len(complete), "pruned": len(kinds[TrialState.PRUNED]), "failed": len(failed)}
    print(f"\n{len(ended)} of {plan.trials} trials have ended: {', '.join(f'{n} {k}' for k, n in counts.items())}")
    for number, trial in failed:
        say(f"  failed   trial {number}: {reason(trial)}")
    best = _show_best(plan, study, sorted(complete, key=lambda each: each[1].value)) if complete else None
    result(study=plan.study, folder=str(plan.folder), trials=plan.trials, ended=len(ended), **counts, best=best)
    if len(ended) < plan.trials:
        print("the same command runs the others")
    row = failures_in_a_row(study, plan)
    if len(row) >= plan.failures:
        complain(
            f"error: stopped after {len(row)} failed trials in a row (failures={plan.failures}); the last: "
            f"{reason(row[-1])}"
        )
        return 1
    return 0


def _show_best(plan: Any, study: Any, ranked: list[tuple[int, Any]]) -> dict[str, Any]:
    """Print the best trials, and write the best as an experiment; return it as --json prints it."""
    from rich.table import Table

    from vrnn_lab.cli.terminal import Terminal
    from vrnn_lab.core.files import write_whole
    from vrnn_lab.reports.run_table import number
    from vrnn_lab.sweeps.search_space import overrides

    test_metrics = [k for k in ranked[0][1].user_attrs if k.startswith("test/")]
    table = Table(title="best by val/loss", title_justify="left", box=None)
    for column in ("trial", "val/loss", *plan.space, *test_metrics):
        table.add_column(column, justify="right", no_wrap=True)
    for place, trial in ranked[:5]:
        values = trial.user_attrs["values"]
        shown = [str(values[key]) for key in plan.space]
        tests = [number(trial.user_attrs.get(key)) for key in test_metrics]
        table.add_row(*map(terminal_cell, [str(place), number(trial.value), *shown, *tests]))
    console = Terminal(width=None if sys.stdout.isatty() else 300)
    console.print(table)
    print("the test metrics are shown for information; they chose no trial")
    weights = _importances(study) if len(ranked) >= ENOUGH else {}
    if weights:
        say("importance   " + ", ".join(f"{key} {weight:.2f}" for key, weight in weights.items()))
    place, best = ranked[0]
    chosen = [*plan.fixed, *overrides(best.user_attrs["values"])]
    where = [word for d in plan.dirs for word in ("--config-dir", d)]
    file = plan.folder / "conf" / "experiment" / "best.yaml"
    write_whole(file, experiment_of(chosen, plan.dirs, f"trial {place} of {plan.study}, val/loss {best.value:.6g}"))
    folder = plan.folder / str(place)
    say(f"run          {folder}{'' if folder.exists() else ' on ' + best.user_attrs.get('host', 'another machine')}")
    command = shlex.join(["python", "-m", "vrnn_lab.run", *where, *chosen])
    say(f"command      {command}")
    say(f"experiment   python -m vrnn_lab.run --config-dir {shlex.quote(str(file.parent.parent))} experiment=best")
    return {
        "trial": place,
        "score": best.value,
        "values": best.user_attrs["values"],
        "importances": weights,
        "run": str(folder),
        "command": command,
        "experiment": str(file),
    }


def _importances(study: Any) -> dict[str, float]:
    """Return each key's share of the difference between good and bad trials (PED-ANOVA, Watanabe et al. 2023)."""
    import warnings

    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError):  # too few trials, or all of them equal
            return {}


def experiment_of(overrides: list[str], dirs: tuple[str, ...], title: str) -> str:
    """Return an experiment file that composes to the config of these overrides: their choices and other values."""
    chosen = {k: v for k, v in choices(overrides, dirs).items() if k not in ("experiment", "trick")}
    plain = flatten(to_dict(compose([f"{k}={v}" for k, v in chosen.items()], dirs)))
    values: dict[str, Any] = {}
    for key, value in flatten(to_dict(compose(overrides, dirs))).items():
        if plain.get(key, ...) != value and key not in ("sweep", "retry"):
            *parents, leaf = key.split(".")
            node = values
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    body = {"defaults": [{f"override /{k}": v} for k, v in chosen.items()], **values}
    return f"# @package _global_\n# {title}\n{yaml.safe_dump(body, sort_keys=False)}"


def _words(axis: dict[str, Any]) -> str:
    if "choices" in axis:
        return ", ".join(map(str, axis["choices"]))
    step = f", steps of {axis['step']}" if "step" in axis else ""
    return f"{axis['low']} to {axis['high']}{', on a log scale' if axis.get('log') else ''}{step}"


def main() -> int:
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    call = Call(argv)
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("a search needs Optuna: pip install 'vrnn_lab[search]'")
    configure_logging()
    import optuna

    from vrnn_lab.sweeps import study

    install()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plan, facts, first = plan_of(call)
    plan.folder.mkdir(parents=True, exist_ok=True)
    study.prepare(plan, facts, first)
    say(f"study    {plan.study}\nfolder   {plan.folder}\nview     optuna-dashboard {study.shown(plan.storage)}")
    for key, axis in plan.space.items():
        say(f"space    {key}: {_words(axis)}")
    if not first:
        print("         the config as it is lies outside the space, so the values of trial 0 are drawn too")
    try:
        launch(plan, call.settings["workers"], call.launching)
    finally:
        code = show(plan)
    return code


if __name__ == "__main__":
    outlive_readers()
    sys.exit(run_command(main, scripts=True))
