"""Limit what a run folder from somebody else may do: name classes of ours, and hold files of its own."""

import os
import re
import sys
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, options
from vrnn_lab.config.plain import nodes
from vrnn_lab.config.validate import is_ours

Trust = bool | tuple[str, ...]  # True: trust everything; else the modules whose classes a config may name
TARGET = re.compile(r"_target_: *([\w.]+)")


def trust_of(text: str) -> Trust:
    """Parse trust=<text>: true, false, or module names separated by commas; raise ConfigError for anything else."""
    if text in ("true", "false", ""):
        return text == "true"
    modules = tuple(text.split(","))
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(
                f"trust={text}: '{module}' is not the name of a module; expected true, false or my_model."
            )
    return modules


@cache
def known_targets() -> frozenset[str]:
    """Return every `_target_` that a file of conf/ names, and the optimizers of torch."""
    from torch import optim

    named = (TARGET.findall(file.read_text(encoding="utf-8")) for file in CONF.rglob("*.yaml"))
    kinds = {name: value for name, value in vars(optim).items() if isinstance(value, type)}
    optimizers = {f"torch.optim.{name}" for name, kind in kinds.items() if issubclass(kind, optim.Optimizer)}
    return frozenset(target for targets in named for target in targets) | optimizers


def refuse_targets(config: dict[str, Any], folder: Path, trust: Trust) -> None:
    """Raise ConfigError where a run's config would construct what neither conf/ nor the user has named.

    Nothing is imported to find out: a class of a module that is imported already, which then is the user's own or a
    library's, must be a subclass of one of our contracts.
    """
    for path, node in nodes(config):
        name = node["_target_"]
        if not isinstance(name, str):
            raise ConfigError(f"{folder}: {path}._target_ is {name!r:.40}; expected the name of a class.")
        module, _, attribute = name.rpartition(".")
        imported = getattr(sys.modules.get(module), attribute, None)
        if trust is True or name in known_targets() or module in (trust or ()) or is_ours(imported):
            continue
        raise ConfigError(
            f"{folder}: {path}._target_={name} is not among the classes that vrnn_lab's own configs name, and a run "
            "folder from somebody else could run any code in this way. If it is a class of yours, name its module: "
            f"trust={module or 'my_model'}; or, if you trust the whole folder: trust=true."
        )


PLACES = ("tracking_uri", "entity", "save_dir")  # keys of loggers that name where a run is recorded


def refuse_places(config: dict[str, Any], folder: Path, given: Container[str] = ()) -> None:
    """Raise ConfigError where a run that is about to resume would be recorded at a place that its folder names.

    A folder from somebody else could send the results to a server, or write to any path. The usual places are those
    of the user's own machine and environment. given: keys that the user has set.
    """
    loggers = config.get("logger")
    for name, node in loggers.items() if isinstance(loggers, dict) else ():
        usual = yaml.safe_load((CONF / "logger" / f"{name}.yaml").read_text()) if name in options("logger") else {}
        for key in PLACES:
            named = node.get(key) if isinstance(node, dict) else None
            if named not in (None, usual.get(key)) and f"logger.{name}.{key}" not in given:
                raise ConfigError(
                    f"{folder} would be recorded at logger.{name}.{key}={named}, which its config names. If the "
                    f"folder is your own, say so: trust=true; or choose the loggers again: logger={name} "
                    f"logger.{name}.{key}=..., or logger=tensorboard."
                )


def refuse_links(folder: Path) -> None:
    """Raise ConfigError where a run folder holds a link, a pipe or a device, so that nothing outside is touched."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                kind = f"a link to {os.readlink(path)}" if path.is_symlink() else "a pipe, a socket or a device"
                raise ConfigError(
                    f"{path} is {kind}; the files of a run folder must lie in it, so that reading a folder from "
                    "somebody else touches nothing outside. Put a copy in its place, or, if you trust the folder: "
                    "trust=true"
                )
