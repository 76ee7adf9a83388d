"""How long a fit is, when it is validated and stopped, and with how many threads it runs."""

import logging
import time
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from helpers.commands import CUT, FAST, MODEL, command, metrics, steps_of
from helpers.fits import data_of, fit
from helpers.small import model_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check
from vrnn_lab.runs.build import assemble
from vrnn_lab.sweeps.trial import Watch
from vrnn_lab.training import fit as fitting
from vrnn_lab.training import length, threads
from vrnn_lab.training.callbacks import Figures, LastStep, Plateau, StopWhenWorse

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
        is_global_zero=False,
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
