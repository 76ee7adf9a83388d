"""The linear SDE against the dense Gaussian that it is."""

from dataclasses import replace
from math import log, pi

import pytest
import torch
from torch.func import functional_call

from helpers.linear_sdes import KINDS, any_batch, any_model, mixture_of, of_process, set_to
from helpers.small import density, model_of
from vrnn_lab.core.noise import ChannelNoise, Noise, _rank
from vrnn_lab.core.series import TimeSeries, series_of
from vrnn_lab.core.tasks import DensityTask, Interpolate
from vrnn_lab.data.datasets.lgssm import LGSSM
from vrnn_lab.data.datasets.ou import OU
from vrnn_lab.models import linear_paths, observed_points
from vrnn_lab.models.linear_state import SLOWEST

every_kind = pytest.mark.parametrize("kind", KINDS)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def kernels(model, times: torch.Tensor) -> torch.Tensor:
    """Cov(z(t_i), z(t_j)) of all moving states of a series, (time, state, time, state): by e^(F gap) of torch."""
    found = model.dynamics
    drift = found._drift()[0] if found.groups == 1 and hasattr(found, "root") else torch.block_diag(*found.drift())
    move = lambda gap: torch.linalg.matrix_exp(drift * gap)
    block = lambda t, s: move(t - s) if t >= s else move(s - t).mT
    return torch.stack([torch.stack([block(t, s) for s in times], 1) for t in times])


def dense(model, batch: TimeSeries, row: int):
    """Mean (time, dim) and covariance (time, dim, time, dim) of a row's signal, and the variances of its noise."""
    series = model.standardise(batch).rows([row])
    dim, parts = model.scale.dim, model.scale.dim * model.readout.read.shape[1]
    observe = model.readout.observe(series.times[..., None])[0]
    if not model.joint:
        wide, each = torch.zeros(*observe.shape[:2], dim, observe.shape[2]).double(), torch.arange(dim)
        wide[:, each, each] = observe
        moving = model.readout.read.shape[1]
        observe = torch.cat([wide[..., :moving].flatten(2), wide[..., moving:].flatten(2)], -1)
    still = observe[..., parts:]
    covariance = torch.einsum(
        "tdi,tisj,sej->tdse", observe[..., :parts], kernels(model, series.times[0]), observe[..., :parts]
    )
    covariance = covariance + torch.einsum("tdi,sei->tdse", still, still)
    return model.readout.mean(series)[0], covariance, model._observed(series).variance[0]


def log_prob(mean, covariance, noise, values, mask) -> torch.Tensor:
    mask, size = mask.flatten(), mask.numel()
    joint = (covariance.reshape(size, size) + noise.flatten().diag())[mask][:, mask]
    error = (values - mean).flatten()[mask]
    return -0.5 * (error @ torch.linalg.solve(joint, error) + torch.linalg.slogdet(2 * pi * joint)[1])


def conditional(covariance, noise, mask):
    """The gain of what is masked on every signal, and the signals' covariance given it."""
    size, mask = mask.numel(), mask.flatten()
    matrix = covariance.reshape(size, size)
    gain = torch.linalg.solve((matrix + noise.flatten().diag())[mask][:, mask], matrix[mask]).mT
    return gain, matrix - gain @ matrix[mask]


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("dim", [1, 3])
def test_log_p_is_that_of_the_dense_gaussian(kind, dim):
    model, batch = any_model(kind, dim), any_batch(dim)
    found = model._log_weights(model.standardise(density(batch)), 1)[0]
    nll = model._loss_terms(model.standardise(batch), 1).nll
    values = model.standardise(batch).values
    for row in range(len(batch.ids)):
        joint = (*dense(model, batch, row), values[row])
        known = log_prob(*joint, batch.known[row])
        torch.testing.assert_close(found[row], known, **CLOSE)
        torch.testing.assert_close(nll[row], log_prob(*joint, batch.seen[row]) - known, **CLOSE)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("dim", [1, 3])
def test_marginals_are_those_of_the_dense_gaussian(kind, dim):
    model, batch = any_model(kind, dim), any_batch(dim)
    series = replace(model.standardise(batch), scored=~batch.seen)
    with model.fixed_noise(0):
        found = model._predict(series, 2).density
    for row in range(len(batch.ids)):
        mean, covariance, noise = dense(model, batch, row)
        gain, rest = conditional(covariance, noise, batch.seen[row])
        expected = mean.flatten() + gain @ (series.values[row] - mean)[batch.seen[row]]
        torch.testing.assert_close(found.mean[0, row].flatten(), expected, **CLOSE)
        std = (rest.diagonal() + noise.flatten()).sqrt()
        torch.testing.assert_close(found.std[1, row].flatten(), std, **CLOSE)


