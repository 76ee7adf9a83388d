"""Heads of heavy tails, positive values and counts: SciPy's densities, laws of probability, and what they refuse."""

import json
from dataclasses import replace
from math import sqrt

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from helpers.commands import called
from helpers.laws import points_in_time, window
from helpers.small import IN_PROCESS, batch_of, density, fit, held_out, model_of, scale_of
from vrnn_lab import predict
from vrnn_lab.config.compose import compose
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.other_densities import Gamma, NegativeBinomial, Poisson, StudentT
from vrnn_lab.core.series import series_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.models.heads import StudentTHead
from vrnn_lab.models.log_mean_heads import GammaHead, NegativeBinomialHead, PoissonHead
from vrnn_lab.training import fit as fitting

F64 = torch.float64
WHOLE = torch.arange(0, 40, dtype=F64)[:, None]
ABOVE = torch.linspace(0.01, 30, 57, dtype=F64)[:, None]


def tensor(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=F64)


DENSITIES = {
    "student_t": (StudentT(tensor(0.3), tensor(1.7), tensor(2.6)), scipy.stats.t(2.6, 0.3, 1.7), ABOVE - 12),
    "gamma": (Gamma(tensor(0.7), tensor(2.5)), scipy.stats.gamma(0.7, scale=2.5), ABOVE),
    "narrow gamma": (Gamma(tensor(90.0), tensor(0.1)), scipy.stats.gamma(90, scale=0.1), ABOVE),
    "poisson": (Poisson(tensor(4.2), tensor(1.0)), scipy.stats.poisson(4.2), WHOLE),
    "negative_binomial": (
        NegativeBinomial(tensor(6.0), tensor(1.0), tensor(1.3)),
        scipy.stats.nbinom(1.3, 1.3 / 7.3),
        WHOLE,
    ),
    "nearly poisson": (
        NegativeBinomial(tensor(6.0), tensor(1.0), tensor(1e6)),
        scipy.stats.nbinom(1e6, 1e6 / (1e6 + 6)),
        WHOLE,
    ),
}
every_density = pytest.mark.parametrize("name", DENSITIES)


