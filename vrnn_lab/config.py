"""Configs: find them, compose them, and check every value against the constructor it goes to."""

import difflib
import hashlib
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
# What a config of the user's own may construct besides subclasses of our contracts; of a folder: vrnn_lab.trust.
TRUSTED = ("vrnn_lab.", "torch.optim.", "lightning.pytorch.Trainer", "lightning.pytorch.callbacks.")
TRUSTED += ("lightning.pytorch.Callback",)
LAUNCHERS = ("joblib", "submitit", "ray")  # each an extra of this name
VOLATILE = ("sweep", "resume", "retry", "trainer.accelerator", "trainer.devices")
VOLATILE += ("trainer.strategy", "trainer.num_nodes", "trainer.compile")
REQUIRED = ("model", "data", "task", "optim", "schedule", "beta", "objective", "labels", "stop", "trainer")
REQUIRED += ("evaluate", "seed", "tricks")
OPTIONAL = ("sweep", "retry", "out_of_time", "experiment", "trick", "worker", "hydra")
STRATEGIES = ("ddp", "ddp_find_unused_parameters_true")


class ConfigError(ValueError):
    """A config that cannot work; its text says where, what was found, what was expected and the cure."""


def job_id(config: DictConfig) -> str:
    """A sweep job's name: a hash of its resolved config less what does not change the result."""
    plain = contents(config)
    for key in VOLATILE:
        *groups, leaf = key.split(".")
        node = plain
        for group in groups:
            node = node.get(group, {})
        node.pop(leaf, None)
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def contents(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A config as plain Python; ConfigError for a ${reference} to nothing."""
    try:
        found = OmegaConf.to_container(config, resolve=resolve) if isinstance(config, DictConfig) else config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


def near(word: str, among) -> str:
    """' Did you mean ...?' where something is like it."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def compose(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> DictConfig:
    """The config of a run from Hydra overrides such as `model=vrnn`, `optim.lr=1e-3`; ConfigError if none."""
    config = _composed(overrides, config_dirs)
    for key in REQUIRED:
        if config.get(key) is None:
            raise ConfigError(f"{key}: there is none, and a run needs one; leave out ~{key} or {key}=null.")
    if stray := [str(key) for key in config if key not in (*REQUIRED, *OPTIONAL)]:
        raise ConfigError(
            f"{stray[0]}: a run has no such key or group, so nothing would read it.{near(stray[0], REQUIRED)} Leave "
            f"out +{stray[0]}=..., or a package behind @ that puts a group there."
        )
    check_tricks(config, config_dirs)
    return config


def composer(config_dirs: tuple[str, ...] = ()) -> Callable[[list[str]], DictConfig]:
    """`compose` for many calls: of those that choose the same options and differ in values Hydra composes one."""
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
            return compose(overrides, config_dirs)  # which says what is wrong

    return one


def _apart(overrides: list[str], config_dirs: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What only sets a value of a key that is there, and all other overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise _of_hydra(error, None) from error
    group = lambda key: "/" in key or any((Path(folder) / key).is_dir() for folder in (CONF, *config_dirs))
    plain = lambda o: o.type is OverrideType.CHANGE and o.package is None and not group(o.key_or_group)
    values = {o.key_or_group: o.value() for o in parsed if plain(o)}
    return tuple(str(o.input_line) for o in parsed if not plain(o)), values


def choices(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> dict[str, str]:
    """The option chosen in each group: {model: vrnn, model/head: gaussian, ...}."""
    chosen = _composed(overrides, config_dirs, with_hydra=True).hydra.runtime.choices
    return {k: v for k, v in contents(chosen).items() if not k.startswith("hydra/")}


def _composed(overrides: list[str], config_dirs: tuple[str, ...], with_hydra: bool = False) -> DictConfig:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir={folder} is no folder; expected one that holds configs, as conf/ does.")
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[{','.join(f'file://{Path(d).resolve()}' for d in config_dirs)}]"]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                whole = (search if config_dirs else []) + overrides
                return hydra.compose("config", overrides=whole, return_hydra_config=with_hydra)
            except (HydraException, OmegaConfBaseException) as error:
                raise _of_hydra(error, hydra) from error
            except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:  # of Hydra's own code
                raise ConfigError(f"{' '.join(overrides)}: these overrides do not go together: {error}") from error
    finally:
        GlobalHydra.instance().hydra = before


def _of_hydra(error: Exception, hydra: Any) -> ConfigError:
    """What Hydra says of overrides, in our words."""
    override = getattr(error, "override", None)  # one that its grammar does not know
    if override is None:
        return ConfigError(_explain(str(error), hydra))
    return ConfigError(
        f"{override!r} cannot be read; expected key=value, such as model=vrnn, optim.lr=1e-3 or "
        "data.shares=[0.7,0.2,0.1]. A value with spaces or other signs stands in quotation marks of its own: "
        "'data.path=\"a b.csv\"'."
    )


def config_of(overrides: list[str]) -> DictConfig:
    """Return the config of overrides key=value, to be merged into another; ConfigError where one is no YAML."""
    for override in overrides:
        try:
            OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{override!r} cannot be read as key=value with a value in YAML: {reason}") from error
    return OmegaConf.from_dotlist(overrides)


def _explain(message: str, hydra) -> str:
    """Hydra's message, with the nearest name that exists."""
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", message):
        group, option = found.groups()
        if group in groups():
            allowed = options(group)
            return f"{group}={option}: there is no such option.{near(option, allowed)} Allowed: {', '.join(allowed)}"
        if group == "hydra/launcher":
            extra = option.partition("_")[0] if option.startswith(LAUNCHERS) else "joblib"
            return (
                f"{group}={option} is not installed; pip install 'vrnn_lab[{extra}]'. There are joblib, "
                "submitit_local, submitit_slurm, ray and, for one job after the other, basic."
            )
    if found := re.search(r"Could not override '([^']+)'", message):
        return _unknown(found.group(1), contents(hydra.compose("config"), resolve=False))
    return message.strip()


def _unknown(key: str, default: Any) -> str:
    """Why a key cannot be set: another option of its group has it, or none has."""
    group = key.split(".")[0]
    owners: dict[str, list[str]] = {}
    for each in groups():
        for option in options(each):
            node = yaml.safe_load((CONF / each / f"{option}.yaml").read_text()) or {}
            for name in flat(node):
                owners.setdefault(f"{each.replace('/', '.')}.{name}", []).append(f"{each}={option}")
    if key in owners:
        return f"{key} belongs to {', '.join(owners[key])}, and this run has chosen another {group}."
    if key in groups():
        whole = key.split("/")[0]
        return f"{key}: the chosen {whole} has no such part; it belongs to {whole}={', '.join(_with_part(key))}."
    names = {k for k in (*flat(default), *owners) if "_target_" not in k and "defaults" not in k} | set(groups())
    hint = near(key, [n for n in names if n.startswith(group + ".")]) or near(key, names)
    look = group if group in groups() else ""
    return f"{key}: there is no such key or group.{hint} `{f'python -m vrnn_lab.describe {look}'.strip()}` lists all."


def _with_part(key: str) -> list[str]:
    """The options of a group, such as model, that have a part of it, such as model/cell."""
    group, part = key.split("/", 1)
    chosen = lambda option: (yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}).get("defaults", [])
    return [o for o in options(group) if any(isinstance(d, dict) and part in d for d in chosen(o))]


def jobs_of(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> list[list[str]]:
    """Every job's overrides in a sweep; what an experiment sweeps by itself (hydra.sweeper.params) comes first."""
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
        raise _of_hydra(error, None) from error
    for each in parsed:
        _check_of_sweep(each)
    of_jobs = [o for o in parsed if not o.is_hydra_override()]
    return [each for batch in BasicSweeper.split_arguments(of_jobs, None) for each in batch]


def _check_of_sweep(override: Any) -> None:
    """What a sweep as a whole cannot be told."""
    key = override.key_or_group
    if key in ("hydra.sweep.subdir", "hydra/sweeper"):
        raise ConfigError(
            f"{override.input_line}: jobs are run, and their folders named, by a sweep itself, so that it can go on; "
            "hydra.sweep.dir=<folder> says where it lies."
        )
    if override.is_sweep_override() and (override.is_hydra_override() or key in ("sweep", "retry")):
        raise ConfigError(f"{override.input_line}: a sweep has one {key} for all of its jobs.")


def groups() -> list[str]:
    """What a run chooses among; the spaces of conf/search are for vrnn_lab.search alone."""
    folders = [p for p in CONF.rglob("*") if p.is_dir() and any(p.glob("*.yaml")) and p != CONF / "search"]
    return sorted(str(p.relative_to(CONF)) for p in folders)


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(node, dict) or (not node and prefix):
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def check_tricks(config: DictConfig, config_dirs: tuple[str, ...] = ()) -> None:
    """Two tricks that set one key, or one group, would mix silently: an error instead."""
    owner: dict[str, str] = {}
    tricks = config.get("tricks", {})
    if not isinstance(tricks, DictConfig | dict):
        raise ConfigError(f"tricks={tricks}: expected none, or those of trick=...: trick=[clip,wide].")
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
    """The groups and keys that a trick's file sets."""
    chosen = [group for each in trick.get("defaults", []) if isinstance(each, dict) for group in each]
    return [g.removeprefix("override").strip(" /") for g in chosen] + [k for k in flat(trick) if k != "defaults"]


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every node that constructs something, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from nodes(value, f"{path}[{place}]")


def target(name: str, path: str) -> Any:
    """What a `_target_` names, if a config may construct it."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path}._target_={name} cannot be imported ({error}). Is the module on the Python path?"
        ) from error
    if not name.startswith(TRUSTED) and not is_ours(found):
        raise ConfigError(
            f"{path}._target_={name} is none of vrnn_lab's models, data sets, tasks, heads, cells or encoders, "
            "nor a subclass of their contracts; such a target could run anything, so it is refused."
        )
    return found


def is_ours(found: Any) -> bool:
    """Return whether something is a class under one of the contracts that users extend."""
    from vrnn_lab.cells import Cell
    from vrnn_lab.data.base import SeriesData
    from vrnn_lab.encoders import Encoder
    from vrnn_lab.likelihoods import Head
    from vrnn_lab.models.base import SequenceModel
    from vrnn_lab.tasks import Task

    return isinstance(found, type) and issubclass(found, (SeriesData, Head, Cell, Encoder, SequenceModel, Task))


def check(
    config: Any, given: tuple[str, ...] = ("scale", "recipe", "width", "optimizer", "total_steps", "params")
) -> None:
    """Every value of a config against the signature it goes to; ConfigError names the first that cannot work."""
    from vrnn_lab.checks import Natural, conforms, words  # a quarter of a second, which --help need not wait

    plain = contents(config)
    if "seed" in plain and not conforms(plain["seed"], Natural):
        raise ConfigError(f"seed={plain['seed']!r}: expected {words(Natural)}.")
    if plain.get("retry") not in (None, "failed"):
        raise ConfigError(f"retry={plain['retry']}: expected failed, or nothing.")
    if plain.get("out_of_time", "auto") not in ("auto", True, False):
        raise ConfigError(f"out_of_time={plain['out_of_time']}: expected one of auto, true, false.")
    trainer = plain.get("trainer", {})
    if trainer.get("max_epochs") == 0 or trainer.get("max_steps") == 0:
        raise ConfigError("trainer.max_epochs=0 or trainer.max_steps=0 trains nothing; expected 1 or more.")
    _check_devices(trainer)
    if trainer.get("accelerator", "auto") not in ("auto", "cpu", "gpu", "cuda"):
        raise ConfigError(f"trainer.accelerator={trainer['accelerator']}: expected one of auto, cpu, gpu, cuda.")
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps")
    if epochs in (-1, None) and (steps == -1 or (steps is None and epochs == -1)):
        raise ConfigError("trainer.max_epochs and trainer.max_steps set no end; schedules need one. Set either.")
    for path, node in nodes(plain):
        if not re.fullmatch(r"\w+(\.\w+)+", name := str(node["_target_"])):
            raise ConfigError(f"{path}._target_={name}: expected the name of a class with its module: module.Class.")
        made = target(name, path)
        signature = inspect.signature(made)
        hints = typing.get_type_hints(made.__init__ if isinstance(made, type) else made, include_extras=True)
        for key, value in node.items():
            if key not in ("_target_", "_partial_"):
                _check_value(f"{path}.{key}", value, key, signature, hints, made.__name__)
        for key, parameter in signature.parameters.items():
            required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if required and key not in node and key not in given:
                raise ConfigError(f"{path}.{key} is missing; {made.__name__} needs it.")


def _check_devices(trainer: dict[str, Any]) -> None:
    from vrnn_lab.checks import Count, Natural, conforms, words

    devices, strategy, machines = (
        trainer.get(k, v) for k, v in (("devices", 1), ("strategy", "auto"), ("num_nodes", 1))
    )
    gpus = devices if isinstance(devices, list) else []
    named = gpus and all(conforms(gpu, Natural) for gpu in gpus) and len({*gpus}) == len(gpus)
    if not (devices == "auto" or conforms(devices, Count) or named):
        raise ConfigError(f"trainer.devices={devices!r}: expected auto, {words(Count)}, or a list of GPUs as [0,1].")
    if gpus and trainer.get("accelerator") == "cpu":
        raise ConfigError(
            f"trainer.devices={devices} are GPUs; of the CPU say how many processes: trainer.devices=2."
        )
    if strategy not in ("auto", *STRATEGIES):
        raise ConfigError(f"trainer.strategy={strategy!r}: expected one of auto, {', '.join(STRATEGIES)}.")
    if not conforms(machines, Count):
        raise ConfigError(f"trainer.num_nodes={machines!r}: expected {words(Count)}.")
    if strategy == "auto" and (machines > 1 or not (devices == 1 or len(gpus) == 1)):
        raise ConfigError(
            f"trainer.devices={devices} on {machines} machines is more than one device: add trainer=ddp."
        )


def _check_value(path: str, value: Any, key: str, signature, hints, name: str) -> None:
    from vrnn_lab.checks import conforms, words

    if key not in signature.parameters:
        raise ConfigError(f"{path}: {name} has no such parameter.{near(key, signature.parameters)}")
    if value == "???":
        raise ConfigError(f"{path} is required; say {path}=...")
    if key in hints and not _is_built(value) and not conforms(value, hints[key]):
        raise ConfigError(f"{path}={value!r}: expected {words(hints[key])}.")


def _is_built(value: Any) -> bool:
    """Whether a value, or one in its list, is made of a node of its own."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_built, value.values()))
    return isinstance(value, list) and any(map(_is_built, value))


def make(node: Any, path: str, **given: Any) -> Any:
    """What a checked node constructs; what its constructor refuses becomes a ConfigError."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        if not given:
            return instantiate(node, _convert_="all")
        # Not through instantiate itself: it would turn our dataclasses into dicts.
        return instantiate(node, _convert_="all", _partial_=True)(**given)
    except InstantiationException as error:
        cause = error.__cause__ or error
    except (ValueError, TypeError) as error:
        cause = error
    if isinstance(cause, (ValueError, TypeError)):
        raise ConfigError(f"{path}: {cause}") from cause
    raise cause
