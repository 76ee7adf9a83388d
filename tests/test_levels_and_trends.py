"""Levels and slopes of series outside the training range, trends, known periods, and where a learned std begins."""

import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.signal import lfilter
from torch.distributions import MultivariateNormal

import vrnn_lab
from helpers.small import asked, batch_of, density, fit, held_out, model_of, scale_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import Trend, Variation, series_of
from vrnn_lab.data.trend import correlation_factor, fit_trend, trend_at
from vrnn_lab.data.variation import variation_of
from vrnn_lab.models.last_value import last_values
from vrnn_lab.models.lines import Lines
from vrnn_lab.runs.build import _variation, assemble, load_parts

STEPS = ["rnn", "gru_d", "rnn_gmm", "vrnn"]
PATHS = ["latent_ode", "latent_sde", "rnn_vae"]


def variation(dim: int, **numbers: float) -> Variation:
    plain = {
        "residual": 0.5,
        "change": 0.3,
        "wander": 0.3,
        "level": 1.0,
        "mean_slope": 0.2,
        "slope": 0.7,
        "low": -2.0,
        "high": 2.0,
    }
    return Variation(**{k: torch.full((dim,), v, dtype=torch.float64) for k, v in {**plain, **numbers}.items()})


def varied(dim: int = 2, **numbers: float):
    return replace(scale_of(dim), variation=variation(dim, **numbers), own_levels=True)


# ---- step models: changes from the last value -------------------------------------------------------------


def test_the_last_known_value_before_every_point_is_found():
    nan = math.nan
    values = torch.tensor([[[nan, 1.0], [2.0, nan], [nan, nan], [3.0, 4.0], [5.0, nan]]])
    known = ~values.isnan()
    last, ever = last_values(values.nan_to_num(), known)
    assert last[0].tolist() == [[0, 0], [0, 1], [2, 1], [2, 1], [3, 4]]
    assert ever[0].tolist() == [[False, False], [False, True], [True, True], [True, True], [True, True]]


