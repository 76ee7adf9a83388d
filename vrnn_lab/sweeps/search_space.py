"""Read a search space, key -> {low, high, log, step} or {choices}, from YAML and the command line, and check it."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF
from vrnn_lab.config.plain import flatten, to_dict
from vrnn_lab.config.validate import check

FIELDS = ("low", "high", "log", "step", "choices")
FORM = "expected {low, high} with log: true or step as options, or {choices: [...]}"
Space = dict[str, dict[str, Any]]


def file_of(model: str, dirs: tuple[str, ...] = ()) -> Path:
    """Return the file with the search space of a model, else the default one."""
    names = [Path(d) / "search" / f"{name}.yaml" for name in (model, "default") for d in (*dirs, CONF)]
    return next(filter(Path.is_file, names))


def read(file: Path) -> Space:
    """Read a search space from YAML; raise ConfigError where that fails."""
    try:
        space = to_dict(OmegaConf.load(file))
    except (OSError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"space={file} cannot be read as YAML of key: {{low, high}} or {{choices}}: {error}"
        ) from error
    for key, axis in space.items():
        if not isinstance(axis, dict):
            raise ConfigError(f"search space, {key:.40}: {FORM}.")
    return space


def changed(space: Space, changes: list[str], fixed: list[str]) -> Space:
    """Return the space after `space.optim.lr.low=1e-3`, `space.model.width=[32,64]`, without the keys that are fixed.

    Raise ConfigError for an invalid range, and where nothing is left to search.
    """
    space = {key: dict(axis) if isinstance(axis, dict) else axis for key, axis in space.items()}
    fixed_keys = {o.partition("=")[0].lstrip("+") for o in fixed}
    for change in changes:
        key, field, value = _parsed(change)
        if key in fixed_keys:
            raise ConfigError(
                f"{change} and {key}=... are both given, but a key is either searched or fixed; leave one out."
            )
        space[key] = space.get(key, {}) | {field: value} if field else _axis(change, value)
    space = {key: axis for key, axis in space.items() if key not in fixed_keys}
    for key, axis in space.items():
        _check_axis(key, axis)
    if not space:
        raise ConfigError("every key of the search space is fixed, so there is nothing to search; leave one free.")
    return space


def _parsed(change: str) -> tuple[str, str, Any]:
    """Return key, field (or none) and value of `space.<key>[.<field>]=<value>`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(change.removeprefix("space."))
    except HydraException as error:
        raise ConfigError(
            f"{change}: {FORM}, such as space.model.width=[32,64] or space.optim.lr.low=1e-3"
        ) from error
    value: Any = override.value()
    value = list(value.list) if override.is_choice_sweep() else value
    key, _, field = override.key_or_group.rpartition(".")
    return (key, field, _plain(value)) if field in FIELDS and key else (override.key_or_group, "", _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return getattr(value, "text", value)  # Hydra keeps the quotes of a string


def _axis(change: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"choices": value}
    if isinstance(value, dict):
        return value
    raise ConfigError(f"{change}: {FORM}. To fix a key leave 'space.' out: {change.removeprefix('space.')}")


def _check_axis(key: str, axis: Any) -> None:
    where = f"search space, {key}: {axis}"
    if not isinstance(axis, dict):
        raise ConfigError(f"{where}: {FORM}.")
    for field in axis:
        if field not in FIELDS:
            raise ConfigError(
                f"{where}: there is no field '{field}'.{did_you_mean(field, FIELDS)} {FORM.capitalize()}."
            )
    if "choices" in axis:
        if len(axis) > 1 or not isinstance(axis["choices"], list) or not axis["choices"]:
            raise ConfigError(f"{where}: choices must be a list of one or more values, without any other field.")
        return
    low: Any = axis.get("low")
    high: Any = axis.get("high")
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    if not (number(low) and number(high) and low < high):
        raise ConfigError(f"{where}: {FORM}, with low < high.")
    if axis.get("log") not in (None, True, False) or (axis.get("log") and (low <= 0 or "step" in axis)):
        raise ConfigError(f"{where}: log must be true or false; with true, low must be above 0 and step left out.")
    if "step" in axis and not (number(axis["step"]) and axis["step"] > 0):
        raise ConfigError(f"{where}: step must be a number above 0.")


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Draw a value for each key from a trial; real numbers have four digits, so that a command line stays short."""
    return {key: _suggested(trial, key, axis) for key, axis in space.items()}


def _suggested(trial: Any, key: str, axis: dict[str, Any]) -> Any:
    if "choices" in axis:
        return trial.suggest_categorical(key, [stored(choice) for choice in axis["choices"]])
    low, high, log, step = (axis.get(field) for field in ("low", "high", "log", "step"))
    if all(isinstance(x, int) for x in (low, high, step or 1)):
        return trial.suggest_int(key, low, high, step=step or 1, log=bool(log))
    return suggest_number(trial.suggest_float(key, low, high, step=step, log=bool(log)))


def suggest_number(value: float) -> float:
    """Return a number rounded to four significant digits."""
    return float(f"{value:.4g}")


def stored(choice: Any) -> Any:
    """Return a choice as a study stores it: lists as they are typed, [clip,wide]."""
    return text(choice) if isinstance(choice, (list, dict)) else choice


def text(value: Any) -> str:
    """Return a value as it is typed after key=."""
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./+\-\[\],]+", value) else json.dumps(value)
    return json.dumps(value)


def overrides(values: dict[str, Any]) -> list[str]:
    """Return values as overrides key=value."""
    return [f"{key}={text(value)}" for key, value in values.items()]


def vet(space: Space, fixed: list[str], dirs: tuple[str, ...] = ()) -> DictConfig:
    """Return the base config of a search; raise ConfigError for a key that it lacks or a value that it refuses."""
    base = compose(fixed, dirs)
    groups = {
        key: axis
        for key, axis in space.items()
        if "." not in key and any((Path(d) / key).is_dir() for d in (*dirs, CONF))
    }
    within = [([], base)]
    for key, axis in groups.items():
        for choice in axis["choices"] if "choices" in axis else [f"low {axis['low']}"]:
            chosen = [f"{key}={text(choice)}"]
            config = _within_space(f"{key}={text(choice)}", lambda c=chosen: compose([*fixed, *c], dirs))
            within.append((chosen, config))
    for chosen, config in within:
        _within_space(" ".join(chosen), lambda config=config: check(config))
        for key in space.keys() - groups.keys():
            _vet_key(key, space[key], config, [*fixed, *chosen], dirs)
    return base


def _vet_key(key: str, axis: dict[str, Any], config: DictConfig, fixed: list[str], dirs: tuple[str, ...]) -> None:
    if key not in flatten(to_dict(config)):
        # This raises Hydra's own message, with the nearest name.
        _within_space(key, lambda: compose([*fixed, f"{key}=1"], dirs))
        raise ConfigError(
            f"search space, {key}: this key names a part of the config, not a value; name a key of that part."
        )
    for value in axis.get("choices") or [axis["low"], axis["high"]]:
        changed_config = config.copy()
        OmegaConf.update(changed_config, key, value)
        _within_space(key, lambda config=changed_config: check(config))


def _within_space(where: str, do: Any) -> Any:
    try:
        return do()
    except ConfigError as error:
        raise ConfigError(f"search space, {where}: {error}" if where else str(error)) from error


def defaults(space: Space, known: dict[str, Any]) -> dict[str, Any]:
    """Return the base config's values of the searched keys, empty where they lie outside the space."""
    values = {key: stored(known.get(key)) for key in space}
    return values if all(_holds(axis, values[key]) for key, axis in space.items()) else {}


def _holds(axis: dict[str, Any], value: Any) -> bool:
    if "choices" in axis:
        return value in [stored(choice) for choice in axis["choices"]]
    return isinstance(value, (int, float)) and axis["low"] <= value <= axis["high"] and "step" not in axis
