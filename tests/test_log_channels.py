"""Channels that are modelled by their logarithms: exact nats, predictions above zero, in the data's units."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from scipy.integrate import quad

from helpers.commands import called
from helpers.small import IN_PROCESS, MODELS, asked, batch_of, density, model_of, scale_of
from vrnn_lab import predict
from vrnn_lab.config.compose import compose
from vrnn_lab.core.densities import Gaussian, Laplace, Mixture
from vrnn_lab.core.log_density import LogDensity
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.evaluation.baselines import plain_energy
from vrnn_lab.evaluation.scores import plain_scores
from vrnn_lab.runs.build import load_parts
from vrnn_lab.training import fit as fitting

F64 = torch.float64
FIRST = torch.tensor([True, False])
WITH_LOGS = [name for name in MODELS if "laplace" not in name and name != "latent_ode_poisson"]


def gaussian_pair() -> tuple[LogDensity, Gaussian]:
    inner = Gaussian(torch.tensor([[0.7, 0.2]], dtype=F64), torch.tensor([[0.6, 1.5]], dtype=F64))
    return LogDensity(inner, FIRST), inner


def test_a_channel_of_a_log_density_is_log_normal():
    found, _ = gaussian_pair()
    truth, plain = scipy.stats.lognorm(0.6, scale=np.exp(0.7)), scipy.stats.norm(0.2, 1.5)
    x = torch.tensor([[0.3, -2.0], [1.0, 0.0], [9.0, 4.0]], dtype=F64)
    expected = np.stack([truth.logpdf(x[:, 0]), plain.logpdf(x[:, 1])], 1)
    np.testing.assert_allclose(found.log_prob_each(x), expected, rtol=1e-12)
    np.testing.assert_allclose(found.log_prob(x, torch.ones(3, 2).bool()), expected.sum(1), rtol=1e-12)
    np.testing.assert_allclose(found.cdf_each(x), np.stack([truth.cdf(x[:, 0]), plain.cdf(x[:, 1])], 1), rtol=1e-12)
    np.testing.assert_allclose(found.mean[0], [truth.mean(), 0.2], rtol=1e-12)
    np.testing.assert_allclose(found.std[0], [truth.std(), 1.5], rtol=1e-12)
    below = torch.tensor([[0.0, 0.0], [-1.0, 0.0]], dtype=F64)
    assert (found.log_prob_each(below)[:, 0] == -torch.inf).all() and (found.cdf_each(below)[:, 0] == 0).all()
    assert (found.log_prob(below, torch.tensor([False, True])) > -torch.inf).all()
    with pytest.raises(ValueError, match=r"data\.log"):
        found.with_measurement_error(torch.ones(1, 2, dtype=F64))


def test_moments_of_exponentials_are_those_of_quadrature():
    mixture = Mixture(
        torch.tensor([[0.3, 0.7]], dtype=F64).log(),
        torch.tensor([[[0.0], [1.5]]], dtype=F64),
        torch.tensor([[[0.4], [0.2]]], dtype=F64),
        torch.zeros(1, 2, dtype=F64),
    )
    height = lambda x: 0.3 * scipy.stats.norm.pdf(x, 0, 0.4) + 0.7 * scipy.stats.norm.pdf(x, 1.5, 0.2)
    moments = [quad(lambda x, k=k: np.exp(k * x) * height(x), -5, 6, epsabs=1e-12)[0] for k in (1, 2)]
    mean, std = mixture.exponential_moments()
    np.testing.assert_allclose([mean.item(), std.item()], [moments[0], np.sqrt(moments[1] - moments[0] ** 2)], 1e-9)
    with pytest.raises(ValueError, match="no mean"):
        Laplace(mean, std).exponential_moments()


def test_scores_of_a_log_normal_baseline_are_those_of_its_distribution():
    found, inner = gaussian_pair()
    truth = scipy.stats.lognorm(0.6, scale=np.exp(0.7))
    for value in (0.2, 1.7, 6.0):
        x = torch.tensor([[[value, 1.0]]], dtype=F64)
        below = quad(lambda t: truth.cdf(t) ** 2, 0, value)[0]
        above = quad(lambda t: truth.sf(t) ** 2, value, np.inf)[0]
        scores = plain_scores(found, x)
        assert scores["crps"][0, 0, 0].item() == pytest.approx(below + above, rel=1e-6)
        assert scores["crps"][0, 0, 1].item() == pytest.approx(
            plain_scores(inner, x)["crps"][0, 0, 1].item(), rel=1e-12
        )
        assert scores["mse"][0, 0, 0].item() == pytest.approx((truth.mean() - value) ** 2)
        low, high = truth.ppf([0.05, 0.95])
        assert scores["coverage_90"][0, 0, 0].item() == (low <= value <= high)


@pytest.mark.parametrize("name", WITH_LOGS)
def test_a_model_of_a_log_channel_is_the_model_of_its_logarithms(name):
    """The nats differ by the sum of the logarithms, the Jacobian; draws are the exponentials."""
    scale = scale_of()
    of_logs = model_of(name, scale, double=True)
    model = model_of(name, replace(scale, log=("a",), value_std=torch.tensor([50.0, 2.0], dtype=F64)), double=True)
    logs = batch_of()
    logs = replace(logs, values=logs.values / 3)  # so that no exponential overflows a single
    values = replace(logs, values=torch.where(FIRST & logs.known, logs.values.exp(), logs.values))
    jacobian = lambda batch: torch.where(batch.scored & FIRST, logs.values, 0).sum((1, 2))
    both = density(values), density(logs)
    with model.fixed_noise(3), of_logs.fixed_noise(3):
        terms, plain = model.loss_terms(both[0]), of_logs.loss_terms(both[1])
        torch.testing.assert_close(terms.nll, plain.nll + jacobian(both[1]))
        torch.testing.assert_close(terms.kl, plain.kl)
        weights = model.log_weights(both[0], 2)
        torch.testing.assert_close(weights, of_logs.log_weights(both[1], 2) - jacobian(both[1]))
        found, expected = model.predict(asked(values), 3), of_logs.predict(asked(logs), 3)
    queried = asked(values).scored
    exponential = torch.where(FIRST, expected.paths.exp(), expected.paths)
    torch.testing.assert_close(found.paths[:, queried], exponential[:, queried])
    each = expected.density.log_prob_each(logs.values) - torch.where(FIRST, logs.values, 0)
    torch.testing.assert_close(found.density.log_prob_each(values.values)[:, queried], each[:, queried])
    assert (found.paths[..., 0][:, queried[..., 0]] > 0).all()


def test_the_vector_field_is_in_the_units_of_the_values():
    of_logs = model_of("neural_ode", scale_of(), double=True)
    model = model_of("neural_ode", replace(scale_of(), log=("a",)), double=True)
    logs = torch.tensor([[0.5, 1.0], [-2.0, 3.0]], dtype=F64)
    values = torch.where(FIRST, logs.exp(), logs)
    rate = of_logs.vector_field(logs)
    torch.testing.assert_close(model.vector_field(values), torch.where(FIRST, rate * values, rate))


def test_a_head_whose_exponential_has_no_mean_is_refused():
    with pytest.raises(ValueError, match=r"data\.log=\[a\] .* LaplaceHead; choose model/head=gaussian or gmm"):
        model_of("rnn model/head=laplace", replace(scale_of(), log=("a",)))


def growth(path, series: int = 40, points: int = 12) -> pd.DataFrame:
    """A table of channel `a`, a log-normal random walk, and channel `b`, its logarithm with noise."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 10, (series, points)), 1)
    logs = rng.normal(0, 1, (series, 1)) + 0.3 * times + rng.normal(0, 0.2, times.shape).cumsum(1)
    frame = pd.DataFrame({"id": np.repeat(np.arange(series), points), "time": times.ravel()})
    frame["a"], frame["b"] = np.exp(logs).ravel(), logs.ravel() + rng.normal(0, 0.1, logs.size)
    frame.to_csv(path, index=False)
    return frame


