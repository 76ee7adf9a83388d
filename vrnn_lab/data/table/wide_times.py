"""Recognise a table with one column per time, and suggest the command that melts it to one with a time column."""

from math import isfinite
from pathlib import Path

import pandas as pd

from vrnn_lab.data.table.csv_dialect import dialect_of, is_csv

FEWEST = 3  # columns whose names are times, at least


def is_time(name: str) -> bool:
    """Return whether the name of a column is a finite number or an ISO date, such as 1990 or 2020-01-01."""
    try:
        return isfinite(float(name))
    except ValueError:
        return bool(pd.notna(pd.to_datetime(name, format="ISO8601", errors="coerce")))


def melt_cure(path: Path, names: list[str], id: str | None, time: str, keys: str) -> str | None:
    """Return the command that melts a table whose columns are mostly times; None for another table.

    names: its columns. id: the column that is to name the series, None for a single series. keys: prefix of the
    option `id` in the text, "data." or "".
    """
    other = [name for name in names if not is_time(name)]
    times = len(names) - len(other)
    if times < max(FEWEST, len(names) / 2):
        return None
    frame = not (is_csv(path) or path.suffix.lower() == ".parquet")
    source = "frame" if frame else _reading(path)
    kept, numbered = other, ""
    if id is not None and not other:  # no column names the rows, so their numbers become the names
        kept, numbered = [id], f".rename_axis({id!r}).reset_index()"
    value = "observed" if "value" in (time, *other) else "value"
    melt = f"{source}{numbered}.melt(id_vars={kept}, var_name={time!r}, value_name={value!r})"
    text = f"It seems to have one column per time ({_shown(names)}). Convert it to one column of times with pandas: "
    if frame:
        text += f"frame = {melt}"
    else:
        new = path.with_name(f"{path.name.split('.')[0]}_long.csv")
        text += f"import pandas as pd; {melt}.to_csv({str(new)!r}, index=False)"
    return text + _id_cure(id, kept, keys)


def _reading(path: Path) -> str:
    if not is_csv(path):
        return f"pd.read_parquet({str(path)!r})"
    return f"pd.read_csv({str(path)!r}{dialect_of(path).options})"


def _shown(names: list[str]) -> str:
    times = [f"'{name}'" for name in names if is_time(name)]
    return ", ".join([*times[:2], "...", times[-1]] if len(times) > FEWEST else times)


def _id_cure(id: str | None, kept: list[str], keys: str) -> str:
    if id is None or id in kept:
        return ""
    several = f", the one of {kept} that names the series" if len(kept) > 1 else ""
    return f" Then set {keys}id={kept[0]}{several}."
