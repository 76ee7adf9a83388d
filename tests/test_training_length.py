"""How long a fit is, when it is validated and stopped, and with how many threads it runs."""

import logging
import sys
import time
from copy import deepcopy
from dataclasses import replace
from math import inf
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from helpers.commands import CUT, FAST, MODEL, command, metrics, steps_of
from helpers.fits import data_of, fit
from helpers.small import model_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.duration import seconds_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check
from vrnn_lab.models import recipe
from vrnn_lab.runs.build import assemble
from vrnn_lab.runs.folder import metrics_of
from vrnn_lab.sweeps.trial import Watch
from vrnn_lab.training import callbacks, length, threads, time_limit
from vrnn_lab.training import fit as fitting
from vrnn_lab.training.callbacks import Figures, LastStep, LossHistory, Plateau, StopWhenWorse
from vrnn_lab.training.time_limit import TimeLimit

SMALL = [key for key in FAST if not key.startswith("trainer.")]
STEPS = [*SMALL, "trainer.max_steps=30"]


# ---- steps and epochs ---------------------------------------------------------------------------------------


def planned(*overrides: str, val_batches: int = 1) -> dict:
    return length.settings(compose([*SMALL, *overrides]).trainer, val_batches)


def test_by_default_a_fit_has_the_same_steps_whatever_the_data():
    found = planned()
    assert (found["max_epochs"], found["max_steps"]) == (-1, 2400)
    assert (found["check_val_every_n_epoch"], found["val_check_interval"]) == (None, 40)


@pytest.mark.parametrize(
    ("overrides", "epochs", "steps"),
    [
        (["trainer.max_epochs=7"], 7, -1),
        (["trainer.max_steps=90"], -1, 90),
        (["trainer.max_epochs=7", "trainer.max_steps=90"], 7, 90),
        (["trainer.max_epochs=-1", "trainer.max_steps=2000"], -1, 2000),
        (["trainer.max_epochs=150", "trainer.max_steps=-1", "trainer.check_val_every_n_epoch=2"], 150, -1),  # of old
    ],
)
def test_a_length_that_is_set_counts_in_its_own_unit(overrides, epochs, steps):
    found = planned(*overrides)
    assert (found["max_epochs"], found["max_steps"]) == (epochs, steps)
    if epochs > 0:
        assert found.get("check_val_every_n_epoch", 2) == 2 and "val_check_interval" not in found


# ---- a time limit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (90, 90), ("90", 90), (2.5, 2.5), ("90s", 90), ("2m", 120), ("2 min", 120), ("1h30m", 5400), ("0.5d", 43200),
        ("02:30", 150), ("00:02:00", 120), ("01:00:02:00", 86520),
    ],
)  # fmt: skip
def test_a_length_of_time_is_read_in_every_usual_form(given, seconds):
    assert seconds_of(given) == seconds
    check(compose([*SMALL, f"trainer.max_time='{given}'"]))


@pytest.mark.parametrize("given", ["0", "-3", "soon", "2x", "3M", "1:2:3:4:5", "true", "inf", "nan", "1m2", ":30"])
def test_what_is_no_length_of_time_is_refused(given):
    with pytest.raises(ConfigError, match=r"trainer.max_time.*length of time.*expected"):
        check(compose([*SMALL, f"trainer.max_time='{given}'"]))


class Clock:
    """A clock that moves by a number of seconds at every look, in place of the time that a fit takes."""

    def __init__(self, step: float):
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def limited(seconds: float, *, usual: int = 2400, resume=None, model=None, saver=None, clock=None, monkeypatch=None):
    for module in (callbacks, time_limit):
        monkeypatch.setattr(module, "monotonic", clock)
    limit = TimeLimit(seconds, usual, paced=True)
    parts = [limit, callbacks.Timer(), LossHistory(), *([saver] if saver else [])]
    trainer, model = fit(data_of(), *parts, epochs=-1, model=model, resume=resume, check_val_every_n_epoch=None,
                         val_check_interval=sys.maxsize)  # fmt: skip
    return trainer, model, limit


