"""Handle time zones: recognise them in ISO texts, compose errors about them, and write times in a zone."""

import logging
from datetime import UTC, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

log = logging.getLogger("vrnn_lab")
OFFSET = r"[T ]\d{2}.*?(Z|[+-]\d{2}(?::?\d{2})?)\s*$"  # at the end of an ISO text that has a time of day
SHOWN = 5


def offsets(texts: pd.Series) -> pd.Series:
    """Return the offset (rows,) from UTC at the end of each ISO text, such as Z, +01 or -03:30; missing for none."""
    return cast(pd.Series, texts.astype(str).str.extract(OFFSET, expand=False))


def has_zone(content: pd.Series) -> bool:
    """Return whether the dates of a column have a zone, by its dtype or by its first ISO text."""
    if types.is_datetime64_any_dtype(content):
        return getattr(content.dtype, "tz", None) is not None
    return bool(offsets(content.iloc[:1]).notna().all())


def zone_of(content: pd.Series, name: str) -> tzinfo | None:
    """Return the zone of the dates of a column; None if they have none, UTC if texts have several offsets.

    name: names file and column in the log message about several offsets.
    """
    if types.is_datetime64_any_dtype(content):
        return getattr(content.dtype, "tz", None)
    if not has_zone(content):
        return None
    distinct = offsets(content).unique().tolist()
    zones = {_fixed(text) for text in distinct}
    if len(zones) == 1:
        return zones.pop()
    shown = ", ".join(distinct[:SHOWN]) + (", ..." if len(distinct) > SHOWN else "")
    log.info("%s has times with several offsets from UTC (%s); predictions are written in UTC (Z).", name, shown)
    return UTC


def _fixed(offset: str) -> timezone:
    if offset == "Z":
        return UTC
    digits = offset[1:].replace(":", "").ljust(4, "0")
    ahead = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-ahead if offset[0] == "-" else ahead)


def mixed(path: Path, column: str, without: str, zoned: str) -> ValueError:
    """Return the error for a column in which only some times have a zone.

    without, zoned: the first time of each kind, with its line.
    """
    return ValueError(
        f"{path}: column '{column}' holds {without}, which has no zone, and {zoned}, which has one; expected a zone "
        "in every row or in none. Append Z to times that are UTC, and to others their offset from it, such as +01:00."
    )


def other_than_trained(path: Path, column: str, example: str, zoned: bool) -> ValueError:
    """Return the error for a query whose times have a zone (`zoned`) and those of training none, or the reverse."""
    if zoned:
        return ValueError(
            f"{path}: column '{column}' has times with a zone ({example}), but the times the model was trained on "
            "have none; expected the local time of the training table, without a zone. With pandas, if that is the "
            f"time of Berlin: frame['{column}'] = pd.to_datetime(frame['{column}'], "
            "utc=True).dt.tz_convert('Europe/Berlin').dt.tz_localize(None)"
        )
    return ValueError(
        f"{path}: column '{column}' has times without a zone ({example}), but the times the model was trained on "
        "have one; expected Z at the end of each time if it is UTC, else its offset from it, such as +01:00. With "
        f"pandas, if the times are those of Berlin: frame['{column}'] = pd.to_datetime(frame['{column}'])"
        ".dt.tz_localize('Europe/Berlin')"
    )


def local_texts(moments: NDArray[Any], zone: Any, write: Any) -> NDArray[Any]:
    """Return ISO texts, with their offsets, of UTC times (rows,), datetime64[us], in a zone.

    write: converts datetime64[us] (rows,) to texts without an offset. Times whose offset is not a whole number of
    minutes, as in historical local mean times, are written in UTC.
    """
    utc = pd.DatetimeIndex(moments)
    local = utc.tz_localize("UTC").tz_convert(zone).tz_localize(None).to_numpy().astype("datetime64[us]")
    seconds = (local - moments).astype("timedelta64[s]").astype(np.int64)
    local = np.where(seconds % 60 == 0, local, moments)
    minutes = np.where(seconds % 60 == 0, seconds // 60, 0)
    distinct, place = np.unique(minutes, return_inverse=True)
    suffixes = np.array([_written(int(offset)) for offset in distinct] or [""], dtype=object)
    return write(local) + suffixes[place]


def _written(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hours:02d}:{rest:02d}" if minutes else "Z"
