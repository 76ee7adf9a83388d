"""Weigh models by their scores on validation: the mixture with the best log score, where it is better than one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.evaluation.value_scores import ValueScores, common

ROUNDS = 500  # of expectation and maximisation, at most
LEAST = 0.05  # a model with a smaller weight is left out
PRIOR = 5.0  # pseudo-values for each model, which keep weights from few values near equal ones
FEWEST = 30  # values from which a choice is made; with fewer all models have the same weight
HALVES = 2  # parts of the validation series; weights from the others are scored on each


@dataclass(frozen=True)
class Choice:
    """Hold the weights of models for a question, which sum to 1, and why they were chosen."""

    weights: tuple[float, ...]  # zero for a model that is left out
    gain: float  # nats a value by which the mixture was better than the best model on validation series left out
    mixed: bool  # whether the weights are those of a mixture
    values: int  # different ones on validation, that the choice was made on


def choose(scores: Sequence[ValueScores]) -> Choice:
    """Choose between the best model and the mixture of all with the best log score (stacking).

    scores: of each model; what counts are the values that all were asked for. The weights maximise the mean over
    values of log sum_m w_m p_m (Yao et al. 2018, Bayesian Analysis 13(3)), by expectation and maximisation. The
    mixture is taken where weights that were fitted on one half of the series are better on the other half than the
    model that was best on the first; else the model with the lowest mean nll. With fewer than FEWEST different
    values, which cannot tell models apart, all models have the same weight.

    Raise ValueError where there is no such value.
    """
    scores = common(scores)
    first = scores[0].series
    if not len(first):
        raise ValueError("validation holds no value that could be scored; give the data more series or points.")
    logs = np.stack([-each.nll for each in scores], 1)
    best, count, values = int(logs.mean(0).argmax()), logs.shape[1], scores[0].distinct
    if values < FEWEST:
        return Choice((1 / count,) * count, 0.0, count > 1, values)
    alone = tuple(float(i == best) for i in range(count))
    gain = _gain(logs, _halves(first)) if count > 1 else 0.0
    if not gain > 0:
        return Choice(alone, gain, False, values)
    kept = np.flatnonzero(_fit(logs) >= LEAST)
    weights = np.zeros(logs.shape[1])
    weights[kept] = np.round(_fit(logs[:, kept]), 3)
    weights[int(weights.argmax())] += 1 - weights.sum()
    return Choice(tuple(weights.tolist()), gain, len(kept) > 1, values)


def _halves(series: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the half of each value: by series, or of a single series the first and the second half of its values."""
    names, place = np.unique(series, return_inverse=True)
    if len(names) == 1:
        return (np.arange(len(series)) * HALVES) // len(series)
    return place % HALVES


def _gain(logs: NDArray[np.float64], group: NDArray[np.int64]) -> float:
    """Return how much better, in nats a value, mixtures are on left-out halves than the models best elsewhere."""
    gain = 0.0
    for half in range(HALVES):
        here, there = logs[group == half], logs[group != half]
        if not len(here) or not len(there):
            return 0.0
        most = here.max(1)
        mixed = np.log(np.exp(here - most[:, None]) @ _fit(there)) + most
        gain += float((mixed - here[:, int(there.mean(0).argmax())]).sum())
    return gain / len(logs)


def _fit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights (models,) that maximise the mean of log sum_m w_m p_m, with a weak prior."""
    density = np.exp(logs - logs.max(1, keepdims=True))
    found = np.full(logs.shape[1], 1 / logs.shape[1])
    for _ in range(ROUNDS):
        of_value = density * found
        after = (of_value / of_value.sum(1, keepdims=True)).sum(0) + PRIOR
        after /= after.sum()
        if np.abs(after - found).max() < 1e-8:
            return after
        found = after
    return found