@every_density
def test_densities_tails_and_moments_are_those_of_scipy(name):
    found, truth, x = DENSITIES[name]
    log_prob = truth.logpmf if hasattr(truth.dist, "logpmf") else truth.logpdf
    np.testing.assert_allclose(found.log_prob_each(x), log_prob(x), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.cdf_each(x), truth.cdf(x), rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose([found.mean.item(), found.std.item()], [truth.mean(), truth.std()], rtol=1e-9)


@every_density
def test_draws_are_the_quantiles_of_their_noise(name):
    found, truth, _ = DENSITIES[name]
    noise = torch.linspace(-6, 6, 25, dtype=F64)[:, None]
    draws = found.draw(noise)
    np.testing.assert_allclose(draws, truth.ppf(scipy.stats.norm.cdf(noise)), rtol=1e-5, atol=1e-9)
    assert found.draw(tensor(-40.0, 40.0)[:, None]).isfinite().all()


@every_density
def test_a_density_in_other_units_is_the_same_one(name):
    found, _, x = DENSITIES[name]
    shift = 0.0 if name != "student_t" else -4.0
    moved = found.affine(tensor(2.5), tensor(shift))
    jacobian = 0.0 if isinstance(found, Poisson | NegativeBinomial) else np.log(2.5)
    torch.testing.assert_close(moved.log_prob_each(2.5 * x + shift), found.log_prob_each(x) - jacobian)
    torch.testing.assert_close(moved.mean, 2.5 * found.mean + shift)
    torch.testing.assert_close(moved.std, 2.5 * found.std)
    noise = torch.randn(9, 1, dtype=F64)
    torch.testing.assert_close(moved.draw(noise), 2.5 * found.draw(noise) + shift)


def test_huge_counts_are_drawn_at_once_and_are_finite():
    noise = tensor(-40.0, -2.0, 0.0, 2.0, 40.0)
    for rate in (1e5, 1e7, 1e12):
        draws = Poisson(tensor(rate), tensor(1.0)).draw(noise)
        assert draws.isfinite().all() and (draws.diff() > 0).all()
        np.testing.assert_allclose(draws[1:4], rate + np.sqrt(rate) * noise[1:4], rtol=1e-2)
        wide = NegativeBinomial(tensor(rate), tensor(1.0), tensor(4.0)).draw(noise)
        truth = scipy.stats.gamma(4, scale=rate / 4).ppf(scipy.stats.norm.cdf(noise[1:4]))
        assert wide.isfinite().all()
        np.testing.assert_allclose(wide[1:4], truth, rtol=1e-2)


def test_values_outside_a_support_have_no_density_and_no_wild_gradient():
    shape = torch.tensor([2.0, 2.0], dtype=F64, requires_grad=True)
    each = Gamma(shape, tensor(1.0, 1.0)).log_prob_each(tensor(0.0, 1.0))
    assert each[0] == -torch.inf
    torch.where(torch.tensor([False, True]), each, 0).sum().backward()
    assert shape.grad.isfinite().all()


def scale_for(head: str, dim: int = 2):
    support = {"student_t": "real", "gamma": "positive"}.get(head, "counts")
    if support == "real":
        return scale_of(dim)
    mean = 2.0 + torch.arange(dim, dtype=F64)
    return replace(scale_of(dim, support), mean=torch.zeros(dim).double(), std=mean, value_std=mean / 2)


# Under each head, and with shapes of a channel as well as of a point.
HEADS = ["student_t", "gamma", "poisson", "negative_binomial"]
MODELS = ["rnn", "gru_d", "vrnn", "latent_ode", "latent_sde", "linear_sde", "rnn_vae", "vae", "ode_rnn"]
with_heads = pytest.mark.parametrize("head", HEADS)


def batch_for(head: str, rows: int = 5):
    batch, scale = batch_of(rows), scale_for(head)
    if head == "student_t":
        return batch
    values = scale.std * ((batch.values + 7) / 3).exp()
    values = values.round() if scale.support == "counts" else values
    return replace(batch, values=torch.where(batch.known, values, 0))


@with_heads
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_and_predicts_within_the_support(name, head):
    model, batch = model_of(f"{name} model/head={head}", scale_for(head)), held_out(batch_for(head, 20))
    before = model.loss_terms(batch)
    loss = (before.nll + before.kl).sum()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and grads and all(grad.isfinite().all() for grad in grads)
    found = model.predict(held_out(batch_for(head)), 7)
    assert found.paths.isfinite().all() and found.mean.isfinite().all() and found.std.isfinite().all()
    queried = held_out(batch_for(head)).counts
    paths = found.paths[:, queried]
    if head == "gamma":
        assert (paths > 0).all()
    if model.scale.support == "counts":
        torch.testing.assert_close(paths, paths.round(), atol=1e-4, rtol=0)
        assert (paths >= 0).all()


SUMMED = [*((name, head) for name in ("rnn", "linear_sde") for head in HEADS)]
SUMMED += [("vrnn", "poisson"), ("latent_ode", "negative_binomial"), ("latent_ode", "gamma")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), SUMMED)
def test_probabilities_of_two_points_sum_to_one(name, head):
    """Over all counts of both points, or a fine grid of values, whatever the posterior of the latents."""
    scale = scale_for(head, 1)
    model = model_of(f"{name} model/head={head}", scale, double=True)
    if head in ("poisson", "negative_binomial"):
        side, width = torch.arange(0, 80, dtype=F64), torch.ones(80, dtype=F64)
    elif head == "gamma":  # even steps of the logarithm
        logs = torch.linspace(-12, 4.5, 120, dtype=F64)
        side, width = scale.std * logs.exp(), scale.std * logs.exp() * (logs[1] - logs[0])
    else:
        side = torch.sinh(torch.linspace(-6, 6, 161, dtype=F64)) * scale.std / 2 + scale.mean
        width = side.diff(append=side[-1:] + side[-1:] - side[-2:-1])
    grid, cells = torch.cartesian_prod(side, side)[..., None], torch.cartesian_prod(width, width).prod(-1)
    batch = density(series_of(points_in_time(len(grid)), grid, window=window(len(grid))))
    with torch.no_grad():
        model.noise.seed(7, device=torch.device("cpu"))
        weights = log_mean_exp(torch.cat([model.log_weights(batch, 50) for _ in range(4)]))
    assert (weights.exp() * cells).sum().item() == pytest.approx(1, abs=0.04)


def test_supports_are_refused_elsewhere():
    for head, support in [
        ("gamma", "real"),
        ("poisson", "real"),
        ("negative_binomial", "binary"),
        ("gaussian", "counts"),
    ]:
        with pytest.raises(ValueError, match=f"but the values of the data set are {support}"):
            model_of(f"rnn model/head={head}", scale_of(support=support))
    with pytest.raises(ValueError, match="model/head=poisson or negative_binomial"):
        model_of("rnn", scale_for("poisson"))
    with pytest.raises(ValueError, match=r"for a table of counts values, data\.support=counts"):
        model_of("rnn model/head=poisson", scale_of())
    with pytest.raises(ValueError, match=r"head\.df=1\.5; expected more than 2"):
        model_of("rnn model/head=student_t model.head.df=1.5", scale_of())


