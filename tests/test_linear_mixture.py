"""Mixtures of linear SDEs against the single ones that they consist of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.linear_sdes import MIXTURES, any_batch, any_model, mixture_of
from helpers.small import batch_of, density, fit, model_of, recipe_of, scale_of, unchecked
from vrnn_lab.core.series import Scale, Variation, series_of
from vrnn_lab.data.variation import variation_of
from vrnn_lab.models.linear_state import SPEED
from vrnn_lab.models.recipe import Labels

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
every_kind = pytest.mark.parametrize("kind", MIXTURES)


def single(model, kind: str, k: int):
    """Return component k as a model of its own, with the factors in its own parameters."""
    found = model_of(f"linear_sde model.components=1 {MIXTURES[kind]}", model.scale, double=True)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("mixture.")}
    found.load_state_dict(own)
    mixture = model.mixture
    with torch.no_grad():
        for part in found.readout.parts:
            part.log_std += mixture.log_signal[k]
        if found.readout.every is not None:
            found.readout.every *= (SPEED * mixture.log_signal[k]).exp()[:, None]
        noise = found.head(torch.zeros(1, 1, model.scale.dim).double()).std[0, 0]
        least = noise.square() - (found.head.speed * found.head.log_std).exp().square()  # the head's floor
        noise = noise * (SPEED * mixture.log_noise[k]).exp()
        found.head.log_std.copy_(0.5 * (noise.square() - least).log() / found.head.speed)
        if mixture.log_speed is not None and kind != "full":
            found.dynamics.log_decay.copy_(
                ((found.dynamics.decay() * (SPEED * mixture.log_speed[k]).exp()) - 1e-3).log() / SPEED
            )
            found.dynamics.log_frequency += mixture.log_speed[k]
    if kind == "full":
        _hasten(found.dynamics, (SPEED * mixture.log_speed[k]).exp())
    return found


def _hasten(dynamics, speed) -> None:
    """Multiply F by a number, and G by its root."""
    with torch.no_grad():
        drift = dynamics._drift()
        dynamics._drift = lambda: tuple(speed * x for x in drift)


def weights(model) -> torch.Tensor:
    """Return the logarithms of the components' probabilities, (components, groups)."""
    return (SPEED * model.mixture.logits).log_softmax(0)


@every_kind
@pytest.mark.parametrize("dim", [1, 2])
def test_its_likelihood_is_the_mixture_of_those_of_its_components(kind, dim):
    model, batch = mixture_of(kind, dim), any_batch(dim)
    series = model.standardise(density(batch))
    with torch.no_grad():
        alone = torch.stack([single(model, kind, k)._log_probs(series, series.known)[0, 0] for k in range(3)])
        expected = (alone + weights(model)[:, None]).logsumexp(0).sum(-1)
        torch.testing.assert_close(model._log_weights(series, 2), expected.expand(2, -1), **CLOSE)
        nll = model._loss_terms(model.standardise(batch), 1).nll
        both = [model._log_prob(model.standardise(batch), mask)[0] for mask in (batch.known, batch.seen)]
        torch.testing.assert_close(nll, both[1] - both[0], **CLOSE)


@pytest.mark.slow
@every_kind
def test_its_predictions_are_those_of_its_components_in_proportion(kind):
    model, batch, samples = mixture_of(kind), any_batch(), 4000
    series = model.standardise(batch)
    with torch.no_grad(), model.fixed_noise(0), unchecked():
        found = model._predict(series, samples)
        alone = [single(model, kind, k) for k in range(3)]
        log_probs = torch.stack([each._log_probs(series, series.seen)[0, 0] for each in alone])
        share = (log_probs + weights(model)[:, None]).softmax(0)[:, :, None]  # (components, batch, 1, groups)
        parts = [each._predict(series, 1).density for each in alone]
    mean, std = (torch.stack([getattr(part, name)[0] for part in parts]) for name in ("mean", "std"))
    expected = (share * mean).sum(0)
    spread = (share * (std.square() + mean.square())).sum(0) - expected.square()
    # The shares of the components in the samples are right to about 2 in 4000.
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=4e-3)
    torch.testing.assert_close(found.std, spread.sqrt(), rtol=4e-3, atol=0)
    error = 5 * spread.sqrt() / samples**0.5
    assert ((found.paths.mean(0) - expected).abs() < error).all()
    torch.testing.assert_close(found.paths.var(0).log(), spread.log(), rtol=0, atol=0.2)


def test_joint_draws_of_a_component_have_its_covariance():
    """Seen values that only a lively series can have leave one component, whose joint posterior is Gaussian."""
    model, batch = mixture_of("shared", components=2), any_batch(rows=1, time=6)
    with torch.no_grad():
        model.mixture.logits.copy_(torch.tensor([[0.0], [8.0]]))
        series = model.standardise(batch)
        last = single(model, "shared", 1)
        with model.fixed_noise(0), last.fixed_noise(0), unchecked():
            one, two = (each._predict(series, 6000).paths[:, 0].flatten(1) for each in (model, last))
    one, two = torch.cov(one.mT), torch.cov(two.mT)
    size = one.diagonal().sqrt()
    assert ((one - two) / (size[:, None] * size)).abs().max() < 0.09


