"""What tells rows apart, as short as a person would write it: optim=adam model.width=64."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vrnn_lab.config import VOLATILE
from vrnn_lab.runs import Run

ANYTHING = ("experiment", "trick")  # these groups set keys anywhere
ABSENT = object()


def identity(run: Run, over: Sequence[str]) -> str:
    """Runs of one identity differ by nothing but the keys they are repeated over."""
    own = {k: v for k, v in run.config.items() if k not in VOLATILE and k not in over}
    return json.dumps(own, sort_keys=True, default=str)


def written(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if _plain(value) else str(value)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


@dataclass(frozen=True)
class Names:
    """The keys that name the rows, and those that follow from one of them."""

    keys: list[str]
    follow: dict[str, tuple[str, ...]]  # a varying key that is not named -> what it follows from
    common: dict[str, Any]

    def items(self, facts: dict[str, Any]) -> dict[str, str]:
        return {k: written(facts[k]) for k in self.keys if k in facts}

    def name(self, facts: dict[str, Any]) -> str:
        return " ".join(f"{k}={v}" for k, v in self.items(facts).items()) or "all runs"


def shared(runs: Sequence[Run], over: Sequence[str]) -> dict[str, Any]:
    """The choices and keys that all runs of a group have in common."""
    first = {**runs[0].choices, **runs[0].config}
    same = lambda k: all({**r.choices, **r.config}.get(k, ABSENT) == first[k] for r in runs)
    return {k: v for k, v in first.items() if k not in VOLATILE and k not in over and same(k)}


def names(rows: Sequence[dict[str, Any]], choices: Iterable[str], typed: Iterable[str]) -> Names:
    """A varying key is named if the user typed it, or if no named choice that may set it accounts for it."""
    groups, typed = set(choices), {t.replace(".", "/") for t in typed}
    order = dict.fromkeys(k for row in rows for k in row)
    varies = lambda k: any(row.get(k, ABSENT) != rows[0].get(k, ABSENT) for row in rows)
    varying = [k for k in order if varies(k)]
    keys = [k for k in varying if k not in groups]
    matters = lambda group: group in ANYTHING or any(k.startswith(group.replace("/", ".") + ".") for k in keys)
    ranked = sorted((k for k in varying if k in groups and matters(k)), key=lambda k: (k not in ANYTHING, k.count("/")))
    named: list[str] = []
    follow: dict[str, tuple[str, ...]] = {}
    for key in [*ranked, *keys]:
        causes = tuple(c for c in named if c in groups and _may_set(c, key))
        if key.replace(".", "/") in typed or not _follows(rows, key, causes):
            named.append(key)
        else:
            follow[key] = causes
    return Names(named, follow, {k: v for k, v in (rows[0] if rows else {}).items() if not varies(k)})


def _may_set(choice: str, key: str) -> bool:
    return choice in ANYTHING or key.replace(".", "/").startswith(choice + "/")


def _follows(rows: Sequence[dict[str, Any]], key: str, causes: tuple[str, ...]) -> bool:
    """Whether a key has one value for each combination of its causes."""
    seen: dict[tuple, Any] = {}
    for row in rows:
        cause = tuple(row.get(c, ABSENT) for c in causes)
        if seen.setdefault(cause, row.get(key, ABSENT)) != row.get(key, ABSENT):
            return False
    return bool(causes)
