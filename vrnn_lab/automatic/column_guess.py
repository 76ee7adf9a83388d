"""Guess what the columns of a table are: series, time, channels, covariates; wide or long form."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.data.table import columns
from vrnn_lab.data.table.columns import OTHER_NAMES, Cells

ROWS = 200_000  # rows that are read to guess
TIMES = ("time", "times", "t", "day", "days", "hour", "hours", "week", "age", "year", "minute", "seconds")
IDS = (
    "id", "name", "subject", "subj", "patient", "participant", "person", "case", "station", "site", "sensor",
    "device", "animal", "series", "stay", "record", "unit", "object", "group", "key", "origin",
)  # fmt: skip
CHANNELS = ("kind", "variable", "channel", "parameter", "measurement", "test", "item", "type", "feature")
VALUES = ("value", "values", "y", "target", "result", "reading", "measurement")
ROLES = tuple(OTHER_NAMES)  # id, time, channel, value
ORDERED = 0.9  # fraction of the steps of a series that do not go back, from which a column may be the time
FEWEST = 3  # series from which a column that is constant within each of them is a covariate
MOST_CHANNELS = 200  # of the long form


@dataclass(frozen=True)
class Roles:
    """Hold the roles of a table's columns, by the keys of data=table."""

    id: str | None
    time: str
    channel: str | None = None
    value: str | None = None
    values: tuple[str, ...] | None = None  # None: all other columns of numbers
    static: tuple[str, ...] = ()
    guessed: tuple[str, ...] = field(default=(), compare=False)  # the keys that nobody gave

    def overrides(self) -> list[tuple[str, Any]]:
        """Return (key, value) of each role, as data=table takes them."""
        roles: list[tuple[str, Any]] = [(f"data.{key}", getattr(self, key)) for key in ROLES]
        roles.append(("data.values", None if self.values is None else list(self.values)))
        return [*roles, ("data.static", list(self.static))]


def guess(path: Path, given: Mapping[str, Any]) -> Roles:
    """Guess the roles of a table's columns from its first rows; given: roles that the user named, by their keys.

    Of all pairs of a column for the time and one for the series, the one whose names say so best is taken; a pair
    under which a series has two rows at one time counts only where a third column tells them apart (the long form).
    Raise ConfigError where no column can be the time.
    """
    names = columns.column_names(path, "input")
    columns.demand(path, names, [(key, given[key]) for key in ROLES if given.get(key)])
    cells = next(columns.chunks(path, names, (), ROWS), None)
    if cells is None or not len(cells.frame):
        raise ConfigError(
            f"input={path} has no rows, only the columns {', '.join(names)}; expected one row per time."
        )
    times = _times(cells, [given["time"]] if given.get("time") else names)
    if not times:
        raise ConfigError(
            f"input={path}: no column holds a time in every row, a number or a date; it has {', '.join(names)}. Name "
            "the column of times: time=<column>"
        )
    best: tuple[float, Roles] | None = None
    for time, moments in times.items():
        for id in _ids(cells, time, given):
            found = _roles(cells, id, time, moments, given)
            if found and (best is None or found[0] > best[0]):
                best = found
    if best is None:
        raise ConfigError(
            f"input={path}: no column looks like the time (dates, a name such as time, or numbers that increase in "
            "each series), or a series has two rows at one time under every choice. Name the columns: id=<column> "
            "time=<column>, in the long form also channel=<column> value=<column>."
        )
    return _with_covariates(cells, best[1], given)


def _times(cells: Cells, names: list[str]) -> dict[str, NDArray[np.float64]]:
    """Return the columns that can be the time, with their moments (rows,)."""
    found = {}
    for name in names:
        column = cells.column(name)
        if types.is_bool_dtype(column) or column.isna().any() or column.nunique() < 2:
            continue
        try:
            found[name] = columns.times(cells, name)[0]
        except ValueError:
            continue
    counted = {name for name in found if name.startswith("Unnamed: ") or columns.counts_rows(cells, name)}
    likely = [name for name in found if name not in counted and _looks_like_time(cells, name, found[name])]
    return {name: moments for name, moments in found.items() if name not in counted or not likely}


def _looks_like_time(
    cells: Cells, name: str, moments: NDArray[np.float64], owner: NDArray[np.int64] | None = None
) -> bool:
    """Return whether a column holds dates, is named as a time, or increases within series (owner) almost always."""
    if not types.is_numeric_dtype(cells.column(name)) or _named(name, (*TIMES, *OTHER_NAMES["time"])):
        return True
    return _ordered(np.zeros(len(moments), np.int64) if owner is None else owner, moments) >= ORDERED


def _ordered(owner: NDArray[np.int64], moments: NDArray[np.float64]) -> float:
    """Return the fraction of steps within series, in the order of the rows, that do not go back in time."""
    order = np.lexsort((np.arange(len(owner)), owner))
    same = np.diff(owner[order]) == 0
    return float((np.diff(moments[order])[same] >= 0).mean()) if same.any() else 1.0


