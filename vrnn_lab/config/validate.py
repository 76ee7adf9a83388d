"""Check every value of a config against the constructor it goes to, and construct what was checked."""

import importlib
import inspect
import re
import typing
from functools import cache
from typing import Any

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.duration import seconds_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import nodes, to_dict

# What a user's own config may construct besides subclasses of our contracts; vrnn_lab.runs.trust limits run folders.
TRUSTED = ("vrnn_lab.", "torch.optim.", "lightning.pytorch.Trainer", "lightning.pytorch.callbacks.")
TRUSTED += ("lightning.pytorch.Callback",)
CONTRACTS = (
    "vrnn_lab.models.base.SequenceModel",
    "vrnn_lab.models.cells.Cell",
    "vrnn_lab.models.encoders.Encoder",
    "vrnn_lab.models.heads.Head",
    "vrnn_lab.data.base.SeriesData",
    "vrnn_lab.core.tasks.Task",
    "vrnn_lab.training.loggers.base.RunLogger",
)
STRATEGIES = ("ddp", "ddp_find_unused_parameters_true")


def target(name: str, path: str) -> Any:
    """Return what a `_target_` names; raise ConfigError where it is missing or a config may not construct it."""
    module, _, attribute = name.rpartition(".")
    try:
        named = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path}._target_={name} cannot be imported ({error}). Is the module on the Python path?"
        ) from error
    if not name.startswith(TRUSTED) and not is_ours(named):
        raise ConfigError(
            f"{path}._target_={name} is none of vrnn_lab's models, data sets, tasks, heads, cells or encoders, "
            "nor a subclass of their contracts; such a target could run anything, so it is refused."
        )
    return named


def is_ours(value: Any) -> bool:
    """Return whether something is a class under one of the contracts that users extend."""
    # Compare names: importing the contracts would import torch, which a report or --help does without.
    return isinstance(value, type) and any(
        f"{kind.__module__}.{kind.__qualname__}" in CONTRACTS for kind in value.__mro__
    )


def check(
    config: Any, given: tuple[str, ...] = ("scale", "recipe", "width", "optimizer", "total_steps", "params", "folder")
) -> None:
    """Check every value of a config against the signature it goes to; raise ConfigError for the first that fails.

    given: parameters that the config need not set, since the caller of the constructor does.
    """
    from vrnn_lab.core.types import Natural, conforms, words  # imported here: it takes a quarter of a second

    plain = to_dict(config)
    if "seed" in plain and not conforms(plain["seed"], Natural):
        raise ConfigError(f"seed={plain['seed']!r}: expected {words(Natural)}.")
    if plain.get("retry") not in (None, "failed"):
        raise ConfigError(f"retry={plain['retry']}: expected failed, or nothing.")
    if plain.get("out_of_time", "auto") not in ("auto", True, False):
        raise ConfigError(f"out_of_time={plain['out_of_time']}: expected one of auto, true, false.")
    if plain.get("start") == "???" or not isinstance(plain.get("start"), str | None):
        raise ConfigError(f"start={plain['start']}: expected the folder of a run.")
    trainer = plain.get("trainer", {})
    if trainer.get("max_epochs") == 0 or trainer.get("max_steps") == 0:
        raise ConfigError("trainer.max_epochs=0 or trainer.max_steps=0 trains nothing; expected 1 or more.")
    for key in ("max_epochs", "max_steps"):
        if isinstance(number := trainer.get(key), int) and number < -1:
            raise ConfigError(f"trainer.{key}={number}: expected a whole number from 1, or -1 for no limit.")
    if trainer.get("max_time") is not None:
        try:
            seconds_of(trainer["max_time"])
        except ValueError as error:
            raise ConfigError(f"trainer.max_time={error}") from None
    _check_devices(trainer)
    if trainer.get("accelerator", "auto") not in ("auto", "cpu", "gpu", "cuda"):
        raise ConfigError(f"trainer.accelerator={trainer['accelerator']}: expected one of auto, cpu, gpu, cuda.")
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps")
    endless = epochs in (-1, None) and (steps == -1 or (steps is None and epochs == -1))
    if endless and trainer.get("max_time") is None:
        raise ConfigError(
            "trainer.max_epochs, trainer.max_steps and trainer.max_time set no end of training, but schedules need "
            "one. Set one of them."
        )
    for path, node in nodes(plain):
        if not re.fullmatch(r"\w+(\.\w+)+", name := str(node["_target_"])):
            raise ConfigError(f"{path}._target_={name}: expected the name of a class with its module: module.Class.")
        made = target(name, path)
        signature, hints = _parameters(made)
        for key, value in node.items():
            if key not in ("_target_", "_partial_"):
                _check_value(f"{path}.{key}", value, key, signature, hints, made.__name__)
        for key, parameter in signature.parameters.items():
            required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if required and key not in node and key not in given:
                raise ConfigError(f"{path}.{key} is missing; {made.__name__} needs it.")


@cache  # since a search checks each of its values
def _parameters(made: Any) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return the signature of what a config constructs, and the types of its parameters."""
    constructor = made.__init__ if isinstance(made, type) else made
    return inspect.signature(made), typing.get_type_hints(constructor, include_extras=True)


def _check_devices(trainer: dict[str, Any]) -> None:
    from vrnn_lab.core.types import Count, Natural, conforms, words

    devices, strategy, machines = (
        trainer.get(k, v) for k, v in (("devices", 1), ("strategy", "auto"), ("num_nodes", 1))
    )
    gpus = devices if isinstance(devices, list) else []
    named = gpus and all(conforms(gpu, Natural) for gpu in gpus) and len({*gpus}) == len(gpus)
    if not (devices == "auto" or conforms(devices, Count) or named):
        raise ConfigError(f"trainer.devices={devices!r}: expected auto, {words(Count)}, or a list of GPUs as [0,1].")
    if gpus and trainer.get("accelerator") == "cpu":
        raise ConfigError(
            f"trainer.devices={devices} names GPUs; for the CPU set the number of processes: trainer.devices=2."
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
    from vrnn_lab.core.types import conforms, words

    if key not in signature.parameters:
        raise ConfigError(f"{path}: {name} has no such parameter.{did_you_mean(key, signature.parameters)}")
    if value == "???":
        raise ConfigError(f"{path} is required; set {path}=...")
    if key in hints and not _is_built(value) and not conforms(value, hints[key]):
        raise ConfigError(f"{path}={value!r}: expected {words(hints[key])}.")


def _is_built(value: Any) -> bool:
    """Return whether a value, or one in its list or dict, is constructed from a node of its own."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_built, value.values()))
    return isinstance(value, list) and any(map(_is_built, value))


def instantiate(node: Any, path: str, **given: Any) -> Any:
    """Construct what a checked node names; raise ConfigError for values that its constructor refuses.

    given: further arguments of the constructor.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        if not given:
            return instantiate(node, _convert_="all")
        # Call the partial with `given`: as arguments of instantiate our dataclasses would become dicts.
        return instantiate(node, _convert_="all", _partial_=True)(**given)
    except InstantiationException as error:
        cause = error.__cause__ or error
    except (ValueError, TypeError) as error:
        cause = error
    if isinstance(cause, (ValueError, TypeError)):
        raise ConfigError(f"{path}: {cause}") from cause
    raise cause
