"""The linear SDE with other outputs than linear Gaussian ones: its weights, bounds and answers."""

from dataclasses import replace
from math import log, pi

import pandas as pd
import pytest
import torch

from helpers.commands import command, metrics
from helpers.linear_sdes import KINDS, any_batch, any_model
from helpers.piano_rolls import file  # noqa: F401 - a fixture
from helpers.small import batch_of, density, fit, held_out, model_of, scale_of, told, told_scale
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.kalman import joint_posterior, posterior
from vrnn_lab.core.series import TimeSeries, series_of
from vrnn_lab.models.gaussian_sites import Sites
from vrnn_lab.models.linear_state import lower_root
from vrnn_lab.models.prior_paths import chained

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
OU = "model.ou=1 model.matern=0 model.oscillators=0 model.level=none model.mean=constant"
SITES = {
    "bernoulli": f"{OU} model/head=bernoulli",
    "laplace": f"{OU} model/head=laplace_channel",
    "decoder": f"{OU} model/head=gaussian_channel model.decoder_depth=1",
    "mixture": f"{OU} model/head=gmm",
}
every_output = pytest.mark.parametrize("output", SITES)


def plain_scale(output: str, dim: int = 1):
    return scale_of(dim, support="binary" if output == "bernoulli" else "real", factor=1.0, shift=0.0)


def model_with(output: str, dim: int = 1):
    """A model whose parameters are moved from where they begin, its decoder too."""
    scale = plain_scale(output, dim)
    scale = replace(scale, mean=0 * scale.mean, std=torch.ones_like(scale.std))
    model = model_of(f"linear_sde {SITES[output]}", scale, double=True)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return model


def values_like(output: str, *shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values > 0).double() if output == "bernoulli" else values


def series_with(output: str, times: list[float], rows: int = 6) -> TimeSeries:
    at = torch.tensor(times, dtype=torch.float64).expand(rows, -1)
    window = torch.tensor([[100.0, 105.0]]).expand(rows, 2)
    return density(series_of(at, values_like(output, rows, len(times), 1), window=window))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 3])
def test_with_sites_equal_to_the_data_every_weight_is_the_exact_likelihood(kind, dim):
    """Sites begin at the data where the head is Gaussian and the signal itself its mean."""
    model, batch = any_model(kind, dim), any_batch(dim)
    series = model.standardise(density(batch))
    exact = model._log_weights(series, 1)
    model.sites = Sites(model.scale, 8).double()
    last = model.sites.network[-1]
    torch.nn.init.zeros_(last.weight)
    assert model._log_weights(series, 5).shape == (5, len(batch.ids))
    torch.testing.assert_close(model._log_weights(series, 5), exact.expand(5, -1), **CLOSE)
    last.bias.data += 0.3  # and so are no longer those
    assert (model._log_weights(series, 5) - exact).abs().max() > 0.01


def by_quadrature(model, batch: TimeSeries) -> torch.Tensor:
    """log p of each row by the trapezoidal rule over the signal at its points, two at most: a Laplace has a kink."""
    nodes = torch.linspace(-7, 7, 501).double()
    weights = torch.exp(-0.5 * nodes.square()) * (nodes[1] - nodes[0]) / (2 * pi) ** 0.5
    series = model.standardise(batch)
    time = batch.times.shape[1]
    std = model.readout.parts[0].std()
    reach = torch.exp(-model.dynamics.decay()[0, 0] * (series.times[0, :, None] - series.times[0]).abs())
    root = torch.linalg.cholesky(std.square() * reach)
    grid = torch.cartesian_prod(*[nodes] * time).view(-1, time)
    weight = torch.cartesian_prod(*[weights] * time).view(-1, time).prod(1)
    mean = model.readout.mean(series)
    signal = (grid @ root.T)[:, None, :, None] + mean
    log_p = model._log_likelihood(series, signal)
    return torch.logsumexp(log_p + weight.log()[:, None], 0)


@pytest.mark.slow
@every_output
@pytest.mark.parametrize("times", [[102.0], [101.0, 102.5]])
def test_many_samples_give_the_integral_over_the_signal(output, times):
    model, batch = model_with(output), series_with(output, times)
    with model.fixed_noise(0):
        weights = model.log_weights(batch, 20_000)
        exact = by_quadrature(model, batch)
    spread = (weights.softmax(0).square().sum(0) - 1 / len(weights)).clamp(min=1e-8).sqrt()
    off = (log_mean_exp(weights) - exact).abs()
    assert (off < 5 * spread + 1e-3).all() and (spread < 0.1).all()


