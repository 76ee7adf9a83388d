"""Weigh models by their scores on validation: the mixture with the best log score, where it is better than one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.evaluation.value_scores import ValueScores, common

ROUNDS = 500  # of expectation and maximisation, at most
LEAST = 0.05  # a model with a smaller weight is left out
PRIOR = 1.0  # pseudo-values for each model, which keep weights from few values near equal ones
FEWEST = 30  # different values from which a single model can be found to be better than a mixture
HALVES = 2  # parts of the validation series; weights from the others are scored on each


@dataclass(frozen=True)
class Choice:
    """Hold the weights of models for a question, which sum to 1, and what they are based on."""

    weights: tuple[float, ...]  # zero for a model that is left out
    gain: float  # nats a value by which the mixture was better than the best model on validation series left out
    values: int  # different ones on validation, that the choice was made on

    @property
    def mixed(self) -> bool:
        """Return whether more than one model has a weight."""
        return sum(weight > 0 for weight in self.weights) > 1


def choose(scores: Sequence[ValueScores]) -> Choice:
    """Weigh models by the mixture of all with the best log score (stacking), or choose a single one.

    scores: of each model; what counts are the values that all were asked for. The weights maximise the mean over
    values of log sum_m w_m p_m (Yao et al. 2018, Bayesian Analysis 13(3)), by expectation and maximisation, with a
    prior of PRIOR values for each model; a value that was scored under several patterns counts once in all. A mixture
    hedges: the model with the lowest mean nll is taken alone only where it is better, by more than a standard error
    over series, than mixtures whose weights were fitted on the other half of the series, and there are FEWEST values.

    Raise ValueError where there is no such value.
    """
    scores = common(scores)
    series = scores[0].series
    if not len(series):
        raise ValueError("validation holds no value that could be scored; give the data more series or points.")
    logs, values = np.stack([-each.nll for each in scores], 1), scores[0].distinct
    share = values / len(series)
    gain, error = _gain(logs, series, share)
    count, best = logs.shape[1], int(logs.mean(0).argmax())
    if count == 1 or (gain < -error and values >= FEWEST):
        return Choice(tuple(float(i == best) for i in range(count)), gain, values)
    kept = np.flatnonzero(_fit(logs, share) >= LEAST)
    weights = np.zeros(count)
    weights[kept] = np.round(_fit(logs[:, kept], share), 3)
    weights[int(weights.argmax())] += 1 - weights.sum()
    return Choice(tuple(weights.tolist()), gain, values)


def _halves(series: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the half of each value: by series, or of a single series the first and the second half of its values."""
    names, place = np.unique(series, return_inverse=True)
    if len(names) == 1:
        return (np.arange(len(series)) * HALVES) // len(series)
    return place % HALVES


def _gain(logs: NDArray[np.float64], series: NDArray[np.int64], share: float) -> tuple[float, float]:
    """Return how much better, in nats a value, mixtures are on left-out halves than the models best elsewhere.

    The second number is its standard error, with independent series. Both are zero where there are no two halves.
    """
    group, better = _halves(series), np.zeros(len(logs))
    for half in range(HALVES):
        here, there = group == half, group != half
        if not here.any() or not there.any():
            return 0.0, 0.0
        most = logs[here].max(1)
        mixed = np.log(np.exp(logs[here] - most[:, None]) @ _fit(logs[there], share)) + most
        better[here] = mixed - logs[here, int(logs[there].mean(0).argmax())]
    return mean_and_error(better, series)


def mean_and_error(differences: NDArray[np.float64], series: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean of differences of values, and its standard error with independent series.

    The halves of a single series count as two series.
    """
    names, place = np.unique(series, return_inverse=True)
    place = place if len(names) > 1 else _halves(series)
    rest, count = np.bincount(place, differences - differences.mean()), max(2, len(names))
    return float(differences.mean()), float(np.sqrt(count / (count - 1) * (rest**2).sum()) / len(differences))


def _fit(logs: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Return the weights (models,) that maximise the mean of log sum_m w_m p_m, with a weak prior.

    share: how much each row of log densities counts, below 1 where there are several of one value.
    """
    density = np.exp(logs - logs.max(1, keepdims=True))
    found = np.full(logs.shape[1], 1 / logs.shape[1])
    for _ in range(ROUNDS):
        of_value = density * found
        after = share * (of_value / of_value.sum(1, keepdims=True)).sum(0) + PRIOR
        after /= after.sum()
        if np.abs(after - found).max() < 1e-8:
            return after
        found = after
    return found
