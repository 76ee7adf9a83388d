"""Against exact likelihoods, the fast form of experiment=oracle: near the truth, and never below it."""

from functools import cache

import pytest
import torch

from helpers.small import fit, model_of
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.tasks import DensityTask, Forecast
from vrnn_lab.data.datasets.lgssm import LGSSM
from vrnn_lab.data.datasets.ou import OU

SETS = {"ou": OU(train=600, val=100, test=300), "lgssm": LGSSM(train=600, val=100, test=300)}


def nll_above_exact(model, data, samples: int) -> tuple[float, float]:
    """Mean and standard error, over test series, of model minus exact nats a value."""
    above, counts = [], []
    with model.fixed_noise(0):
        for batch in data.batches("test", DensityTask(), 100):
            bound = log_mean_exp(model.log_weights(batch, samples)).double()
            exact, _ = data.exact(batch)
            above.append(exact - bound)
            counts.append(batch.scored.sum((1, 2)))
    above, count = torch.cat(above), torch.cat(counts).sum()
    return (above.sum() / count).item(), (above.std() * len(above) ** 0.5 / count).item()


@cache
def fitted(name: str, data: str):
    """A small model after 20 epochs on 600 series."""
    loader = SETS[data].train_dataloader()
    batches = [batch for _ in range(20) for batch in loader]
    model = model_of(name, SETS[data].scale, width=32)
    fit(model, lambda step: batches[step], len(batches))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("name", ["rnn", "vrnn"])
def test_a_model_comes_near_the_exact_likelihood_and_never_below(data, name):
    above, error = nll_above_exact(fitted(name, data), SETS[data], 20)
    assert -3 * error < above < 0.06
    if name == "vrnn":  # the bound tightens with K
        assert nll_above_exact(fitted(name, data), SETS[data], 2)[0] > above


@pytest.mark.slow
def test_ninety_per_cent_intervals_of_a_fitted_rnn_hold_ninety_per_cent():
    data, model = SETS["ou"], fitted("rnn", "ou")
    inside = total = 0
    with model.fixed_noise(0):
        for batch in data.batches("test", Forecast(0.5, scored="held_out"), 100):
            paths = model.predict(batch, 99).paths.sort(0).values
            held = (paths[4] <= batch.values) & (batch.values <= paths[94])
            inside, total = inside + held[batch.scored].sum().item(), total + batch.scored.sum().item()
    assert inside / total == pytest.approx(0.9, abs=0.03)
