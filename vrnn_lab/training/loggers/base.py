"""Define what a run asks of a logger, and what all loggers record of a run."""

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import to_dict
from vrnn_lab.core import run_files
from vrnn_lab.core.files import read_json, write_json
from vrnn_lab.runs.folder import SCORE, choices_of, config_of

log = logging.getLogger("vrnn_lab")

COST = ("fit/seconds", "model/parameters")
TESTED = ("nll", "forecast/mse", "interpolation/mse", "labels/accuracy")
LEFT_OUT = ("evaluate", "logger", "sweep", "tricks")  # keys that are no choice of one run


class RunLogger(Logger):
    """Record a run: extend one of Lightning's loggers by the methods that a run calls.

    A subclass names this class first and the logger of Lightning second. Its constructor takes the run folder as
    `folder`; conf/logger sets its other arguments. A run calls `connect` first, `begin` before its fit, Lightning's
    `log_metrics` and `add_figure` during it, and `end` after it. A run that resumes makes a new logger of the same
    folder.
    """

    takes_figures = True
    remote = False  # whether records go to a service, whose errors must not end a run
    lost = False  # whether such a service has refused a record

    def connect(self) -> None:
        """Open a service before anything else of a run is done; raise ConfigError where it cannot be used."""

    @abstractmethod
    def begin(self, step: int = 0) -> None:
        """Record that a fit starts, or resumes after `step`; a file drops records of an earlier attempt beyond it."""

    @abstractmethod
    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        """Record a figure under a name such as val/forecast."""

    @abstractmethod
    def end(self, metrics: dict[str, Any]) -> None:
        """Record how a run ended: the status and final numbers of its metrics.json."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers under the step of the fit, without the epoch, which Lightning adds to them."""
        numbers = {k: v for k, v in metrics.items() if k != "epoch"}
        write = super().log_metrics  # pyright: ignore[reportAbstractUsage] # the logger of Lightning implements it
        self.attempt(lambda: write(numbers, step))

    def finalize(self, status: str) -> None:
        """End the fit, for Lightning; the run itself ends later, with `end`."""
        write = super().finalize
        self.attempt(lambda: write(status))

    def attempt(self, record: Callable[[], Any]) -> None:
        """Call `record`; turn the first error of a service into a warning, and skip all calls after it until the end.

        The run folder keeps what the service did not take. Each call to a service that is gone may wait for minutes.
        """
        if self.lost:
            return
        try:
            record()
        except Exception as error:
            if not self.remote:
                raise
            log.warning(
                "%s did not take a record (%s: %s). The run continues, and its folder holds all results.",
                type(self).__name__, type(error).__name__, str(error).partition("\n")[0],
            )  # fmt: skip
            self.lost = True


def required(package: str, option: str) -> None:
    """Raise ConfigError where the package of a logger is not installed."""
    if find_spec(package) is None:
        raise ConfigError(
            f"logger={option} needs the package {package}, which is not installed: pip install 'vrnn_lab[{option}]'"
        )


def known_id(folder: Path, option: str, where: str) -> str | None:
    """Return the id that a service gave to a run; None before its first fit, or where another place recorded it."""
    known = _known(folder).get(option)
    if not isinstance(known, dict):
        return None
    if known.get("where") != where:
        log.warning("logger=%s: the run was recorded at %s before; it is recorded anew.", option, known.get("where"))
        return None
    return str(known.get("id"))


def keep_id(folder: Path, option: str, where: str, name: str) -> None:
    """Save the id that a service gave to a run, so that the run continues there when it resumes."""
    known = _known(folder)
    if known.get(option) != (entry := {"id": name, "where": where}):
        write_json(folder / run_files.LOGGERS, {**known, option: entry})


def _known(folder: Path) -> dict[str, Any]:
    file = folder / run_files.LOGGERS
    return read_json(file, "Remove it: the services then see a new run.") if file.exists() else {}


@contextmanager
def environment_kept(*names: str) -> Iterator[None]:
    """Restore variables of the environment afterwards, which the packages of services set for the whole process."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def final(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the few numbers that runs are compared by: score and test of best.ckpt as best/..., and the cost.

    best/ sorts first in TensorBoard's alphabetical order, and apart from the curve of val/loss.
    """
    best = {"best/score": metrics.get(SCORE)}
    best |= {f"best/test/{key}": metrics.get(f"test/{key}") for key in TESTED}
    numbers = best | {key: metrics.get(key) for key in COST}
    return {key: value for key, value in numbers.items() if value is not None and isfinite(value)}


def choices_of_run(folder: Path) -> dict[str, bool | int | float | str]:
    """Return the choices of the run of a folder, as `choices` names them."""
    return choices(to_dict(config_of(folder)), choices_of(folder))


def choices(config: dict[str, Any], chosen: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Return what was chosen: options by group (/model, /model/head, /optim, /trick), all else by key (model.width).

    The slash, Hydra's own, sorts groups before keys in TensorBoard: they are what runs of different models share, and
    a run without a value drops out of its plots. A part that no group chose is named by its class; null values and
    parts in lists are left out.
    """
    known = {k: v for k, v in config.items() if k not in LEFT_OUT}
    options = {f"/{k}": v for k, v in chosen.items() if isinstance(v, str) and k not in LEFT_OUT}
    tricks = "+".join(config.get("tricks", {})) or "none"
    return {**dict(_flat(known)), **options, "/trick": tricks}


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield "/" + prefix.rstrip(".").replace(".", "/"), value.rpartition(".")[2]
        elif isinstance(value, (bool, int, float, str)) and not key.startswith("_"):
            yield prefix + key, value
        elif isinstance(value, list) and not any(isinstance(part, dict) for part in value):
            yield prefix + key, str(value)
