"""Laws that every model obeys, each a function of the name of a model, and what they ask of it."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.small import (
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
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import series_of
from vrnn_lab.models.recipe import ELBO, FIVO, IWAE, Labels

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


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


def empty_points_anywhere_change_nothing(name):
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


def values_that_are_not_seen_change_no_prediction(name):
    model, batch = model_of(name, double=True), asked(batch_of())
    other = replace(batch, values=torch.where(batch.seen, batch.values, batch.values + 100.0))
    with model.fixed_noise(5):
        one, two = model.predict(batch, 3), model.predict(other, 3)
    assert torch.equal(one.density.mean, two.density.mean)
    assert torch.equal(one.paths, two.paths)


def permuting_the_batch_permutes_the_answers(name):
    model, batch = model_of(name, double=True), batch_of()
    order = torch.tensor([3, 0, 4, 2, 1])
    model_answers = answers(model, batch)
    with model.fixed_noise(5):
        terms = model.loss_terms(held_out(batch).rows(order))
        weights = model.log_weights(density(batch).rows(order), 4)
        prediction = model.predict(asked(batch).rows(order), 4)
    assert_same(model_answers, (terms.nll, terms.kl, weights, prediction), rows=order)


def a_row_alone_is_the_row_in_a_batch(name):
    model, batch = model_of(name, double=True), batch_of()
    together = answers(model, batch)
    for row in (0, 3):
        with model.fixed_noise(5):
            terms = model.loss_terms(held_out(batch).rows([row]))
            weights = model.log_weights(density(batch).rows([row]), 4)
            prediction = model.predict(asked(batch).rows([row]), 4)
        assert_same(together, (terms.nll, terms.kl, weights, prediction), rows=[row])


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


def fitted(name, steps: int = 300):
    """A model after some steps of training on pairs of points."""
    model = model_of(name, scale_of(1))
    fit(model, lambda step: two_points(64, step), steps)
    return model


def the_weights_integrate_to_one(name, trained=None):
    assert integral(model_of(name, scale_of(1))) == pytest.approx(1, abs=0.02)
    assert integral(trained or fitted(name)) == pytest.approx(1, abs=0.02)


def every_parameter_gets_a_gradient(name):
    model, batch = model_of(name), held_out(batch_of(20))
    terms = model.loss_terms(batch)
    (terms.nll + terms.kl).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def gradients_are_those_of_finite_differences(name):
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


def with_nothing_seen_predictions_are_the_prior(name, trained=None):
    """One point: the predictive mixture with nothing seen and the weights' density are the same p(x)."""
    model, scale = trained or fitted(name, 100), scale_of(1)
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


def a_training_step_never_waits_for_the_device(name):
    for objective in objectives(name):
        model, batch = labelled_step(name, objective)
        with Waits() as waits:
            loss_of(model, batch).backward()
        assert not waits.found


def mixed_precision_gives_about_the_same_loss(name):
    for objective in objectives(name):
        model, batch = labelled_step(name, objective)
        full = loss_of(model, batch)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = loss_of(model, batch)
        mixed.backward()
        assert mixed.item() == pytest.approx(full.item(), rel=0.1)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