@pytest.mark.parametrize("name", STEPS)
def test_a_series_far_from_the_training_range_is_continued_from_its_level(name):
    """Only what is read within the training range may differ: beyond it, a shift of a series shifts its answers."""
    model = model_of(name, varied(), double=True)
    times = 100 + 5 * torch.rand(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(1).values
    values = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = (torch.arange(8) < 5)[None, :, None].expand(3, 8, 2)

    def answer(shift: float):
        batch = series_of(times, model.data_mean + model.data_std * (values + shift), seen=seen, scored=~seen)
        with model.fixed_noise(3):
            return model.predict(batch, 4).density.mean[:, :, 1:]

    moved = answer(90.0) - answer(50.0)
    torch.testing.assert_close(moved, (40 * model.data_std).expand_as(moved), rtol=1e-6, atol=1e-6)


def test_a_channel_that_jumps_about_is_predicted_as_it_is():
    """Only channels that change little from one value to the next are predicted from their last value."""
    scale = varied(2)
    mixed = replace(scale, variation=replace(scale.variation, wander=torch.tensor([0.1, 0.9]).double()))
    assert model_of("rnn", mixed).last.kept.tolist() == [True, False]
    assert model_of("rnn model.level=last", mixed).last.kept.tolist() == [True, True]
    assert model_of("rnn", varied(2, wander=0.9)).last is None


def test_levels_are_kept_for_a_users_table_and_nowhere_else_by_default():
    assert model_of("rnn", varied()).last is not None
    assert model_of("rnn").last is None
    assert model_of("rnn model.level=none", varied()).last is None
    assert model_of("latent_ode", varied()).lines is not None
    assert model_of("latent_ode").lines is None
    assert model_of("vae", varied()).lines is None  # its points are independent: no series has a level


@pytest.mark.parametrize("key", ["rnn model.level=last", "latent_ode model.level=linear"])
def test_a_level_of_zeros_and_ones_is_refused(key):
    binary = replace(scale_of(support="binary"), mean=torch.zeros(2).double(), std=torch.ones(2).double())
    with pytest.raises(ConfigError, match=r"model.level=.* set model.level="):
        model_of(f"{key} model/head=bernoulli", binary)


@pytest.mark.parametrize("head", ["gaussian model.head.noise=channel", "laplace", "gmm"])
def test_the_density_of_changes_stays_normalised(head):
    """One channel, three points: the density of the third given the first two integrates to one."""
    scale = varied(1, change=0.2)
    model = model_of(f"rnn model/head={head}", scale, double=True)
    grid = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    values = torch.stack([torch.full_like(grid, 0.3), torch.full_like(grid, 3.1), grid], 1)[..., None]
    times = torch.tensor([[101.0, 102.0, 104.0]]).double().expand(len(grid), 3)
    window = torch.tensor([[100.0, 105.0]]).double().expand(len(grid), 2)
    whole = density(series_of(times, scale.mean + scale.std * values, window=window))
    before = density(
        replace(whole, seen=whole.seen & (times[..., None] < 103), scored=whole.seen & (times[..., None] < 103))
    )
    with torch.no_grad():
        found = model.log_weights(whole, 1)[0] - model.log_weights(before, 1)[0]
    mass = found.exp().sum() * (grid[1] - grid[0]) * scale.std
    assert mass.item() == pytest.approx(1, abs=1e-3)


# ---- path models: a level and a slope as latents ----------------------------------------------------------


def lines_of(kind: str = "linear", dim: int = 2) -> Lines:
    lines = Lines(varied(dim), kind).double()
    with torch.no_grad():
        for parameter in lines.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return lines


def standard_batch():
    batch = asked(batch_of(4, 6))
    return replace(batch, times=(batch.times - batch.window[:, :1]) / 5, values=(batch.values + 7) / 3)


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_the_posterior_of_a_line_is_that_of_a_dense_gaussian(kind):
    """And so are the KL divergence and the ratio of the densities of prior and posterior at the draws."""
    lines, series, noise = lines_of(kind), standard_batch(), Noise()
    noise.fixed = 0
    found = lines(series, 20_000, noise)
    slope = torch.zeros(2).double() if kind == "constant" else lines.log_slope.exp()
    mean_slope = torch.zeros(2).double() if kind == "constant" else lines.mean_slope
    kl, one = torch.zeros(4).double(), torch.eye(2).double()
    for row in range(4):
        for channel in range(2):
            seen = series.seen[row, :, channel]
            t = series.times[row]
            design = torch.stack([lines.log_level.exp()[channel].expand_as(t), slope[channel] * t], 1)
            weight = (-2 * lines.log_rest[channel]).exp()
            covariance = torch.linalg.inv(one + weight * design[seen].T @ design[seen])
            rest = (series.values[row, :, channel] - mean_slope[channel] * t)[seen]
            mean = covariance @ (weight * design[seen].T @ rest)
            expected = mean_slope[channel] * t + design @ mean
            torch.testing.assert_close(found.expected[row, :, channel], expected)
            drawn = found.drawn[:, row, :, channel]
            spread = (design @ covariance @ design.T).diagonal().sqrt()
            torch.testing.assert_close(drawn.mean(0), expected, rtol=0, atol=0.05)
            torch.testing.assert_close(drawn.std(0), spread, rtol=0.05, atol=1e-6)
            posterior, prior = MultivariateNormal(mean, covariance), MultivariateNormal(torch.zeros(2).double(), one)
            kl[row] += torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(-found.log_ratio.mean(0), kl, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_a_path_model_follows_a_level_far_from_the_training_range(name):
    """Trained on series about zero, asked about one that lies thirty training stds away."""
    scale = varied(1, level=1.0, residual=0.3)
    model = model_of(f"{name} model.level=constant", scale)
    torch.nn.init.zeros_(model.lines.log_level)

    def batch(step: int, shift: float = 0.0):
        rng = torch.Generator().manual_seed(step)
        level = torch.randn(32, 1, 1, generator=rng, dtype=torch.float64) + shift
        values = level + 0.3 * torch.randn(32, 6, 1, generator=rng, dtype=torch.float64)
        times = 100 + 5 * torch.rand(32, 6, generator=rng, dtype=torch.float64).sort(1).values
        window = torch.tensor([[100.0, 105.0]]).double().expand(32, 2)
        return held_out(series_of(times, scale.mean + scale.std * values, window=window))

    fit(model, batch, 60)
    question = batch(1000, 30.0)
    question = replace(question, scored=question.known & ~question.seen)
    with model.fixed_noise(0):
        mean = model.predict(question, 20).mean
    has_seen = question.seen.any(1, keepdim=True) & question.scored
    error = ((mean - question.values) / model.data_std)[has_seen].abs()
    assert error.mean() < 2.5  # a model that knows only the training range is 30 away


# ---- what the training data say ---------------------------------------------------------------------------


def test_the_variation_of_a_mixed_model_is_found():
    rng = np.random.default_rng(0)
    count, length = 400, 20
    times = np.sort(rng.uniform(0, 10, (count, length)), 1)
    level, slope = rng.normal(0, 2.0, (count, 1)), rng.normal(0.5, 0.3, (count, 1))
    values = level + slope * (times - 5) + rng.normal(0, 0.2, times.shape)
    owner = np.repeat(np.arange(count), length)
    found = variation_of(owner, times.ravel(), values.reshape(-1, 1), np.zeros(1), np.ones(1), 10.0)
    assert found.level.item() == pytest.approx(2.0, rel=0.1)
    assert found.mean_slope.item() == pytest.approx(5.0, rel=0.1)  # a typical window is ten units long
    assert found.slope.item() == pytest.approx(3.0, rel=0.1)
    change = np.diff(values, axis=1)
    assert found.change.item() == pytest.approx(np.sqrt((change**2).mean()))
    assert found.low.item() == values.min() and found.high.item() == values.max()


def test_a_learned_std_begins_where_a_cheap_forecast_ends():
    scale = varied(2, residual=0.25)
    channel = model_of("latent_ode model/head=gaussian_channel model.level=none", scale, seed=3)
    with torch.no_grad():  # helpers/small.py sets it for its integrals
        made = compose(["model=latent_ode"])
    assert made.model.head.start is None
    assert channel.head.first_std.tolist() == [0.25, 0.25]
    for name in (
        "rnn model.level=none",
        "vrnn model.level=none",
        "latent_ode model/head=gaussian",
        "rnn_gmm model.level=none",
    ):
        model = model_of(name, scale)
        with model.fixed_noise(0):
            widest = model.predict(asked(batch_of()), 20).density.narrowest / model.data_std
        assert 0.1 < widest.median() < 0.6, name


# ---- a trend of one record --------------------------------------------------------------------------------


def test_a_trend_is_found_and_its_uncertainty_is_that_of_its_estimate():
    """Over many records with correlated residuals the true trend lies within two standard errors in most."""
    rng, inside = np.random.default_rng(1), []
    times = np.arange(400.0)
    for _ in range(200):
        noise = np.zeros(400)
        for i in range(1, 400):
            noise[i] = 0.8 * noise[i - 1] + rng.normal()
        values = 3 + 0.02 * times + 2 * np.sin(2 * np.pi * times / 50) + noise
        found = fit_trend(times, values[:, None], 1, 0.0, 400.0, (50.0,))
        error = found.coefficients[:, 0].numpy() - [3, 8]
        inside.append(np.abs(error) < 2 * np.sqrt(found.covariance[0].diagonal().numpy()))
    assert (np.mean(inside, 0) > 0.88).all() and (np.mean(inside, 0) < 0.99).all()
    exact = fit_trend(times, (1 + times**2)[:, None], 2, 0.0, 400.0)
    np.testing.assert_allclose(trend_at(exact, np.array([500.0]), 0.0, 400.0)[0], 1 + 500.0**2)


def autoregression(rng: np.random.Generator, phi: float, count: int) -> np.ndarray:
    """Draw a stationary first-order autoregression of variance 1."""
    return lfilter([math.sqrt(1 - phi**2)], [1, -phi], rng.normal(size=count + 500))[500:]


@pytest.mark.parametrize(("noise", "phi"), [(0.0, 0.8), (1.0, 0.9), (1.0, 0.97)])
def test_noise_does_not_hide_how_slowly_the_residuals_of_a_trend_move(noise, phi):
    """An AR(1) of variance 1 plus white noise of variance s^2 has 1 + 2 phi / ((1 - phi) (1 + s^2)) in closed form.

    The correlation of neighbours alone, which the noise makes small, would say 2.6 and 2.9 instead of 10 and 33.
    """
    rng, exact = np.random.default_rng(3), 1 + 2 * phi / ((1 - phi) * (1 + noise**2))
    draws = [autoregression(rng, phi, 4000) + noise * rng.normal(size=4000) for _ in range(30)]
    assert np.mean([correlation_factor(each) for each in draws]) == pytest.approx(exact, rel=0.2)


def test_the_covariance_of_a_trend_is_that_of_least_squares_times_the_correlation_factor():
    rng, times = np.random.default_rng(4), np.arange(1000.0)
    values = 5 + autoregression(rng, 0.9, 1000) + rng.normal(size=1000)
    found = fit_trend(times, values[:, None], 1, 0.0, 1000.0)
    design = np.stack([np.ones(1000), times / 1000], 1)
    rest = values - design @ found.coefficients[:, 0].numpy()
    independent = rest @ rest / 998 * np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(found.covariance[0], independent * correlation_factor(rest), rtol=1e-6)
    assert correlation_factor(np.zeros(10)) == correlation_factor(np.array([1.0, -1.0] * 5)) == 1


def record(slope: float = 0.05, noise: float = 0.3, count: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    time = np.sort(rng.choice(2 * count, count, replace=False)).astype(float)
    return pd.DataFrame({"time": time, "v": 100 + slope * time + rng.normal(0, noise, count)})


SMALL = (
    "trainer=cpu",
    "model.width=8",
    "data.window=30",
    "trainer.max_epochs=3",
    "evaluate.samples=2",
    "evaluate.draws=19",
)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rnn", "latent_ode"])
def test_a_trend_is_given_back_in_every_answer(tmp_path, model):
    frame = record()
    forecaster = vrnn_lab.Forecaster(f"model={model}", "data.trend=linear", *SMALL, folder=tmp_path / "run")
    forecaster.fit(frame, id=None)
    end = frame["time"].max()
    ahead = forecaster.predict(frame, horizon=400, every=100, draws=49)
    np.testing.assert_allclose(ahead["mean"], 100 + 0.05 * ahead["time"], atol=3.0)  # 20 without a trend
    assert (ahead["time"] > end).all()
    loaded = load_parts(tmp_path / "run").model.scale.trend
    assert loaded.coefficients.shape == (2, 1)
    again = vrnn_lab.Forecaster.load(tmp_path / "run").predict(frame, horizon=400, every=100, draws=49)
    pd.testing.assert_frame_equal(ahead, again)


@pytest.mark.slow
def test_the_uncertainty_of_the_trend_widens_what_lies_far_ahead(tmp_path):
    frame = record(noise=3.0, count=150)
    forecaster = vrnn_lab.Forecaster("model=rnn", "data.trend=quadratic", *SMALL, folder=tmp_path / "run")
    forecaster.fit(frame, id=None)
    model = forecaster.parts.model
    far = series_of([[*frame["time"].tail(20), 4000.0]], [[*([[v] for v in frame["v"].tail(20)]), [math.nan]]])
    far = replace(far, scored=far.known ^ True)
    with model.fixed_noise(0):
        wide = model.predict(far, 200).std[0, -1].item()
        model.trend_covariance.zero_().diagonal(dim1=1, dim2=2).fill_(1e-20)
        narrow = model.predict(far, 200).std[0, -1].item()
    assert wide > 2 * narrow


def test_what_is_seen_moves_the_trend_as_linear_regression_would():
    """Draws of the coefficients have the mean and covariance of a Gaussian posterior, dense over all seen values."""
    V = torch.tensor([[[0.5, 0.1], [0.1, 0.3]]]).double()
    trend = Trend(torch.tensor([[1.0], [2.0]]).double(), V, torch.tensor([0.4]).double())
    model = model_of("rnn", replace(scale_of(1), trend=trend))
    batch = series_of([[0.0, 1.0, 2.5]] * 2, [[[3.0], [math.nan], [9.0]], [[math.nan]] * 3])
    batch = replace(batch, seen=batch.known)
    draws = model._trend_draws(batch, 20_000)[..., 0]
    since = (torch.tensor([0.0, 2.5]).double() - model.data_start) / model.data_reach
    P = torch.stack([since**0, since], 1)
    rest = torch.tensor([3.0, 9.0]).double() - model.data_mean - P @ trend.coefficients[:, 0]
    covariance = torch.linalg.inv(torch.linalg.inv(V[0]) + P.T @ P / 0.4)
    torch.testing.assert_close(draws[:, 0].mean(0), covariance @ P.T @ rest / 0.4, atol=0.02, rtol=0)
    torch.testing.assert_close(draws[:, 0].T.cov(), covariance, atol=0.02, rtol=0)
    torch.testing.assert_close(draws[:, 1].mean(0), torch.zeros(2).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(draws[:, 1].T.cov(), V[0], atol=0.02, rtol=0)


def test_a_trend_of_several_series_is_refused(tmp_path):
    frame = pd.concat([record().assign(id=name) for name in "abcdefgh"])
    with pytest.raises(ValueError, match=r"single record.*8 series.*model.level=linear"):
        vrnn_lab.Forecaster("model=latent_ode", "data.trend=linear", *SMALL, folder=tmp_path / "run").fit(frame)


# ---- known periods ----------------------------------------------------------------------------------------


def seasonal(tmp_path, count: int = 300) -> str:
    rng = np.random.default_rng(3)
    time = np.sort(rng.uniform(0, 40, count))
    frame = pd.DataFrame({"time": time, "v": np.sin(2 * np.pi * time) + rng.normal(0, 0.1, count)})
    frame.to_csv(tmp_path / "seasonal.csv", index=False)
    return f"data.path={tmp_path / 'seasonal.csv'}"


def test_a_known_period_gives_its_waves_to_the_model(tmp_path):
    keys = ["model=rnn", "data=table", seasonal(tmp_path), "data.id=null", "data.window=20"]
    model = assemble(compose([*keys, "data.period=[1,7.5]"])).model
    assert model.scale.covariates == ("sin 1", "cos 1", "sin 7.5", "cos 7.5")
    assert model.scale.given_covariates == ()
    times = torch.tensor([[0.25, 1.0, 3.0]]).double()
    batch = series_of(times, torch.zeros(1, 3, 1))
    waves = model.standardise(density(batch)).covariates.double()
    turn = 2 * math.pi * times[0]
    expected = torch.stack([turn.sin(), turn.cos(), (turn / 7.5).sin(), (turn / 7.5).cos()], -1) * math.sqrt(2)
    torch.testing.assert_close(waves[0], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rnn", "latent_ode", "vrnn"])
def test_a_period_works_in_questions_ahead_and_after_loading(tmp_path, model):
    seasonal(tmp_path)
    frame = pd.read_csv(tmp_path / "seasonal.csv")
    keys = (f"model={model}", "data.period=1", *SMALL)
    forecaster = vrnn_lab.Forecaster(*keys, folder=tmp_path / "run").fit(frame, id=None)
    ahead = forecaster.predict(frame, horizon=2, every=0.25)
    assert len(ahead) == 8 and ahead["mean"].notna().all()
    again = vrnn_lab.Forecaster.load(tmp_path / "run").predict(frame, horizon=2, every=0.25)
    pd.testing.assert_frame_equal(ahead, again)


def test_a_model_without_covariates_refuses_a_period(tmp_path):
    keys = ["model=neural_ode", "data=table", seasonal(tmp_path), "data.id=null", "data.window=20", "data.period=1"]
    with pytest.raises(
        ConfigError, match=r"cannot read covariates, which a known period adds; leave data.period out"
    ):
        assemble(compose(keys))


@pytest.mark.slow
def test_a_checkpoint_from_before_levels_and_periods_loads(tmp_path):
    """Its config names neither, and its checkpoint holds neither."""
    frame = pd.concat([record(count=40).assign(id=name) for name in "abcdefgh"])
    forecaster = vrnn_lab.Forecaster("model=rnn", "model.level=none", *SMALL[:2], *SMALL[3:], folder=tmp_path / "run")
    between = frame[["id", "time"]].assign(time=frame["time"] + 0.5).groupby("id").head(20)
    before = forecaster.fit(frame).predict(frame, at=between)
    config = tmp_path / "run" / ".hydra" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    younger = ("# sha256", "level:", "period:", "trend:")
    config.write_text("".join(x for x in lines if not x.strip().startswith(younger)))
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for key in ("periods", "own_levels", "whole_series", "variation"):
        del checkpoint[key]
    torch.save(checkpoint, file)
    after = vrnn_lab.Forecaster.load(tmp_path / "run").predict(frame, at=between)
    pd.testing.assert_frame_equal(before, after)


def test_a_slope_that_all_series_share_is_no_reason_to_predict_values():
    """Growth by as much as .6 of the spread from one value to the next, the same in all series: the level is kept."""
    owner, times = np.repeat(np.arange(12), 8), np.tile(np.arange(8.0), 12)
    values = (3.0 * owner + 10 * times)[:, None]
    found = variation_of(owner, times, values, values.mean(0), values.std(0), clock=7.0)
    assert found.change > 0.3 and found.wander < 0.02


def test_a_step_model_learns_from_series_that_begin_anywhere():
    """A training step leaves out the first points of half of the uncut series, and keeps two points at least."""
    scale = replace(varied(), whole_series=True)
    model, plain = model_of("rnn", scale), model_of("rnn", varied())
    batch = series_of(torch.arange(9.0).double().expand(400, 9), torch.zeros(400, 9, 2).double())
    counts = model.vary(batch).counts.sum(1)
    assert counts.min() >= 2 and 150 < (counts == 9).sum() < 300 and set(counts.tolist()) == set(range(2, 10))
    assert model.vary(batch).counts[:, -1].all() and torch.equal(plain.vary(batch).counts, batch.counts)
    assert not model.keep_start and model_of("latent_ode", scale).keep_start


def test_a_checkpoint_from_before_wander_was_kept_is_read():
    found = scale_of(1).variation or Variation(*(torch.ones(1).double() for _ in fields(Variation)))
    kept = {field.name: getattr(found, field.name) for field in fields(Variation) if field.name != "wander"}
    read = _variation({"variation": kept})
    assert read is not None and torch.equal(read.wander, found.change) and _variation({}) is None
