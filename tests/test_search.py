"""A search keeps its total, its trials and its words, whoever works on it and whenever they are killed."""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from optuna.trial import TrialState

from helpers.commands import CUT, TINY, command, last_of_each, metrics
from vrnn_lab import search
from vrnn_lab.cli.arguments import configure_logging, run_command
from vrnn_lab.config.compose import choices, compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, options
from vrnn_lab.config.plain import flatten, to_dict
from vrnn_lab.config.validate import check
from vrnn_lab.runs.folder import config_of, metrics_of
from vrnn_lab.sweeps import search_space, study, trial
from vrnn_lab.training import fit

LR = [*TINY, "optim=adam", "model.depth=1"]  # of the space only optim.lr is left
WHOLE = [*TINY, "study=s", "trials=2", "seeds=2"]
IN_THE_SECOND_SEED = {"module": "vrnn_lab.models.rnn", "owner": "RNN", "name": "training_step", "call": 15}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_in(monkeypatch, capsys):
    """The command in this process: its exit code and what it prints."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["search", *last_of_each(arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            return search.main(), capsys.readouterr().out
        finally:
            signal.signal(signal.SIGTERM, before)

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A search that nothing disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = command("search", *WHOLE, folder=folder)
    return folder / "outputs" / "search" / "s", done.stdout


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


@pytest.fixture
def stub(monkeypatch):
    """Trials without training: what a function makes of their config, which is composed once."""
    base = compose(LR)

    def composed(overrides, dirs):
        values = [o.split("=") for o in overrides if "." in o or o.startswith("seed")]
        return OmegaConf.merge(base, OmegaConf.from_dotlist([f"{k}={v}" for k, v in values]))

    def put(score) -> list:
        seen: list = []

        def run(config, folder, overrides, choices, watching=()):
            seen.append(config)
            return {"val/loss": score(config, watching[0])}

        monkeypatch.setattr(trial.fit, "run", run)
        monkeypatch.setattr(trial, "compose", composed)
        monkeypatch.setattr(search, "experiment_of", lambda *a: "")
        return seen

    return put


# ---- what a search leaves -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_trains_what_was_asked_and_prints_the_best(whole):
    folder, printed = whole
    trials = study_in(folder).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
    assert {p.parent.name for p in folder.glob("*/*/metrics.json")} == {"seed=0", "seed=1"}
    for each in trials:
        scores = [metrics(folder / str(each.number) / f"seed={s}")["val/loss"] for s in (0, 1)]
        assert each.value == pytest.approx(sum(scores) / 2)
        assert list(each.intermediate_values) == list(range(1, 5))  # two epochs of two seeds
    assert "2 of 2 trials have ended: 2 completed" in printed and f"{min(t.value for t in trials):.4g}" in printed


@pytest.mark.slow
def test_the_first_trial_is_the_config_as_it_is(whole):
    folder, _ = whole
    first, base = config_of(folder / "0" / "seed=0"), compose(TINY)
    assert {k: v for k, v in first.items() if k != "sweep"} == {k: v for k, v in base.items() if k != "sweep"}


@pytest.mark.slow
def test_the_printed_command_and_the_experiment_file_give_the_winners_config(whole):
    folder, printed = whole
    best = config_of(folder / str(study_in(folder).best_trial.number) / "seed=0")
    again = next(line for line in printed.splitlines() if line.startswith("command"))
    named = next(line for line in printed.splitlines() if line.startswith("experiment"))
    overrides = shlex.split(again)[4:]
    _, _, _, _, flag, conf, name = shlex.split(named)
    assert flag == "--config-dir" and name == "experiment=best"
    for config in (compose(overrides), compose([name], (conf,))):
        assert {k: v for k, v in config.items() if k != "sweep"} == {k: v for k, v in best.items() if k != "sweep"}


def test_an_experiment_file_holds_what_tricks_and_experiments_set(tmp_path):
    chosen = ["experiment=order", "model=vrnn_gmm", "trick=[clip,wide]", "optim=rmsprop", "optim.lr=0.002", "seed=3"]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "best.yaml").write_text(search.experiment_of(chosen, (), "a title"))
    strip = lambda config: {k: v for k, v in config.items() if k != "sweep"}
    assert strip(compose(["experiment=best"], (str(tmp_path),))) == strip(compose(chosen))


# ---- killed, and shared -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_to_the_same_numbers(whole, here, run_in, monkeypatch):
    folder = here / "outputs" / "search" / "s"
    cut = CUT.format(**IN_THE_SECOND_SEED, signal="KILL")
    done = command("search", *WHOLE, folder=here, before=cut, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [s.number for s in study.slots(study_in(folder).trials) if s.end] == [0]
    first = (folder / "1" / "seed=0" / "metrics.json").stat().st_mtime_ns
    monkeypatch.setattr(fit.model_figures, "figures", lambda *a, **k: {})
    code, printed = run_in(*WHOLE)
    assert code == 0 and "2 of 2 trials have ended: 2 completed" in printed
    assert (folder / "1" / "seed=0" / "metrics.json").stat().st_mtime_ns == first
    for run in ("0/seed=0", "0/seed=1", "1/seed=0", "1/seed=1"):
        assert metrics(folder / run) == metrics(whole[0] / run)
    ends = [s.end for s in study.slots(study_in(folder).trials)]
    assert [e.intermediate_values for e in ends] == [t.intermediate_values for t in study_in(whole[0]).trials]


@pytest.mark.slow
def test_two_workers_make_as_many_trials_as_asked_for(here):
    few = [*TINY, "study=j", "trials=3", "trainer.max_epochs=1", "workers=2", "hydra/launcher=joblib"]
    command("search", *few, folder=here, fresh=True)
    trials = study_in(here / "outputs" / "search" / "j").trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    began = [p.read_text().count("torch") for p in sorted((here / "outputs/search/j").glob("*/run.log"))]
    assert began == [1] * 3  # each was begun once


@pytest.mark.slow
def test_a_script_reads_the_best_trial(here, stub, monkeypatch, capfd):
    stub(lambda config, watch: config.optim.lr)
    monkeypatch.setattr(sys, "argv", ["search", *LR, "study=m", "trials=3", "--json", "--quiet"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_command(search.main, scripts=True) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    said = json.loads(capfd.readouterr().out)
    best = min(study_in(here / "outputs/search/m").trials, key=lambda t: t.value)
    assert (said["ended"], said["completed"], said["failed"]) == (3, 3, 0)
    assert said["best"]["score"] == best.value == said["best"]["values"]["optim.lr"]
    assert said["best"]["command"].startswith("python -m vrnn_lab.run")


@pytest.mark.slow
def test_more_trials_go_on_and_fewer_change_nothing(here, run_in, stub):
    seen = stub(lambda config, watch: config.optim.lr)
    run_in(*LR, "study=m", "trials=2")
    run_in(*LR, "study=m", "trials=5")
    assert len(seen) == 5
    code, printed = run_in(*LR, "study=m", "trials=3")
    assert code == 0 and len(seen) == 5 and "3 of 3" in printed
    assert len({c.optim.lr for c in seen}) == 5  # no draw is repeated


def plan_for(*arguments: str) -> study.SearchPlan:
    plan, facts, first = search.plan_of(search.Call(last_of_each([*LR, *arguments])))
    plan.folder.mkdir(parents=True)
    study.prepare(plan, facts, first)
    return plan


def test_workers_that_begin_together_make_the_first_trial_once(here, monkeypatch):
    plan, facts, first = search.plan_of(search.Call([*LR, "study=t", "trials=3"]))
    plan.folder.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(study, "slots", lambda trials: [])  # as three that look before any of them has queued a trial
        for _ in range(3):
            study.prepare(plan, facts, first)
    drawn = []
    for number in range(3):
        with study.claimed(study.open_study(plan), plan) as found:
            assert found is not None and found[0] == number
            drawn.append(search_space.suggest(found[1], plan.space))
            found[1].study.tell(found[1], 1.0)
    assert len({str(values) for values in drawn}) == 3 and drawn[0] == first | drawn[0]
    with study.claimed(study.open_study(plan), plan) as found:
        assert found is None


def begun_elsewhere(plan: study.SearchPlan, seconds: int) -> None:
    """Trial 0 is at work on another machine, whose last sign of life was so many seconds ago."""
    opened = study.open_study(plan)
    with study.claimed(opened, plan) as (_, begun):
        begun.set_user_attr("host", "another")
    with sqlite3.connect(plan.folder / "study.db") as database:
        database.execute(f"update trial_heartbeats set heartbeat = datetime('now', '-{seconds} seconds')")


@pytest.mark.parametrize(("seconds", "number"), [(study.GRACE + 60, 0), (0, 1)])
def test_a_trial_of_another_machine_is_taken_when_its_heart_has_stopped(seconds, number, here):
    plan = plan_for("study=h", "trials=2")
    begun_elsewhere(plan, seconds)
    with study.claimed(study.open_study(plan), plan) as found:
        assert found is not None and found[0] == number


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(here):
    plan = plan_for("study=k", "trials=1")
    for _ in range(study.ATTEMPTS):
        with study.claimed(study.open_study(plan), plan) as found:  # as if killed here: nothing is recorded
            assert found is not None and found[0] == 0
    with study.claimed(study.open_study(plan), plan) as found:
        assert found is None
    (slot,) = study.planned_trials(study.open_study(plan), plan)
    assert slot.end is not None and "died" in study.reason(slot.end)


@pytest.mark.slow
def test_an_interrupted_search_shows_its_best_and_goes_on(here, run_in, stub, capsys):
    def interrupted(config, watch):
        if len(seen) == 3:
            raise KeyboardInterrupt
        return config.optim.lr

    seen = stub(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in(*LR, "study=c", "trials=4")
    printed = capsys.readouterr().out
    assert "2 of 4 trials have ended" in printed and "the same command runs the others" in printed
    assert run_in(*LR, "study=c", "trials=4")[0] == 0
    assert len(seen) == 5 and seen[2].optim.lr == seen[3].optim.lr


# ---- failed and pruned --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_trial_is_recorded_and_the_others_run(here, run_in, stub):
    def score(config, watch):
        if len(seen) == 2:
            raise RuntimeError("out of memory")
        return float("nan") if len(seen) == 3 else 1.0

    seen = stub(score)
    code, printed = run_in(*LR, "study=f", "trials=4", "failures=3")
    assert code == 0 and "2 completed, 0 pruned, 2 failed" in printed
    assert "failed   trial 1: RuntimeError: out of memory" in printed and "val/loss is nan" in printed


@pytest.mark.slow
def test_it_stops_after_so_many_failures_in_a_row_and_may_be_started_again(here, run_in, stub, monkeypatch):
    def fails(config, watch):
        raise ValueError("no")

    seen = stub(fails)
    assert run_in(*LR, "study=f", "trials=4", "failures=2")[0] == 1 and len(seen) == 2
    stub(lambda config, watch: 1.0)
    code, printed = run_in(*LR, "study=f", "trials=4", "failures=2")
    assert code == 0 and "2 completed, 0 pruned, 2 failed" in printed


def validations(watch: trial.Watch, values: list[float]) -> float:
    for epoch, value in enumerate(values):
        trainer = SimpleNamespace(callback_metrics={"val/loss": value}, current_epoch=epoch)
        watch.on_validation_end(trainer, None)
    return min(values)


@pytest.mark.slow
def test_a_hopeless_trial_is_pruned_after_the_warm_up(here, run_in, stub):
    hopeless = lambda config, watch: 9.0 if watch.trial.number == 4 else 1.0 - 0.1 * watch.trial.number
    seen = stub(lambda config, watch: validations(watch, [hopeless(config, watch)] * 3))
    call = [*LR, "trials=5", "startup=3", "trainer.max_epochs=3"]
    _, printed = run_in(*call, "study=p", "seeds=2", "warmup=2")
    found = study_in(here / "outputs" / "search" / "p").trials
    assert [t.state == TrialState.PRUNED for t in found] == [False] * 4 + [True]
    assert list(found[4].intermediate_values) == [1, 2] and len(seen) == 9  # its second seed is not trained
    assert "4 completed, 1 pruned" in printed
    assert "5 completed, 0 pruned" in run_in(*call, "study=q", "pruner=none")[1]


@pytest.mark.slow
def test_seeds_are_pruned_on_their_running_mean(here, run_in, stub):
    lucky = lambda config, watch: 0.1 if watch.before else 2.0
    stub(lambda config, watch: validations(watch, [lucky(config, watch)] * 3))
    run_in(*LR, "study=r", "trials=1", "seeds=2", "trainer.max_epochs=3")
    (one,) = study_in(here / "outputs" / "search" / "r").trials
    assert list(one.intermediate_values.values()) == pytest.approx([2.0] * 3 + [1.05] * 3)
    assert one.value == pytest.approx(1.05)


@pytest.mark.slow
def test_a_pruned_run_says_so_in_its_folder(tmp_path):
    class Hopeless(Callback):
        def on_validation_end(self, trainer, pl_module):
            raise fit.Pruned("behind")

    configure_logging()
    with pytest.raises(fit.Pruned):
        fit.run(compose(TINY), tmp_path / "run", watching=[Hopeless()])
    assert metrics_of(tmp_path / "run") == {"status": "pruned", "error": "Pruned: behind"}


# ---- spaces -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", options("model"))
def test_every_value_a_space_can_draw_fits_its_model(model):
    found = search_space.changed(search_space.read(search_space.file_of(model)), [], [])
    base = search_space.vet(found, [f"model={model}"])
    assert search_space.defaults(
        found, flatten(to_dict(base)) | choices([f"model={model}"])
    )  # the first trial is the config as it is
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    check(compose([f"model={model}", *search_space.overrides(search_space.suggest(drawn.ask(), found))]))


def test_every_space_belongs_to_a_model():
    assert {p.stem for p in (CONF / "search").iterdir()} <= {*options("model"), "default"}


NARROWED = {
    "space.model.width=[8,16]": {"choices": [8, 16]},
    "space.model.width=8,16": {"choices": [8, 16]},
    "space.model.width={low:8,high:16}": {"low": 8, "high": 16},
    "space.optim.lr.high=1e-3": {"low": 3e-4, "high": 1e-3, "log": True},
    "space.trick=[none,[clip,wide]]": {"choices": ["none", ["clip", "wide"]]},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", NARROWED)
def test_a_space_is_narrowed_from_the_command_line(change):
    found = search_space.changed(search_space.read(search_space.file_of("rnn")), [change], [])
    key = change.removeprefix("space.").partition("=")[0].removesuffix(".high")
    assert found[key] == NARROWED[change]
    search_space.vet(found, ["model=rnn"])


def test_what_is_fixed_leaves_the_space_and_a_file_replaces_it(tmp_path):
    found = search_space.changed(search_space.read(search_space.file_of("rnn")), [], ["optim=adam", "optim.lr=1e-3"])
    assert not {"optim", "optim.lr"} & set(found) and "model.width" in found
    (tmp_path / "my.yaml").write_text("optim.lr: {low: 1e-4, high: 1e-3}\n")
    plan, *_ = search.plan_of(search.Call([f"space={tmp_path / 'my.yaml'}"]))
    assert plan.space == {"optim.lr": {"low": 1e-4, "high": 1e-3}}


@pytest.mark.slow
def test_the_same_command_is_the_same_study_and_another_is_not():
    names = [
        search.plan_of(search.Call(c.split()))[0].study
        for c in (
            "model=vrnn optim.lr=1e-3",
            "optim.lr=0.001 model=vrnn trials=7",
            "model=vrnn",
            "model=vrnn seeds=2",
        )
    ]
    assert names[0] == names[1] and len(set(names)) == 3 and names[0].startswith("vrnn-spirals-")


WRONG = {
    "trials=0": "a whole number from 1",
    "trial=3": "Did you mean 'trials'?",
    "stuyd=3": "Did you mean 'study'?",
    "--workers=3": "Did you mean 'workers'?",
    "model.widht=3": "model.width",
    "optim=adam,sgd": "space.optim=[adam,sgd]",
    "workers=2": "hydra/launcher=joblib",
    "workers=2 hydra/launcher=basic": "hydra/launcher=joblib",
    "hydra.run.dir=x": "a search does not use this key",
    "sweep=x": "study=<name>",
    "sampler=cmaes": "tpe, random",
    "storage=sqlite:////no/such/folder/x.db": "cannot be opened",
    "storage=mongo://me:secret@there/x": "mongo://me:***@there/x",
    "space=nowhere.yaml": "nowhere.yaml",
    "space.model.nodes=[3,4]": "belongs to model=latent_ode",
    "space.model.width=[3,0]": "a whole number from 1",
    "space.model.width=3": "leave 'space.' out",
    "space.model.width=[]": "one or more values",
    "space.optim=[adam,adamm]": "Did you mean 'adam'?",
    "space.model.head=[1]": "names a part",
    "space.optim.lr={low:2,hihg:3}": "Did you mean 'high'?",
    "space.optim.lr.low=1": "low < high",
    "space.optim.lr.low=-1": "above 0",
    "optim.lr=1 space.optim.lr=[1,2]": "either searched or fixed",
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", WRONG)
def test_what_cannot_work_is_refused_by_name(arguments, here, run_in):
    with pytest.raises(ConfigError) as found:
        run_in(*(["model=rnn", "data=periodic"]), *arguments.split())
    assert WRONG[arguments] in str(found.value) and "secret" not in str(found.value)
    assert not list(here.rglob("study.db"))


@pytest.mark.slow
def test_another_search_under_the_same_name_is_refused(here, run_in, stub):
    stub(lambda config, watch: 1.0)
    run_in(*LR, "study=s", "trials=1")
    for change, word in {"model.width=5": "model.width is 4 there and 5 here", "seeds=2": "seeds is 1"}.items():
        with pytest.raises(ConfigError, match=word):
            run_in(*LR, change, "study=s", "trials=1")
    with pytest.raises(ConfigError, match=r"space: optim\.lr is"):
        run_in(*LR, "space.optim.lr.low=1e-3", "study=s", "trials=1")


def test_without_optuna_it_says_what_to_install(here, run_in, monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vrnn_lab\[search\]'"):
        run_in(*LR)


def test_asking_for_help_imports_neither_torch_nor_optuna():
    code = (
        "import sys; sys.argv = ['search', '--help']; from vrnn_lab import search; search.main(); "
        "sys.exit(bool({'torch', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "trials=40" in done.stdout
