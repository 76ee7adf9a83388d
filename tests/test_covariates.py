"""Covariates and error bars: the laws hold with them, models use them rightly, or refuse them."""

from dataclasses import replace
from math import log, pi

import pytest
import torch
from torch import nn

from helpers import laws, small
from helpers.small import MODELS, asked, batch_of, density, fit, held_out, model_of, scale_of, told, told_scale
from vrnn_lab.core.densities import Gaussian, Laplace, Mixture
from vrnn_lab.core.series import series_of
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import FLOOR, GaussianHead
from vrnn_lab.models.losses import LossTerms

LAWS = [
    laws.empty_points_anywhere_change_nothing,
    laws.values_that_are_not_seen_change_no_prediction,
    laws.permuting_the_batch_permutes_the_answers,
    laws.a_row_alone_is_the_row_in_a_batch,
    laws.every_parameter_gets_a_gradient,
    laws.gradients_are_those_of_finite_differences,
    laws.with_nothing_seen_predictions_are_the_prior,
    laws.a_training_step_never_waits_for_the_device,
    laws.mixed_precision_gives_about_the_same_loss,
]
REFUSING = ["latent_ode_poisson", "neural_ode"]
READING = [name for name in MODELS if name not in REFUSING and "laplace" not in name]  # it takes no error bars


@pytest.fixture
def everything_is_told(monkeypatch):
    """The laws' scales and batches have covariates and error bars."""
    scale, batch, series = scale_of, batch_of, series_of
    monkeypatch.setattr(small, "scale_of", lambda *args, **keys: told_scale(scale(*args, **keys)))
    monkeypatch.setattr(laws, "scale_of", small.scale_of)
    monkeypatch.setattr(laws, "batch_of", lambda *args: told(batch(*args)))
    monkeypatch.setattr(laws, "series_of", lambda *args, **keys: told(series(*args, **keys)))


@pytest.fixture
def everything_has_errors(everything_is_told, monkeypatch):
    """Error bars alone."""
    scale, batch, series = small.scale_of, laws.batch_of, laws.series_of
    without = lambda x: replace(x, covariates=None)
    monkeypatch.setattr(small, "scale_of", lambda *args, **keys: replace(scale(*args, **keys), covariates=()))
    monkeypatch.setattr(laws, "scale_of", small.scale_of)
    monkeypatch.setattr(laws, "batch_of", lambda *args: without(batch(*args)))
    monkeypatch.setattr(laws, "series_of", lambda *args, **keys: without(series(*args, **keys)))


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", READING)
def test_a_law_holds_with_covariates_and_error_bars(law, name, everything_is_told):
    law(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["rnn_gmm", "gru_d", "vae", "latent_sde", "latent_ode model/head=gmm", "vrnn model.prior=standard"]
)
def test_the_weights_integrate_to_one_with_covariates_and_error_bars(name, everything_is_told):
    """One of each way that a model reads them."""
    laws.the_weights_integrate_to_one(name)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_holds_for_a_neural_ode_with_error_bars(law, everything_has_errors):
    law("neural_ode")


@pytest.mark.parametrize("name", REFUSING)
def test_a_model_that_reads_no_covariates_refuses_them_by_name(name):
    scale = replace(told_scale(scale_of()), errors=False)
    with pytest.raises(ValueError, match=r"cannot read covariates, and the data set has u, v; .*data\.known=\[\]"):
        model_of(name, scale)


def test_what_has_no_density_with_error_bars_refuses_them():
    scale = replace(scale_of(), errors=True)
    with pytest.raises(ValueError, match=r"point process .* cannot use error bars"):
        model_of("latent_ode_poisson", scale)
    with pytest.raises(ValueError, match=r"LaplaceHead .* choose model/head=gaussian or gmm"):
        model_of("rnn model/head=laplace", scale)
    with pytest.raises(ValueError, match="BernoulliHead"):
        model_of("rnn model/head=bernoulli", replace(scale, support="binary"))
    with pytest.raises(ValueError, match="the batch has error bars, which RNN with LaplaceHead cannot use"):
        model_of("rnn model/head=laplace").loss_terms(replace(told(density(batch_of())), covariates=None))


