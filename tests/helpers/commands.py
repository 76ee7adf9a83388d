"""Run small commands, in a process of their own or in this one, and kill them at a chosen call."""

import atexit
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vrnn_lab.cli.arguments import run_command

FAST = [
    "model=latent_ode",
    "model.width=8",
    "model.encoder_width=8",
    "model.decoder_width=8",
    "model.nodes=5",
    "data=periodic",
    "data.train=40",
    "data.val=10",
    "data.test=10",
    "data.points=12",
    "data.batch_size=10",
    "evaluate.samples=5",
    "evaluate.draws=9",
    "trainer=cpu",
    "trainer.max_epochs=6",
    "trainer.check_val_every_n_epoch=2",
]
PRELUDE = "import torch; torch.set_num_threads(1)\n"

# Where a run is cut: `kill -9` from within, at the n-th call of a function.
CUT = """
import os, signal
from {module} import {owner} as owner
kept, calls = owner.{name}, [0]
def cut(*a, **k):
    calls[0] += 1
    if calls[0] == {call}:
        os.kill(os.getpid(), signal.SIG{signal})
    return kept(*a, **k)
owner.{name} = cut
"""
MODEL = {"module": "vrnn_lab.models.latent_ode", "owner": "LatentODE"}
CUTS = {
    "before the first checkpoint": {**MODEL, "name": "training_step", "call": 2},
    "in the middle of an epoch": {**MODEL, "name": "training_step", "call": 15},
    "in validation": {**MODEL, "name": "validation_step", "call": 2},
    "in the final test": {"module": "vrnn_lab.training", "owner": "fit", "name": "score", "call": 1},
    "while figures are drawn": {"module": "vrnn_lab.figures", "owner": "model_figures", "name": "write", "call": 1},
}
TINY = [
    "model=rnn",
    "model.width=4",
    "data=periodic",
    "data.train=20",
    "data.val=5",
    "data.test=5",
    "data.points=8",
    "data.batch_size=10",
    "evaluate.samples=2",
    "evaluate.draws=3",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
]

# Figures take most of so small a run.
UNDRAWN = """
from vrnn_lab.figures import calibration_figures, model_figures
calibration_figures.figures = model_figures.figures = lambda *a, **k: {}
"""


def last_of_each(arguments: Iterable[str]) -> list[str]:
    """Return overrides without those whose key a later one has, so that a test can vary a list of usual ones."""
    words = list(arguments)
    last = {word.partition("=")[0]: place for place, word in enumerate(words)}
    return [word for place, word in enumerate(words) if last[word.partition("=")[0]] == place]


def command(
    module: str,
    *arguments: str,
    folder: Path,
    before: str = "",
    check: bool = True,
    figures: bool = False,
    fresh: bool = False,
    varied: bool = True,
) -> subprocess.CompletedProcess:
    """Run a command in a process of its own; `before` is Python run first, to cut it short at a place.

    The process is forked from one that has imported torch and the package, which takes seconds, and nothing more:
    without the checks of shapes that tests put around every function. fresh: start a new interpreter instead, for
    what is read when torch is imported, and for launchers that start processes of their own. figures: draw the
    figures of a run. varied: of overrides with one key, take the last.
    """
    if varied and module in ("run", "search"):
        arguments = tuple(last_of_each(arguments))
    code = (
        f"{PRELUDE}import sys; sys.argv = {['x', *arguments]!r}\n{before}\n{'' if figures else UNDRAWN}\n"
        f"from vrnn_lab import {module}\nfrom vrnn_lab.cli.arguments import run_command\n"
        f"sys.exit(run_command({module}.main))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "RAY_worker_niceness": "0"}
    if fresh:
        words = [sys.executable, "-W", "error::UserWarning", "-c", code]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST)
    else:
        done = _forked(code, folder, environment)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def _forked(code: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    with TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("out", "err")]
        process = FORKING.Process(target=_in_child, args=(code, folder, environment, streams))
        process.start()
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(code, LONGEST)
        return subprocess.CompletedProcess(code, process.exitcode, *(stream.read_text() for stream in streams))


LONGEST = 240  # seconds
FORKING = get_context("forkserver")
FORKING.set_forkserver_preload(
    ["vrnn_lab.training.fit", "vrnn_lab.forecaster", "vrnn_lab.run", "sklearn.gaussian_process"]
)


def _in_child(code: str, folder: Path, environment: dict[str, str], streams: list[Path]) -> None:
    """Run Python code as a new interpreter would: its folder, its environment, its streams, its last words."""
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, "")
    warnings.filterwarnings("error", category=UserWarning, module="vrnn_lab")
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without


def metrics(folder: Path) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    volatile = ("fit/seconds", "fit/steps_per_second", "score/seconds", "sha256")
    return {k: v for k, v in found.items() if k not in volatile}


def steps_of(folder: Path) -> dict[str, list[int]]:
    """Return the steps of every curve in the TensorBoard events of a run."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def called(command, *arguments):
    before, sys.argv = sys.argv, ["command", *arguments]
    try:
        return command.main()
    finally:
        sys.argv = before


def call(module, arguments: str, monkeypatch, folder) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["x", *arguments.split()])
    return run_command(module.main)
