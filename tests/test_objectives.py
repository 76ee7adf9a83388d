"""What a model may be fitted on beside the ELBO, labels, and latents at work."""

from dataclasses import replace
from functools import partial
from math import log
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from helpers.small import batch_of, density, from_loader, held_out, model_of, recipe_of, scale_of, with_empty_points
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import options
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import series_of
from vrnn_lab.core.tasks import DensityTask, Forecast, Interpolate
from vrnn_lab.data.datasets.ou import OU
from vrnn_lab.evaluation.evaluate import EvaluationProtocol, evaluate
from vrnn_lab.models.losses import Activity, Latents, Normal
from vrnn_lab.models.particles import choose_ancestors
from vrnn_lab.models.recipe import FIVO, IWAE, ConstantBeta, Labels, Recipe, WarmupBeta, cosine

ADAM = partial(torch.optim.Adam, lr=1e-3)
latent_models = pytest.mark.parametrize("name", ["vrnn", "latent_ode"])


def with_objective(name: str, objective, **keys):
    return model_of(name, recipe=Recipe(ADAM, cosine, objective=objective), double=True, **keys)


@latent_models
def test_iwae_is_the_log_of_the_mean_weight_of_each_series(name):
    model, batch = with_objective(name, IWAE(7)), density(batch_of())
    with model.fixed_noise(3):
        terms = model.loss_terms(batch)
        weights = model.log_weights(batch, 7)
    torch.testing.assert_close(-terms.nll, log_mean_exp(weights))
    assert not terms.kl.any()


@latent_models
def test_iwae_of_one_sample_is_the_weight_of_that_sample_also_of_what_is_held_out(name):
    model, batch = with_objective(name, IWAE(1)), held_out(batch_of())
    model.noise.seed(1, device=torch.device("cpu"))
    terms = model.loss_terms(batch)
    model.noise.seed(1, device=torch.device("cpu"))
    weights = model._log_weights(model.standardise(batch), 1)[0]
    torch.testing.assert_close(-terms.nll, weights - model._log_det(batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "latent_ode"])
def test_doubly_reparameterised_gradients_are_those_of_the_bound_on_average(name):
    """The decoder's are the plain ones, draw by draw; the encoder's have the same mean, and are others."""
    model, batch = with_objective(name, IWAE(8)), density(batch_of(3, time=4))

    def gradients(bound, seed):
        model.zero_grad()
        model.noise.seed(seed, device=torch.device("cpu"))
        bound(model.standardise(batch), 8).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = lambda series, samples: log_mean_exp(model._log_weights(series, samples))
    both = [(gradients(plain, s), gradients(model._importance_bound, s)) for s in range(300)]
    decoding = [n for n in both[0][0] if n.startswith("decoder")]
    reading = [n for n in both[0][0] if n.startswith(("encoder", "recognition"))]
    assert decoding and reading
    for n in decoding:
        torch.testing.assert_close(both[0][0][n], both[0][1][n])
    one, two = (torch.stack([torch.cat([pair[i][n].flatten() for n in reading]) for pair in both]) for i in (0, 1))
    error = (one - two).std(0) / 300**0.5
    assert ((one - two).mean(0).abs() <= 5 * error + 1e-9).all()
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("objective", [IWAE(), FIVO()])
@pytest.mark.parametrize("beta", [ConstantBeta(0.5), WarmupBeta()])
def test_a_bound_that_has_no_kl_takes_no_weight_of_it(objective, beta):
    with pytest.raises(ValueError, match=r"beta=constant with beta\.weight=1"):
        Recipe(ADAM, cosine, beta, objective)


@pytest.mark.parametrize("name", sorted(set(options("model")) - {"vrnn", "vrnn_gmm"}))
def test_a_filter_bound_needs_a_latent_at_every_step_and_says_so_before_training(name):
    with pytest.raises(ConfigError, match="needs a model with a latent at every step"):
        with_objective(name, FIVO(3))


@pytest.mark.slow
def test_the_filter_bound_is_unbiased_for_the_likelihood_after_resampling():
    """Its exponential integrates to one over x, as that of a likelihood does, though particles are resampled."""
    scale = scale_of(1)
    model = model_of("vrnn", scale, recipe=Recipe(ADAM, cosine, objective=FIVO(4)))
    with torch.no_grad():
        for parameter in model.posterior_out.parameters():
            parameter.mul_(2)  # a poor posterior: weights differ, so that resampling happens
    side = torch.linspace(-7, 7, 51, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)[..., None] * scale.std + scale.mean
    times = torch.tensor([[101.0, 103.5]]).double().expand(len(grid), 2)
    batch = density(series_of(times, grid))
    found = []
    with torch.no_grad():
        model.noise.seed(7, device=torch.device("cpu"))
        for _ in range(400):
            found.append(
                (-model.loss_terms(batch).nll).double().exp().sum() * ((side[1] - side[0]) * scale.std.item()) ** 2
            )
    found = torch.stack(found)
    error = found.std() / 20
    assert error < 0.01 and abs(found.mean() - 1) < 4 * error


