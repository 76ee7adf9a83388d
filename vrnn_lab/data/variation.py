"""Measure how far the values of the training series move, to initialise models."""

import numpy as np
import torch
from numpy.typing import NDArray

from vrnn_lab.core.series import Variation

FEWEST = 10  # series from which their heterogeneity is estimated
HALF = 3  # changes in each half of such a series, at least
STILL = 0.01  # least size of a half's changes, relative to that of all; the log of a constant one would be infinite


def variation_of(
    owner: NDArray[np.int64],
    times: NDArray[np.float64],
    values: NDArray[np.float64],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    clock: float,
) -> Variation:
    """Compute each channel's variation, in training standard deviations.

    owner (points,): the series of each point, points of a series together and in order of time; times (points,);
    values (points, dim), NaN = not observed; mean, std (dim,): of the training values; clock: the unit of time of
    slopes.
    """
    channels = zip(values.T, mean, std, strict=True)
    columns = np.array([_channel(owner, times / clock, (x - middle) / wide) for x, middle, wide in channels])
    return Variation(*torch.from_numpy(columns).unbind(1))


def _channel(owner: NDArray, times: NDArray, values: NDArray) -> tuple[float, ...]:
    known = ~np.isnan(values)
    owner, times, values = owner[known], times[known], values[known]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    sizes = np.diff(np.append(first, len(owner)))
    place = np.repeat(np.arange(len(first)), sizes)
    later = ~_is_first(len(values), first)
    change, gap = (np.diff(x, prepend=x[:1])[later] for x in (values, times))
    level, slope, slopes = _between(place, times, values, sizes)
    return (
        _rms(_left_by_half_last_half_mean(values, first, sizes)),
        _rms(change),
        _rms(change - slope * gap),
        level,
        slope,
        slopes,
        float(values.min()),
        float(values.max()),
        _heterogeneity(change, np.repeat(np.arange(len(first)), sizes - 1), sizes - 1),
    )


def _is_first(count: int, first: NDArray) -> NDArray[np.bool_]:
    mask = np.zeros(count, bool)
    mask[first] = True
    return mask


def _rms(x: NDArray) -> float:
    return float(np.sqrt(np.mean(x**2))) if len(x) else 1.0


def _left_by_half_last_half_mean(values: NDArray, first: NDArray, sizes: NDArray) -> NDArray:
    """Return the errors of a simple forecast of every value except the first of a series.

    The forecast is half the previous value plus half the mean of all previous ones, which is shrunk to the training
    mean (zero) by one pseudo-observation.
    """
    total = np.cumsum(values) - values
    before = total - np.repeat(total[first], sizes)
    number = np.arange(len(values)) - np.repeat(first, sizes)
    guess = 0.5 * np.roll(values, 1) + 0.5 * before / (number + 1)
    return (values - guess)[number > 0]


def _heterogeneity(change: NDArray, place: NDArray, sizes: NDArray) -> float:
    """Return the std, between series, of the log of the root mean square of their changes; zero where that is unsure.

    place (changes,): the series of each change; sizes (series,): the number of changes. The variance is the
    covariance, over series, of the two halves of each, which share nothing that is there by chance. Two standard
    errors are subtracted from it.
    """
    within = np.arange(len(change)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    half = sizes // 2
    first, second = within < half[place], within >= (sizes - half)[place]
    enough = half >= HALF
    if enough.sum() < FEWEST:
        return 0.0
    squares = np.array([np.bincount(place[of], change[of] ** 2, len(sizes)) for of in (first, second)])
    squares = squares[:, enough] / half[enough]
    least = STILL**2 * squares.mean()
    if not least > 0:
        return 0.0
    logs = 0.5 * np.log(np.maximum(squares, least))
    product = np.prod(logs - logs.mean(1, keepdims=True), axis=0)
    return float(np.sqrt(max(0.0, product.mean() - 2 * product.std() / len(product) ** 0.5)))


def _between(place: NDArray, times: NDArray, values: NDArray, sizes: NDArray) -> tuple[float, ...]:
    """Return the std of the series' levels, the mean of their slopes and the std of their slopes.

    The variance that noise adds to the estimates is subtracted (moments of a mixed model; Laird & Ware 1982).
    """
    add = lambda x: np.bincount(place, x, len(sizes))
    level = add(values) / sizes
    apart, since = values - level[place], times - (add(times) / sizes)[place]
    spread = add(since**2)
    slope = np.divide(add(since * apart), spread, out=np.zeros_like(spread), where=spread > 0)
    rest = apart - slope[place] * since
    freedom = max(1, len(values) - 2 * len(sizes))
    noise = (rest**2).sum() / freedom
    steady = (sizes >= 3) & (spread > 0)
    of_levels = max(0.0, np.var(level) - np.mean(noise / sizes)) if len(sizes) > 1 else 1.0
    of_slopes = max(0.0, np.var(slope[steady]) - np.mean(noise / spread[steady])) if steady.sum() > 1 else 0.0
    mean = np.average(slope[steady], weights=spread[steady]) if steady.any() else 0.0
    return float(np.sqrt(of_levels)), float(mean), float(np.sqrt(of_slopes))