class Unit(Noise):
    """Noise of which number s is 1 in sample s, and all others 0."""

    def __init__(self):
        super().__init__()
        self.fixed, self.places = 0, {}

    def at_points(self, stream, series, samples, dim, like):
        names = [
            (stream, time, place)
            for time, place in zip(series.times[0].tolist(), _rank(series)[0].tolist(), strict=True)
        ]
        return self._draw(names, samples, dim)[:, None]

    def of_series(self, stream, series, samples, dim, like):
        return self._draw([stream], samples, dim)

    def of_channels(self, channel, channels):
        """Return the noise of rows that are single channels of the one series."""
        return UnitOfChannels(self, channel, channels)

    def _draw(self, names: list, samples: int, dim: int) -> torch.Tensor:
        at = [[self.places.setdefault((name, i), len(self.places)) for i in range(dim)] for name in names]
        return (torch.tensor(at).view(len(names), dim) == torch.arange(samples)[:, None, None]).double()


class UnitOfChannels(ChannelNoise):
    """Draw basis vectors for rows that are single channels of one series."""

    def at_points(self, stream, series, samples, dim, like):
        rows = [
            self.noise.at_points(f"{stream} {channel}", series.rows([row]), samples, dim, like)
            for row, channel in enumerate(self.channel.tolist())
        ]
        return torch.cat(rows, 1)

    def of_series(self, stream, series, samples, dim, like):
        names = [f"{stream} {channel}" for channel in self.channel.tolist()]
        return torch.cat([self.noise.of_series(name, series, samples, dim, like) for name in names], 1)


@pytest.mark.slow
@every_kind
def test_joint_draws_have_the_covariance_of_the_dense_posterior(kind):
    """Paths are a linear map of the noise: one sample a number gives all its columns, and one more its constant."""
    model, batch = any_model(kind), any_batch(rows=1, time=9)
    series = replace(model.standardise(batch), scored=~batch.seen)
    model.noise = noise = Unit()
    with torch.no_grad():
        model._predict(series, 1)
        paths = model._predict(series, len(noise.places) + 1).paths[:, 0].flatten(1)
    columns = paths[:-1] - paths[-1]
    mean, covariance, variance = dense(model, batch, 0)
    gain, rest = conditional(covariance, variance, batch.seen[0])
    torch.testing.assert_close(columns.mT @ columns, rest + variance.flatten().diag(), **CLOSE)
    expected = mean.flatten() + gain @ (series.values[0] - mean)[batch.seen[0]]
    torch.testing.assert_close(paths[-1], expected, **CLOSE)


def test_with_the_true_parameters_it_is_the_exact_row_of_ou():
    data = OU(train=200, val=2, test=50)
    model, std, mean, clock = of_process(data, "model.ou=1 model.matern=0 model.oscillators=0")
    set_to(model, dynamics__log_decay=0.8 * clock - SLOWEST, readout__middle=(2.0 - mean) / std)
    set_to(model, readout__parts__0__log_std=data.variance**0.5 / std, head__log_std=0.25 / std)
    assert_exact(model, data)


def test_with_the_true_parameters_it_is_the_exact_row_of_lgssm():
    """One damped rotation whose two states both channels read; the other channel's own rotation is read by none."""
    data = LGSSM(train=200, val=2, test=50)
    parts = "model.ou=0 model.matern=0 model.oscillators=1 model.coupling=full"
    model, std, mean, clock = of_process(data, parts)
    drift = torch.tensor([[log(data.radius), -data.angle], [data.angle, log(data.radius)]]).double() * clock
    with torch.no_grad():
        model.dynamics.skew_start[:2, :2] = 0.5 * (drift - drift.mT)
        model.dynamics.root_start[:2, :2] = (-2 * log(data.radius) * clock) ** 0.5 * torch.eye(2)
        model.readout.every[:] = -model.readout.observe(torch.zeros(1, 1, 1).double())[0, 0]
        model.readout.every[:, :2] += data.variance**0.5 * torch.from_numpy(data.observe) / std[:, None]
    set_to(model, readout__middle=-mean / std, head__log_std=data.noise / std)
    assert_exact(model, data)