@pytest.mark.parametrize("name", ["rnn", "latent_ode"])
def test_covariates_that_do_not_fit_the_model_are_an_error(name):
    batch = told(density(batch_of()))
    with pytest.raises(ValueError, match="the batch has 2 covariates, but the model has 0: none"):
        model_of(name).loss_terms(batch)
    with pytest.raises(ValueError, match="the batch has 0 covariates, but the model has 2: u, v"):
        model_of(name, told_scale(scale_of())).predict(replace(batch, covariates=None), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", READING)
def test_covariates_and_error_bars_of_a_query_change_its_answer_and_the_loss(name):
    model, batch = model_of(name, told_scale(scale_of()), double=True), told(asked(batch_of()))
    query = (batch.scored.any(-1) & ~batch.seen.any(-1))[..., None]
    with model.fixed_noise(5):
        plain = model.predict(batch, 3).density
        moved = model.predict(replace(batch, covariates=batch.covariates + query), 3).density
        wider = model.predict(replace(batch, error=batch.error + 5.0 * query), 3).density
        loss = lambda b: model.loss_terms(b).nll.sum().item()
        bars = [loss(replace(held_out(batch), error=error)) for error in (None, batch.error, 2 * batch.error)]
    there = query.squeeze(-1)
    assert (moved.mean - plain.mean)[:, there].abs().min() > 0
    assert (wider.std > plain.std)[:, there].all()
    assert len(set(bars)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", READING)
def test_unknown_units_of_covariates_change_nothing(name):
    """Kelvin or Celsius: the scale takes care."""
    scale, batch = told_scale(scale_of()), told(batch_of())
    factor, shift = torch.tensor([10.0, 0.1]).double(), torch.tensor([273.0, -4.0]).double()
    other = replace(
        scale, covariate_mean=factor * scale.covariate_mean + shift, covariate_std=factor * scale.covariate_std
    )
    moved = replace(batch, covariates=factor * batch.covariates + shift)
    one = laws.answers(model_of(name, scale, double=True), batch)
    two = laws.answers(model_of(name, other, double=True), moved)
    laws.assert_same(one, two)


class Bell(SequenceModel):
    """One Gaussian for the signal of every point."""

    takes_error = True

    def __init__(self, scale, recipe, head):
        super().__init__(scale, recipe, head(scale))
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2, -0.4, 0.1]))

    def _density(self, series):
        return self.head(self.bias.expand(*series.times.shape, -1)).with_measurement_error(series.error)

    def _loss_terms(self, series, samples):
        nll = -self._density(series).log_prob(series.values, series.scored).sum(1)
        return LossTerms(nll, torch.zeros_like(nll))

    def _log_weights(self, series, samples):
        return -self._loss_terms(series, 1).nll.expand(samples, -1)

    def _predict(self, series, samples):
        density = self._density(series).map(lambda x: x.expand(samples, *x.shape))
        noise = self.noise.at_points("x", series, samples, self.head.draws, density.mean)
        return Prediction(density.draw(noise), density)


class Deaf(Bell):
    takes_error = False


def test_the_likelihood_of_a_signal_with_error_bars_is_the_closed_form():
    scale, batch = replace(scale_of(), errors=True), density(replace(told(batch_of()), covariates=None))
    model = Bell(scale, small.recipe_of(), GaussianHead).double()
    mean = scale.mean + scale.std * model.bias[:2]
    variance = scale.std**2 * (torch.exp(2 * model.bias[2:]) + FLOOR**2)
    for error in (batch.error, 7 * batch.error, torch.zeros_like(batch.error)):
        total = variance + error**2
        exact = -0.5 * ((batch.values - mean) ** 2 / total + torch.log(2 * pi * total))
        found = model.loss_terms(replace(batch, error=error))
        torch.testing.assert_close(-found.nll, torch.where(batch.known, exact, 0).sum((1, 2)))
        question = asked(replace(batch, error=error))
        found = model.predict(question, 2).density.std[0]
        torch.testing.assert_close(found[question.counts], total.sqrt()[question.counts])


def test_a_leaf_of_ones_own_that_knows_nothing_of_them_refuses_both():
    with pytest.raises(ValueError, match="Deaf cannot use error bars"):
        Deaf(replace(scale_of(), errors=True), small.recipe_of(), GaussianHead)
    with pytest.raises(ValueError, match="Bell cannot read covariates"):
        Bell(told_scale(scale_of()), small.recipe_of(), GaussianHead)


