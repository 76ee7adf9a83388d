"""The laws every model in conf/model is held to, with its fitted weights or fresh ones."""

from dataclasses import replace
from math import log

import pytest
import torch
from small import (
    MODELS,
    asked,
    batch_of,
    density,
    fit,
    from_loader,
    held_out,
    model_of,
    recipe_of,
    scale_of,
    with_empty_points,
)
from torch.utils._python_dispatch import TorchDispatchMode

from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import series_of
from vrnn_lab.models.recipe import ELBO, FIVO, IWAE, Labels

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
every_model = pytest.mark.parametrize("name", MODELS)


def answers(model, batch, samples: int = 4):
    """All a model says of a batch: of its held-out loss, its log weights and its predictions."""
    with model.fixed_noise(5):
        terms = model.loss_terms(held_out(batch))
        weights = model.log_weights(density(batch), samples)
        prediction = model.predict(asked(batch), samples)
    return terms.nll, terms.kl, weights, prediction


def assert_same(one, two, rows=slice(None), places=slice(None), **close):
    close = close or CLOSE
    torch.testing.assert_close(one[0][rows], two[0], **close)
    torch.testing.assert_close(one[1][rows], two[1], **close)
    torch.testing.assert_close(one[2][:, rows], two[2], **close)
    torch.testing.assert_close(one[3].paths[:, rows], two[3].paths[:, :, places], **close)
    torch.testing.assert_close(one[3].density.mean[:, rows], two[3].density.mean[:, :, places], **close)


@every_model
def test_empty_points_anywhere_change_nothing(name):
    model, batch = model_of(name, double=True), batch_of()
    counts = batch.counts
    batch = replace(batch, seen=batch.seen | ~counts[..., None])  # every point counts, so every answer compares
    wider, place = with_empty_points(batch)
    with model.fixed_noise(5):
        for question in (lambda b: replace(b, seen=b.known, scored=b.known),):
            one, two = model.loss_terms(question(batch)), model.loss_terms(question(wider))
            torch.testing.assert_close(one.nll, two.nll, **CLOSE)
            torch.testing.assert_close(one.kl, two.kl, **CLOSE)
            one, two = model.log_weights(question(batch), 3), model.log_weights(question(wider), 3)
            torch.testing.assert_close(one, two, **CLOSE)
        half = asked(batch)
        wider, place = with_empty_points(half)
        one, two = model.predict(half, 3), model.predict(wider, 3)
        torch.testing.assert_close(one.paths, two.paths[:, :, place], **CLOSE)
        torch.testing.assert_close(one.density.std, two.density.std[:, :, place], **CLOSE)


@every_model
def test_values_that_are_not_seen_change_no_prediction(name):
    model, batch = model_of(name, double=True), asked(batch_of())
    other = replace(batch, values=torch.where(batch.seen, batch.values, batch.values + 100.0))
    with model.fixed_noise(5):
        one, two = model.predict(batch, 3), model.predict(other, 3)
    assert torch.equal(one.density.mean, two.density.mean)
    assert torch.equal(one.paths, two.paths)


@every_model
def test_permuting_the_batch_permutes_the_answers(name):
    model, batch = model_of(name, double=True), batch_of()
    order = torch.tensor([3, 0, 4, 2, 1])
    model_answers = answers(model, batch)
    with model.fixed_noise(5):
        terms = model.loss_terms(held_out(batch).rows(order))
        weights = model.log_weights(density(batch).rows(order), 4)
        prediction = model.predict(asked(batch).rows(order), 4)
    assert_same(model_answers, (terms.nll, terms.kl, weights, prediction), rows=order)


@every_model
def test_a_row_alone_is_the_row_in_a_batch(name):
    model, batch = model_of(name, double=True), batch_of()
    together = answers(model, batch)
    for row in (0, 3):
        with model.fixed_noise(5):
            terms = model.loss_terms(held_out(batch).rows([row]))
            weights = model.log_weights(density(batch).rows([row]), 4)
            prediction = model.predict(asked(batch).rows([row]), 4)
        assert_same(together, (terms.nll, terms.kl, weights, prediction), rows=[row])


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


def two_points(rows: int, step: int):
    """Two points of one channel at random times, x_2 = .8 x_1 + noise, in the units of scale_of(1)."""
    rng, scale = torch.Generator().manual_seed(step), scale_of(1)
    first = torch.randn(rows, 1, generator=rng, dtype=torch.float64)
    second = 0.8 * first + 0.6 * torch.randn(rows, 1, generator=rng, dtype=torch.float64)
    values = scale.mean + scale.std * torch.stack([first, second], 1)
    return density(series_of(points_in_time(rows), values, window=window(rows)))


def points_in_time(rows: int):
    return torch.tensor([[101.0, 103.5]], dtype=torch.float64).expand(rows, 2)


def window(rows: int):
    return torch.tensor([[100.0, 105.0]], dtype=torch.float64).expand(rows, 2)


def integral(model) -> float:
    """The integral of E[exp(log_weights)] over a grid of both values: 1 for a density, whatever the posterior.

    Where times are modelled too, of the values alone.
    """
    scale = scale_of(1)
    side = torch.linspace(-7, 7, 51, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)[..., None] * scale.std + scale.mean
    batch = density(series_of(points_in_time(len(grid)), grid, window=window(len(grid))))
    with torch.no_grad(), model.only("values"):
        model.noise.seed(7, device=torch.device("cpu"))
        weights = log_mean_exp(torch.cat([model.log_weights(batch, 50) for _ in range(8)]))
    return weights.double().exp().sum().item() * ((side[1] - side[0]) * scale.std).item() ** 2


