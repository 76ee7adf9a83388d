"""The laws every model in conf/model is held to, with its fitted weights or fresh ones."""

from dataclasses import replace
from math import log

import pytest
import torch

from helpers import laws
from helpers.laws import CLOSE, answers, points_in_time, two_points, window
from helpers.small import MODELS, asked, batch_of, density, held_out, model_of, scale_of, unchecked
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import series_of

# A file of conf/model as it is stands in the fast suite; one with other options beside it, in the slow one.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if " " in name else name for name in MODELS]
every_model = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", params=NAMES)
def fitted(request):
    """The name of a model, and the model after 300 steps; three laws share it and change nothing of it."""
    return request.param, laws.fitted(request.param)


@every_model
def test_empty_points_anywhere_change_nothing(name):
    laws.empty_points_anywhere_change_nothing(name)


@every_model
def test_values_that_are_not_seen_change_no_prediction(name):
    laws.values_that_are_not_seen_change_no_prediction(name)


@every_model
def test_permuting_the_batch_permutes_the_answers(name):
    laws.permuting_the_batch_permutes_the_answers(name)


@every_model
def test_a_row_alone_is_the_row_in_a_batch(name):
    laws.a_row_alone_is_the_row_in_a_batch(name)


@every_model
def test_asking_more_changes_no_other_answer_of_a_path_model(name):
    model, batch = model_of(name, double=True), asked(batch_of())
    if model.causal:
        pytest.skip("a step model feeds its own draws back, so its answers hang together")
    middle = (batch.times[:, 3:4] + batch.times[:, 4:5]) / 2
    far = batch.times[:, -1:] + 20
    early = batch.times[:, :1] - 3
    joined = torch.cat([early, batch.times[:, :4], middle, batch.times[:, 4:], far], 1)
    old = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9])
    spread = lambda x, fill: torch.full((*joined.shape, 2), fill, dtype=x.dtype).index_copy(1, old, x)
    more = replace(
        batch,
        times=joined,
        values=spread(batch.values, 0.0),
        seen=spread(batch.seen, False),
        scored=spread(batch.scored, True),
    )
    with model.fixed_noise(5):
        one, two = model.predict(batch, 3), model.predict(more, 3)
    real = batch.counts
    torch.testing.assert_close(one.paths[:, real], two.paths[:, :, old][:, real], **CLOSE)


def test_the_weights_integrate_to_one(fitted):
    laws.the_weights_integrate_to_one(*fitted)


def test_the_elbo_is_the_mean_log_weight_and_no_more_than_the_bound(fitted):
    model, batch = fitted[1], two_points(20, 1000)
    with torch.no_grad():
        model.noise.seed(1, device=torch.device("cpu"))
        with unchecked():  # the fit has checked the same shapes
            terms = [model.loss_terms(batch) for _ in range(300)]
        elbo = -torch.stack([t.nll + t.kl for t in terms]).double()
        weights = model.log_weights(batch, 4000).double()
    spread = (elbo.std(0) / 300**0.5 + weights.std(0) / 4000**0.5).clamp(min=1e-5)
    assert ((elbo.mean(0) - weights.mean(0)).abs() < 5 * spread).all()
    assert (log_mean_exp(weights) >= weights.mean(0) - 1e-9).all()


@every_model
def test_every_parameter_gets_a_gradient(name):
    laws.every_parameter_gets_a_gradient(name)


@every_model
def test_gradients_are_those_of_finite_differences(name):
    laws.gradients_are_those_of_finite_differences(name)


def test_with_nothing_seen_predictions_are_the_prior(fitted):
    laws.with_nothing_seen_predictions_are_the_prior(*fitted)


@every_model
@pytest.mark.parametrize("case", ["one point", "span zero", "no point", "before the start", "ten windows ahead"])
def test_hard_cases_have_finite_answers(name, case):
    model = model_of(name)
    times = {"before the start": [90.0, 101.0, 103.0], "ten windows ahead": [101.0, 103.0, 155.0]}.get(
        case, [101.0, 101.0, 101.0]
    )
    length = 1 if case == "one point" else 3
    batch = series_of([times[:length]], torch.full((1, length, 2), -5.0), window=[[101.0, 101.0]])
    if case == "no point":
        batch = replace(batch, seen=torch.zeros_like(batch.seen))
    question = replace(batch, seen=batch.seen & (batch.times[..., None] == 101.0), scored=torch.ones_like(batch.seen))
    with model.fixed_noise(0):
        terms = model.loss_terms(density(batch))
        prediction = model.predict(question, 5)
    assert terms.nll.isfinite().all() and terms.kl.isfinite().all()
    assert prediction.paths.isfinite().all() and prediction.density.std.isfinite().all()


