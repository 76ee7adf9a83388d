"""Data sets whose law is known: draws and exact likelihoods against closed forms and brute force."""

import builtins
from dataclasses import replace
from math import exp, log, pi, sqrt

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from vrnn_lab.core.series import series_of
from vrnn_lab.core.tasks import DensityTask, Forecast, Interpolate
from vrnn_lab.data.datasets.curves import Curves
from vrnn_lab.data.datasets.digits import Digits
from vrnn_lab.data.datasets.events import Events
from vrnn_lab.data.datasets.mixture import CORRELATIONS, WEIGHTS, MixtureProcess
from vrnn_lab.data.datasets.ode_demo import OdeDemo
from vrnn_lab.evaluation.baselines import references
from vrnn_lab.evaluation.evaluate import EvaluationProtocol


def log_p(data, times, values, window=None) -> float:
    """The exact log p of one series: times (time,), values (time, dim)."""
    values = np.asarray(values).reshape(1, len(times), len(data.channels))
    batch = series_of(np.reshape(times, (1, -1)), values, window=window)
    return data.exact(batch)[0].item()


def whole_split(data, split="test"):
    return next(iter(data.batches(split, DensityTask(), 10_000)))


def standard_errors(draws: np.ndarray) -> float:
    """How many standard errors the mean of independent draws lies from zero, at most over the columns."""
    return np.abs(draws.mean(0) / (draws.std(0) / len(draws) ** 0.5)).max()


# ---- ode_demo ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return OdeDemo()


def slope(time, y):
    x, z = y**3
    return [-0.1 * x - 2.0 * z, 2.0 * x - 0.1 * z]


def test_the_demos_curves_solve_its_equation(demo):
    times = np.linspace(0, 25, 1000)
    curves = np.concatenate([demo.splits["val"].values[None], demo.splits["test"].values.reshape(16, 1000, 2)[:2]])
    np.testing.assert_array_equal(curves[0, 0], [2.0, 0.0])
    for curve in curves:
        truth = integrate.solve_ivp(slope, (0, 25), curve[0], "DOP853", times, rtol=1e-12, atol=1e-13, max_step=0.02)
        np.testing.assert_allclose(curve, truth.y.T, atol=1e-6)


def test_the_field_is_the_slope_of_the_curves(demo):
    curve = torch.from_numpy(demo.splits["val"].values)
    central = (curve[2:] - curve[:-2]) / (2 * 25 / 999)
    torch.testing.assert_close(demo.field(curve)[1:-1], central, atol=0.3, rtol=0)
    torch.testing.assert_close(demo.field(torch.tensor([2.0, 1.0])), torch.tensor([-2.8, 15.9]))


def test_training_series_are_all_windows_of_the_demo_curve_on_their_own_times(demo):
    train, val = demo.splits["train"], demo.splits["val"]
    assert len(train) == 990 and (np.diff(train.offsets) == 10).all()
    for first in (0, 1, 500, 989):
        part = slice(*train.offsets[first : first + 2])
        np.testing.assert_array_equal(train.times[part], val.times[first : first + 10])
        np.testing.assert_array_equal(train.values[part], val.values[first : first + 10])
        np.testing.assert_array_equal(train.windows[first], val.times[[first, first + 9]])
    np.testing.assert_array_equal(val.windows, [[0, 25]])
    assert demo.noise_std is None and (train.values == train.clean).all()


def test_test_curves_start_elsewhere_on_a_ring(demo):
    start = demo.splits["test"].values.reshape(16, 1000, 2)[:, 0]
    radius = np.hypot(*start.T)
    assert (radius >= 1.5).all() and (radius <= 2.5).all()
    angles = np.arctan2(*start.T)
    assert stats.kstest(angles, stats.uniform(-pi, 2 * pi).cdf).pvalue > 1e-3


def test_a_noisy_demo_curve_is_observed_anew_in_each_split():
    splits = OdeDemo(points=200, starts=1, noise=0.1).splits
    train, val = splits["train"], splits["val"]
    np.testing.assert_array_equal(train.values[1:10], train.values[10:19])  # the next window, one point on
    one, two = train.values[:10] - train.clean[:10], val.values[:10] - val.clean[:10]
    np.testing.assert_array_equal(train.clean[:10], val.clean[:10])
    assert abs(one - two).min() > 0


