"""A stop signal costs no step: the run ends with a checkpoint, and resumes to the numbers of a run without it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.commands import last_of_each
from helpers.small import IN_PROCESS, RUN, trained
from vrnn_lab.figures import model_figures
from vrnn_lab.models.rnn import RNN
from vrnn_lab.runs.folder import metrics_of
from vrnn_lab.training import fit

pytestmark = IN_PROCESS
LENGTHS = {
    "epochs": ["trainer.max_epochs=3"],
    "steps": ["trainer.max_epochs=null", "trainer.max_steps=11", "+trainer.val_check_interval=3"],
    "accumulated": ["trainer.max_epochs=4", "+trainer.accumulate_grad_batches=2"],
    "a batch an epoch": ["trainer.max_epochs=4", "data.batch_size=40"],
    "every other epoch": ["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"],
}
LENGTHS["steps"] += ["trainer.check_val_every_n_epoch=null"]
CUTS = [
    ("training_step", 1),
    ("training_step", 4),
    ("training_step", 7),
    ("validation_step", 2),
    ("validation_step", 3),
]


@pytest.fixture(autouse=True, scope="module")
def fits_alone():
    """Nothing is drawn and nothing scored: it is the fit that is stopped."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_figures, "figures", lambda *_args, **_keys: {})
        patched.setattr(fit, "score", lambda *_args: {})
        patched.setattr(fit, "_recalibrate", lambda *_args: (None, None))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The numbers of runs that nothing disturbed, by their length."""
    known = {}

    def found(length: str):
        if length not in known:
            known[length] = numbers(trained(tmp_path_factory.mktemp("whole") / "run", *LENGTHS[length]))
        return known[length]

    return found


def numbers(folder: Path) -> dict:
    """Everything that a fit comes to: its losses and steps, and the weights of both checkpoints."""
    found = {key: value for key, value in metrics_of(folder).items() if "second" not in key}
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)
        found[name] = {key: value.tolist() for key, value in state["state_dict"].items()}
        found[f"{name} step"] = (state["global_step"], state["epoch"])
    return found


def stopped(monkeypatch, folder: Path, length: str, name: str, call: int, number: int) -> BaseException | None:
    """Fit a run that gets a signal in the n-th call of a step; return what ended it."""
    kept, calls = getattr(RNN, name), []

    def step(self, *args, **keys):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return kept(self, *args, **keys)

    monkeypatch.setattr(RNN, name, step)
    try:
        trained(folder, *LENGTHS[length])
    except (SystemExit, KeyboardInterrupt) as ended:
        return ended
    finally:
        monkeypatch.setattr(RNN, name, kept)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("name", "call"), CUTS)
def test_a_stop_signal_costs_no_step_and_the_numbers_are_the_same(length, name, call, whole, monkeypatch, tmp_path):
    number = signal.SIGTERM if call % 2 else signal.SIGINT
    ended = stopped(monkeypatch, tmp_path / "run", length, name, call, number)
    if ended is None:
        pytest.skip("this run has fewer such steps")
    assert isinstance(ended, KeyboardInterrupt) if number == signal.SIGINT else ended.code == 143
    reached = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    if name == "training_step":
        accumulated = 2 if length == "accumulated" else 1
        assert reached == -(-call // accumulated)
    assert not (tmp_path / "run" / "metrics.json").exists()
    before = signal.getsignal(number)
    trained(tmp_path / "run", *LENGTHS[length])
    assert numbers(tmp_path / "run") == whole(length) and signal.getsignal(number) is before


@pytest.mark.slow
def test_handlers_of_others_are_left_to_them(monkeypatch, tmp_path):
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
    try:
        assert stopped(monkeypatch, tmp_path / "run", "epochs", "training_step", 3, signal.SIGUSR1) is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls == [1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_the_warning_of_a_queue_stop_a_run_likewise(number, monkeypatch, tmp_path):
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it, as nohup does
    try:
        ended = stopped(monkeypatch, tmp_path / "run", "epochs", "training_step", 3, number)
    finally:
        signal.signal(number, before)
    assert isinstance(ended, SystemExit) and ended.code == 128 + number


LONG = ["trainer.max_epochs=100000", "hydra.run.dir=run"]


def begun(folder: Path, *overrides: str) -> subprocess.Popen:
    """A long run by the command, at work on its steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vrnn_lab.run", *last_of_each([*RUN, *LONG, *overrides])],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (folder / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [[], ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]], ids=["one", "two"]
)
def test_a_command_that_is_stopped_ends_within_seconds_with_its_exit_code(overrides, tmp_path):
    process = begun(tmp_path, *overrides)
    asked = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - asked < 30, said
    assert "stopped after step" in (tmp_path / "run" / "run.log").read_text()
    before = torch.load(tmp_path / "run" / "checkpoints" / "before_last.ckpt", weights_only=True)["global_step"]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] >= before


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_stop_a_training(tmp_path):
    words = last_of_each([*RUN, "trainer.max_epochs=20", "hydra.run.dir=run"])
    command = f"{sys.executable} -m vrnn_lab.run {' '.join(words)} 2>&1 | head -n 1"
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert metrics_of(tmp_path / "run")["status"] == "completed"