def test_the_filter_bound_without_resampling_is_the_importance_weighted_one():
    model, batch = with_objective("vrnn", FIVO(2)), density(batch_of())
    with model.fixed_noise(3):  # two particles are never fewer than one in effect
        torch.testing.assert_close(-model.loss_terms(batch).nll, log_mean_exp(model.log_weights(batch, 2)))


def test_the_filter_bound_of_a_row_is_its_own_and_padding_changes_nothing():
    model, batch = with_objective("vrnn", FIVO(8)), density(batch_of())
    with torch.no_grad():
        model.posterior_out.weight.mul_(5)  # weights differ, so that resampling happens
    with model.fixed_noise(3):
        together = model.loss_terms(batch).nll
        alone = torch.cat([model.loss_terms(batch.rows([i])).nll for i in range(len(batch.ids))])
        padded = model.loss_terms(with_empty_points(batch)[0]).nll
        without = -log_mean_exp(model.log_weights(batch, 8))
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, padded)
    assert ((together - without).abs() > 1e-3).all()


def test_ancestors_are_drawn_in_proportion_to_their_weights_where_few_are_left():
    log_weight = torch.tensor([[0.0, 0.0], [-1e9, 0.1], [-1e9, 0.0], [0.0, 0.0], [-1e9, -0.1], [-1e9, 0.0]]).double()
    counts = torch.zeros(6)
    for chance in torch.linspace(0.01, 0.99, 50).double():
        ancestors, resampled = choose_ancestors(log_weight, chance.expand(2))
        assert resampled.tolist() == [True, False]
        assert ancestors[:, 1].tolist() == list(range(6))
        counts += ancestors[:, 0].bincount(minlength=6)
    assert counts.tolist() == [150, 0, 0, 150, 0, 0]


# ---- labels ---------------------------------------------------------------------------------------------------


def labelled(name: str, of_points: bool = False, **keys):
    scale = replace(scale_of(), classes=("low", "high"), labels_of_points=of_points)
    return model_of(name, scale, recipe=Recipe(ADAM, cosine, labels=Labels(2.0, 16)), **keys)


def with_labels(of_points: bool):
    batch = density(batch_of(12))
    high = (batch.values[..., 0] > batch.values[..., 0].mean()).long()
    labels = torch.where(batch.counts, high, -1) if of_points else high[:, 0]
    return replace(batch, labels=labels)


@pytest.mark.parametrize("name", ["rnn", "vrnn", "latent_ode"])
@pytest.mark.parametrize("of_points", [False, True])
def test_probabilities_of_classes_are_told_for_series_or_points(name, of_points):
    model, batch = labelled(name, of_points, double=True), with_labels(of_points)
    with model.fixed_noise(1):
        chance = model.classify(batch, 3)
        permuted = model.classify(batch.rows([3, 1, 2]), 3)
    assert chance.shape == ((12, 8, 2) if of_points else (12, 2))
    torch.testing.assert_close(chance.sum(-1), torch.ones_like(chance[..., 0]))
    torch.testing.assert_close(permuted, chance[[3, 1, 2]])


@pytest.mark.parametrize("of_points", [False, True])
def test_the_loss_of_labels_is_their_mean_cross_entropy_without_those_that_lack_one(of_points):
    model, batch = labelled("rnn", of_points, double=True), with_labels(of_points)
    batch = replace(batch, labels=torch.where(batch.ids.view(-1, *[1] * of_points) % 3 == 0, -1, batch.labels))
    terms = model.loss_terms(batch)
    there = batch.labels >= 0
    chance = model.classifier(terms.states, batch.counts).softmax(-1)[0][there]
    expected = -chance.gather(1, batch.labels[there][:, None]).log().mean()
    torch.testing.assert_close(model._label_loss(terms, batch), expected)


def test_the_state_a_label_is_told_from_has_read_the_last_point():
    model, batch = labelled("rnn", double=True), with_labels(False)
    last = batch.counts.long().cumsum(1).argmax(1)
    moved = batch.values.clone()
    moved[torch.arange(12), last] += torch.where(batch.seen[torch.arange(12), last], 1.0, 0.0)
    other = replace(batch, values=moved)
    assert (model.classify(batch) != model.classify(other)).all(1).all()


def test_labels_of_padding_are_nothing_to_learn():
    model, batch = labelled("rnn", True, double=True), with_labels(True)
    model.noise.seed(0, device=torch.device("cpu"))
    loss = model._label_loss(model.loss_terms(batch), batch)
    nothing = torch.arange(8) > 4  # as task=within leaves the later points
    cut = replace(batch, seen=batch.seen & ~nothing[:, None], scored=batch.scored & ~nothing[:, None])
    hidden = replace(cut, labels=torch.where(nothing, -1, cut.labels))
    found = [model._label_loss(model.loss_terms(b), b) for b in (cut, hidden)]
    assert torch.equal(*found) and not torch.equal(found[0], loss)


