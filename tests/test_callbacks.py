"""What watches a fit."""

import io
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.fits import data_of, fit
from helpers.small import model_of
from vrnn_lab.figures import model_figures
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.training import callbacks
from vrnn_lab.training.callbacks import Figures, LossHistory, NotFiniteError, Progress, StopOnNaN, Timer, course
from vrnn_lab.training.loggers.csv_logger import CSVFile
from vrnn_lab.training.loggers.tensorboard import TensorBoard


def board(folder):
    return TensorBoard(Path(folder))


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


class Breaks(pl.Callback):
    """Makes one loss NaN, as a bad batch would; its gradient spoils the weights."""

    def __init__(self, step: int):
        self.step = step

    def on_train_start(self, trainer, pl_module):
        whole = pl_module._loss_terms

        def broken(series, samples):
            terms = whole(series, samples)
            bad = trainer.global_step + 1 == self.step and pl_module.training
            return LossTerms(terms.nll * (float("nan") if bad else 1), terms.kl)

        pl_module._loss_terms = broken


class SpoilsWeights(pl.Callback):
    """The last gradient of an epoch is infinite while its loss is fine."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.inf)


# ---- NaN --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_loss_that_is_nan_stops_the_fit_and_says_at_which_step(step):
    with pytest.raises(NotFiniteError, match=rf"at step {step} is nan") as error:
        fit(data_of(), StopOnNaN(), Breaks(step), epochs=3)
    assert "optim.lr" in str(error.value)
    assert ("and it was the first" if step == 1 else "the last finite one was") in str(error.value)


def test_a_long_epoch_is_looked_at_before_its_losses_are_forgotten():
    with pytest.raises(NotFiniteError, match="at step 7 is nan"):
        fit(data_of(train=60, batch_size=1), StopOnNaN(), Breaks(7), epochs=1)


def test_no_validation_and_no_checkpoint_follow_on_a_loss_that_is_nan(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True, filename="{step}")
    seen = []
    model = model_of("rnn", scale=data_of().scale)
    model.validation_step = lambda batch, batch_idx: seen.append(batch)
    with pytest.raises(NotFiniteError):
        fit(data_of(), StopOnNaN(), Breaks(5), checkpoint, model=model, epochs=3)
    assert len(seen) == 1
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert all(w.isfinite().all() for w in last["state_dict"].values())


def test_a_checkpoint_in_the_middle_of_an_epoch_is_refused_too(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(NotFiniteError, match="at step 2 is nan"):
        fit(data_of(), StopOnNaN(), Breaks(2), checkpoint)
    assert len(list(tmp_path.glob("*.ckpt"))) == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(NotFiniteError, match=r"weights .* after step 6"):
        fit(data_of(), StopOnNaN(), SpoilsWeights(), checkpoint, epochs=3, limit_val_batches=0)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_fit_without_nan_is_left_alone():
    trainer, _ = fit(data_of(), StopOnNaN(), num_sanity_val_steps=1)
    assert trainer.global_step == 6


# ---- figures ----------------------------------------------------------------------------------------------


@pytest.fixture
def plain_figures(monkeypatch):
    """Counts the figures asked for, in place of drawing them."""
    asked = []

    def drawn(model, data, seed, split):
        asked.append((model.trainer.current_epoch, seed, split))
        return {"forecast": model_figures.Figure(figsize=(1, 1))}

    monkeypatch.setattr(callbacks.model_figures, "figures", drawn)
    return asked


def test_figures_of_the_validation_split_come_every_few_epochs(tmp_path, plain_figures):
    fit(data_of(), Figures(every=2), epochs=5, logger=board(tmp_path), num_sanity_val_steps=1)
    assert plain_figures == [(1, 0, "val"), (3, 0, "val")]
    assert [event.step for event in read(tmp_path).Images("forecast")] == [6, 12]


def test_by_default_a_fit_has_five_figures_whatever_the_epochs_between_validations(tmp_path, plain_figures):
    fit(data_of(4), Figures(), epochs=15, logger=board(tmp_path), check_val_every_n_epoch=2)
    assert [epoch + 1 for epoch, *_ in plain_figures] == [4, 6, 10, 12]  # 15 comes after the last validation
    assert Figures().drawn == 0


def test_a_fit_measured_in_steps_has_five_figures_too(tmp_path, plain_figures):
    keys = {"max_steps": 30, "val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(data_of(), Figures(), epochs=-1, logger=board(tmp_path), **keys)
    assert [event.step for event in read(tmp_path).Images("forecast")] == [6, 12, 18, 24, 30]


def test_for_loggers_without_figures_none_is_drawn(tmp_path, plain_figures):
    fit(data_of(), Figures(every=1), epochs=1)
    fit(data_of(), Figures(every=1), epochs=1, logger=CSVFile(tmp_path))
    fit(data_of(), Figures(every=1), epochs=1, logger=CSVLogger(tmp_path))
    assert plain_figures == []


def test_figures_change_nothing_of_a_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(model_figures, "SAMPLES", 6)
    data = data_of()
    model = model_of("vrnn", scale=data.scale)
    _, plain = fit(data, model=deepcopy(model))
    _, watched = fit(data, Figures(every=1), model=model, logger=board(tmp_path))
    assert {"forecast", "interpolation"} <= set(read(tmp_path).Tags()["images"])
    for one, two in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)


def test_figures_every_no_epoch_are_refused():
    with pytest.raises(ValueError, match="expected 1 or more"):
        Figures(every=0)


# ---- the clock --------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(callbacks, "monotonic", lambda: now[0])
    return now


class Takes(pl.Callback):
    """Every step takes two seconds."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.clock[0] += 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_timer_goes_on_counting_after_a_resume(tmp_path, clock):
    data = data_of()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(data, Timer(), Takes(clock), checkpoint, epochs=2)
    clock[0] += 1000  # while the run was down
    timer = Timer()
    fit(data_of(), timer, Takes(clock), checkpoint, epochs=3, resume=tmp_path / "last.ckpt")
    assert timer.metrics == {"fit/seconds": 18.0, "fit/steps": 9, "fit/steps_per_second": 0.5}


