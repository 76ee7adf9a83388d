"""Detect the format of the times of a file or frame, and write days since 1970 in that format again."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from fractions import Fraction
from re import fullmatch
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from vrnn_lab.data.table.columns import Cells
from vrnn_lab.data.table.time_zones import local_texts, zone_of

MICROSECONDS = 86_400e6  # per day
DAYS = {"y": 365.2425, "Y": 365.2425, "M": 30.436875, "w": 7.0, "W": 7.0}  # for units that pandas does not measure


@dataclass(frozen=True)
class Clock:
    """Describe the format of times: numbers, or dates as ISO texts or as pandas datetimes, with or without a zone."""

    dates: bool
    text: bool = False
    short: bool = False  # texts without a time of day
    zone: Any = None  # in which dates are written; None: they have none

    @classmethod
    def of(cls, cells: Cells, column: str, dates: bool) -> "Clock":
        content = cells.column(column)
        if not dates:
            return cls(False)
        if types.is_datetime64_any_dtype(content):
            return cls(True, zone=getattr(content.dtype, "tz", None))
        zone = zone_of(content, f"{cells.path}: column '{column}'")
        return cls(True, text=True, short=len(str(content.iloc[0])) <= 10, zone=zone)

    @classmethod
    def of_training(cls, source: Any) -> "Clock":
        """Return the format of training data, with zone UTC if its dates have a zone.

        source: a data set or a Scale, with attributes `dates` and `zoned`.
        """
        return cls(bool(source.dates), zone=UTC if source.dates and source.zoned else None)

    def write(self, times: NDArray[np.float64], text: bool = False) -> Any:
        """Return times (rows,) in this format; text: write dates as ISO texts in any case."""
        if not self.dates:
            return times
        moments = _moments(times)
        if text or self.text:
            return self.texts(moments)
        index = pd.DatetimeIndex(moments)  # in microseconds, as pandas' nanoseconds end in 2262
        return index if self.zone is None else index.tz_localize("UTC").tz_convert(self.zone)

    def texts(self, moments: NDArray[Any]) -> NDArray[Any]:
        """Return ISO texts of UTC times (rows,), datetime64[us], in the zone of this format and with its offset."""
        return self._plain(moments) if self.zone is None else local_texts(moments, self.zone, self._plain)

    def _plain(self, moments: NDArray[Any]) -> NDArray[Any]:
        if self.short and (moments == moments.astype("datetime64[D]")).all():
            return np.datetime_as_string(moments, "D").astype(object)
        whole = moments == moments.astype("datetime64[s]")
        texts = np.where(whole, np.datetime_as_string(moments, "s"), np.datetime_as_string(moments, "us"))
        return texts.astype(object)


class Span(float):
    """Hold a length of time that was written with a unit, in days."""

    @classmethod
    def of(cls, key: str, length: Any) -> float:
        """Return a number, or a quotient such as 1/24, as a float; 2y, 3M, 1w, 7d, 1h, 30min, a Timedelta in days.

        A year and a month have their mean length in the Gregorian calendar. Raise ValueError, naming the option
        `key`, for anything else.
        """
        try:
            return float(Fraction(length)) if isinstance(length, str) else float(length)
        except (ValueError, ZeroDivisionError, TypeError):
            pass
        if isinstance(length, str) and (calendar := fullmatch(r"\s*([0-9.]+)\s*(y|Y|M|w|W)\s*", length)):
            with suppress(ValueError):
                return cls(float(calendar[1]) * DAYS[calendar[2]])
        try:
            return cls(pd.Timedelta(length).total_seconds() / 86_400)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(
                f"{key}={length}: expected a number or, if times are dates, a length such as 2y, 3M (months), 1w, "
                "7D, 1h, 30min."
            ) from None


def spans(horizon: Any, every: Any) -> tuple[float | None, float | None]:
    """Convert `horizon` and `every` to numbers by `Span.of`; None stays None."""
    of = lambda key, length: None if length is None else Span.of(key, length)
    return of("horizon", horizon), of("every", every)


def to_the_second(days: float) -> float:
    """Round days to whole seconds if they are within 1 ms of them, so that 0.0416666667 becomes an hour."""
    seconds = round(days * 86_400)
    return seconds / 86_400 if seconds and abs(days * 86_400 - seconds) < 1e-3 else days


def _moments(days: NDArray[np.float64]) -> NDArray[Any]:
    """Round days since 1970 to microseconds, datetime64[us], so that times that were read are written unchanged.

    The floating-point resolution of a present-day date is about a third of a microsecond.
    """
    whole = np.floor(days)
    microseconds = np.rint((days - whole) * MICROSECONDS).astype("timedelta64[us]")
    return whole.astype(np.int64).astype("datetime64[D]") + microseconds