def test_a_mixture_with_error_bars_is_that_of_the_sum():
    """Moments, marginals and the correlation within a component, by their definitions."""
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=rng, dtype=torch.float64)
    plain = Mixture(draw(6, 3).log_softmax(-1), draw(6, 3, 2), 0.2 + draw(6, 3, 2), draw(6, 3) - 0.5)
    error = draw(6, 2)
    found = plain.with_measurement_error(error)
    torch.testing.assert_close(found.mean, plain.mean)
    torch.testing.assert_close(found.std.square(), plain.std.square() + error.square())
    covariance = lambda m: m.correlation * m.stds.prod(-1)
    torch.testing.assert_close(covariance(found), covariance(plain))
    assert torch.equal(plain.with_measurement_error(None).stds, plain.stds)
    value, both = draw(6, 2), torch.ones(6, 2).bool()
    joint = torch.zeros(6, 3, dtype=torch.float64)
    for k in range(3):
        matrix = torch.diag_embed(plain.stds[:, k] ** 2 + error**2)
        matrix[:, 0, 1] = matrix[:, 1, 0] = covariance(plain)[:, k]
        law = torch.distributions.MultivariateNormal(plain.means[:, k], matrix)
        joint[:, k] = plain.log_weight[:, k] + law.log_prob(value)
    torch.testing.assert_close(found.log_prob(value, both), joint.logsumexp(-1))


def test_an_error_bar_of_zero_is_none():
    plain = Gaussian(torch.zeros(3, 2), torch.full((3, 2), 0.7))
    assert torch.equal(plain.with_measurement_error(torch.zeros(3, 2)).scale, plain.scale)
    with pytest.raises(ValueError, match="Laplace has no density of a value plus Gaussian noise"):
        Laplace(torch.zeros(3), torch.ones(3)).with_measurement_error(torch.ones(3))


# ---- used, and rightly: x_i = 2 u_i + v + noise of std .5 and an error bar, u_i white, v one a series ----

NOISE = 0.5


def driven(rows: int, seed: int):
    """A batch in the units of `driven_scale`, and the variance of each value's noise."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    u, v = draw(rows, 8), draw(rows, 1).expand(rows, 8)
    times = 100 + 5 * torch.sort(torch.rand(rows, 8, generator=rng, dtype=torch.float64), 1).values
    error = torch.rand(rows, 8, 1, generator=rng, dtype=torch.float64)
    variance = NOISE**2 + error**2
    values = (2 * u + v)[..., None] + variance.sqrt() * draw(rows, 8, 1)
    window = torch.tensor([[100.0, 105.0]]).double().expand(rows, 2)
    return series_of(times, values, window=window, covariates=torch.stack([u, v], -1), error=error), variance


def driven_scale():
    scale = replace(scale_of(1, factor=2.3, shift=0.0), covariates=("u", "v"), errors=True)
    return replace(scale, covariate_mean=torch.zeros(2).double(), covariate_std=torch.ones(2).double())


def nll_of(name: str, scale, change) -> float:
    """Nats a value on 1000 new series, after a short training."""
    model = model_of(name, scale, recipe=small.recipe_of(1e-2))
    fit(model, lambda step: change(held_out(driven(64, step)[0])), 300)
    with model.fixed_noise(0):
        weights = model.log_weights(change(density(driven(1000, 10**6)[0])), 20)
    return -(weights.double().logsumexp(0) - log(20)).mean().item() / 8


@pytest.mark.slow
@pytest.mark.parametrize("name, margin", [("rnn", 0.02), ("gru_d", 0.02), ("vrnn", 0.02), ("latent_ode", 0.12)])
def test_models_use_covariates_and_come_near_the_exact_likelihood(name, margin):
    batch, variance = driven(1000, 10**6)
    mean = (2 * batch.covariates[..., :1] + batch.covariates[..., 1:]).sum(-1, keepdim=True)
    nats = lambda mean, variance: 0.5 * ((batch.values - mean) ** 2 / variance + (2 * pi * variance).log()).mean()
    exact = nats(mean, variance).item()
    # Who does not know u, and knows all else, v and the noise too, can do no better than this.
    deaf = nats(batch.covariates[..., 1:], variance + 4).item()
    assert deaf > exact + 0.7
    found = nll_of(name, driven_scale(), lambda b: b)
    assert exact - 0.02 < found < exact + margin
    if name != "rnn":
        return
    without = replace(driven_scale(), covariates=())
    assert nll_of(name, without, lambda b: replace(b, covariates=None)) > deaf - 0.02