def assert_exact(model, data):
    """The head's std has a floor of .001 training stds, which a log-likelihood feels in its seventh digit."""
    for task in (DensityTask(), Interpolate(seen=0.5, scored="held_out")):
        for batch in data.batches("test", task):
            log_prob, answer = data.exact(batch)
            with model.fixed_noise(0):
                if isinstance(task, DensityTask):
                    off = (model.log_weights(batch, 1)[0] - log_prob) / batch.known.sum((1, 2))
                    assert off.abs().max() < 1e-5 and off.mean().abs() < 1e-6
                found = model.predict(batch, 1).density
            for one, two in ((found.mean[0], answer.mean), (found.std[0], answer.std)):
                assert ((one - two).abs() < 1e-4)[batch.counts].all()


@pytest.mark.slow
@every_kind
def test_gradients_of_everything_at_once_are_those_of_finite_differences(kind):
    model, series = any_model(kind), any_model(kind).standardise(density(any_batch(time=7)))
    names, start = zip(*((name, each.detach()) for name, each in model.named_parameters()), strict=True)

    model.forward = lambda: model._log_weights(series, 1)[0]
    call = lambda *numbers: functional_call(model, dict(zip(names, numbers, strict=True)), ())
    assert torch.autograd.gradcheck(call, [each.clone().requires_grad_() for each in start], atol=1e-5)


@pytest.mark.parametrize("span", [1e-9, 1e9])
@pytest.mark.parametrize("kind", ["all", "full"])
def test_spans_of_any_length_have_finite_answers(kind, span):
    model, rng = any_model(kind), torch.Generator().manual_seed(0)
    times = 100 + 5 * span * torch.rand(3, 30, generator=rng, dtype=torch.float64).sort(1).values
    values = torch.randn(3, 30, 2, generator=rng, dtype=torch.float64)
    batch = density(series_of(times, values))
    asked = replace(batch, seen=batch.seen & (torch.arange(30) % 2 == 0)[:, None])
    terms = model.loss_terms(batch)
    terms.nll.sum().backward()
    assert terms.nll.isfinite().all() and all(
        p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
    )
    with model.fixed_noise(0):
        found = model.predict(asked, 3)
    assert found.paths.isfinite().all() and (found.density.std > 0).all()