@pytest.mark.slow
@every_output
def test_the_bounds_lie_in_their_order_below_the_likelihood_and_training_lifts_them(output):
    model, batch = model_with(output), series_with(output, [101.0, 102.5], rows=20)

    def bounds() -> list[float]:
        with model.fixed_noise(0):
            terms = model._loss_terms(model.standardise(batch), 4000)
            weights = model.log_weights(batch, 4000)
            iwae = log_mean_exp(weights.unflatten(0, (40, 100)).transpose(0, 1)).mean(0)
            exact = by_quadrature(model, batch)
        return [each.mean().item() for each in (-terms.nll - terms.kl, weights, iwae, exact)]

    elbo, mean_weight, iwae, exact = bounds()
    assert elbo == pytest.approx(mean_weight, abs=0.02)  # one draws points by themselves, the other jointly
    assert elbo <= iwae + 0.01 <= exact + 0.02
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("sites" in name)  # the likelihood stays what it is
    model.recipe = replace(model.recipe, optim=lambda parameters: torch.optim.Adam(model.sites.parameters(), 0.01))
    fit(model, lambda step: batch, 60)
    trained = bounds()
    assert trained[3] == pytest.approx(exact, abs=1e-9)
    assert elbo + 0.1 * (exact - elbo) < trained[0] <= exact + 0.01


@pytest.mark.parametrize("kind", ["all", "separate", "full"])
def test_chained_draws_have_the_law_of_the_state_whatever_padding_stands_between(kind):
    model = any_model(kind, dim=1)
    batch = any_batch(dim=1, rows=1, time=6)
    batch = density(replace(batch, seen=torch.ones_like(batch.seen)))
    series = model.standardise(batch)
    dynamics, states = model.dynamics, model.dynamics.states
    drift = dynamics.drift()[0] if hasattr(dynamics, "drift") else dynamics._drift()[0]
    with model.fixed_noise(0):
        drawn = chained(dynamics, model.noise, series, 60_000)[:, 0, :, 0]
        fewer = replace(series, seen=series.seen.clone(), scored=series.scored.clone())
        fewer.seen[:, [0, 2, 5]] = fewer.scored[:, [0, 2, 5]] = False
        part = chained(dynamics, model.noise, fewer, 500)[:, 0, :, 0]
        there = replace(
            fewer, **{k: getattr(fewer, k)[:, [1, 3, 4]] for k in ("times", "values", "seen", "scored", "error")}
        )
        torch.testing.assert_close(
            part[:, [1, 3, 4]], chained(dynamics, model.noise, there, 500)[:, 0, :, 0], **CLOSE
        )
    gaps = (series.times[0, :, None] - series.times[0]).clamp(min=0)
    expected = torch.linalg.matrix_exp(gaps[..., None, None] * drift)
    found = torch.einsum("ski,slj->klij", drawn, drawn) / len(drawn)
    later = gaps >= (series.times[0] - series.times[0, :, None])
    assert ((found - expected).abs() < 0.03)[later].all() and drawn.shape[2] == states


def test_the_root_of_a_covariance_has_a_finite_gradient_at_nothing_and_at_any_size():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    sizes = torch.tensor([1.0, 1e-30, 1e-90, 0.0, 1e80], dtype=torch.float64)
    covariances = (sizes[:, None, None] * matrix).requires_grad_()
    root = lower_root(covariances)
    root.sum().backward()
    assert covariances.grad.isfinite().all()
    torch.testing.assert_close(root @ root.mT, covariances, rtol=1e-9, atol=1e-200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["all", "separate", "full"])
def test_the_joint_posterior_is_that_of_the_marginals_and_of_log_p(kind):
    model, series = any_model(kind), any_model(kind).standardise(any_batch())
    site = model._observed(series)
    space = model._space(series.times[..., None], site.variance)
    mask = model._split(series.seen[..., None])[..., 0]
    values = model._split((site.value - model.readout.mean(series))[..., None])
    states, variance = posterior(space, values, mask)
    found, covariance, log_p = joint_posterior(space, values, mask)
    torch.testing.assert_close(found, states, **CLOSE)
    torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), variance, **CLOSE)
    torch.testing.assert_close(covariance, covariance.mT, **CLOSE)
    expected = model._log_prob(series, series.seen)[0]
    torch.testing.assert_close(log_p.view(len(expected), -1).sum(1), expected, **CLOSE)