def test_a_window_longer_than_the_curve_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_time=50"):
        OdeDemo(points=50, batch_time=50)


# ---- events ------------------------------------------------------------------------------------------------

WAVE = {"length": 7.0, "base": 1.5, "depth": 0.9, "period": 3.0}


def rate(time, phase=0.0):
    return 1.5 * (1 + 0.9 * np.sin(2 * pi * time / 3 + phase))


def expected(end, phase=0.0):
    return integrate.quad(rate, 0, end, (phase,), limit=200)[0]


def test_counts_of_events_are_poisson():
    counts = np.diff(Events(**WAVE, train=4000).splits["train"].offsets)
    mean = expected(7.0)
    assert standard_errors(counts - mean) < 4
    assert standard_errors((counts - mean) ** 2 - mean) < 4


def test_events_on_the_clock_of_their_rate_are_a_unit_poisson_process():
    """Time rescaling: the integrals of the rate between events are exponential of mean 1."""
    train = Events(**WAVE, train=2000).splits["train"]
    clock = train.times + np.repeat(np.arange(2000) * 7.0, np.diff(train.offsets))  # series end to end
    rounds = np.floor(clock / 7.0)
    inside = 1.5 * (train.times + 0.9 * 3 / (2 * pi) * (1 - np.cos(2 * pi * train.times / 3)))
    gaps = np.diff(rounds * expected(7.0) + inside)
    assert stats.kstest(gaps, "expon").pvalue > 1e-3
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 4 / len(gaps) ** 0.5


def test_the_likelihood_of_events_is_the_sum_of_log_rates_less_the_integral():
    times = [0.2, 2.9, 3.0, 6.5]
    truth = sum(log(rate(t)) for t in times) - expected(7.0)
    assert log_p(Events(**WAVE), times, np.ones(4), window=[[0, 7]]) == pytest.approx(truth, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["fixed", "random"])
def test_the_likelihood_of_events_integrates_to_one(phase):
    """p(0 events) + sum over n of the integral of p over t_1 < .. < t_n, up to n = 2; the rest is small."""
    data = Events(length=1.0, base=0.3, depth=0.9, period=1.3, phase=phase)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = (nodes + 1) / 2, weights / 2
    none = exp(log_p(data, [0.0], [np.nan], window=[[0, 1]]))
    one = sum(w * exp(log_p(data, [t], [1.0], window=[[0, 1]])) for t, w in zip(nodes, weights, strict=True))
    pairs = torch.cartesian_prod(torch.from_numpy(nodes), torch.from_numpy(nodes)).sort(1).values
    batch = series_of(pairs, torch.ones(400, 2, 1), window=torch.tensor([[0.0, 1.0]]).expand(400, 2))
    two = (data.exact(batch)[0].exp() * torch.from_numpy(np.outer(weights, weights).ravel())).sum().item() / 2
    phases = [0.0] if phase == "fixed" else 2 * pi * np.arange(64) / 64
    means = np.array(
        [0.3 * integrate.quad(lambda t, p=p: 1 + 0.9 * np.sin(2 * pi * t / 1.3 + p), 0, 1)[0] for p in phases]
    )
    for found, n in ((none, 0), (one, 1), (two, 2)):
        assert found == pytest.approx(stats.poisson.pmf(n, means).mean(), rel=1e-9)


def test_a_random_phase_is_averaged_over():
    data = Events(**WAVE, phase="random", train=500)
    times = [0.4, 0.7, 3.5, 4.0, 6.6]
    density = lambda p: np.prod(rate(np.array(times), p)) * exp(-expected(7.0, p)) / (2 * pi)
    truth = log(integrate.quad(density, 0, 2 * pi, epsabs=1e-14)[0])
    assert log_p(data, times, np.ones(5), window=[[0, 7]]) == pytest.approx(truth, rel=1e-8)
    batch = whole_split(data, "train")
    fixed = Events(**WAVE, phase="fixed").exact(batch)[0]
    assert (data.exact(batch)[0] - fixed).mean() > 1  # the draws have phases


