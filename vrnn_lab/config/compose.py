"""Compose the config of a run, or of each job of a sweep, from Hydra overrides."""

import hashlib
import json
import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.messages import error_of_hydra, error_together
from vrnn_lab.config.moved import current, first
from vrnn_lab.config.options import CONF
from vrnn_lab.config.plain import flatten, nodes, to_dict

log = logging.getLogger("vrnn_lab")
VOLATILE = ("sweep", "resume", "retry", "trainer.accelerator", "trainer.devices")
VOLATILE += ("trainer.strategy", "trainer.num_nodes", "trainer.compile", "logger")
# Keys that earlier versions lack, and the values with which they are no part of what names a job.
NEWER: dict[str, Any] = {"start": None, "trainer.max_time": None, "data.log": [], "data.support": "real"}
NEWER |= {"model.posterior": "filter", "model.residual": False, "model.dropout": 0.0}
REQUIRED = ("model", "data", "task", "optim", "schedule", "beta", "objective", "labels", "stop", "trainer")
REQUIRED += ("logger", "evaluate", "seed", "tricks")
OPTIONAL = ("sweep", "retry", "start", "out_of_time", "experiment", "trick", "worker", "hydra")


def is_volatile(key: str) -> bool:
    """Return whether a key, such as sweep or logger.mlflow.experiment, does not change a run's result."""
    return any(key == each or key.startswith(f"{each}.") for each in VOLATILE)