def test_covariates_and_error_bars_reach_sites_and_output():
    scale = told_scale(scale_of(2))
    model = model_of("linear_sde model/head=gaussian model.decoder_depth=1", scale, double=True)
    batch = told(batch_of())
    half = replace(batch, seen=batch.seen & (torch.arange(8) % 2 == 0)[:, None], scored=batch.known)

    def answers(question):
        with model.fixed_noise(0):
            terms = model.loss_terms(question)
            return terms.nll, terms.kl, model.predict(question, 3).paths

    before = answers(half)
    for changed in (
        replace(half, covariates=half.covariates + 0.5),
        replace(half, error=torch.where(half.seen, 2 * half.error, half.error)),
    ):
        after = answers(changed)
        assert all(((one - two).abs() > 1e-6).any() for one, two in zip(before, after, strict=True))


@pytest.mark.slow
@every_output
@pytest.mark.parametrize("span", [1e-9, 1.0, 1e9])
def test_gradients_of_both_bounds_are_finite_for_spans_of_any_length(output, span):
    model = model_with(output)
    times = 100 + 5 * span * torch.rand(3, 20, generator=torch.Generator().manual_seed(0)).double().sort(1).values
    batch = held_out(series_of(times, 30 * values_like("real", 3, 20, 1)))
    if output == "bernoulli":
        batch = replace(batch, values=(batch.values > 0).double())
    for loss in (
        lambda: (lambda terms: terms.nll + terms.kl)(model.loss_terms(batch)),
        lambda: -log_mean_exp(model.log_weights(density(batch), 3)),
    ):
        model.zero_grad()
        found = loss()
        found.sum().backward()
        assert found.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with model.fixed_noise(0):
        prediction = model.predict(replace(batch, scored=~batch.seen), 3)
    assert prediction.paths.isfinite().all() and (prediction.density.std > 0).all()


@pytest.mark.slow
def test_an_outlier_gets_a_wide_site_after_training_under_a_heavy_tail():
    """What a neighbourhood does not bear out moves a Laplace posterior less than a Gaussian one."""
    rng = torch.Generator().manual_seed(0)
    times = 100 + 5 * torch.rand(40, 20, generator=rng).double().sort(1).values
    level = torch.randn(40, 1, 1, generator=rng).double()
    values = level + 0.1 * torch.randn(40, 20, 1, generator=rng).double()
    values[torch.rand(40, 20, 1, generator=rng) < 0.08] += 4.0
    batch = density(series_of(times, values, window=torch.tensor([[100.0, 105.0]]).expand(40, 2)))
    model = model_of("linear_sde model/head=laplace_channel", plain_scale("laplace"), double=True)
    fit(model, lambda step: batch, 100)
    calm = torch.zeros(1, 9, 1).double()
    odd = calm.clone()
    odd[0, 4] = 4.0
    at = torch.linspace(101, 104, 9).double()[None]
    sites = [
        model._observed(model.standardise(density(series_of(at, x, window=[[100.0, 105.0]])))) for x in (calm, odd)
    ]
    std = [site.variance[0, 4, 0].sqrt().item() for site in sites]
    assert std[1] > 2 * std[0]


@pytest.mark.slow
def test_zeros_and_ones_are_fitted_evaluated_and_sampled_from_the_command_line(file, tmp_path):  # noqa: F811 - the fixture
    small = ["evaluate.samples=3", "evaluate.draws=9", "trainer=cpu", "trainer.max_steps=4", "model.encoder_width=8"]
    data = ["data=polyphonic", f"data.path={file()}", "data.window=10"]
    keys = ["model=linear_sde", "model/head=bernoulli", *data, *small, "task=density", "hydra.run.dir=run"]
    command("run", *keys, folder=tmp_path)
    found = metrics(tmp_path / "run")
    assert 0 < found["val/loss"] < log(2) and not found["val/nll_is_exact"]
    again = command("evaluate", "run=run", "evaluate.samples=3", folder=tmp_path)
    assert f"{found['test/nll']:.3g}" in again.stdout
    command("sample", "run=run", "n=3", "output=drawn.csv", folder=tmp_path)
    drawn = pd.read_csv(tmp_path / "drawn.csv")
    assert set(drawn.iloc[:, 2:].to_numpy().ravel().tolist()) == {0.0, 1.0}