def test_scale_and_baselines_of_a_table_are_those_of_its_logarithms(tmp_path):
    frame = growth(tmp_path / "values.csv")
    frame.assign(a=np.log(frame["a"])).to_csv(tmp_path / "logs.csv", index=False)
    table = Table(str(tmp_path / "values.csv"), log=["a"])
    scale, plain = table.scale, Table(str(tmp_path / "logs.csv")).scale
    torch.testing.assert_close(scale.mean, plain.mean)
    torch.testing.assert_close(scale.std, plain.std)
    torch.testing.assert_close(scale.variation.residual, plain.variation.residual)
    torch.testing.assert_close(scale.score_std[1], plain.std[1])
    train = table.splits["train"].values[:, 0]
    assert scale.score_std[0].item() == pytest.approx(np.std(train))
    small = Table(str(tmp_path / "values.csv"), log=["a"], stream=True)
    torch.testing.assert_close(small.scale.mean, scale.mean)


def test_energy_of_a_log_normal_baseline_is_that_of_its_draws():
    found, inner = gaussian_pair()
    batch = density(replace(batch_of(1, 1), values=torch.tensor([[[2.0, 0.5]]], dtype=F64)))
    batch = replace(batch, seen=torch.ones_like(batch.seen), scored=torch.ones_like(batch.seen))
    std = torch.tensor([2.0, 1.0], dtype=F64)
    one = plain_energy(found.map(lambda x: x[None]), batch, std, 0)
    narrow = LogDensity(replace(inner, scale=1e-9 * inner.scale), FIRST).map(lambda x: x[None])
    apart = (narrow.mean[0, 0] - batch.values[0, 0]) / std
    assert plain_energy(narrow, batch, std, 0).item() == pytest.approx(apart.norm().item() / np.sqrt(2), rel=1e-6)
    assert one.isfinite().all()


