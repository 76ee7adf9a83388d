"""Run folders without a run, what the report says of them, and a browser for its page."""

import json
import sys
from base64 import b64decode
from pathlib import Path
from shutil import which

import pytest
import yaml

from vrnn_lab import report
from vrnn_lab.cli.arguments import run_command

PNG = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYPj/HwADAgH/p4qwYQAAAABJRU5ErkJggg==")
ADAM = {"_target_": "torch.optim.Adam", "lr": 3e-3, "betas": [0.9, 0.999]}
RMSPROP = {"_target_": "torch.optim.RMSprop", "lr": 1e-3, "alpha": 0.99}
CHOICES = {"model": "rnn", "data": "periodic", "optim": "adam", "schedule": "off", "trainer": "auto"}


def make(folder, seed=0, loss=None, typed=(), choices=None, tricks=(), metrics=None, error="", **config):
    """A run folder: completed with a loss, failed with an error, else without metrics."""
    own = {
        "model": {"_target_": "vrnn_lab.models.rnn.RNN", "width": 64},
        "data": {"_target_": "vrnn_lab.data.datasets.periodic.Periodic", "batch_size": 32},
        "optim": ADAM,
        "trainer": {"accelerator": "auto", "max_epochs": 5},
        **config,
        "seed": seed,
        "sweep": str(folder.parent),
        "tricks": dict.fromkeys(tricks, True),
    }
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text(yaml.safe_dump(own))
    (hydra / "overrides.yaml").write_text(yaml.safe_dump([f"{key}=?" for key in ("seed", *typed)]))
    (hydra / "choices.yaml").write_text(yaml.safe_dump({**CHOICES, **(choices or {})}))
    (folder / ".lock").touch()
    if error:
        (folder / "metrics.json").write_text(json.dumps({"status": "failed", "error": error}))
    elif loss is not None:
        cost = {"fit/seconds": 2.0, "model/parameters": 1234}
        found = {"status": "completed", "val/loss": loss, "val/nll": loss, "test/nll": loss + 1, **cost}
        (folder / "metrics.json").write_text(json.dumps({**found, **(metrics or {})}))
    return folder


@pytest.fixture
def said(capsys, monkeypatch):
    """Return a function that calls the report command and returns its exit code, standard output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        code = run_command(report.main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def write_events(folder: Path, points, other="lr", name="events.out.tfevents.1.x.1.0"):
    """With TensorBoard's own writer."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    with (folder / name).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for step, value in points:
            values = [Summary.Value(tag=t, simple_value=v) for t, v in ((other, 7.0), ("val/loss", value))]
            writer.write(Event(wall_time=1.0, step=step, summary=Summary(value=values)).SerializeToString())
        writer.flush()


@pytest.fixture
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))]
    if not found:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    quiet = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    flags = ["--no-sandbox", *(f"--{flag}" for flag in (*quiet, "disable-component-update", "disable-sync"))]
    with sync.sync_playwright() as play:
        started = play.chromium.launch(executable_path=found[0], args=flags)
        yield started
        started.close()
