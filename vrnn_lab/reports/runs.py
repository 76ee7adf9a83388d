"""Read run folders from disk: their configs, their results, and which are still running."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.moved import current
from vrnn_lab.config.options import CONF, groups, options
from vrnn_lab.config.plain import flatten
from vrnn_lab.core import run_files
from vrnn_lab.core.files import checked, checked_text
from vrnn_lab.reports.files import (
    CONFIG_BYTES,
    METRICS_BYTES,
    Loader,
    content,
    files_not_read,
    folders_below,
    is_locked,
    parsed_json,
    parsed_yaml,
)


@dataclass(frozen=True)
class Run:
    """Hold what was read from a run folder."""

    folder: Path
    config: dict[str, Any]  # keys joined by dots
    choices: dict[str, str]  # group -> option, and trick -> none or [a,b]
    typed: frozenset[str]  # the keys and groups that the user set on the command line
    metrics: dict[str, Any]
    status: str  # completed | failed | pruned | running | interrupted
    origin: dict[str, Any]  # hashes of the code and the data file, the version of torch
    not_read: tuple[str, ...] = ()  # a sentence for each file of the folder that is not read

    @property
    def error(self) -> str:
        return str(self.metrics.get("error", ""))

    def number(self, metric: str) -> float | None:
        """Return a metric of a completed run as a float, None where it is missing or not a number."""
        value = self.metrics.get(metric) if self.status == "completed" else None
        return float(value) if isinstance(value, (int, float)) else None


def find(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders at and below some folders, in the order of their paths, each once.

    Raise ConfigError where a folder does not exist.
    """
    run_folders: dict[Path, Path] = {}
    for top in folders:
        if not top.is_dir():
            raise ConfigError(
                f"{top}: there is no such folder; expected run folders, or a folder that holds them, such as outputs"
            )
        for path, below in folders_below(top):
            if ".hydra" in below and os.path.lexists(path / run_files.CONFIG):
                run_folders.setdefault(path.resolve(), path)
                below.clear()
    return list(run_folders.values())


def read_all(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs of some folders, and a line for each run folder that cannot be read."""
    runs, broken = [], []
    for folder in find(folders):
        try:
            runs.append(read(folder))
        except Exception as error:  # one broken folder must not hide the others
            kind = "" if isinstance(error, (OSError, ValueError, yaml.YAMLError)) else f"{type(error).__name__}: "
            broken.append(f"{folder} is left out: {kind}{' '.join(str(error).split())}")
    return runs, broken


def read(folder: Path) -> Run:
    """Read a run folder; raise ValueError where its files hold no config or no metrics."""
    config = current(_yaml(folder, "config.yaml", {}))
    if not config:
        raise ValueError(".hydra/config.yaml holds no config.")
    metrics, status = _result(folder)
    choices = _yaml(folder, "choices.yaml", {}) or dict(_guessed(config))
    choices = {str(k): str(v) for k, v in choices.items() if not str(k).startswith("hydra/")}
    on = config.get("tricks")
    tricks = ",".join(str(name) for name in on if on[name]) if isinstance(on, dict) else ""
    choices["trick"] = f"[{tricks}]" if tricks else "none"
    keys = {k: v for k, v in flatten(config).items() if not k.startswith("tricks")}
    typed = frozenset(str(o).lstrip("+~").partition("=")[0] for o in _yaml(folder, "overrides.yaml", []))
    origin = _yaml(folder, "origin.json", {})
    return Run(folder, keys, choices, typed, metrics, status, origin, files_not_read(folder))


def _yaml(folder: Path, name: str, default: Any) -> Any:
    """Read a file of .hydra and check that it has the type of `default`, which is returned for a missing file."""
    try:
        file = folder / ".hydra" / name
        text = checked_text(content(file, folder, CONFIG_BYTES).decode(), file, "")
        parsed = parsed_yaml(text.encode())
        parsed = checked(parsed, file, "") if name.endswith(".json") and isinstance(parsed, dict) else parsed
    except FileNotFoundError:
        parsed = default
    if not isinstance(parsed or default, type(default)):
        raise ValueError(f".hydra/{name} is {parsed!r:.40}; expected a {type(default).__name__}.")
    return parsed or default


def _result(folder: Path) -> tuple[dict[str, Any], str]:
    """Return metrics.json and its status; without the file a run is running or was interrupted."""
    try:
        metrics = parsed_json(content(folder / run_files.METRICS, folder, METRICS_BYTES))
        metrics = checked(metrics, folder / run_files.METRICS, "") if isinstance(metrics, dict) else metrics
    except FileNotFoundError:
        if is_locked(folder):
            return {}, "running"
        if (folder / run_files.METRICS).exists():  # the run ended between the two checks
            return _result(folder)
        return {}, "interrupted"
    if not isinstance(metrics, dict) or metrics.get("status") not in ("completed", "failed", "pruned"):
        raise ValueError("metrics.json holds no metrics with a status.")
    return metrics, metrics["status"]


def _guessed(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the choices of a run that did not record them: the option that makes the same class, else its name."""
    for key, node in config.items():
        if isinstance(node, dict):
            group = f"{path}{key}"
            if "_target_" in node and group in groups():
                yield group, _option_of(group, str(node["_target_"]))
            yield from _guessed(node, f"{group}/")


@cache
def _option_of(group: str, target: str) -> str:
    return _targets(group).get(target, target.rpartition(".")[2])


@cache
def _targets(group: str) -> dict[str, str]:
    """Return class -> option for the options of a group that are the only one to make their class."""
    made = [(yaml.load((CONF / group / f"{o}.yaml").read_text(), Loader) or {}, o) for o in options(group)]
    named = [(str(node.get("_target_")), option) for node, option in made]
    return {target: option for target, option in named if [t for t, _ in named].count(target) == 1}
