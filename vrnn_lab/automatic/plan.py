"""Turn the arguments of vrnn_lab.auto into a study: columns, period, window and candidates of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.automatic.column_guess import ROLES, guess
from vrnn_lab.automatic.description import table_lines
from vrnn_lab.automatic.log_guess import log_channels
from vrnn_lab.automatic.period_guess import RECORDS, periods
from vrnn_lab.automatic.study import Study, default_candidates
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.compose import compose, from_overrides
from vrnn_lab.config.options import options
from vrnn_lab.config.plain import flatten, to_dict, typed
from vrnn_lab.config.validate import check
from vrnn_lab.core.example import file_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.data.table.time_format import Span, spans

WORDS = {"fill": "gaps", "ahead": "forecasts", "both": "gaps and forecasts"}
# Keys with which no channel is modelled by its logarithm unless the user says so.
REAL_ONLY = {"data.log", "data.support", "data.trend", "data.error", "data.stream", "model/head"}
LISTS = ("values", "static", "known", "error")


def study_of(given: Mapping[str, str], more: Sequence[str], folder: Path, seed: int) -> tuple[Study, list[str]]:
    """Return the study of a call, and lines that describe its table; raise ValueError where it cannot work.

    given: the settings of the command. more: overrides of all candidates.
    """
    path = file_of(given["input"])
    own = {word.partition("=")[0] for word in more}
    known: dict[str, Any] = {key: None if given[key] == "null" else given[key] for key in ROLES if key in given}
    keys = flatten(to_dict(from_overrides([word for word in more if word.startswith("data.")])))
    known |= {key: _list(keys[f"data.{key}"]) for key in LISTS if f"data.{key}" in keys}
    roles = guess(path, known)
    named = {"data.path": str(path.absolute())} | dict(roles.overrides())
    data = [f"{key}={typed(name)}" for key, name in named.items()
            if key not in own and (key == "data.id" or name not in (None, []))]  # fmt: skip
    horizon = spans(given.get("horizon"), None)[0]
    question = given.get("question", "both" if horizon is None else "ahead")
    models = tuple(filter(None, given.get("models", "").split(",")))
    if unknown := [model for model in models if model not in options("model")]:
        names = options("model")
        raise ValueError(
            f"models={given['models']}: there is no model {unknown[0]}.{did_you_mean(unknown[0], names)} There are "
            f"{', '.join(names)}."
        )
    study = Study(folder, tuple(data), question, horizon and float(horizon), models, seed, tuple(more))
    table = _table(study)
    if horizon is not None and not 0 < float(horizon) < inf:
        raise ValueError(f"horizon={given['horizon']}: expected a positive length of time.")
    if isinstance(horizon, Span) and not table.dates:
        raise ValueError(
            f"horizon={given['horizon']}: the times of {path} are numbers without a known unit; give a number in the "
            "same unit."
        )
    few = len(table.whole()) <= RECORDS and table.split_in_time
    found = periods(*_records(table), bool(table.dates)) if few and "data.period" not in own else []
    without = "none was found" if few else "not searched, as they are in up to ten long series only"
    if "data.period" in own:
        without = "as given: " + ", ".join(f"{period:g}" for period in table.periods)
    if found:
        listed = ",".join(f"{period:.10g}" for period, _ in found)
        study = replace(study, data=(*study.data, f"data.period=[{listed}]"))
    if horizon is not None and table.split_in_time and "data.window" not in own:
        study = _with_window(study, table, float(horizon))
    logs = () if own & REAL_ONLY else log_channels(table)
    if logs:
        study = replace(study, data=(*study.data, f"data.log={typed(list(logs))}"))
    lines = table_lines(table, roles, found, without, table.log or logs)
    if not study.candidates:
        study = replace(study, candidates=default_candidates(_table(study)))
    for model in study.candidates:
        check(compose(study.overrides(model, None, False)))
    reach = "" if horizon is None else f" up to {float(horizon):.4g} {table.time_unit}".rstrip()
    return study, [*lines, f"plan     {WORDS[question]}{reach}; candidates {', '.join(study.candidates)}"]


def _table(study: Study) -> Table:
    data = study.parts().data
    assert isinstance(data, Table)
    return data


def _list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])


def _records(table: Table) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return times and values of the training part of each series."""
    series = table.whole()
    ends = series.first + (series.lengths * float(table.shares[0])).astype(np.int64)
    times, values = np.asarray(series.points.times), np.asarray(series.points.values)
    parts = list(zip(series.first, ends, strict=True))
    return [times[a:b] for a, b in parts], [values[a:b] for a, b in parts]


def _with_window(study: Study, table: Table, horizon: float) -> Study:
    """Return the study with windows that are twice as long as the horizon, where its own would be shorter."""
    if float(table.scale.longest) >= 2 * horizon:
        return study
    shortest = int(table.whole().lengths.min() * table.shares[0])
    points = min(ceil(2 * horizon / float(table.scale.gap)) + 1, shortest // 2)
    return replace(study, data=(*study.data, f"data.window={max(2, points)}"))
