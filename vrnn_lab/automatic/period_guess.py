"""Find periods of a few long records, by the Lomb-Scargle periodogram of their training parts."""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lombscargle

LONG = 60  # observed values of a record that is searched
RECORDS = 10  # records that are searched at most
CYCLES = 4  # least number of periods in a record
PER_PEAK = 5  # frequencies within the width of a peak, 1 / span
MOST = 3000  # values of a record that are searched: of a longer one an evenly spaced part of its means
AT_ONCE = 500  # frequencies at a time, to bound memory
STRONG = 0.3  # fraction of the variance, after a straight line, that a period explains at least
SEVERAL = 2  # periods at most
USUAL = (365.2425, 30.436875, 7.0, 1.0)  # in days: a period of dates that is as near as a peak is wide becomes it


def periods(
    times: list[NDArray[np.float64]], values: list[NDArray[np.float64]], dates: bool
) -> list[tuple[float, float]]:
    """Return (period, fraction of the variance that it explains) of records, the strongest first.

    times (points,) and values (points, dim), NaN = not observed, of each record. dates: times are in days. A period
    counts where it explains STRONG of the variance of a channel that a straight line and stronger periods leave, and
    is found in the first channel that has one (VanderPlas 2018, arXiv 1703.09824, on the periodogram).
    """
    for moments, columns in list(zip(times, values, strict=True))[:RECORDS]:
        for column in columns.T:
            there = ~np.isnan(column)
            if there.sum() >= LONG and (found := _of_channel(moments[there], column[there], dates)):
                return found
    return []


def _of_channel(times: NDArray[np.float64], x: NDArray[np.float64], dates: bool) -> list[tuple[float, float]]:
    """Return the periods of one channel; a long record is searched twice: its first part, and means over all of it.

    So short periods are found in the part, whose points are as dense as they are, and long ones in the means.
    """
    if len(times) <= MOST:
        return _searched(times, x, dates)
    found = _searched(times[:MOST], x[:MOST], dates)
    if found:
        return found
    groups = np.array_split(np.arange(len(times)), MOST)
    means = [np.array([column[group].mean() for group in groups]) for column in (times, x)]
    return _searched(means[0], means[1], dates)


def _power(times: NDArray[np.float64], x: NDArray[np.float64], frequencies: NDArray[np.float64]) -> NDArray:
    """Return the fraction of the variance that a sine of each frequency explains."""
    parts = np.array_split(2 * np.pi * frequencies, max(1, -(-len(frequencies) // AT_ONCE)))
    return np.concatenate([lombscargle(times, x, part, normalize=True) for part in parts])


def _searched(times: NDArray[np.float64], x: NDArray[np.float64], dates: bool) -> list[tuple[float, float]]:
    span, gap = float(times[-1] - times[0]), float(np.median(np.diff(times)))
    if not 0 < gap < span:
        return []
    highest = 0.5 / gap
    count = int(PER_PEAK * span * (highest - CYCLES / span))
    if count < 1:
        return []
    frequencies = np.linspace(CYCLES / span, highest, count)
    found: list[tuple[float, float]] = []
    since = (times - times.mean()) / span
    basis = [np.ones_like(since), since]
    for _ in range(SEVERAL):
        rest = _left(x, basis)
        if not rest.std() > 1e-9 * max(1.0, float(np.abs(x).max())):
            break
        power = _power(since * span, rest, frequencies)
        best = int(power.argmax())
        period, share = 1 / frequencies[best], float(power[best])
        # A peak at the end of the range belongs to a slower change, which is no period.
        if share < STRONG or best == 0:
            break
        period = _usual(period, span) if dates else _refined(since * span, rest, frequencies, best)
        found.append((float(period), share))
        angle = 2 * np.pi * since * span / period
        basis += [np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)]
    return found


def _left(x: NDArray[np.float64], basis: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    matrix = np.stack(basis, 1)
    return x - matrix @ np.linalg.lstsq(matrix, x, rcond=None)[0]


def _usual(period: float, span: float) -> float:
    """Return the usual period within the width of the peak at a period, else the period itself."""
    near = [usual for usual in USUAL if abs(1 / usual - 1 / period) < 0.5 / span]
    return min(near, key=lambda usual: abs(usual - period), default=period)


def _refined(times: NDArray[np.float64], rest: NDArray[np.float64], frequencies: NDArray[np.float64], best: int):
    """Return the period of the peak on a grid a hundred times as fine."""
    step = frequencies[1] - frequencies[0] if len(frequencies) > 1 else frequencies[0] / 10
    near = np.linspace(frequencies[best] - step, frequencies[best] + step, 201)
    power = _power(times, rest, near)
    period = 1 / near[int(power.argmax())]
    whole = round(period)
    return whole if whole and abs(1 / whole - 1 / period) < 0.1 / (times[-1] - times[0]) else period
