"""Fit and evaluate a polynomial trend of one record."""

import numpy as np
import torch
from numpy.typing import NDArray

from vrnn_lab.core.series import Trend

HARMONICS = 2  # of each known period, fitted together with the trend so that a season does not tilt it


def fit_trend(
    times: NDArray[np.float64],
    values: NDArray[np.float64],
    degree: int,
    start: float,
    reach: float,
    periods: tuple[float, ...] = (),
) -> Trend:
    """Fit a polynomial in time to each channel by least squares, together with the waves of known periods.

    times (points,), in order; values (points, dim), NaN = not observed; u = (t - start) / reach.
    The covariance is that of least squares for independent residuals times `correlation_factor`, because the
    residuals of a record are autocorrelated. Raise ValueError where a channel has too few values.
    """
    design = _design(times, degree, start, reach, periods)
    fits = [_fit_channel(design, column, degree + 1) for column in values.T]
    coefficients, covariance, noise = (np.stack(part) for part in zip(*fits, strict=True))
    return Trend(*map(torch.from_numpy, (np.ascontiguousarray(coefficients.T), covariance, noise)))


def trend_at(trend: Trend, times: NDArray[np.float64], start: float, reach: float) -> NDArray[np.float64]:
    """Evaluate the trend (points, dim) at times (points,)."""
    coefficients = trend.coefficients.numpy()
    return _powers(times, len(coefficients) - 1, start, reach) @ coefficients


def correlation_factor(rest: NDArray[np.float64]) -> float:
    """Return the factor by which autocorrelation of residuals (points,) multiplies the variance of their mean.

    The factor, at least 1, is 1 + 2 (r_1 + r_2 + ...), r_k the correlation of residuals k points apart, summed in
    pairs up to the first pair that is not positive (the initial positive sequence of Geyer 1992, Statistical
    Science 7).
    """
    spectrum = np.abs(np.fft.rfft(rest, 2 * len(rest))) ** 2
    covariance = np.fft.irfft(spectrum)[: len(rest) // 2 * 2]
    if not covariance.any() or not covariance[0] > 0:
        return 1.0
    pairs = covariance.reshape(-1, 2).sum(1) / covariance[0]
    end = np.argmax(pairs <= 0) if (pairs <= 0).any() else len(pairs)
    return max(1.0, 2 * float(pairs[:end].sum()) - 1)


def _powers(times: NDArray[np.float64], degree: int, start: float, reach: float) -> NDArray[np.float64]:
    return ((times - start) / reach)[:, None] ** np.arange(degree + 1)


def _design(times, degree: int, start: float, reach: float, periods: tuple[float, ...]) -> NDArray[np.float64]:
    columns = [_powers(times, degree, start, reach)]
    for period in periods:
        if reach >= 2 * period:  # in a shorter record a wave and a trend cannot be distinguished
            turns = 2 * np.pi * np.arange(1, HARMONICS + 1) * (times[:, None] / period)
            columns += [np.sin(turns), np.cos(turns)]
    return np.concatenate(columns, 1)


def _fit_channel(design: NDArray, values: NDArray, terms: int) -> tuple[NDArray, NDArray, float]:
    known = ~np.isnan(values)
    x, y = design[known], values[known]
    if len(y) <= 2 * x.shape[1]:
        raise ValueError(
            f"data.trend: a channel has {len(y)} values in the training part, too few for a trend of "
            f"{x.shape[1]} coefficients; expected more than {2 * x.shape[1]}. Set data.trend=none."
        )
    scale = np.abs(x).max(0)
    solved, *_ = np.linalg.lstsq(x / scale, y, rcond=None)
    rest = y - x @ (solved / scale)
    variance = (rest @ rest) / (len(y) - x.shape[1])
    precision = (x / scale).T @ (x / scale)
    noise = variance * correlation_factor(rest)
    covariance = np.linalg.inv(precision) / np.outer(scale, scale) * noise
    own = covariance[:terms, :terms]
    return (solved / scale)[:terms], own + 1e-12 * np.diag(np.diag(own) + np.finfo(float).tiny), noise