def job_id(config: DictConfig) -> str:
    """Return a sweep job's name: a hash of its resolved config without the keys that do not change the result."""
    plain = first(to_dict(config))
    for key in (*VOLATILE, *NEWER):
        *groups, leaf = key.split(".")
        node = plain
        for group in groups:
            node = node.get(group, {})
        if key in VOLATILE or node.get(leaf, NEWER[key]) == NEWER[key]:
            node.pop(leaf, None)
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compose(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> DictConfig:
    """Return the config of a run from Hydra overrides such as `model=vrnn`, `optim.lr=1e-3`.

    config_dirs: folders of configs besides conf/. Raise ConfigError where the overrides make no config of a run.
    """
    config = _with_current_names(_composed(overrides, config_dirs))
    plain = to_dict(config)  # a ${reference} to nothing, or to itself, is an error of its key
    for key in REQUIRED:
        if plain.get(key) is None:
            raise ConfigError(f"{key} is missing, but a run needs it; leave out ~{key} or {key}=null.")
        if isinstance(plain[key], str | int | float) and key not in ("seed", "tricks"):
            raise ConfigError(
                f"{key}={plain[key]}: expected the keys of a part of a run, such as {key}.<key>=<value>."
            )
    if stray := [str(key) for key in config if key not in (*REQUIRED, *OPTIONAL)]:
        raise ConfigError(
            f"{stray[0]}: a run has no such key or group, so nothing would read it."
            f"{did_you_mean(stray[0], REQUIRED)} Leave out +{stray[0]}=..., or a package behind @ that puts a "
            "group there."
        )
    check_tricks(config, config_dirs)
    return config


def _with_current_names(config: DictConfig) -> DictConfig:
    """Return a config with its classes' names of today, and warn where a user's own config has former ones."""
    plain = OmegaConf.to_container(config, resolve=False)
    named = current(plain)
    if named == plain:
        return config
    before, now = (dict(nodes(each)) for each in (plain, named))
    for path, node in before.items():
        if node["_target_"] != now[path]["_target_"]:
            log.warning(
                "%s._target_=%s was renamed to %s; change the config.", path, node["_target_"], now[path]["_target_"]
            )
    return DictConfig(OmegaConf.create(named))


def composer(config_dirs: tuple[str, ...] = ()) -> Callable[[list[str]], DictConfig]:
    """Return a fast `compose` for many calls: overrides that differ in values alone go through Hydra only once."""
    known: dict[tuple[str, ...], DictConfig] = {}

    def one(overrides: list[str]) -> DictConfig:
        try:
            chosen, values = _apart(overrides, config_dirs)
            if chosen not in known:
                known[chosen] = compose(list(chosen), config_dirs)
            config = deepcopy(known[chosen])
            for key, value in values.items():
                OmegaConf.update(config, key, value, merge=True)
            return config
        except (ValueError, OmegaConfBaseException):
            return compose(overrides, config_dirs)  # raises the error with its full message

    return one


def _apart(overrides: list[str], config_dirs: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Split overrides into those that only set the value of an existing key, as a dict, and all others.

    Return (others, values). Raise ConfigError where one cannot be parsed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise error_of_hydra(error, None) from error
    group = lambda key: "/" in key or any((Path(folder) / key).is_dir() for folder in (CONF, *config_dirs))
    plain = lambda o: o.type is OverrideType.CHANGE and o.package is None and not group(o.key_or_group)
    values = {o.key_or_group: o.value() for o in parsed if plain(o)}
    return tuple(str(o.input_line) for o in parsed if not plain(o)), values


def choices(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the option chosen in each group: {model: vrnn, model/head: gaussian, ...}."""
    chosen = _composed(overrides, config_dirs, with_hydra=True).hydra.runtime.choices
    return {k: v for k, v in to_dict(chosen).items() if not k.startswith("hydra/")}


def _composed(overrides: list[str], config_dirs: tuple[str, ...], with_hydra: bool = False) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir={folder} is not a folder; expected a folder of configs such as conf/.")
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[{','.join(f'file://{Path(d).resolve()}' for d in config_dirs)}]"]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                whole = (search if config_dirs else []) + overrides
                return hydra.compose("config", overrides=whole, return_hydra_config=with_hydra)
            except (HydraException, OmegaConfBaseException) as error:
                raise error_of_hydra(error, hydra) from error
            except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:  # raised inside Hydra
                raise error_together(overrides, error) from error
    finally:
        GlobalHydra.instance().hydra = before


def from_overrides(overrides: list[str]) -> DictConfig:
    """Return the config of overrides key=value, to be merged into another; raise ConfigError for invalid YAML."""
    parts = []
    for override in overrides:
        try:
            parts.append(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{override!r} cannot be read as key=value with a value in YAML: {reason}") from error
    return DictConfig(OmegaConf.merge({}, *parts))


def jobs_of(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> list[list[str]]:
    """Return every job's overrides in a sweep; those that an experiment sweeps (hydra.sweeper.params) come first."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parse = OverridesParser.create().parse_overrides
        fixed = [o for o in parse(overrides) if not o.is_sweep_override()]
        chosen = [str(o.input_line) for o in fixed if o.key_or_group == "experiment" or o.is_hydra_override()]
        own = _composed(chosen, config_dirs, with_hydra=True).hydra.sweeper.get("params") or {}
        parsed = parse([*(f"{key}={value}" for key, value in own.items()), *overrides])
    except HydraException as error:
        raise error_of_hydra(error, None) from error
    for each in parsed:
        _check_of_sweep(each)
    of_jobs = [o for o in parsed if not o.is_hydra_override()]
    return [each for batch in BasicSweeper.split_arguments(of_jobs, None) for each in batch]


def _check_of_sweep(override: Any) -> None:
    """Raise ConfigError for an override that a sweep as a whole cannot take."""
    key = override.key_or_group
    if key in ("hydra.sweep.subdir", "hydra/sweeper"):
        raise ConfigError(
            f"{override.input_line}: a sweep runs its jobs and names their folders itself, so that it can be "
            "resumed; hydra.sweep.dir=<folder> sets the folder of the sweep."
        )
    if override.is_sweep_override() and (override.is_hydra_override() or key in ("sweep", "retry")):
        raise ConfigError(f"{override.input_line}: a sweep has one {key} for all of its jobs.")


def check_tricks(config: DictConfig, config_dirs: tuple[str, ...] = ()) -> None:
    """Raise ConfigError where two tricks set one key or group, which would mix silently."""
    owner: dict[str, str] = {}
    tricks = config.get("tricks", {})
    if not isinstance(tricks, DictConfig | dict):
        raise ConfigError(f"tricks={tricks}: expected none, or a list of tricks: trick=[clip,wide].")
    for trick in tricks:
        files = [Path(d) / "trick" / f"{trick}.yaml" for d in (CONF, *config_dirs)]
        for file in filter(Path.exists, files):
            for key in _set_by(yaml.safe_load(file.read_text()) or {}):
                if key in owner:
                    raise ConfigError(
                        f"tricks '{owner[key]}' and '{trick}' both set {key}; choose one of them, and set "
                        f"{key}=... yourself if you want another value."
                    )
                owner[key] = str(trick)


def _set_by(trick: dict[str, Any]) -> list[str]:
    """Return the groups and keys that a trick's file sets."""
    chosen = [group for each in trick.get("defaults", []) if isinstance(each, dict) for group in each]
    return [g.removeprefix("override").strip(" /") for g in chosen] + [k for k in flatten(trick) if k != "defaults"]