def test_shapes_may_be_of_a_point_a_channel_or_of_all():
    scale, raw = scale_for("gamma"), torch.randn(4, 3, 4)
    for kind, free in (("point", 0), ("channel", 2), ("global", 1)):
        head = GammaHead(scale, kind)
        assert sum(p.numel() for p in head.parameters()) == free
        found = head(raw[..., : head.width])
        assert found.mean.shape == found.std.shape == (4, 3, 2)
    assert NegativeBinomialHead(scale_for("poisson"), "channel").width == PoissonHead(scale_for("poisson")).width == 2
    free = StudentTHead(scale_of(), "channel")
    assert free(torch.zeros(3, 2)).std.sub(free(torch.zeros(3, 2)).scale * sqrt(6 / 4)).abs().max() < 1e-6
    assert not StudentTHead(scale_of(), df=4.0).log_df.requires_grad


@pytest.mark.slow
@with_heads
def test_a_fit_finds_the_process(head):
    """Independent values: the trained density is as good as the true one."""
    rng = np.random.default_rng(0)
    truth = {
        "student_t": scipy.stats.t(3, 1, 2),
        "gamma": scipy.stats.gamma(2.5, scale=3),
        "poisson": scipy.stats.poisson(3.4),
        "negative_binomial": scipy.stats.nbinom(1.5, 0.3),
    }[head]
    scale = scale_for(head, 1)
    values = torch.from_numpy(truth.rvs((400, 6, 1), random_state=rng).astype(float))
    if head != "student_t":
        scale = replace(scale, std=values.mean((0, 1)))
    times = torch.arange(6.0).double().expand(400, 6)
    batch = density(series_of(times, values, window=tensor(0.0, 5.0).expand(400, 2)))
    model = model_of(
        f"rnn model/head={head} model.head.noise=channel" if head != "poisson" else f"rnn model/head={head}", scale
    )
    fit(model, lambda _: batch, 400)
    with torch.no_grad():
        nll = model.loss_terms(batch).nll.sum().item() / values.numel()
    log_prob = truth.logpmf if hasattr(truth.dist, "logpmf") else truth.logpdf
    assert nll == pytest.approx(-log_prob(values.numpy()).mean(), abs=0.06)


def counts_table(path, kind: str) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 10, (40, 12)), 1)
    rate = 5 * np.exp(rng.normal(0, 0.5, (40, 1)) + 0.5 * np.sin(times))
    values = rng.poisson(rate) if kind == "counts" else rng.gamma(3, rate / 3)
    frame = pd.DataFrame({"id": np.repeat(np.arange(40), 12), "time": times.ravel(), "a": values.ravel()})
    frame.to_csv(path, index=False)
    return frame


@pytest.mark.slow
@IN_PROCESS
@pytest.mark.parametrize(
    ("head", "kind"), [("poisson", "counts"), ("negative_binomial", "counts"), ("gamma", "positive")]
)
def test_a_table_is_trained_scored_and_predicted(tmp_path, head, kind):
    file, folder = tmp_path / "values.csv", tmp_path / "run"
    frame = counts_table(file, kind)
    keys = [
        "model=rnn",
        "model.width=8",
        f"model/head={head}",
        "data=table",
        f"data.path={file}",
        f"data.support={kind}",
    ]
    keys += ["trainer=cpu", "trainer.max_steps=30", "evaluate.draws=19", "evaluate.samples=5"]
    fitting.run(compose(keys), folder, keys)
    scores = json.loads((folder / "metrics.json").read_text())
    assert 0 < scores["test/forecast/crps"] < frame["a"].std()
    assert scores["reference/drift/forecast/ncrps"] > 0 and "test/forecast/pit/1" not in scores
    assert scores["test/forecast/ncrps"] == pytest.approx(
        scores["test/forecast/crps"] / Table(str(file)).scale.std.item(), 0.05
    )
    output = tmp_path / "forecast.csv"
    assert not called(predict, f"run={folder}", f"input={file}", f"output={output}", "horizon=5", "draws=19")
    found = pd.read_csv(output)
    assert len(found) and (found["q05"] >= 0).all() and (found["mean"] > 0).all()
    assert kind == "positive" or (found["q50"] == found["q50"].round()).all()  # the middle one of 19 draws
    frame.loc[0, "a"] = -2
    frame.to_csv(file, index=False)
    words = "whole numbers from 0" if kind == "counts" else "numbers above 0"
    with pytest.raises(ValueError, match=f"series '0' holds -2 in channel 'a' .* takes {words}"):
        called(predict, f"run={folder}", f"input={file}", f"output={output}", "horizon=5")
    with pytest.raises(ValueError, match=rf"channel 'a' is -2 in series '0' .*; data\.support={kind} needs {words}"):
        _ = Table(str(file), support=kind).channels


def test_options_of_real_values_are_refused_for_others(tmp_path):
    counts_table(tmp_path / "values.csv", "counts")
    for keys in ({"log": ["a"]}, {"trend": "linear"}, {"values": ["a"], "error": ["e"]}):
        with pytest.raises(ValueError, match=r"data\.support=counts and data\.\w+ exclude each other"):
            Table(str(tmp_path / "values.csv"), support="counts", **keys)