@pytest.mark.parametrize("name", ["constant", "cosine", "exponential", "onecycle", "plateau"])
def test_a_time_limit_ends_a_fit_and_its_learning_rate_follows_the_time(name, monkeypatch):
    model = model_of("rnn", scale=data_of().scale)
    schedule = {name: getattr(recipe, name) for name in ("constant", "cosine", "exponential", "onecycle", "plateau")}
    model.recipe = replace(model.recipe, schedule=schedule[name])
    rates = []
    kept = type(model).training_step

    def step(self, *a, **k):
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return kept(self, *a, **k)

    monkeypatch.setattr(type(model), "training_step", step)
    trainer, model, limit = limited(100.0, model=model, clock=Clock(0.5), monkeypatch=monkeypatch)
    assert limit.ended == 100 and 20 < trainer.global_step < 220
    losses = callbacks.losses_of(trainer)
    assert 5 < len(losses) <= 61  # at most 60 validations and the one at the end
    first, last = rates[0], rates[-1]
    expected = {"constant": 1, "cosine": 0.01, "exponential": 0.1, "onecycle": 1e-5, "plateau": last / first}[name]
    peak = max(rates)
    assert last / peak == pytest.approx(expected, rel=0.35, abs=2e-3)
    report = limit.report(trainer.global_step, losses, callbacks.timer_of(trainer).metrics)
    assert f"after {trainer.global_step} steps" in report and "trainer.max_time" in report and "2400 steps" in report


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_fit_has_what_is_left_of_its_time(monkeypatch, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, every_n_train_steps=20)
    _, _, limit = limited(60.0, clock=Clock(0.5), saver=saver, monkeypatch=monkeypatch)
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)
    used, steps = first["callbacks"]["Timer"]["seconds"], first["global_step"]
    assert 0 < used < 60 and limit.ended
    clock = Clock(0.5)
    trainer, _, limit = limited(60.0, clock=clock, resume=tmp_path / "last.ckpt", monkeypatch=monkeypatch)
    assert trainer.global_step > steps and clock.now < 60 - used + 5 and limit.ended
    assert fitting._stopped_early({"callbacks": {"TimeLimit": limit.state_dict()}}, [60.0])
    assert not fitting._stopped_early(
        {"callbacks": {"TimeLimit": limit.state_dict()}}, [90.0]
    )  # a longer one goes on


def test_the_report_of_a_time_limit_says_whether_more_time_may_help():
    limit, metrics = TimeLimit(60.0, 2400, True), {"fit/steps_per_second": 10.0}
    falling = limit.report(600, [3.0, 2.0, 1.0], metrics)
    assert "may lower it" in falling and "2400 steps, about 4 min" in falling
    assert "would hardly" in limit.report(3000, [3.0, 1.0] + 18 * [2.0], metrics)
    assert "2400 steps" not in limit.report(3000, [1.0], metrics)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]])
def test_a_run_with_a_time_limit_ends_in_time_with_its_scores(more, tmp_path):
    keys = [key for key in FAST if not key.startswith(("trainer.max", "trainer.check"))]
    started = time.monotonic()
    done = command("run", *keys, *more, "trainer.max_time=4", f"hydra.run.dir={tmp_path}", folder=tmp_path)
    found = metrics_of(tmp_path)
    assert found["fit/seconds"] < 8 and found["fit/steps"] > 5 and found["status"] == "completed"
    assert "val/loss" in found and time.monotonic() - started < 120
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Course"]
    assert len(state["losses"]) <= 61
    assert "(trainer.max_time) ended training after" in done.stderr and "% of the time" in done.stdout


@pytest.mark.parametrize("overrides", [["trainer.max_steps=0"], ["trainer.max_epochs=0"], ["trainer.max_epochs=-1"]])
def test_a_fit_without_steps_or_without_end_is_refused(overrides):
    with pytest.raises(ConfigError, match=r"trainer.max_epochs"):
        check(compose([*SMALL, *overrides]))
    with pytest.raises(ConfigError, match="set no end"):
        check(compose([*SMALL, "trainer.max_steps=-1"]))


