"""Read a length of time that a user typed, such as 90, 2m, 1.5h or 00:02:00."""

import re
from math import inf
from typing import Any

UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
NUMBER = r"(?:\d+\.?\d*|\.\d+)"
PART = rf"({NUMBER})\s*({'|'.join(sorted(UNITS, key=len, reverse=True))})\s*"
PLACES = (1, 60, 3600, 86400)  # seconds of the places of 01:02:03:04, from the last one on


def seconds_of(given: Any) -> float:
    """Return a length of time in seconds.

    given: a number of seconds, a text such as 90s, 2m, 1h30m or 0.5d, or one such as 02:00 (minutes and seconds),
    00:02:00 or 01:00:02:00 (days first). Raise ValueError for anything else, and for a length that is not positive
    and finite.
    """
    text = str(given).strip()
    if re.fullmatch(NUMBER, text):
        seconds = float(text)
    elif re.fullmatch(f"({PART})+", text):
        seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(PART, text))
    elif re.fullmatch(r"\d+(:\d{1,2}){1,3}", text):
        seconds = float(sum(int(n) * place for n, place in zip(reversed(text.split(":")), PLACES, strict=False)))
    else:
        seconds = 0.0
    if isinstance(given, bool) or not 0 < seconds < inf:
        raise ValueError(f"{given} is no length of time; expected seconds, or a text as 90s, 2m, 1h30m or 00:02:00.")
    return seconds


def duration(seconds: float) -> str:
    """Return a rough length of time as text: 12 s, 3 min or 2 h 10 min."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