def test_series_without_events_are_series():
    data = Events(train=50, val=20, test=20, length=1.0, base=0.5)
    counts = np.diff(data.splits["test"].offsets)
    assert (counts == 0).any() and (counts > 0).any()
    batch = whole_split(data).check()
    np.testing.assert_array_equal(batch.known.sum((1, 2)), counts)
    whole = data.exact(batch)[0]
    alone = torch.stack([data.exact(whole_split(data).rows([i]))[0][0] for i in range(20)])
    torch.testing.assert_close(whole, alone)
    assert (whole[counts == 0] == whole[counts == 0][0]).all()
    assert data.scale.support == "events" and data.scale.std == 1


def test_a_split_without_any_event_is_a_split():
    data = Events(train=2000, val=1, test=1, length=0.1, base=0.05)
    batch = whole_split(data).check()
    assert not len(data.splits["test"].times) and not batch.known.any()
    assert data.exact(batch)[0].item() == pytest.approx(-data.expected(batch.window, torch.zeros(())).item())


# ---- digits ------------------------------------------------------------------------------------------------


def test_digits_are_images_of_zeros_and_ones_with_their_class():
    from sklearn.datasets import load_digits

    data, (pixels, labels) = Digits(), load_digits(return_X_y=True)
    assert data.support == "binary" and data.image == (8, 8) and data.channels[9] == "r1c1"
    for split in data.splits.values():
        np.testing.assert_array_equal(split.values, pixels[split.ids] >= 8)
        np.testing.assert_array_equal(split.labels, labels[split.ids])
        assert set(split.labels.tolist()) == set(range(10)) and not split.labels_of_points
    batch = whole_split(data)
    assert batch.values.shape == (270, 1, 64) and batch.labels.shape == (270,)
    assert data.scale.classes == tuple("0123456789")
    assert (data.scale.mean == 0).all() and (data.scale.std == 1).all()


def test_grey_digits_are_pixels_with_uniform_noise():
    from sklearn.datasets import load_digits

    data, pixels = Digits(binary=False), load_digits().data
    assert data.support == "real" and Digits().support == "binary"
    train = data.splits["train"]
    np.testing.assert_array_equal(np.floor(17 * train.values), pixels[train.ids])
    assert stats.kstest((17 * train.values % 1).ravel(), "uniform").pvalue > 1e-3
    assert (data.scale.std > 1 / 17 / 13**0.5).all()  # a constant pixel has the noise's spread


def test_an_image_has_no_span_and_a_scale_all_the_same():
    scale = Digits().scale
    assert (scale.clock, scale.gap, scale.longest, scale.reach) == (1, 1, 0, 0)


def test_without_scikit_learn_the_cure_is_named(monkeypatch):
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'vrnn_lab\[digits\]'"):
        Digits().splits  # noqa: B018 - reading it is what raises


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match=r"data\.shares"):
        Digits(shares=[0.5, 0.1, 0.1])


# ---- mixture -----------------------------------------------------------------------------------------------


def mixture_density(data, value, before) -> float:
    """The textbook sum over components, with full covariances."""
    cos, sin = np.cos(2 * pi / 12), np.sin(2 * pi / 12)
    move = 0.8 * np.array([[cos, -sin], [sin, cos]])
    centres = [(1, 0), (-0.5, sqrt(3) / 2), (-0.5, -sqrt(3) / 2)]
    return sum(
        w * stats.multivariate_normal(move @ before + m, 0.04 * np.array([[1, r], [r, 1]])).pdf(value)
        for w, m, r in zip((0.5, 0.3, 0.2), centres, (0.9, -0.9, 0.0), strict=True)
    )


def test_the_mixtures_likelihood_is_the_product_of_textbook_densities():
    data = MixtureProcess(train=1, val=1, test=5, points=4)
    found = data.exact(whole_split(data))[0]
    for series, each in zip(data.splits["test"].values.reshape(5, 4, 2), found, strict=True):
        before = [np.zeros(2), *series[:-1]]
        truth = sum(log(mixture_density(data, x, b)) for x, b in zip(series, before, strict=True))
        assert each.item() == pytest.approx(truth, rel=1e-9)


def test_mixture_draws_have_the_moments_of_their_law():
    values = MixtureProcess(points=3).splits["train"].values.reshape(1800, 3, 2)
    data = MixtureProcess()
    centre = WEIGHTS @ data.centres
    assert standard_errors(values[:, 0] - centre) < 4
    step = values[:, 2] - values[:, 1] @ data.move.T - centre
    assert standard_errors(step) < 4
    spread = data.centres - centre
    covariance = (WEIGHTS[:, None, None] * spread[:, :, None] * spread[:, None, :]).sum(0)
    covariance += 0.04 * np.array([[1, WEIGHTS @ CORRELATIONS], [WEIGHTS @ CORRELATIONS, 1]])
    assert standard_errors((step[:, :, None] * step[:, None, :] - covariance).reshape(1800, 4)) < 4