@pytest.mark.parametrize("steps", [1, 7, 59, 60, 600, 2000, 2400, 10_000])
@pytest.mark.parametrize("batches", [0, 1, 3, 20, 500])
def test_validations_cost_at_most_a_tenth_of_the_steps_and_one_is_at_the_end(steps, batches):
    every = length.interval(steps, batches)
    assert 1 <= every <= steps and steps / every <= 60
    # A batch of validation takes less than half a step, so that many steps for each are ten times as long.
    assert every >= min(steps, 5 * batches)
    if steps % 60 == 0:
        assert steps % every == 0 and every % (steps // 60) == 0


def test_an_interval_that_is_set_stays():
    assert "val_check_interval" not in planned("trainer.val_check_interval=50")
    assert planned("trainer.check_val_every_n_epoch=3") == {"max_epochs": -1, "max_steps": 2400}
    found = planned("trainer.max_epochs=4", "trainer.val_check_interval=0.5")
    assert found["check_val_every_n_epoch"] == 2  # a share of an epoch has its place in epochs


class Seen(Plateau):
    """Notes the step of every validation."""

    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def test_the_last_step_is_validated_whatever_the_interval():
    seen, keys = Seen(), {"val_check_interval": 4, "check_val_every_n_epoch": None}
    fit(data_of(), seen, LastStep(), epochs=-1, max_steps=10, **keys)
    assert seen.steps == [4, 8, 10]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    command("run", *STEPS, "hydra.run.dir=run", folder=folder)
    return folder / "run"


@pytest.mark.slow
def test_a_fit_counted_in_steps_ends_with_a_checkpoint_of_its_end(whole):
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == metrics(whole)["fit/steps"] == 30
    assert steps_of(whole)["val/loss"] == [9, 19, 29]  # after so many steps, of which the logger calls the first 0
    assert OmegaConf.load(whole / ".hydra" / "config.yaml").trainer.max_epochs is None  # as it was said
    said = (whole / "run.log").read_text()
    assert "training: 30 steps (7.5 epochs of 4)" in said and "1 thread, about" in said


@pytest.mark.slow
@pytest.mark.parametrize("call", [15, 25])
def test_killed_between_epochs_it_goes_on_to_the_same_numbers(call, whole, tmp_path):
    cut = CUT.format(**MODEL, name="training_step", call=call, signal="KILL")
    command("run", *STEPS, "hydra.run.dir=run", folder=tmp_path, before=cut, check=False)
    command("run", f"resume={tmp_path / 'run'}", folder=tmp_path)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert steps_of(tmp_path / "run")["val/loss"] == steps_of(whole)["val/loss"]


def test_a_plateau_goes_by_validations_that_are_counted_in_steps():
    from functools import partial

    from vrnn_lab.models.recipe import plateau

    model = model_of("rnn", scale=data_of().scale)
    schedule = partial(plateau, patience=0)
    model.recipe = deepcopy(model.recipe)
    object.__setattr__(model.recipe, "schedule", schedule)
    keys = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    trainer, _ = fit(data_of(), Plateau(), epochs=-1, max_steps=12, model=model, **keys)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3


# ---- early stopping -----------------------------------------------------------------------------------------


def stopped(losses, active: bool = True, **keys) -> int | None:
    """The step at which a fit of 2400 steps, validated every 40, is stopped."""
    stop = StopWhenWorse(**keys)
    stop.active = active
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), estimated_stepping_batches=2400, should_stop=False,
        is_global_zero=False, lightning_module=None,
    )  # fmt: skip
    for place, loss in enumerate(losses, 1):
        trainer.callback_metrics, trainer.global_step = {"val/loss": torch.tensor(loss)}, 40 * place
        stop.on_validation_end(trainer, None)
        if trainer.should_stop:
            return trainer.global_step
    return None


def test_a_loss_that_stays_clearly_worse_stops_the_fit():
    assert stopped([1.0, 0.5] + [0.7] * 58) == 80 + 800
    assert stopped([1.0, 0.5] + [0.7] * 58, active=False) is None


def test_a_loss_that_stands_still_or_comes_back_stops_nothing():
    assert stopped([1.0, 0.5] + [0.52] * 58) is None
    assert stopped([1.0, 0.5] + ([0.9] * 15 + [0.51]) * 4) is None


@pytest.mark.parametrize(
    ("overrides", "active"), [([], True), (["trainer.max_epochs=3"], False), (["trainer.max_steps=3"], False)]
)
def test_only_a_fit_of_default_length_stops_early(overrides, active, tmp_path):
    trainer = fitting.trainer_of(assemble(compose([*SMALL, *overrides])), tmp_path)
    (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, StopWhenWorse))
    assert stop.active == active


