"""Name rows by what distinguishes them, as briefly as a person would: optim=adam model.width=64."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vrnn_lab.config.compose import is_volatile
from vrnn_lab.reports.runs import Run

ANYTHING = ("experiment", "trick")  # these groups may set any key
ABSENT = object()


def identity(run: Run, over: Sequence[str]) -> str:
    """Return a key that is equal for runs that differ by nothing but the keys they are repeated over."""
    own = {k: v for k, v in run.config.items() if not is_volatile(k) and k not in over}
    own["tricks"] = sorted(run.choices["trick"].strip("[]").split(","))
    return json.dumps(own, sort_keys=True, default=str)


def written(value: Any) -> str:
    """Return a value as written on a command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class RowNames:
    """Hold the keys that name the rows, and those that follow from one of them."""

    keys: list[str]
    follow: dict[str, tuple[str, ...]]  # a varying key that is not named -> the choices that determine it
    common: dict[str, Any]

    def items(self, facts: dict[str, Any]) -> dict[str, str]:
        return {k: written(facts[k]) for k in self.keys if k in facts}

    def name(self, facts: dict[str, Any]) -> str:
        """Return the name of a row: key=value for each naming key that it has."""
        return " ".join(f"{k}={v}" for k, v in self.items(facts).items()) or "all runs"


def shared(runs: Sequence[Run], over: Sequence[str]) -> dict[str, Any]:
    """Return the choices and keys that all runs of a group have in common."""
    first = {**runs[0].choices, **runs[0].config}
    each = [{**run.choices, **run.config} for run in runs]
    same = lambda k: all(own.get(k, ABSENT) == first[k] for own in each)
    return {k: v for k, v in first.items() if not is_volatile(k) and k not in over and same(k)}


def names(rows: Sequence[dict[str, Any]], choices: Iterable[str], typed: Iterable[str]) -> RowNames:
    """Choose the keys that name rows.

    A varying key is named if the user typed it, or if no named choice that may set it determines its value.
    """
    groups, typed = set(choices), {t.replace(".", "/") for t in typed}
    order = dict.fromkeys(k for row in rows for k in row)
    varies = lambda k: any(row.get(k, ABSENT) != rows[0].get(k, ABSENT) for row in rows)
    keys = [k for k in order if k not in groups and varies(k)]
    matters = lambda group: group in ANYTHING or any(k.startswith(group.replace("/", ".") + ".") for k in keys)
    ranked = sorted((k for k in order if k in groups and varies(k) and matters(k)), key=_rank)
    named: list[str] = []
    chosen: list[str] = []  # the groups among `named`
    follow: dict[str, tuple[str, ...]] = {}
    for key in [*ranked, *keys]:
        causes = _causes(rows, key, [c for c in chosen if _may_set(c, key)])
        if key.replace(".", "/") in typed or not causes:
            named.append(key)
            chosen += [key] * (key in groups)
        else:
            follow[key] = causes
    named.sort(key=lambda k: k == "trick")  # the sort is stable, and moves trick to the end
    return RowNames(named, follow, {k: v for k, v in (rows[0] if rows else {}).items() if not varies(k)})


def _rank(choice: str) -> tuple[bool, int]:
    """Return a sort key: choices that may set any key come first, then groups before their parts."""
    return choice not in ANYTHING, choice.count("/")


def _may_set(choice: str, key: str) -> bool:
    return choice in ANYTHING or key.replace(".", "/").startswith(choice + "/")


def _causes(rows: Sequence[dict[str, Any]], key: str, among: list[str]) -> tuple[str, ...]:
    """Return the choice that determines a key, the nearest first; else all of them together; else none."""
    for causes in [*((c,) for c in reversed(among)), tuple(among)]:
        if causes and _follows(rows, key, causes):
            return causes
    return ()


def _follows(rows: Sequence[dict[str, Any]], key: str, causes: tuple[str, ...]) -> bool:
    """Return whether a key has one value for each combination of its causes."""
    seen: dict[tuple, Any] = {}
    cause = lambda row: tuple(written(row.get(c, ABSENT)) for c in causes)
    return all(seen.setdefault(cause(row), row.get(key, ABSENT)) == row.get(key, ABSENT) for row in rows)