def test_a_row_of_20000_points_is_that_of_a_longer_loop():
    """Log p of one long row, by the chain rule over two halves: the second given the first."""
    model, rng = any_model("all", dim=1), torch.Generator().manual_seed(0)
    times = 100 + 2000 * torch.rand(1, 20_000, generator=rng, dtype=torch.float64).sort(1).values
    batch = density(series_of(times, torch.randn(1, 20_000, 1, generator=rng, dtype=torch.float64)))
    first = batch.seen & (torch.arange(20_000) < 10_000)[:, None]
    with torch.no_grad():
        whole = model.loss_terms(batch).nll
        both = model.loss_terms(replace(batch, scored=first, seen=first)).nll
        both = both + model.loss_terms(replace(batch, scored=~first, seen=batch.seen)).nll
    assert whole.item() == pytest.approx(both.item(), rel=1e-9)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_times_in_any_unit_have_the_same_likelihood(kind, factor):
    """Also its gradient and the answers: a model counts times in typical training windows."""
    batch = any_batch()
    model, other = any_model(kind), any_model(kind, unit=factor)
    moved = replace(batch, times=factor * batch.times, window=factor * batch.window)
    one, two = (m.log_weights(density(b), 1) for m, b in ((model, batch), (other, moved)))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=0)
    one.sum().backward()
    two.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(other.get_parameter(name).grad, parameter.grad, rtol=1e-7, atol=1e-9)
    with model.fixed_noise(0), other.fixed_noise(0):
        one, two = model.predict(batch, 1).density, other.predict(moved, 1).density
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one.std, two.std, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("span", [1e-9, 1e-5, 1e4, 1e9])
@every_kind
def test_spans_of_any_length_have_the_likelihood_and_marginals_of_the_dense_gaussian(kind, span):
    """Points that lie within 1e-9 windows of one another, and points 1e9 windows apart."""
    model, start = any_model(kind), any_batch()
    start = replace(start, times=100 + span * (start.times - 98.5))
    series = model.standardise(start)
    found = model._log_weights(model.standardise(density(start)), 1)[0]
    with model.fixed_noise(0):
        marginals = model._predict(replace(series, scored=~start.seen), 1).density
    for row in range(len(start.ids)):
        mean, covariance, noise = dense(model, start, row)
        expected = log_prob(mean, covariance, noise, series.values[row], start.known[row])
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=0)
        gain, rest = conditional(covariance, noise, start.seen[row])
        means = mean.flatten() + gain @ (series.values[row] - mean)[start.seen[row]]
        torch.testing.assert_close(marginals.mean[0, row].flatten(), means, rtol=1e-8, atol=1e-8)
        std = (rest.diagonal() + noise.flatten()).sqrt()
        torch.testing.assert_close(marginals.std[0, row].flatten(), std, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("head", ["gmm", "laplace_channel", "laplace", "gaussian", "gaussian_channel"])
def test_only_a_gaussian_of_one_std_a_channel_is_exact(head):
    assert (model_of(f"linear_sde model/head={head}").sites is None) == (head == "gaussian_channel")
    assert model_of(f"linear_sde model/head={head} model.decoder_depth=1").sites is not None


def test_a_state_without_parts_is_refused():
    with pytest.raises(ValueError, match=r"model\.ou"):
        model_of("linear_sde model.ou=0 model.matern=0 model.oscillators=0")


@pytest.mark.parametrize("components", [1, 2])
def test_channels_without_a_shared_state_take_no_steps_at_the_points_of_others(monkeypatch, components):
    """The filter takes as many steps as the fullest channel has values, and fewer in rows of much fewer values.

    Likelihood and gradients stay the same.
    """
    model = mixture_of("separate", dim=3, components=2) if components == 2 else any_model("separate", dim=3)
    batch = any_batch(dim=3, rows=4, time=40)
    some = torch.rand(batch.known.shape, generator=torch.Generator().manual_seed(5)) < torch.tensor([0.9, 0.2, 0.05])
    series = model.standardise(batch)
    masks = batch.known & some, torch.zeros_like(some)
    steps = []
    kept = observed_points.log_likelihood
    monkeypatch.setattr(
        observed_points,
        "log_likelihood",
        lambda space, values, mask: steps.append(mask.shape[1]) or kept(space, values, mask),
    )

    def found() -> list[torch.Tensor]:
        steps.clear()
        log_prob = model._log_prob(series, *masks)
        return [log_prob, *torch.autograd.grad(log_prob.sum(), list(model.parameters()), allow_unused=True)]

    alone, fullest = found(), masks[0].sum(1).max().item()
    assert steps == [fullest] and fullest < batch.times.shape[1]
    monkeypatch.setattr(observed_points, "ENOUGH", 0)
    by_length = found()
    assert steps[0] == fullest and steps == sorted(steps, reverse=True) and len(steps) > 2
    monkeypatch.setattr(observed_points, "_readable", lambda mask: False)
    every = found()
    assert steps == [batch.times.shape[1]]
    for one, two, three in zip(alone, by_length, every, strict=True):
        torch.testing.assert_close(one, three, **CLOSE)
        torch.testing.assert_close(two, three, **CLOSE)
    assert alone[0][1].abs().max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("components", [1, 2])
def test_a_prediction_does_not_depend_on_the_other_channels_that_are_queried(monkeypatch, components):
    """Nor on how many rows are drawn at a time; paths, means and stds are compared.

    No two points have the same time, since the draws of such points depend on their order.
    """
    model = mixture_of("separate", dim=3, components=2) if components == 2 else any_model("separate", dim=3)
    batch = any_batch(dim=3, rows=4, time=40)
    batch = replace(batch, times=batch.times + 1e-3 * torch.arange(40))
    queried = ~batch.seen & (torch.rand(batch.seen.shape, generator=torch.Generator().manual_seed(5)) < 0.2)
    every, one = replace(batch, scored=~batch.seen), replace(batch, scored=queried)

    def found(asked: TimeSeries) -> list[torch.Tensor]:
        with model.fixed_noise(3):
            prediction = model.predict(asked, 5)
        return [x[:, queried] for x in (prediction.paths, prediction.density.mean, prediction.density.std)]

    expected = found(every)
    for at_once in (1, 2**18):
        monkeypatch.setattr(linear_paths, "AT_ONCE", at_once)
        for each, exact in zip(found(one), expected, strict=True):
            torch.testing.assert_close(each, exact, rtol=1e-9, atol=1e-9)
