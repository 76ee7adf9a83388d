"""Fit Gaussian processes by marginal likelihood, with one kernel per channel, and condition them on each series."""

import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.series import TimeSeries

Array = NDArray[np.float64]
FIT_POINTS = 200  # most points per channel in the fit of its kernel
FIT_STEPS = 50  # optimiser steps on the marginal likelihood, from a single start
APART = 1e6  # distance between series in the kernel's second coordinate, which makes them independent
JITTER = 1e-8  # added to the variance of observed values, in squared training stds


def available() -> bool:
    """Return whether scikit-learn, which fits the kernels, is installed."""
    return find_spec("sklearn") is not None


def fit_kernel(times: Array, series: Array, values: Array, period: float | None = None, steps: int | None = None):
    """Return scikit-learn's kernel with the largest marginal likelihood found from one start.

    It is the sum of a smooth trend, a rough part (Matern 3/2), white noise and, where a period is known, a periodic
    part whose shape changes slowly. times, series, values: (points,); times and the period in a unit in which a
    series has a length of about 1, values standardised, `series` the number of each point's series. steps: the limit
    of optimiser steps, None for scikit-learn's own.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, ExpSineSquared, Matern, WhiteKernel

    size = lambda start: ConstantKernel(start, (1e-5, 1e3))
    kernel = size(1.0) * RBF(1.0, (0.2, 1e3)) + size(0.5) * Matern(0.1, (1e-3, 10.0), nu=1.5)
    if period:
        wave = ExpSineSquared(1.0, period, (0.2, 10.0), periodicity_bounds="fixed")
        kernel += size(0.5) * wave * RBF(2.0, (0.2, 1e2))
    kernel += WhiteKernel(0.1, (1e-6, 10.0))
    optimizer: Any = "fmin_l_bfgs_b" if steps is None else _limited(steps)
    process = GaussianProcessRegressor(kernel, alpha=JITTER, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return process.fit(np.stack([times, APART * series], 1), values).kernel_


def _limited(steps: int):
    """Return an optimiser for scikit-learn: L-BFGS-B with at most `steps` steps."""

    def optimise(objective, start: Array, bounds: Array) -> tuple[Array, float]:
        from scipy.optimize import minimize

        result = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": steps})
        return result.x, result.fun

    return optimise


def condition(kernel: Any, times: Array, values: Array, at: Array, error: Array | None = None) -> tuple[Array, Array]:
    """Return mean and std of observations at some times, given the observed values of one series.

    With K the kernel of the observed times, k that between these and the query times, v(t) the kernel at one time:
    mean k^T (K + E)^-1 y, variance v - diag k^T (K + E)^-1 k. times, values, error: (seen,); at: (queries,). E is
    diagonal: the known variance of the observed values' noise beyond the kernel's own, from the std `error`.
    """
    from scipy.linalg import cho_solve, cholesky, solve_triangular

    place = lambda t: np.stack([t, np.zeros(len(t))], 1)
    prior = kernel.diag(place(at))
    if not len(times):
        return np.zeros(len(at)), np.sqrt(prior)
    noise = JITTER + (0.0 if error is None else error**2)
    lower = cholesky(kernel(place(times)) + noise * np.eye(len(times)), lower=True)
    between = kernel(place(times), place(at))
    explained = solve_triangular(lower, between, lower=True)
    variance = prior - (explained**2).sum(0)
    return between.T @ cho_solve((lower, True), values), np.sqrt(variance.clip(min=JITTER))


class SharedProcess:
    """Model each channel by a Gaussian process with one kernel for all series, which are independent of one another.

    Channels are independent, and covariates other than a known period are not used.
    """

    def __init__(self, series: Iterable[tuple[Array, Array]], level: Array, std: Array, period: float | None = None):
        """Fit one kernel per channel to at most FIT_POINTS values of the first series.

        series: times (points,) and values (points, dim) of each, NaN = not observed, in the data's units; it is read
        only as far as needed. level, std: (dim,), the mean and std by which values are standardised. period: in the
        data's time unit.
        """
        self.level, self.std = level, np.where(std > 0, std, 1.0)
        chosen = _choose(series, len(level))
        spans = [np.ptp(times) for each in chosen for times, _ in each]
        self.span = max(spans, default=0.0) or 1.0
        self.kernels = [
            self._fit(each, channel, period and period / self.span) for channel, each in enumerate(chosen)
        ]

    def _fit(self, chosen: list[tuple[Array, Array]], channel: int, period: float | None):
        if not chosen:
            return None
        times = np.concatenate([times for times, _ in chosen]) / self.span
        series = np.concatenate([np.full(len(times), float(place)) for place, (times, _) in enumerate(chosen)])
        values = np.concatenate([values for _, values in chosen])
        standardised = (values - self.level[channel]) / self.std[channel]
        return fit_kernel(times, series, standardised, period, FIT_STEPS)

    def __call__(self, batch: TimeSeries) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
        """Return mean and std of every scored value given the observed ones of its series and channel.

        Both are in the data's units. The std includes the noise; where error bars are known, also those of the scored
        values. Values that are not scored have the training mean and std.
        """
        mean = np.broadcast_to(self.level, batch.values.shape).copy()
        std = np.broadcast_to(self.std, batch.values.shape).copy()
        times, values = (tensor.double().cpu().numpy() for tensor in (batch.times, batch.values))
        seen, scored = batch.seen.cpu().numpy(), batch.scored.cpu().numpy()
        error = np.zeros(values.shape) if batch.error is None else batch.error.double().cpu().numpy()
        for row in range(len(times)):
            for channel, kernel in enumerate(self.kernels):
                given, queried = seen[row, :, channel], scored[row, :, channel]
                if kernel is None or not queried.any():
                    continue
                level, unit = self.level[channel], self.std[channel]
                bars = error[row, :, channel] / unit
                scaled = times[row] / self.span
                known = (values[row, given, channel] - level) / unit
                conditional_mean, conditional_std = condition(
                    kernel, scaled[given], known, scaled[queried], bars[given]
                )
                mean[row, queried, channel] = level + unit * conditional_mean
                std[row, queried, channel] = unit * np.hypot(conditional_std, bars[queried])
        number = lambda array: torch.from_numpy(array).to(batch.values)
        return number(mean), number(std)


def _choose(series: Iterable[tuple[Array, Array]], dim: int) -> list[list[tuple[Array, Array]]]:
    """Return each channel's times and values, FIT_POINTS at most: whole series, then the end of the last one."""
    chosen: list[list[tuple[Array, Array]]] = [[] for _ in range(dim)]
    left = np.full(dim, FIT_POINTS)
    for times, values in series:
        for channel in np.flatnonzero(left):
            points = np.flatnonzero(~np.isnan(values[:, channel]))[-left[channel] :]
            if len(points):
                chosen[channel].append((times[points], values[points, channel]))
                left[channel] -= len(points)
        if not left.any():
            break
    return chosen