def test_mixture_steps_lie_in_three_clusters_each_with_its_correlation():
    data = MixtureProcess()
    values = data.splits["val"].values.reshape(200, 30, 2)
    steps = (values[:, 1:] - values[:, :-1] @ data.move.T).reshape(-1, 2)
    nearest = ((steps[:, None] - data.centres) ** 2).sum(-1).argmin(1)
    for k in range(3):
        part = steps[nearest == k]
        assert len(part) / len(steps) == pytest.approx(WEIGHTS[k], abs=0.04)
        assert np.corrcoef(part.T)[0, 1] == pytest.approx(CORRELATIONS[k], abs=0.06)


def of_mask(batch, known):
    """The batch with these values known, all seen and scored."""
    return replace(batch, seen=known, scored=known)


def test_the_mixture_knows_the_likelihood_of_a_beginning():
    data = MixtureProcess(train=1, val=1, test=6, points=5)
    batch = whole_split(data)
    start = batch.known.clone()
    start[:, 3:] = False
    found = data.exact(of_mask(batch, start))[0]
    for series, each in zip(batch.values, found, strict=True):
        assert each.item() == pytest.approx(log_p(data, [0, 1, 2], series[:3]), rel=1e-12)


def test_of_the_mixtures_last_point_one_channel_is_enough():
    data = MixtureProcess(train=1, val=1, test=1, points=5)
    batch = whole_split(data)
    channel = batch.known.clone()
    channel[:, 4, 1] = False
    every = batch.rows([0] * 2401)
    every.values[:, 4, 1] = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    integral = torch.logsumexp(data.exact(every)[0], 0) + log(12 / 2400)
    torch.testing.assert_close(data.exact(of_mask(batch, channel))[0][0], integral, rtol=1e-9, atol=1e-9)


def test_a_hidden_value_before_a_known_one_leaves_the_mixture_without_an_answer():
    data = MixtureProcess(train=1, val=1, test=6, points=5)
    batch = whole_split(data)
    for place in ((0, 2, 0), (5, 0), (3, 3)):
        known = batch.known.clone()
        known[place] = False
        assert data.exact(of_mask(batch, known)) is None
    held_out = next(iter(data.batches("test", Interpolate(0.5, scored="held_out"))))
    torch.testing.assert_close(data.exact(held_out)[0], data.exact(batch)[0])  # scored values are known ones


def test_references_do_without_the_exact_row_where_the_past_is_thinned():
    data = MixtureProcess(train=20, val=20, test=20, points=8)
    questions = EvaluationProtocol(Interpolate(0.5, scored="held_out"), Forecast(0.5, seen=0.3, scored="held_out"))
    found = references(data, questions)
    truth = data.exact(whole_split(data))[0]
    assert found["reference/exact/nll"] == pytest.approx(-truth.sum().item() / (20 * 8 * 2))


# ---- curves ------------------------------------------------------------------------------------------------