def test_a_test_from_an_earlier_checkpoint_does_not_turn_the_timer_back(tmp_path, clock):
    timer, data = Timer(), data_of()
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer, model = fit(data, timer, Takes(clock), checkpoint, epochs=3)
    trainer.test(model, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False, weights_only=True)
    assert timer.metrics["fit/seconds"] == 18.0
    assert timer.metrics["fit/steps"] == 9


def test_a_timer_that_never_started_has_no_rate():
    assert Timer().metrics == {"fit/seconds": 0.0, "fit/steps": 0, "fit/steps_per_second": 0.0}


# ---- the course of val/loss -------------------------------------------------------------------------------


def test_the_course_of_a_fit_says_where_it_ended_and_how_early_it_fell():
    assert course([4.0, 2.0, 3.0, 1.0, 6.0]) == {"fit/last_loss": 6.0, "fit/mean_best": 2.0}
    assert course([]) == {}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_fit_keeps_the_course_of_what_came_before(tmp_path):
    data, checkpoint = data_of(), ModelCheckpoint(tmp_path, save_last=True)
    first = LossHistory()
    fit(data, first, checkpoint, epochs=2, num_sanity_val_steps=1)
    then = LossHistory()
    fit(data_of(), then, checkpoint, epochs=3, resume=tmp_path / "last.ckpt")
    assert len(first.losses) == 2 and len(then.losses) == 3 and then.losses[:2] == first.losses


# ---- progress ---------------------------------------------------------------------------------------------


def test_into_a_file_progress_writes_a_short_line_every_tenth_of_the_epochs():
    file = io.StringIO()
    fit(data_of(4), Progress(Console(file=file, width=80)), epochs=20)
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{epoch}/20" for epoch in range(2, 21, 2)]
    assert all(word in lines[-1] for word in ("train/loss", "val/loss", "steps/s"))
    assert max(map(len, lines)) < 90


def test_a_fit_measured_in_steps_has_ten_lines_too():
    file = io.StringIO()
    fit(data_of(4), Progress(Console(file=file, width=80)), epochs=-1, max_steps=40)
    assert [line.split()[1] for line in file.getvalue().splitlines()] == [f"{epoch}/40" for epoch in range(4, 41, 4)]


def test_on_a_terminal_progress_is_one_bar_that_ends_with_the_fit():
    file = io.StringIO()
    progress = Progress(Console(file=file, width=140, force_terminal=True))
    fit(data_of(4), progress, epochs=3)
    assert progress.bar is None
    assert all(word in file.getvalue() for word in ("epoch 3/3", "train/loss", "val/loss", "100%"))


def test_a_bar_is_closed_when_a_fit_fails():
    progress = Progress(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(NotFiniteError):
        fit(data_of(), progress, StopOnNaN(), Breaks(2))
    assert progress.bar is None


def test_a_progress_that_is_switched_off_is_silent():
    file = io.StringIO()
    progress = Progress(Console(file=file))
    progress.disable()
    fit(data_of(4), progress, epochs=2)
    assert file.getvalue() == ""
