"""Explain overrides that Hydra refuses, with the nearest name that exists."""

import re
from typing import Any

import yaml

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, groups, options, package_of
from vrnn_lab.config.plain import flatten, to_dict

LAUNCHERS = ("joblib", "submitit", "ray")  # each an extra of this name


def error_of_hydra(error: Exception, hydra: Any) -> ConfigError:
    """Return Hydra's error about overrides as a ConfigError in our words."""
    override = getattr(error, "override", None)  # set where Hydra's grammar cannot parse the override
    if override is None:
        return ConfigError(_explain(str(error), hydra))
    return ConfigError(
        f"{override!r} cannot be read; expected key=value, such as model=vrnn, optim.lr=1e-3 or "
        "data.shares=[0.7,0.2,0.1]. A value with spaces or other signs needs quotation marks of its own: "
        "'data.path=\"a b.csv\"'."
    )


def error_together(overrides: list[str], error: Exception) -> ConfigError:
    """Return the error of overrides that Hydra can read one by one, but that make no config together."""
    for override in overrides:
        group, _, option = override.lstrip("+").partition("=")
        if option in ("null", "None", "~") and group in groups():
            return ConfigError(f"{override}: expected one of {', '.join(options(group))}.")
    reason = f": {error}" if isinstance(error, ValueError) else ", or one has a value of the wrong kind."
    return ConfigError(f"{' '.join(overrides)}: these overrides cannot be combined{reason}")


def _explain(message: str, hydra) -> str:
    """Return Hydra's message, with the nearest name that exists."""
    if match := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", message):
        group, option = match.groups()
        if group in groups():
            allowed = options(group)
            nearest = did_you_mean(option, allowed)
            return f"{group}={option}: there is no such option.{nearest} Allowed: {', '.join(allowed)}"
        if group == "hydra/launcher":
            extra = option.partition("_")[0] if option.startswith(LAUNCHERS) else "joblib"
            return (
                f"{group}={option} is not installed; pip install 'vrnn_lab[{extra}]'. The launchers are "
                "joblib, submitit_local, submitit_slurm, ray and basic, which runs one job after the other."
            )
    if match := re.search(r"Could not override '([^']+)'", message):
        return _unknown(match.group(1), to_dict(hydra.compose("config"), resolve=False))
    return message.strip()


def _unknown(key: str, default: Any) -> str:
    """Return why a key cannot be set: another option of its group has it, or none has."""
    group = key.split(".")[0]
    owners: dict[str, list[str]] = {}
    for each in groups():
        for option in options(each):
            if package_of(each, option) == "_global_":
                continue
            node = yaml.safe_load((CONF / each / f"{option}.yaml").read_text()) or {}
            for name in flatten(node):
                owners.setdefault(f"{package_of(each, option)}.{name}", []).append(f"{each}={option}")
    if key in owners:
        return f"{key} belongs to {', '.join(owners[key])}, but this run has chosen another {group}."
    if key in groups():
        whole = key.split("/")[0]
        return f"{key}: the chosen {whole} has no such part; it belongs to {whole}={', '.join(_with_part(key))}."
    names = {k for k in (*flatten(default), *owners) if "_target_" not in k and "defaults" not in k} | set(groups())
    hint = did_you_mean(key, [n for n in names if n.startswith(group + ".")]) or did_you_mean(key, names)
    look = group if group in groups() else ""
    return f"{key}: there is no such key or group.{hint} `{f'python -m vrnn_lab.describe {look}'.strip()}` lists all."


def _with_part(key: str) -> list[str]:
    """Return the options of a group, such as model, that have a part of it, such as model/cell."""
    group, part = key.split("/", 1)
    chosen = lambda option: (yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}).get("defaults", [])
    return [o for o in options(group) if any(isinstance(d, dict) and part in d for d in chosen(o))]