@every_model
def test_units_change_nothing_but_units(name):
    """Other units of values and time: the nats shift by the log of the factor, predictions map along."""
    batch = batch_of()
    plain = answers(model_of(name, double=True), batch)
    scale = scale_of()
    other = replace(
        scale,
        mean=10 * scale.mean + 3,
        std=10 * scale.std,
        **{k: 64 * getattr(scale, k) for k in ("clock", "gap", "longest", "start", "reach")},
    )
    moved = replace(batch, times=64 * batch.times, window=64 * batch.window, values=10 * batch.values + 3)
    model = model_of(name, other, double=True)
    found = answers(model, moved)
    shift = log(10) * held_out(batch).scored.sum((1, 2)) + model.point_process * log(64) * batch.counts.sum(1)
    torch.testing.assert_close(found[0], plain[0] + shift, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found[3].density.mean, 10 * plain[3].density.mean + 3, rtol=1e-7, atol=1e-7)


@every_model
def test_times_of_any_size_are_told_apart(name):
    """Seconds since 1970 are as good as times in [0, 1]."""
    batch, scale = batch_of(), scale_of()
    shifted = replace(batch, times=batch.times + 1.7e9, window=batch.window + 1.7e9)
    later = replace(scale, start=scale.start + 1.7e9)
    found = []
    for model, question in ((model_of(name), batch), (model_of(name, later), shifted)):
        model.noise.seed(0, device=torch.device("cpu"))
        found.append(model.loss_terms(held_out(question)).nll.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@every_model
def test_evaluation_never_advances_the_training_generator(name):
    model, batch = model_of(name), batch_of()
    model.noise.seed(0, device=torch.device("cpu"))
    torch.manual_seed(0)
    own, everyones = model.noise.generator.get_state(), torch.get_rng_state()
    answers(model, batch)
    assert torch.equal(own, model.noise.generator.get_state())
    assert torch.equal(everyones, torch.get_rng_state())
    assert model.training


@every_model
def test_a_training_step_never_waits_for_the_device(name):
    laws.a_training_step_never_waits_for_the_device(name)


@every_model
def test_mixed_precision_gives_about_the_same_loss(name):
    laws.mixed_precision_gives_about_the_same_loss(name)


@every_model
def test_log_weights_are_refused_where_some_values_are_only_seen(name):
    with pytest.raises(ValueError, match="seen == scored"):
        model_of(name).log_weights(held_out(batch_of()), 2)


@every_model
def test_a_head_of_other_support_is_refused(name):
    with pytest.raises(ValueError, match="binary"):
        model_of(name, scale_of(support="binary"))


# The state of a neural ODE is the data themselves; a level is one of real values; a mixture needs a Gaussian head.
WITH_LOGITS = [
    n for n in MODELS if n != "neural_ode" and not any(word in n for word in ("head", "level=", "components"))
]


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_probabilities_of_zeros_and_ones_sum_to_one(name):
    """Over all 16 outcomes of two points of two channels, and over the four of one point whose other is hidden."""
    plain = replace(scale_of(2, support="binary"), mean=torch.zeros(2).double(), std=torch.ones(2).double())
    model = model_of(f"{name} model/head=bernoulli", plain, double=True)
    if hasattr(model, "posterior_out"):  # wider than the prior: a narrower one gives weights of infinite variance
        torch.nn.init.constant_(model.posterior_out.bias[model.latent :], 1.0)
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4).view(16, 2, 2)
    batch = density(series_of(points_in_time(16), outcomes, window=window(16)))
    once = replace(batch, seen=batch.seen & (torch.arange(2) == 0)[:, None], scored=batch.seen).rows(slice(0, 16, 4))
    once = density(replace(once, scored=once.seen))
    with torch.no_grad(), model.only("values"):
        model.noise.seed(7, device=torch.device("cpu"))
        for question in (batch, once):
            weights = log_mean_exp(model.log_weights(question, 8000)).exp()
            assert weights.sum().item() == pytest.approx(1, abs=0.02)
        prediction = model.predict(replace(batch, seen=torch.zeros_like(batch.seen)), 50)
    assert set(prediction.paths.unique().tolist()) == {0.0, 1.0}
    assert (prediction.mean >= 0).all() and (prediction.mean <= 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn_gmm", "vrnn_gmm", "latent_ode model/head=gmm", "vae model/head=gmm"])
def test_a_mixture_with_full_covariance_integrates_to_one_over_both_channels(name):
    scale = scale_of(2)
    model = model_of(f"{name} model.head.covariance=full", scale)
    side = torch.linspace(-7, 7, 57, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)[:, None] * scale.std + scale.mean
    batch = density(series_of(torch.full((len(grid), 1), 102.0).double(), grid, window=window(len(grid))))
    with torch.no_grad():
        model.noise.seed(7, device=torch.device("cpu"))
        weights = log_mean_exp(model.log_weights(batch, 300)).double().exp()
    cell = (side[1] - side[0]).square() * scale.std.prod()
    assert (weights.sum() * cell).item() == pytest.approx(1, abs=0.02)