def test_a_checkpoint_knows_that_its_fit_was_stopped():
    stop = StopWhenWorse()
    assert not fitting._stopped_early({"callbacks": {stop.state_key: stop.state_dict()}})
    stop.stopped = True
    assert fitting._stopped_early({"callbacks": {stop.state_key: stop.state_dict()}})


# ---- a search -----------------------------------------------------------------------------------------------


def test_reports_of_a_search_are_placed_at_steps_or_epochs():
    reports = []
    trial = SimpleNamespace(report=lambda value, step: reports.append(step), should_prune=lambda: False)
    trainer = SimpleNamespace(callback_metrics={"val/loss": 1.0}, current_epoch=3, global_step=80)
    for config in ({"max_epochs": None, "max_steps": None}, {"max_epochs": 9, "max_steps": None}):
        Watch(trial, [1.0], config).on_validation_end(trainer, None)
    assert reports == [2400 + 80, 9 + 4]


def test_reports_of_a_search_with_a_time_limit_are_placed_at_twentieths_of_the_time():
    reports = []
    trial = SimpleNamespace(report=lambda value, step: reports.append(step), should_prune=lambda: False)
    watch = Watch(trial, [1.0], {"max_time": "2m"})
    for used in (0.0501, 0.499, 1.0):
        trainer = SimpleNamespace(
            callback_metrics={"val/loss": 1.0}, current_epoch=3, global_step=80, estimated_stepping_batches=inf,
            lightning_module=SimpleNamespace(time_used=used),
        )  # fmt: skip
        watch.on_validation_end(trainer, None)
    assert reports == [105, 145, 200]


# ---- threads ------------------------------------------------------------------------------------------------


def sleeping(seconds: dict[int, float], calls: list[int]):
    def step():
        calls.append(torch.get_num_threads())
        time.sleep(seconds[torch.get_num_threads()])

    return step


@pytest.fixture
def several():
    """Threads that torch is allowed; tests begin with one."""
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(1)


@pytest.mark.parametrize(("one", "two", "chosen"), [(0.004, 0.002, 2), (0.002, 0.004, 1), (0.004, 0.004, 1)])
def test_the_faster_number_of_threads_is_chosen(one, two, chosen, several):
    assert threads.fastest(sleeping({1: one, 2: two}, []), 2)[0] == chosen
    assert torch.get_num_threads() == 2


def test_threads_that_are_hopeless_are_given_up_soon(several):
    calls = []
    assert threads.fastest(sleeping({1: 0.002, 2: 0.05}, calls), 2)[0] == 1
    assert calls.count(2) == 2 < calls.count(1)


def test_timing_steps_changes_nothing_of_a_fit():
    data = data_of()
    model = model_of("vrnn", scale=data.scale)
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    threads.typical(threads.training_step(model, next(iter(data.train_dataloader())), torch.device("cpu")), 1)
    assert torch.equal(torch.get_rng_state(), state) and model.noise.generator is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty.*"
)  # as commands do (vrnn_lab.cli.arguments.configure_logging)
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
def test_the_number_is_recorded_kept_by_a_resumed_run_and_restored(tmp_path, monkeypatch, several):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    asked = []
    monkeypatch.setattr(threads, "fastest", lambda step, count: asked.append(count) or (1, 0.01))
    config = compose([*SMALL, "trainer.max_steps=2"])
    logging.getLogger("vrnn_lab").setLevel(logging.DEBUG)
    found = fitting.run(config, tmp_path / "run")
    assert found["fit/threads"] == 1 and asked == [2] and torch.get_num_threads() == 2
    assert threads.recorded(tmp_path / "run") == 1
    for name in ("metrics.json", "checkpoints/fit.json"):
        (tmp_path / "run" / name).unlink()
    assert fitting.run(config, tmp_path / "run", resuming=True)["fit/threads"] == 1 and asked == [2]


def test_a_number_that_somebody_set_is_kept(tmp_path, monkeypatch, several):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not threads.free_to_choose()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.free_to_choose()


def test_figures_are_drawn_only_where_they_fit_into_their_share_of_the_time():
    figures = Figures(share=0.05)
    assert not figures._affordable(steps=2400, seconds=60.0)  # the first are worth some 200 steps
    assert figures._affordable(steps=4000, seconds=100.0)
    figures.cost = figures.spent = 4.0
    assert figures._affordable(steps=6400, seconds=160.0) and not figures._affordable(steps=6000, seconds=150.0)