def test_the_curve_is_closed_and_each_channel_has_unit_spread_whatever_the_seed():
    data = Curves()
    curve = data.curve(np.arange(1000) / 1000)
    np.testing.assert_allclose(curve.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(curve.std(0), 1)
    np.testing.assert_allclose(data.curve(np.array([0.3])), data.curve(np.array([1.3])))
    np.testing.assert_array_equal(curve, Curves(seed=5).curve(np.arange(1000) / 1000))
    assert len(np.unique(curve.round(2), axis=0)) == 1000


def places(data, clean) -> np.ndarray:
    """Where on the circle the clean points lie, to a grid of 1/2000."""
    grid = data.curve(np.arange(2000) / 2000)
    return (((clean[..., None, :] - grid) ** 2).sum(-1)).argmin(-1) / 2000


def test_places_on_the_curve_move_as_promised():
    data = Curves(train=300, points=12, drift=0.2, step=0.03, jump=0.3)
    train = data.splits["train"]
    place = places(data, train.clean.reshape(300, 12, -1))
    assert stats.kstest(place[:, 0], "uniform").pvalue > 1e-3
    move = (np.diff(place, axis=1) % 1).ravel()
    law = lambda x: 0.3 * x + 0.7 * stats.norm(0.2, 0.03).cdf(x)
    assert stats.kstest(move, law).pvalue > 1e-3
    noise = (train.values - train.clean) / 0.1
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def wrapped(data, move, gap):
    """The density of a move along the circle in `gap` steps, from the images of a normal."""
    stay = (1 - data.jump) ** gap
    images = sum(stats.norm(gap * data.drift + i, sqrt(gap) * data.step).pdf(move) for i in range(-6, 9))
    return 1 - stay + stay * images


@pytest.mark.slow
@pytest.mark.parametrize("gap", [1.0, 3.0])
def test_the_likelihood_of_two_points_is_the_double_integral(gap):
    data = Curves(train=1, val=1, test=3, points=2)
    u = (np.arange(3000) + 0.3) / 3000
    curve = data.curve(u)
    move = wrapped(data, u[None, :] - u[:, None], gap)
    for one, two in data.splits["test"].values.reshape(3, 2, 8):
        first, second = (np.exp(-0.5 * ((x - curve) ** 2).sum(1) / 0.01) for x in (one, two))
        truth = log(first @ move @ second / 3000**2) - 2 * 8 * log(0.1 * sqrt(2 * pi))
        assert log_p(data, [0.0, gap], [one, two]) == pytest.approx(truth, rel=1e-10)


def test_a_finer_grid_gives_the_same_likelihood():
    batch = whole_split(Curves(train=1, val=1, test=20))
    usual, finer = Curves(), Curves()
    finer.grid = 4 * usual.grid
    torch.testing.assert_close(usual.exact(batch)[0], finer.exact(batch)[0], rtol=1e-10, atol=1e-8)


def test_the_curves_likelihood_of_a_subset_of_values_is_their_marginal():
    """Of one value the marginal is a mean of normals; with nothing known log p is zero; gaps may be empty."""
    data = Curves(train=1, val=1, test=4, points=6)
    batch = whole_split(data)
    one = torch.zeros_like(batch.seen)
    one[:, 4, 2] = True
    curve = data.curve(np.arange(5000) / 5000)[:, 2]
    value = batch.values[:, 4, 2].numpy()
    truth = np.log(stats.norm(curve, 0.1).pdf(value[:, None]).mean(1))
    np.testing.assert_allclose(data.exact(of_mask(batch, one))[0], truth, rtol=1e-10)
    none = torch.zeros_like(batch.seen)
    np.testing.assert_allclose(data.exact(of_mask(batch, none))[0], 0, atol=1e-10)
    without = batch.known.clone()
    without[:, 2] = False
    kept = [0, 1, 3, 4, 5]
    short = replace(
        batch,
        clean=None,
        times=batch.times[:, kept],
        values=batch.values[:, kept],
        seen=batch.seen[:, kept],
        scored=batch.seen[:, kept],
    )
    torch.testing.assert_close(data.exact(of_mask(batch, without))[0], data.exact(short)[0])


def test_rows_at_once_do_not_matter(monkeypatch):
    data = Curves(train=1, val=1, test=7, points=4)
    whole = data.exact(whole_split(data))[0]
    monkeypatch.setattr("vrnn_lab.data.datasets.curves.AT_ONCE", 3 * data.grid)
    torch.testing.assert_close(data.exact(whole_split(data))[0], whole)


def test_few_diagonal_gaussians_lie_far_above_the_exact_likelihood_of_a_curve():
    """Of one point whose place is unknown: K Gaussians, each with the moments of one of K equal arcs."""
    data = Curves(train=1, val=1, test=400, points=1)
    values, nll = data.splits["test"].values, {}
    for k in (1, 5, 20):
        arcs = data.curve((np.arange(4000) / 4000).reshape(k, -1))
        each = stats.norm(arcs.mean(1), np.sqrt(arcs.var(1) + 0.01)).logpdf(values[:, None]).sum(2)
        nll[k] = (log(k) - np.logaddexp.reduce(each, axis=1)).mean()
    exact = -data.exact(whole_split(data))[0].mean().item()
    assert exact + 1 < nll[20] < nll[5] - 1 < nll[1] - 2
