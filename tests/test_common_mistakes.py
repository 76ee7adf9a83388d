"""Mistakes met in public code of models like these, each of which would fail a test here.

Others have their tests elsewhere: a batch axis flipped in place of time, and clocks that depend on the batch, in
test_contract.py; a scale that reaches zero in test_gaussian_head.py; pairs never observed that count as no error in
test_evaluation.py; one pattern of seen points for all series in test_tasks.py; windows on both sides of a split in
test_table.py and test_paleoclimate.py.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from helpers.linear import linear_vae, whole_points
from helpers.small import MODELS, asked, batch_of, density, held_out, model_of, scale_of
from vrnn_lab.core.densities import Bernoulli
from vrnn_lab.core.series import TimeSeries, series_of
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.models.ode import Solver
from vrnn_lab.models.recipe import IWAE, Recipe, WarmupBeta, constant


class Noisy(SeriesData):
    """A few series of two channels, far from zero; the test split may have another spread."""

    channels = ("a", "b")

    def __init__(self, spread_of_test: float = 1.0):
        super().__init__(batch_size=10)
        self.spread = {"train": 1.0, "val": 1.0, "test": spread_of_test}

    def make(self):
        return {split: self.split(split, spread) for split, spread in self.spread.items()}

    def split(self, split: str, spread: float) -> Ragged:
        rng = np.random.default_rng(len(split))
        times = np.sort(rng.uniform(0, 5, (20, 6)), 1)
        values = np.array([50.0, -30.0]) + spread * np.array([4.0, 0.1]) * rng.standard_normal((20, 6, 2))
        return Ragged.of(times, values, window=(0.0, 5.0), first_id=100 * len(split))


# 3. "IWAE" without -log K, with the analytic KL, or of means over the batch


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_the_importance_weighted_objective_is_the_likelihood_where_the_posterior_is_exact(samples):
    model, marginal = linear_vae(2)
    model.recipe = replace(model.recipe, objective=IWAE(samples))
    batch = whole_points(2)
    terms = model.loss_terms(batch)
    torch.testing.assert_close(-(terms.nll + terms.kl), marginal.log_prob(batch.values).sum(1))


def test_the_importance_weighted_objective_stays_a_bound_where_the_posterior_is_too_wide():
    model, marginal = linear_vae(1, widen=1.5)
    model.recipe = replace(model.recipe, objective=IWAE(3))
    batch = whole_points(1).rows([0]).map(lambda x: x.expand(20_000, *x.shape[1:]))
    points = torch.arange(8) < 1  # one point of each
    batch = replace(batch, seen=batch.seen & points[:, None], scored=batch.scored & points[:, None])
    with torch.no_grad():
        bound = -model.loss_terms(batch).nll
    log_p = marginal.log_prob(batch.values[0, 0])
    error = bound.std() / len(bound) ** 0.5
    assert bound.mean() < log_p + 4 * error
    assert ((bound - log_p).exp().mean() - 1).abs() < 4 * (bound - log_p).exp().std() / len(bound) ** 0.5


# 4. a KL that is averaged where the likelihood is not, or weighed at evaluation too


@pytest.mark.parametrize("name", ["vae", "latent_ode", "vrnn"])
def test_kl_and_likelihood_are_divided_by_the_same_number_and_evaluation_weighs_neither(name, monkeypatch):
    model, batch = model_of(name, double=True), held_out(batch_of())
    model.recipe = replace(model.recipe, beta=WarmupBeta(0.5))
    step, logged = SimpleNamespace(value=0), {}
    monkeypatch.setattr(type(model), "_position", property(lambda _: (step.value, 100)))
    monkeypatch.setattr(type(model), "global_step", property(lambda _: step.value))
    monkeypatch.setattr(type(model), "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(model, "log_dict", lambda named, **_: logged.update(named))
    for step.value, beta in ((0, 0.0), (25, 0.5), (80, 1.0)):
        loss = model.training_step(batch, 0)
        model.noise.seed(model.seed, step.value, 0, device=torch.device("cpu"))
        terms = model.loss_terms(batch)
        torch.testing.assert_close(loss, (terms.nll.sum() + beta * terms.kl.sum()) / batch.scored.sum())
    step.value = 0
    model.validation_step(batch, 0)
    with model.fixed_noise(model.seed):
        terms = model.loss_terms(batch)
    torch.testing.assert_close(logged["val/loss"], (terms.nll + terms.kl).sum() / batch.scored.sum())


# 7. z_0 encoded at the first seen time and decoded as if it sat at the first that is asked


def test_the_path_of_a_latent_starts_at_the_window_whatever_is_seen_or_asked():
    model = model_of("latent_ode", double=True, depth=0, rate=1.0)
    (field,) = model.field.layers
    with torch.no_grad():
        field.weight.zero_()  # dz/dt = b
    batch = batch_of()
    late = torch.arange(8) >= 5
    questions = {
        "interpolation": asked(batch),
        "forecast": replace(batch, seen=batch.known & ~late[:, None], scored=batch.known & late[:, None]),
        "the end alone": replace(batch, seen=batch.known & late[:, None], scored=batch.known & late[:, None]),
    }
    z = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    elapsed = (batch.times - batch.window[:, :1]) / model.data_clock
    expected = z[:, :, None] + elapsed[..., None] * field.bias
    for question in questions.values():
        torch.testing.assert_close(model._states(model.standardise(question), z), expected)


# 8. (x - min) / max, and statistics of more than the training split


def test_training_values_have_mean_zero_and_std_one_and_other_splits_change_no_unit():
    plain, wild = Noisy(), Noisy(spread_of_test=1e3)
    model = model_of("vae", plain.scale)
    inside = model.standardise(next(iter(plain.batches("train", plain.task, 20)))).values.flatten(0, 1)
    torch.testing.assert_close(inside.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones(2))
    for name in ("mean", "std", "clock", "gap"):
        assert torch.equal(getattr(plain.scale, name), getattr(wild.scale, name))


# 9. times divided by the largest of the batch


def test_a_row_has_its_own_clock_whatever_the_length_of_its_neighbours():
    model, batch = model_of("latent_ode"), batch_of()
    stretched = replace(batch, times=batch.times * torch.tensor([[1.0], [1.0], [1.0], [1.0], [1e3]]).double())
    assert torch.equal(model.standardise(batch).times[:4], model.standardise(stretched).times[:4])


# 10. points left out because their values sum to zero


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_point_whose_values_are_zero_is_a_point(name):
    scale = replace(scale_of(), mean=torch.zeros(2).double(), std=torch.ones(2).double())
    model, times = model_of(name, scale, double=True), [[101.0, 102.0, 104.0]]
    nothing = torch.tensor([[[1.0, 0.5], [torch.nan, torch.nan], [-1.0, 0.2]]])

    def weights(point: list[float] | None) -> torch.Tensor:
        values = nothing.clone()
        values[0, 1] = torch.tensor(point if point else [torch.nan, torch.nan])
        with model.fixed_noise(0):
            return model.log_weights(density(series_of(times, values, window=[[100.0, 105.0]])), 3)

    zero = weights([0.0, 0.0])
    torch.testing.assert_close(zero, weights([1e-7, 1e-7]), rtol=1e-5, atol=1e-5)
    assert (zero - weights(None)).abs().min() > 1e-2
    torch.testing.assert_close(weights([0.3, -0.3]), weights([0.3, -0.3 + 1e-7]), rtol=1e-5, atol=1e-5)


# 11. clipping after the step; the logarithm of 1 - p - eps; the mean fed back where a draw is meant


def test_the_gradient_is_clipped_before_the_step():
    recipe = Recipe(partial(torch.optim.SGD, lr=1.0), constant)
    data = Noisy()
    model = model_of("vae", data.scale)
    model.recipe = recipe
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        gradient_clip_val=1e-3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("logit", [0.0, 20.0, -20.0, 100.0, -100.0, 1e6, -1e6])
def test_certain_zeros_and_ones_have_finite_nats_and_gradients(logit):
    raw = torch.full((2,), logit, requires_grad=True)
    each = Bernoulli(raw).log_prob_each(torch.tensor([0.0, 1.0]))
    each.sum().backward()
    assert each.isfinite().all() and (each <= 0).all() and raw.grad.isfinite().all()
    right = each[1] if logit >= 0 else each[0]
    assert right.item() == pytest.approx(-np.log1p(np.exp(-abs(logit))), abs=1e-6)


def two_queries(drawn: torch.Tensor | None = None) -> TimeSeries:
    """Nothing seen, or what was drawn for the first of two points."""
    values = torch.full((1, 2, 2), torch.nan, dtype=torch.float64)
    if drawn is not None:
        values[0, 0] = drawn
    batch = series_of([[101.0, 102.0]], values, window=[[100.0, 105.0]])
    return replace(batch, scored=~batch.seen)


def test_a_step_model_goes_on_from_its_draw_as_if_it_had_been_seen():
    model = model_of("rnn", double=True)
    with model.fixed_noise(0):
        free = model.predict(two_queries(), 5)
        for sample in range(5):
            told = model.predict(two_queries(free.paths[sample, 0, 0]), 1)
            torch.testing.assert_close(free.density.mean[sample, 0, 1], told.density.mean[0, 0, 1])
    assert (free.density.mean[:, 0, 1].std(0) > 1e-3).all()


# 14. error control over the whole batch: one stiff row changes the answers of all others


def test_a_stiff_row_changes_no_other_row_by_a_single_bit():
    elapsed = torch.linspace(0, 1, 7, dtype=torch.float64).expand(2, 7)
    start = torch.ones(1, 2, 1, dtype=torch.float64)
    answers = []
    for stiff in (1.0, 1e3):
        rate = torch.tensor([[2.0], [stiff]], dtype=torch.float64)
        answers.append(Solver("rk4").path(lambda time, z: -rate * z, start, 0.05, 20, 0).at(elapsed)[:, 0])  # noqa: B023 - used at once
    assert torch.equal(*answers)
    torch.testing.assert_close(answers[0][0, :, 0], torch.exp(-2 * elapsed[0]), rtol=1e-5, atol=1e-5)
