"""Configs as plain dictionaries."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrnn_lab.config.errors import ConfigError


def to_dict(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A config as plain Python; ConfigError for a ${reference} to nothing."""
    try:
        found = OmegaConf.to_container(config, resolve=resolve) if isinstance(config, DictConfig) else config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(found, dict)
    return {str(k): v for k, v in found.items()}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(node, dict) or (not node and prefix):
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


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
