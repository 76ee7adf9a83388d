"""How a file or frame writes its times, and how days since 1970 are written so again."""

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

MICROSECONDS = 86_400e6  # a day
DAYS = {"y": 365.2425, "Y": 365.2425, "M": 30.436875, "w": 7.0, "W": 7.0}  # of units that pandas does not measure


@dataclass(frozen=True)
class Clock:
    """Numbers; or dates, as texts or as pandas' own. zone: the one they are written in; None: they have none."""

    dates: bool
    text: bool = False
    short: bool = False  # texts without a time of day
    zone: Any = None

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
    def of_training(cls, found: Any) -> "Clock":
        """The format of training data: found has `dates` and `zoned`, as a data set and its Scale; zones are UTC."""
        return cls(bool(found.dates), zone=UTC if found.dates and found.zoned else None)

    def write(self, times: NDArray[np.float64], text: bool = False) -> Any:
        """(rows,): the times as they were; text: dates as ISO texts in any case."""
        if not self.dates:
            return times
        moments = _moments(times)
        if text or self.text:
            return self.texts(moments)
        found = pd.DatetimeIndex(moments)  # nanoseconds would end in 2262
        return found if self.zone is None else found.tz_localize("UTC").tz_convert(self.zone)

    def texts(self, moments: NDArray[Any]) -> NDArray[Any]:
        """ISO texts of moments (rows,) of UTC, datetime64[us], in the zone of the dates and with its offset."""
        return self._plain(moments) if self.zone is None else local_texts(moments, self.zone, self._plain)

    def _plain(self, moments: NDArray[Any]) -> NDArray[Any]:
        if self.short and (moments == moments.astype("datetime64[D]")).all():
            return np.datetime_as_string(moments, "D").astype(object)
        whole = moments == moments.astype("datetime64[s]")
        texts = np.where(whole, np.datetime_as_string(moments, "s"), np.datetime_as_string(moments, "us"))
        return texts.astype(object)


class Span(float):
    """A length of time as it was written, in days."""

    @classmethod
    def of(cls, key: str, found: Any) -> float:
        """A number, or a quotient such as 1/24, as it is; 2y, 3M, 1w, 7d, 1h, 30min and pandas' Timedelta in days.

        A year and a month have their mean length in the Gregorian calendar.
        """
        try:
            return float(Fraction(found)) if isinstance(found, str) else float(found)
        except (ValueError, ZeroDivisionError, TypeError):
            pass
        if isinstance(found, str) and (calendar := fullmatch(r"\s*([0-9.]+)\s*(y|Y|M|w|W)\s*", found)):
            with suppress(ValueError):
                return cls(float(calendar[1]) * DAYS[calendar[2]])
        try:
            return cls(pd.Timedelta(found).total_seconds() / 86_400)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(
                f"{key}={found}: expected a number, or where times are dates 2y, 3M (months), 1w, 7D, 1h, 30min."
            ) from None


def spans(horizon: Any, every: Any) -> tuple[float | None, float | None]:
    """Both as numbers; none stays none."""
    of = lambda key, found: None if found is None else Span.of(key, found)
    return of("horizon", horizon), of("every", every)


def to_the_second(days: float) -> float:
    """What is a second, or some, but for rounding, exactly so: 0.0416666667 is an hour."""
    seconds = round(days * 86_400)
    return seconds / 86_400 if seconds and abs(days * 86_400 - seconds) < 1e-3 else days


def _moments(days: NDArray[np.float64]) -> NDArray[Any]:
    """To the microsecond, of which a float's last digit is a third; so what was read is written again."""
    whole = np.floor(days)
    microseconds = np.rint((days - whole) * MICROSECONDS).astype("timedelta64[us]")
    return whole.astype(np.int64).astype("datetime64[D]") + microseconds
