"""Group the rows of a report by dataset: scores are ranked within a dataset, never across."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrnn_lab.reports.compare import Group
from vrnn_lab.reports.naming import written
from vrnn_lab.reports.runs import Run

SAME_VALUES = ("data.seed", "data.batch_size", "data.stream", "data.period")  # runs that differ in them are ranked
ABSENT = object()


@dataclass
class DataSet:
    """Hold the rows of a report whose scores are of the same data."""

    name: str  # short and distinct: "ou", or "table path=a.csv" beside another table
    groups: list[Group]
    best: Group | None = None

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs.values()]


def data_sets(groups: Sequence[Group], over: Sequence[str]) -> list[DataSet]:
    """Group the rows by dataset, in the order in which the datasets first appear.

    over: the keys over which runs are repeated; runs that differ in them alone share a dataset.
    """
    rows_of: dict[str, list[Group]] = {}
    for group in groups:
        data_keys = _data_keys(_first(group), over)
        rows_of.setdefault(json.dumps(data_keys, default=str, sort_keys=True), []).append(group)
    labels = _labels([_first(rows[0]) for rows in rows_of.values()], over)
    return [DataSet(label, rows) for label, rows in zip(labels, rows_of.values(), strict=True)]


def settings(group: Group, sets: Sequence[DataSet]) -> str:
    """Return the items of a row's name that its dataset does not already imply."""
    return " ".join(f"{k}={v}" for k, v in group.items.items() if k not in keys_of_data_sets(sets))


def keys_of_data_sets(sets: Sequence[DataSet]) -> set[str]:
    """Return the keys of data that vary between datasets but not within any."""
    keys = {k for each in sets for g in each.groups for k in g.items if k == "data" or k.startswith("data.")}
    return {k for k in keys if all(len({g.items.get(k) for g in each.groups}) < 2 for each in sets)}


def folder_names(groups: Sequence[Group]) -> dict[int, str]:
    """Return short names of rows, by the id() of their group: the tail of its first run's folder, and a count."""
    runs = {id(g): list(g.runs.values()) for g in groups}
    tails = shortest_tails([run.folder.absolute() for each in runs.values() for run in each])
    more = lambda each: f" and {len(each) - 1} more" if len(each) > 1 else ""
    return {place: tails[each[0].folder.absolute()] + more(each) for place, each in runs.items()}


def shortest_tails(paths: Iterable[Path]) -> dict[Path, str]:
    """Return for each path its shortest tail of whole parts in which no other path ends."""
    distinct = list(dict.fromkeys(paths))
    count: dict[tuple[str, ...], int] = {}
    for path in distinct:
        for start in range(len(path.parts)):
            tail = path.parts[start:]
            count[tail] = count.get(tail, 0) + 1
    shortest = {}
    for path in distinct:
        tails = (path.parts[start:] for start in reversed(range(len(path.parts))))
        shortest[path] = str(Path(*next((tail for tail in tails if count[tail] == 1), path.parts)))
    return shortest


def _first(group: Group) -> Run:
    return next(iter(group.runs.values()))


def _data_keys(run: Run, over: Sequence[str]) -> dict[str, Any]:
    return {k: v for k, v in run.config.items() if k.startswith("data.") and k not in (*SAME_VALUES, *over)}


def _labels(runs: Sequence[Run], over: Sequence[str]) -> list[str]:
    """Return a name for the dataset of each run: its option of data, and what differs between those of one option."""
    named = [run.choices.get("data") or _class_of(run) for run in runs]
    return [
        " ".join([name, *_differences(run, [r for r, n in zip(runs, named, strict=True) if n == name], over)])
        for run, name in zip(runs, named, strict=True)
    ]


def _class_of(run: Run) -> str:
    return str(run.config.get("data._target_", "data")).rpartition(".")[2]


def _differences(run: Run, others: Sequence[Run], over: Sequence[str]) -> list[str]:
    """Return the keys of data, as `path=a.csv`, in which a run differs from some of the others of its option."""
    values = [_data_keys(each, over) for each in others]
    own = _data_keys(run, over)
    varying = [k for k in own if any(each.get(k, ABSENT) != own[k] for each in values)]
    differences = []
    for key in varying:
        value = written(own[key])
        if key == "data.path":
            paths = [Path(str(each[key])) for each in values if each.get(key)]
            value = shortest_tails(paths).get(Path(value), value)
        differences.append(f"{key.removeprefix('data.')}={value}")
    return differences