@every_model
def test_the_weights_integrate_to_one(name):
    model = model_of(name, scale_of(1))
    assert integral(model) == pytest.approx(1, abs=0.02)
    fit(model, lambda step: two_points(64, step), 300)
    assert integral(model) == pytest.approx(1, abs=0.02)


@every_model
def test_the_elbo_is_the_mean_log_weight_and_no_more_than_the_bound(name):
    model = model_of(name, scale_of(1))
    fit(model, lambda step: two_points(64, step), 100)
    batch = two_points(20, 1000)
    with torch.no_grad():
        model.noise.seed(1, device=torch.device("cpu"))
        terms = [model.loss_terms(batch) for _ in range(300)]
        elbo = -torch.stack([t.nll + t.kl for t in terms]).double()
        weights = model.log_weights(batch, 4000).double()
    spread = (elbo.std(0) / 300**0.5 + weights.std(0) / 4000**0.5).clamp(min=1e-5)
    assert ((elbo.mean(0) - weights.mean(0)).abs() < 5 * spread).all()
    assert (log_mean_exp(weights) >= weights.mean(0) - 1e-9).all()


@every_model
def test_every_parameter_gets_a_gradient(name):
    model, batch = model_of(name), held_out(batch_of(20))
    terms = model.loss_terms(batch)
    (terms.nll + terms.kl).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@every_model
def test_gradients_are_those_of_finite_differences(name):
    model, batch = model_of(name, double=True), held_out(batch_of(3))

    def loss() -> torch.Tensor:
        model.noise.seed(3, device=torch.device("cpu"))
        terms = model.loss_terms(batch)
        return (terms.nll + terms.kl).sum()

    loss().backward()
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        direction = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * direction
            up = loss()
            parameter -= 2e-6 * direction
            down = loss()
            parameter += 1e-6 * direction
        slope = (parameter.grad * direction).sum()
        assert ((up - down) / 2e-6).item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-5)


@every_model
def test_with_nothing_seen_predictions_are_the_prior(name):
    """One point: the predictive mixture with nothing seen and the weights' density are the same p(x)."""
    scale = scale_of(1)
    model = model_of(name, scale)
    fit(model, lambda step: two_points(64, step), 100)
    x = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None, None] * scale.std + scale.mean
    times = torch.full((11, 1), 102.0, dtype=torch.float64)
    batch = series_of(times, x, window=window(11))
    nothing = replace(batch, seen=torch.zeros_like(batch.seen), scored=torch.ones_like(batch.seen))
    with model.fixed_noise(0), model.only("values"):
        weights = model.log_weights(density(batch), 4000).double()
        given_path = model.predict(nothing, 4000).density.log_prob_each(x)[:, :, 0, 0]
    # The variance of a log mean of weights is one over their effective number.
    spread = sum(w.softmax(0).square().sum(0) - 1 / len(w) for w in (weights, given_path)).clamp(min=1e-8).sqrt()
    assert ((log_mean_exp(weights) - log_mean_exp(given_path)).abs() < 5 * spread + 1e-5).all()


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


class Waits(TorchDispatchMode):
    """Notes what a GPU would have to be waited for: numbers read off, shapes that depend on values, new constants."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "aten.equal.", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = (
            "aten.index" in str(func)
            and isinstance(args[1], list | tuple)  # not the axis of index_select or index_add
            and any(i is not None and i.dtype == torch.bool for i in args[1])
        )
        if by_mask or any(name in str(func) for name in self.ASKING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def objectives(name: str):
    return (ELBO(2), IWAE(3), FIVO(3)) if name.startswith("vrnn") else (ELBO(2), IWAE(3))


def labelled_step(name: str, objective):
    """A model that is fitted on an objective, with labels where it takes them, and a batch to train on."""
    labels = Labels(1.0 if isinstance(objective, ELBO) else 0.0, 8)
    scale = replace(scale_of(), classes=("low", "high"))
    model = model_of(name, scale, recipe=replace(recipe_of(), objective=objective, labels=labels))
    return model, replace(from_loader(held_out(batch_of())), labels=torch.tensor([0, 1, -1, 0, 1]))


def loss_of(model, batch) -> torch.Tensor:
    model.noise.seed(0, device=torch.device("cpu"))
    terms = model.loss_terms(batch)
    loss = (terms.nll + terms.kl).sum() / batch.scored.sum()
    return loss if model.classifier is None else loss + model._label_loss(terms, batch)


@every_model
def test_a_training_step_never_waits_for_the_device(name):
    for objective in objectives(name):
        model, batch = labelled_step(name, objective)
        with Waits() as waits:
            loss_of(model, batch).backward()
        assert not waits.found


@every_model
def test_mixed_precision_gives_about_the_same_loss(name):
    for objective in objectives(name):
        model, batch = labelled_step(name, objective)
        full = loss_of(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = loss_of(model, batch)
        mixed.backward()
        assert mixed.item() == pytest.approx(full.item(), rel=0.1)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
def test_log_weights_are_refused_where_some_values_are_only_seen(name):
    with pytest.raises(ValueError, match="seen == scored"):
        model_of(name).log_weights(held_out(batch_of()), 2)


@every_model
def test_a_head_of_other_support_is_refused(name):
    with pytest.raises(ValueError, match="binary"):
        model_of(name, scale_of(support="binary"))


# The state of a neural ODE is the data themselves, and a level is one of real values.
WITH_LOGITS = [n for n in MODELS if n != "neural_ode" and "head" not in n and "level=" not in n]


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_probabilities_of_zeros_and_ones_sum_to_one(name):
    """Over all 16 outcomes of two points of two channels, and over the four of one point whose other is hidden."""
    plain = replace(scale_of(2, support="binary"), mean=torch.zeros(2).double(), std=torch.ones(2).double())
    model = model_of(f"{name} model/head=bernoulli", plain, double=True)
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
