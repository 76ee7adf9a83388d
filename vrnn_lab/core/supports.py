"""Define the kinds of values that a channel may hold, and which numbers each of them allows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Allowed = Callable[[NDArray[np.float64]], NDArray[np.bool_]]

REAL, POSITIVE, COUNTS, BINARY, EVENTS = "real", "positive", "counts", "binary", "events"
ALLOWED: dict[str, Allowed] = {
    REAL: np.isfinite,
    POSITIVE: lambda x: x > 0,
    COUNTS: lambda x: (x >= 0) & (x == np.floor(x)),
    BINARY: lambda x: (x == 0) | (x == 1),
}
WORDS = {
    REAL: "numbers",
    POSITIVE: "numbers above 0",
    COUNTS: "whole numbers from 0",
    BINARY: "binary values (0 or 1)",
}
NUMBERS = (REAL, POSITIVE, COUNTS)  # kinds whose values have a mean, a distance and intervals


def first_outside(values: NDArray[np.float64], kind: str) -> tuple[int, int] | None:
    """Return the place (point, channel) of the first value (points, dim) that a kind does not allow, or None.

    NaN means that nothing was observed.
    """
    outside = np.argwhere(~np.isnan(values) & ~ALLOWED[kind](values)) if kind in ALLOWED else np.zeros((0, 2), int)
    return (int(outside[0, 0]), int(outside[0, 1])) if len(outside) else None