def test_any_first_samples_hold_the_components_in_about_their_proportions():
    model = mixture_of("shared")
    series = model.standardise(any_batch(rows=1))
    log_probs = torch.log(torch.tensor([0.5, 0.3, 0.2])).double()[:, None, None] - weights(model)[:, None]
    with model.fixed_noise(0):
        drawn = model.mixture.draw(log_probs, model.noise, series, 1000)[:, 0, 0]
    for count in (10, 99, 1000):
        shares = torch.bincount(drawn[:count], minlength=3) / count
        assert (shares - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 3 / count + 1e-9


@pytest.mark.slow
def test_it_learns_that_some_series_are_quieter_than_others():
    def unlike(step: int):
        rng = torch.Generator().manual_seed(step)
        times = torch.linspace(101, 105, 12).double().expand(40, 12)
        size = torch.where(torch.rand(40, 1, 1, generator=rng) < 0.25, 1.0, 0.1).double()
        values = size * torch.randn(40, 12, 1, generator=rng)
        return density(series_of(times, values, window=torch.tensor([[100.0, 106.0]]).expand(40, 2)))

    scale, held = scale_of(1, factor=1.0, shift=0.0), unlike(10_000)
    found = {}
    for components in (1, 2):
        model = model_of(f"linear_sde model.components={components} model.level=none", scale)
        fit(model, unlike, 150)
        with torch.no_grad():
            found[components] = model.log_weights(held, 1).mean() / 12
    # A quarter at std 1 and three at 0.1: the entropy of the two is .19 + ln(2) / 12 at most from the mixture's.
    exact = -0.5 * (1 + np.log(2 * np.pi)) - 0.75 * np.log(0.1)
    assert found[2] > exact - 0.15 and found[2] > found[1] + 0.2
    assert model.mixture is not None
    assert (weights(model).exp().min() - 0.25).abs() < 0.1


@pytest.mark.parametrize("kind", ["levels", "separate"])
def test_states_for_labels_are_averages_over_the_components(kind):
    recipe = replace(recipe_of(), labels=Labels(1.0, 8))
    scale = replace(scale_of(2, factor=1.0, shift=0.0), classes=("one", "two"), whole_series=True)
    name = f"linear_sde model.components={{}} {MIXTURES[kind]}"
    model, alone = (model_of(name.format(count), scale, double=True, recipe=recipe) for count in (2, 1))
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mixture.")})
    series = model.standardise(batch_of())
    states = model._label_states(series)
    assert states is not None and states.shape[:3] == (1, *series.times.shape)
    with torch.no_grad():
        # Components that are both the base: their average is that of the base, whatever their probabilities.
        for parameter in (model.mixture.log_signal, model.mixture.log_noise):
            parameter.zero_()
    torch.testing.assert_close(model._label_states(series), alone._label_states(series), **CLOSE)
    assert not torch.allclose(model._label_states(series), states)


def test_components_need_an_exact_likelihood():
    with pytest.raises(ValueError, match=r"model.components=2 needs an exact likelihood.*model.components=1"):
        model_of("linear_sde model.components=2 model.decoder_depth=1", scale_of(1))


def measured(**numbers) -> Scale:
    one = torch.ones(1, dtype=torch.float64)
    return replace(scale_of(1), variation=Variation(*[one] * 8, **{k: v * one for k, v in numbers.items()}))


@pytest.mark.parametrize(
    ("scale", "more", "components"),
    [
        (measured(heterogeneity=0.8), "", 4),
        (measured(heterogeneity=0.3), "", 1),
        (measured(), "", 1),  # of a run from before it was measured
        (measured(heterogeneity=0.8), "model.decoder_depth=1", 1),
        (measured(heterogeneity=0.8), "model.components=1", 1),
    ],
)
def test_there_are_several_where_the_training_series_differ(scale, more, components):
    mixture = model_of(f"linear_sde {more}", scale).mixture
    assert (1 if mixture is None else mixture.count) == components


@pytest.mark.parametrize(("spread", "low", "high"), [(0.0, 0.0, 0.08), (0.5, 0.35, 0.6)])
def test_heterogeneity_is_that_between_series_and_not_chance(spread, low, high):
    rng = np.random.default_rng(2)
    size = np.exp(spread * rng.standard_normal(200))
    values = np.cumsum(size[:, None] * rng.standard_normal((200, 15)), 1)
    owner, times = np.repeat(np.arange(200), 15), np.tile(np.arange(15.0), 200)
    found = variation_of(owner, times, values.reshape(-1, 1), np.zeros(1), np.ones(1), 15.0).heterogeneity
    assert found is not None and low <= found.item() <= high


@pytest.mark.parametrize("values", [np.zeros((20, 9)), np.arange(27.0).reshape(3, 9), np.ones((20, 1))])
def test_heterogeneity_of_constant_few_or_single_values_is_zero(values):
    owner, times = np.repeat(np.arange(len(values)), values.shape[1]), np.tile(np.arange(9.0), 20)[: values.size]
    found = variation_of(owner, times, values.reshape(-1, 1), np.zeros(1), np.ones(1), 9.0).heterogeneity
    assert found is not None and found.item() == 0


def test_with_known_periods_all_components_keep_the_clock():
    assert mixture_of("periods").mixture.log_speed is None
    assert any_model("periods").mixture is None