@pytest.mark.parametrize("name", ["ode_rnn model.cell.nodes=15", "neural_ode"])
def test_a_batch_of_the_training_loader_is_told_the_same_classes(name):
    """Where only some points are seen, gaps between those are longer than the loader knows of."""
    model = labelled(name, double=True, **{"nodes": 15} if name == "neural_ode" else {})
    batch = batch_of(3, 21)
    times = batch.window[:, :1] + batch.window.diff(dim=1) * torch.linspace(0, 1, 21).double()
    seen = (torch.arange(21) % 20 == 0)[:, None].expand_as(batch.seen)  # the ends
    batch = replace(batch, times=times, seen=seen, scored=torch.ones_like(seen))
    with model.fixed_noise(1):
        torch.testing.assert_close(model.classify(from_loader(batch), 3), model.classify(batch, 3))


def test_labels_need_classes_and_states():
    with pytest.raises(ValueError, match="no labels"):
        model_of("rnn", recipe=Recipe(ADAM, cosine, labels=Labels()))
    with pytest.raises(ValueError, match="fitted without labels"):
        model_of("rnn", recipe=recipe_of()).classify(batch_of())


# ---- latents at work ------------------------------------------------------------------------------------------


def test_active_units_are_those_whose_posterior_mean_varies_over_the_data():
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.05, 0.2, 0.0])  # variances 1, .0025, .04, 0 against .01
    activity = Activity()
    for _ in range(20):
        shift = 5 + spread * torch.randn(50, 4, generator=rng)  # a constant shift is no activity
        there = torch.rand(50, generator=rng) < 0.7
        activity.add(
            Latents(torch.ones(10, 4) * spread, torch.ones(10), torch.where(there[:, None], shift, 1e3), there)
        )
    found = activity.result()
    assert found["active_units"] == 2
    assert [found[f"kl_{i}"] for i in range(4)] == pytest.approx(spread.tolist())
    assert Activity().result() == {}


@latent_models
def test_the_kl_by_dimension_sums_to_the_kl(name):
    model, batch = model_of(name, double=True), held_out(batch_of())
    with model.fixed_noise(0):
        terms = model.loss_terms(batch)
    torch.testing.assert_close(terms.latents.kl.sum(1), terms.kl)
    assert terms.latents.shift.shape[-1] == model.latent


def test_latents_at_work_in_validation_are_those_of_validation_alone(monkeypatch):
    model, batch = model_of("vae"), held_out(batch_of())
    monkeypatch.setattr(type(model), "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    model.test_step(batch, 0)
    assert model._activity.result() == {}
    model.validation_step(batch, 0)
    assert model._activity.result()


def test_a_collapsed_posterior_has_no_active_unit():
    model, batch = model_of("latent_ode", double=True), held_out(batch_of())
    with torch.no_grad():
        for parameter in model.recognition.posterior[-1].parameters():
            parameter.zero_()
    activity = Activity()
    with model.fixed_noise(0):
        activity.add(model.loss_terms(batch).latents)
    assert activity.result()["active_units"] == 0


def test_the_shift_is_measured_in_stds_of_the_prior():
    posterior = Normal(torch.tensor([3.0]), torch.tensor([0.0]))
    prior = Normal(torch.tensor([1.0]), torch.tensor([0.5]).log())
    assert posterior.shift(prior).item() == pytest.approx(4)


class Labelled(OU):
    """Every third series has no label; the sign of the first value is the class of the others."""

    classes = ("low", "high")

    def make(self):
        splits = super().make()
        for name, split in splits.items():
            first = split.values[split.offsets[:-1], 0] > self.mean
            splits[name] = replace(split, labels=np.where(split.ids % 3 == 0, -1, first).astype(np.int64))
        return splits


@pytest.mark.slow
def test_a_fit_with_labels_logs_them_and_its_scores_tell_how_well_they_are_told():
    data = Labelled(train=90, val=30, test=60, points=(4, 8))
    recipe = Recipe(partial(torch.optim.Adam, lr=1e-2), cosine, labels=Labels(3.0, 16))
    model = model_of("rnn", data.scale, recipe=recipe)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=60, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(model, datamodule=data)
    assert set(model.latest) == {"train/loss", "train/nll", "train/kl", "train/labels"}
    assert model.latest["train/loss"] == pytest.approx(model.latest["train/nll"])
    assert float(trainer.callback_metrics["val/labels"]) < log(2)
    protocol = EvaluationProtocol(
        Interpolate(0.5, scored="held_out"), Forecast(0.5, scored="held_out"), samples=2, draws=9
    )
    found = evaluate(model, data, "test", protocol, 0)
    assert found["test/labels/accuracy"] > 0.75 and found["test/labels/auc"] > 0.8
    batch = next(iter(data.batches("test", DensityTask(), 60)))
    with model.fixed_noise(0):
        chance = model.classify(batch)
    there = batch.labels >= 0
    assert (chance.argmax(1) == batch.labels)[there].double().mean() == pytest.approx(found["test/labels/accuracy"])