def _ids(cells: Cells, time: str, given: Mapping[str, Any]) -> list[str | None]:
    if "id" in given:
        return [given["id"]]
    return [None, *(str(name) for name in cells.frame if name != time and _is_id(cells.column(str(name))))]


def _is_id(column: pd.Series) -> bool:
    """Return whether a column can name the series: texts or whole numbers, each of which occurs twice on average."""
    if types.is_float_dtype(column) or types.is_datetime64_any_dtype(column):
        return False
    return 2 <= column.nunique() <= len(column) / 2 and not column.isna().any()


def _roles(
    cells: Cells, id: str | None, time: str, moments: NDArray[np.float64], given: Mapping[str, Any]
) -> tuple[float, Roles] | None:
    """Return how well a pair of columns fits, with the roles; None where it cannot be."""
    owner = np.zeros(len(moments), np.int64) if id is None else pd.factorize(cells.column(id))[0]
    score = 4 * _named(time, (*TIMES, *OTHER_NAMES["time"])) + 3 * (
        id is not None and _named(id, (*IDS, *OTHER_NAMES["id"]))
    )
    score += 6 * (not types.is_numeric_dtype(cells.column(time)))  # a date is a time
    score -= 4 * _named(time, VALUES)
    score += _ordered(owner, moments)
    if not given.get("time") and not _looks_like_time(cells, time, moments, owner):
        return None
    if id is not None and not types.is_numeric_dtype(cells.column(id)):
        score += 1
    channel, value = given.get("channel"), given.get("value")
    if channel is None and not _repeated(owner, moments):
        return score, Roles(id, time)
    for name in [channel] if channel else _channels(cells, {id, time}):
        kind = pd.factorize(cells.column(name))[0]
        if not _repeated(owner, moments, kind):
            number = value or _value(cells, {id, time, name})
            if number:
                return score - 5 + 2 * _named(name, CHANNELS), Roles(id, time, name, number)
    return None


def _named(name: str, words: tuple[str, ...]) -> float:
    """Return 1 where a column's name is one of some words, 0.5 where one of them begins or ends it, else 0."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_").replace(".", "_")
    if plain in {word.lower() for word in words}:
        return 1.0
    parts = plain.split("_")
    if len(parts) > 1 and {parts[0], parts[-1]} & {word.lower() for word in words}:
        return 0.5
    return 0.5 if any(len(word) > 3 and plain.endswith(word.lower()) for word in words) else 0.0


def _repeated(owner: NDArray[np.int64], moments: NDArray[np.float64], *further: NDArray[np.int64]) -> bool:
    frame = pd.DataFrame({"owner": owner, "time": moments, **{str(i): each for i, each in enumerate(further)}})
    return bool(frame.duplicated().any())


def _channels(cells: Cells, taken: set[str | None]) -> list[str]:
    """Return the columns that can name a channel, those named so first."""
    fits = [
        str(name)
        for name in cells.frame
        if name not in taken
        and not types.is_float_dtype(cells.column(str(name)))
        and 1 <= cells.column(str(name)).nunique() <= MOST_CHANNELS
    ]
    return sorted(fits, key=lambda name: (-_named(name, CHANNELS), types.is_numeric_dtype(cells.column(name))))


def _value(cells: Cells, taken: set[str | None]) -> str | None:
    """Return the column of numbers that is the value of the long form, None where none or several may be."""
    numbers = [str(n) for n in cells.frame if n not in taken and types.is_numeric_dtype(cells.column(str(n)))]
    named = [name for name in numbers if _named(name, VALUES) == 1]
    if named:
        return named[0]
    return numbers[0] if len(numbers) == 1 else None


def _with_covariates(cells: Cells, roles: Roles, given: Mapping[str, Any]) -> Roles:
    """Return the roles with the static covariates: numbers that are constant within each of several series."""
    guessed = tuple(key for key in ROLES if key not in given and (getattr(roles, key) is not None or key == "id"))
    named = replace(roles, guessed=guessed)
    if given.get("values") or given.get("static"):
        values, static = given.get("values"), given.get("static") or ()
        return replace(named, values=values and tuple(values), static=tuple(static))
    if roles.id is None or roles.channel is not None:
        return named
    groups = cells.frame.groupby(cells.column(roles.id), observed=True)
    taken = {roles.id, roles.time, "split", *given.get("known", ()), *filter(None, given.get("error", ()))}
    numbers = [str(n) for n in cells.frame if n not in taken and types.is_numeric_dtype(cells.column(str(n)))]
    counts = groups[numbers].nunique(dropna=True) if numbers else pd.DataFrame()
    several = int((np.asarray(groups.size()) > 1).sum()) >= FEWEST
    constant = lambda name: bool((counts[name] == 1).all()) and cells.column(name).nunique() > 1
    static = [name for name in numbers if several and constant(name)]
    values = [n for n in numbers if n not in static and not columns.is_spare(cells, n)]
    if not static or not values:
        return named
    return replace(named, values=tuple(values), static=tuple(static))
