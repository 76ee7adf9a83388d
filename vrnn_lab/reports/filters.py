"""Parse and apply filters over runs, as on a command line: optim=adam, model.width>=32, trick=[big_batch,wide]."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any

import yaml

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.reports.compare import Group
from vrnn_lab.reports.runs import Run

ORDER: dict[str, Callable[[Any, Any], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}
SAME = {"=": True, "!=": False}


@dataclass(frozen=True)
class Filter:
    """Hold one condition on a run; calling it tests the condition."""

    key: str
    sign: str
    text: str
    value: Any

    def __call__(self, run: Run) -> bool:
        value = facts(run).get(self.key, ...)
        if self.key == "trick":
            value = _set(value)
        if self.sign in SAME:
            same = value == self.value or (isinstance(value, str) and value == self.text)  # YAML reads `off` as false
            return same == SAME[self.sign]
        numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
        return numbers and ORDER[self.sign](value, self.value)


def facts(run: Run) -> dict[str, Any]:
    """Return all that filters may test of a run.

    Test metrics and those of baselines are not among it, since they must not choose anything.
    """
    known = {k: v for k, v in run.metrics.items() if not k.startswith(("test/", "reference/"))}
    return {**known, **run.config, **run.choices, "status": run.status}


def parse(text: str | Sequence[str], runs: Iterable[Run], option: str) -> list[Filter]:
    """Return the filters of a text; raise ConfigError for a key that no run has.

    Filters are separated, outside of brackets, by commas or, as in the name of a row, by spaces before a key.
    """
    texts = [text] if isinstance(text, str) else list(text)
    parts = [
        part.strip() for each in texts for part in re.split(r"(?:,|\s+(?=[\w./]+[<>=!]))(?![^\[]*\])", str(each))
    ]
    keys = {k for run in runs for k in facts(run)}
    return [_filter(part, keys, option) for part in parts]


def _filter(text: str, keys: set[str], option: str) -> Filter:
    match = re.fullmatch(r"([^<>=!]+)(>=|<=|!=|=|>|<)(.*)", text)
    if not match:
        raise ConfigError(f"{option}={text}: expected <key>=<value> (or !=, <, <=, >, >=), as in optim=adam.")
    key, sign, value = (part.strip() for part in match.groups())
    key = key if key in keys else key.replace(".", "/") if key.replace(".", "/") in keys else key
    if key.startswith("test/"):
        raise ConfigError(
            f"{option}={text}: test metrics must not choose runs; filter by config keys or val/ metrics."
        )
    if key not in keys:
        raise ConfigError(f"{option}={text}: no run has the key {key}.{did_you_mean(key, keys)}")
    read = _set(value) if key == "trick" else scalar(value)
    if sign in ORDER and not isinstance(read, (int, float)):
        raise ConfigError(f"{option}={text}: {sign} compares numbers, but {value!r} is not a number.")
    return Filter(key, sign, value, read)


def scalar(text: str) -> Any:
    """Return a value as the config holds it; 1e-3 is a number, which YAML alone would read as text."""
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _set(text: Any) -> frozenset[str]:
    """Return tricks as a set, from none, wide, or [big_batch,wide]."""
    names = frozenset(part.strip() for part in str(text).strip("[]").split(","))
    return names - {"none", ""}


def select(runs: Iterable[Run], filters: Iterable[Filter]) -> list[Run]:
    """Return the runs that pass all filters."""
    conditions = list(filters)
    return [run for run in runs if all(holds(run) for holds in conditions)]


def values_of(runs: Iterable[Run], key: str) -> str:
    """Return the values that a key has in some runs, as text for a message."""
    values = dict.fromkeys(str(facts(run)[key]) for run in runs if key in facts(run))
    return ", ".join(list(values)[:12])


def only(groups: Sequence[Group], runs: Sequence[Run], text: Any, option: str) -> Group:
    """Return the only group with runs that match a filter; raise ConfigError for none or several."""
    filters = parse(text, runs, option)
    matches = [g for g in groups if select(g.runs.values(), filters)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        rows = "; ".join(g.name for g in matches[:5])
        raise ConfigError(
            f"{option}={text} matches {len(matches)} rows: {rows}. Choose one by its whole name, in quotes."
        )
    values = "; ".join(f"{f.key} is {values_of(runs, f.key)}" for f in filters)
    raise ConfigError(f"{option}={text} matches no row; in these runs {values}.")
