"""Convert configs to plain dictionaries."""

from collections.abc import Callable, Iterator
from re import Match, sub
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrnn_lab.config.errors import ConfigError


def to_dict(config: Any, resolve: bool = True) -> dict[str, Any]:
    """Return a config as plain Python; raise ConfigError for a ${reference} to nothing or to itself."""
    try:
        plain = OmegaConf.to_container(config, resolve=resolve) if isinstance(config, DictConfig) else config
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{error.full_key}: {reason}; expected ${{<key>}} of another key that has a value."
        ) from error
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict, its keys joined by dots."""
    if not isinstance(node, dict) or (not node and prefix):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Yield (path, node) for every node of a config that constructs something."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from nodes(value, f"{path}[{place}]")


def typed(name: Any) -> str:
    """Return a name, a list of names, or None, as typed after key=, quoted so that Hydra reads it back unchanged."""
    if name is None:
        return "null"
    if isinstance(name, list):
        return f"[{','.join(map(typed, name))}]"
    # Hydra reads backslashes as escapes only before a quotation mark.
    escaped: Callable[[Match[str]], str] = lambda match: 2 * match[1] + ('\\"' if match[2] else "")
    return '"' + sub(r'(\\*)("|\Z)', escaped, str(name).replace("${", "\\${")) + '"'
