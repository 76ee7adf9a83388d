"""Take data frames of other kinds and names, and hold rows out of them to score a forecaster."""

from typing import Any

import numpy as np
import pandas as pd

from vrnn_lab.data.table.columns import OTHER_NAMES
from vrnn_lab.data.table.reader import TableSchema


def as_pandas(frame: Any, what: str = "frame") -> pd.DataFrame:
    """Return a frame as one of pandas; index levels, such as (id, time), become columns.

    Frames of other libraries, such as polars and pyarrow, are converted by their own to_pandas. Raise TypeError for
    anything else.
    """
    if not isinstance(frame, pd.DataFrame):
        if not hasattr(frame, "to_pandas"):
            raise TypeError(f"{what} is a {type(frame).__name__}; expected a data frame.")
        frame = frame.to_pandas()
    named = [name for name in frame.index.names if name is not None]
    if isinstance(frame.index, pd.DatetimeIndex) and not named:
        frame = frame.rename_axis("time")
        named = ["time"]
    if isinstance(frame.index, pd.MultiIndex) or (named and not set(named) & set(frame.columns)):
        frame = frame.reset_index()
    return frame


def usual_name(frame: pd.DataFrame, role: str, name: str | None) -> str | None:
    """Return a column's name or, where the frame lacks it and the name is the default, that of another library.

    role: id, time, channel or value; the other names are unique_id, ds, y and so on.
    """
    if name != role or name in frame.columns:
        return name
    others = [other for other in OTHER_NAMES[role] if other in frame.columns]
    return others[0] if len(others) == 1 else name


def held_out(frame: pd.DataFrame, schema: TableSchema, question: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that are seen, and those that are queried: the later half of each series, or every second time.

    question: forecast or gaps. Series with fewer than two times are only seen.
    """
    owner = np.zeros(len(frame), np.int64) if schema.id is None else pd.factorize(frame[schema.id])[0]
    times = frame[schema.time]
    place = times.groupby(owner).rank(method="dense").to_numpy() - 1
    count = pd.Series(place).groupby(owner).transform("max").to_numpy() + 1
    hidden = place >= np.ceil(count / 2) if question == "forecast" else place % 2 == 1
    return frame.loc[~hidden], frame.loc[hidden]


def paired(
    queried: pd.DataFrame, found: pd.DataFrame, schema: TableSchema, channels: tuple[str, ...]
) -> pd.DataFrame:
    """Return the rows of a prediction whose values are observed in the frame of queries, with these as `truth`.

    They are paired by series, channel and the place of their time among the queried times of the series, since a
    prediction's times may be rounded otherwise than the frame's.
    """
    keys = {schema.time: "time"} | ({schema.id: "id"} if schema.id else {})
    if schema.channel:
        rows = queried.rename(columns={**keys, schema.channel: "channel", str(schema.value): "truth"})
    else:
        present = [channel for channel in channels if channel in queried.columns]
        rows = queried.rename(columns=keys).melt([*keys.values()], present, "channel", "truth")
    rows, found = _with_place(rows), _with_place(found)
    rows = rows.loc[rows["truth"].notna(), ["series", "place", "channel", "truth"]]
    return found.merge(rows, on=["series", "place", "channel"])


def _with_place(rows: pd.DataFrame) -> pd.DataFrame:
    series = rows["id"].astype(str) if "id" in rows else pd.Series("", rows.index)
    if len({*series.tolist()}) == 1:  # a prediction of one series names it, and a frame without ids does not
        series = pd.Series("", rows.index)
    return rows.assign(series=series, place=rows["time"].groupby(series).rank(method="dense"))