@pytest.mark.parametrize(
    ("cells", "keys", "message"),
    [
        ({}, {"log": ["z"]}, r"'z' is no channel of .*; expected some of a, b"),
        ({3: 0.0}, {"log": ["a"]}, r"channel 'a' is 0 in series '0' at .*; data\.log=\[a\] needs numbers above 0"),
        ({}, {"log": ["a"], "values": ["a", "b"], "error": ["b", None]}, "both name"),
    ],
)
def test_what_has_no_logarithm_is_refused(tmp_path, cells, keys, message):
    frame = growth(tmp_path / "values.csv")
    for row, value in cells.items():
        frame.loc[row, "a"] = value
    frame.to_csv(tmp_path / "values.csv", index=False)
    with pytest.raises(ValueError, match=message):
        _ = Table(str(tmp_path / "values.csv"), **keys).channels


def test_noise_of_the_rounding_leaves_values_above_zero(tmp_path):
    frame = growth(tmp_path / "values.csv")
    frame["a"] = 0.25 + frame["a"].round().clip(0, 20)
    frame.to_csv(tmp_path / "values.csv", index=False)
    noisy = Table(str(tmp_path / "values.csv"), log=["a"]).splits["train"].values[:, 0]
    assert (noisy > 0).all() and (noisy % 1 != 0.25).any()


def test_streams_with_other_log_channels_do_not_share_their_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    frame = growth(tmp_path / "values.csv")
    frame["a"], frame["b"] = 0.2 + frame["a"].round().clip(0, 20), 0.2 + frame["b"].abs().round()
    frame.to_csv(tmp_path / "values.csv", index=False)
    for place, name in enumerate(("a", "b")):
        table = Table(str(tmp_path / "values.csv"), log=[name], stream=True)
        values = np.concatenate([np.asarray(split.values) for split in table.splits.values()])
        assert (values[:, place] > 0).all() and (values[:, 1 - place] <= 0).any()


@pytest.mark.slow
@IN_PROCESS
def test_a_run_predicts_above_zero_in_the_units_of_the_table(tmp_path):
    file = tmp_path / "values.csv"
    frame = growth(file)
    keys = ["model=rnn", "model.width=8", "data=table", f"data.path={file}", "data.log=[a]", "trainer=cpu"]
    keys += ["trainer.max_steps=30", "evaluate.draws=19", "evaluate.samples=5"]
    folder = tmp_path / "run"
    fitting.run(compose(keys), folder, keys)
    scores = json.loads((folder / "metrics.json").read_text())
    assert 0 < scores["test/interpolation/channel/a/crps"] < frame["a"].std()
    assert scores["reference/linear process/interpolation/channel/a/crps"] > 0
    scale = load_parts(folder).model.scale
    assert scale.log == ("a",) and scale.score_std[0].item() == pytest.approx(frame["a"].std(), rel=0.5)
    output = tmp_path / "forecast.csv"
    assert not called(predict, f"run={folder}", f"input={file}", f"output={output}", "horizon=5", "draws=19")
    found = pd.read_csv(output).query("channel == 'a'")
    assert len(found) and (found["q05"] > 0).all() and (found["mean"] >= found["q25"]).all()
    frame.loc[0, "a"] = -1.0
    frame.to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"series '0' holds -1 in channel 'a' .* takes numbers above 0"):
        called(predict, f"run={folder}", f"input={file}", f"output={output}", "horizon=5")
