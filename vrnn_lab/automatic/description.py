"""Describe a table, and what was guessed about it, in five lines."""

from collections.abc import Sequence

import numpy as np

from vrnn_lab.automatic.column_guess import Roles
from vrnn_lab.automatic.log_guess import positive_channels
from vrnn_lab.data.table.dataset import Table

SHOWN = 8  # names of columns in a line


def table_lines(
    data: Table, roles: Roles, periods: Sequence[tuple[float, float]], without: str, logs: Sequence[str]
) -> list[str]:
    """Return the lines on columns, series, values and periods.

    periods: (period, fraction of the variance) of those that were found; without: what to say where there are none.
    logs: the channels that are modelled by their logarithms.
    """
    series = data.whole()
    values = np.asarray(series.values)
    times = np.asarray(series.times)
    unit = f" {data.time_unit}" if data.time_unit else ""
    lengths = series.lengths
    gaps = np.diff(times)[np.diff(np.repeat(np.arange(len(series)), lengths)) == 0]
    gap = f", median gap {np.median(gaps):.4g}{unit}" if len(gaps) else ""
    named = [f"{key}={getattr(roles, key) or 'null'}" for key in ("id", "time", "channel", "value")
             if getattr(roles, key) is not None or key == "id"]  # fmt: skip
    guessed = f" (guessed: {', '.join(roles.guessed)})" if roles.guessed else ""
    static = f"; static covariates {_some(roles.static)}" if roles.static else ""
    positive = positive_channels(data)
    kind = f"; all positive: {_some(positive)}" if positive else ""
    kind += f"; modelled by their logarithms: {_some(logs)}" if logs else ""
    missing = float(np.isnan(values).mean())
    if periods:
        found = ", ".join(f"{period:.7g}{unit} (explains {share:.0%} of the variance)" for period, share in periods)
    else:
        found = without
    return [
        f"columns  {', '.join(named)}{guessed}; channels {_some(data.channels)}{static}",
        f"series   {len(series)} of {lengths.min()} to {lengths.max()} points{gap}; {data.split_rule}",
        f"values   {int((~np.isnan(values)).sum()):,} observed, {missing:.0%} of the cells are empty{kind}",
        f"periods  {found}",
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
