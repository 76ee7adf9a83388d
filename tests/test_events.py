"""Poisson processes along a latent path: against closed forms, counts, draws and rescaled times."""

from dataclasses import replace
from functools import cache
from math import exp, lgamma, log

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from helpers.small import batch_of, density, held_out, model_of, recipe_of, scale_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import TimeSeries, series_of
from vrnn_lab.core.tasks import Forecast, Interpolate
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.evaluation.baselines import references
from vrnn_lab.evaluation.evaluate import EvaluationProtocol, evaluate, event_fit
from vrnn_lab.models.event_times import EventTimes
from vrnn_lab.models.heads import EventHead
from vrnn_lab.models.latent_ode import LatentODE
from vrnn_lab.reports import run_table
from vrnn_lab.runs.build import assemble

PROTOCOL = EvaluationProtocol(
    Interpolate(0.5, scored="held_out"), Forecast(0.5, scored="held_out"), samples=5, draws=5
)
CLOCK, START = 5.0, 100.0


def event_scale():
    unit = torch.ones(1, dtype=torch.float64)
    return replace(scale_of(1, "events"), mean=0 * unit, std=unit)


def event_model(**keys) -> LatentODE:
    torch.manual_seed(0)
    keys = {"latent": 2, "width": 8, "encoder_width": 8, "decoder_width": 8, "nodes": 10, "depth": 0, **keys}
    return LatentODE(event_scale(), recipe_of(), EventHead, point_process=True, **keys).double()


def drifting(level: float = 0.5, **keys) -> LatentODE:
    """z(t) = z_0 + (1, 0) t and log lambda = level + 0.6 z_1, t in windows."""
    model = event_model(**keys)
    model.intensity.layers = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.field.layers[0].weight.zero_()
        model.field.layers[0].bias.copy_(torch.tensor([1.0, 0.0], dtype=torch.float64) / model.field.rate)
        model.intensity.layers.weight.copy_(torch.tensor([[0.6, 0.0]], dtype=torch.float64))
        model.intensity.layers.bias.fill_(level)
    return model


def turning(level: float, swing: float, **keys) -> LatentODE:
    """z turns three times a window, log lambda = level + swing z_1."""
    model = drifting(level, nodes=24, **keys)
    turn = 6 * torch.pi / model.field.rate
    with torch.no_grad():
        model.field.layers[0].weight.copy_(torch.tensor([[0.0, turn], [-turn, 0.0]]))
        model.field.layers[0].bias.zero_()
        model.intensity.layers.weight.copy_(torch.tensor([[swing, 0.0]]))
    return model


def events_at(*rows: list[float], window=(START, START + CLOCK)) -> TimeSeries:
    """Events at these times, padded at the window's end."""
    longest = max(1, *map(len, rows))
    times = torch.tensor([[*row, *[window[1]] * (longest - len(row))] for row in rows], dtype=torch.float64)
    there = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])[..., None]
    return series_of(times, there.double(), there, there, torch.tensor([window] * len(rows), dtype=torch.float64))


def log_likelihood(model, batch, z):
    with torch.no_grad():
        inside, _ = model._log_likelihood(model.standardise(batch), z, line=None)
    return inside - model._log_det(batch)


def by_hand(z, times, length):
    """Of drifting(): in units of the data, times since the window's start."""
    log_rate = 0.5 + 0.6 * (z[0] + np.array(times) / CLOCK) - log(CLOCK)
    return log_rate.sum() - exp(0.5 + 0.6 * z[0]) * (exp(0.6 * length / CLOCK) - 1) / 0.6


def test_the_likelihood_of_a_linear_field_is_that_computed_by_hand():
    z = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = log_likelihood(drifting(), events_at([100.5, 101.7, 104.9], [103.0]), z)
    for s in range(3):
        assert found[s, 0].item() == pytest.approx(by_hand(z[s, 0].tolist(), [0.5, 1.7, 4.9], 5.0), rel=1e-9)
        assert found[s, 1].item() == pytest.approx(by_hand(z[s, 1].tolist(), [3.0], 5.0), rel=1e-9)


@pytest.mark.parametrize("origin", ["row", "common"])
def test_of_no_event_the_likelihood_is_minus_the_integral_over_the_row_s_own_window(origin):
    model = drifting(origin=origin)
    empty = replace(events_at([], []), window=torch.tensor([[100.0, 101.3], [107.2, 116.9]], dtype=torch.float64))
    z = torch.zeros(1, 2, 2).double()
    found = log_likelihood(model, empty, z)[0]
    z_at_start = [0.0, 0.0 if origin == "row" else 7.2 / CLOCK]
    expected = [by_hand([z_at_start[0]], [], 1.3), by_hand([z_at_start[1]], [], 9.7)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_integral_agrees_with_a_tight_one():
    """A nonlinear rate on a nonlinear path: the sum over a fine grid of the same path."""
    model = event_model(depth=1)
    torch.nn.init.normal_(model.intensity.layers[0].weight, std=2.0)
    series = model.standardise(
        replace(events_at([], []), window=torch.tensor([[100.0, 103.3], [101.0, 108.0]], dtype=torch.float64))
    )
    z = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        rate = model._rate(series, model._path(series, z))
        total, times = (
            rate.total(),
            rate.edges.new_tensor(np.linspace(0, 1, 20001))[None]
            * torch.tensor([[3.3], [7.0]], dtype=torch.float64)
            / CLOCK,
        )
        fine = torch.trapezoid(rate.log_at(times).exp(), times, dim=2)
        part = rate.until(times[:, [0, 2000, 9999, 20000]])
    torch.testing.assert_close(total, fine, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(part[..., 0], torch.zeros_like(total))
    torch.testing.assert_close(part[..., 3], total)
    tight = torch.trapezoid(rate.log_at(times[:, :10000]).exp(), times[:, :10000], dim=2).detach()
    torch.testing.assert_close(part[..., 2], tight, rtol=1e-6, atol=1e-6)


def test_the_window_s_end_is_no_event_and_neither_is_padding():
    model, z = drifting(), torch.zeros(1, 1, 2).double()
    one = log_likelihood(model, events_at([101.0, 104.0]), z)
    padded = events_at([101.0, 104.0], [101.0, 102.0, 103.0, 105.0])
    assert log_likelihood(model, padded, torch.zeros(1, 2, 2).double())[0, 0] == one[0, 0]
    longer = log_likelihood(model, events_at([101.0, 104.0], window=(100.0, 107.0)), z)
    assert (longer - one).item() == pytest.approx(by_hand([0.0], [], 7.0) - by_hand([0.0], [], 5.0), rel=1e-9)


def test_hidden_events_are_counted_and_told_to_nobody():
    """The posterior does not read when they were; the likelihood does."""
    model, batch = model_of("latent_ode_poisson", double=True), held_out(batch_of())
    hidden = batch.counts & ~batch.seen.any(-1)
    moved = replace(batch, times=torch.where(hidden, batch.times + 1e-3, batch.times))
    with model.fixed_noise(0):
        one, two = model.loss_terms(batch), model.loss_terms(moved)
        seen = [model.predict(b, 3).density.mean[:, b.seen.any(-1)] for b in (batch, moved)]
    assert torch.equal(one.kl, two.kl) and not torch.equal(one.nll, two.nll)
    assert torch.equal(*seen)


def test_over_all_counts_and_times_the_probability_is_one():
    """P(n) by the integral of the weights over ordered times, against the mixed Poisson count of the prior."""
    model, points = drifting(level=-0.5), 8
    place, weight = np.polynomial.legendre.leggauss(points)
    place, weight = START + CLOCK * (1 + place) / 2, weight * CLOCK / 2
    pairs = [(i, j) for i in range(points) for j in range(points)]
    rows = [[], *[[t] for t in place], *[sorted((place[i], place[j])) for i, j in pairs]]
    with model.fixed_noise(0):
        density_ = log_mean_exp(model.log_weights(events_at(*rows), 4000)).exp().numpy()
    found = [
        density_[0],
        (density_[1 : points + 1] * weight).sum(),
        sum(d * weight[i] * weight[j] for d, (i, j) in zip(density_[points + 1 :], pairs, strict=True)) / 2,
    ]
    z = np.linspace(-6, 6, 2001)
    mean = np.exp(-0.5 + 0.6 * z) * (exp(0.6) - 1) / 0.6
    chance = lambda n: np.trapezoid(stats.norm.pdf(z) * np.exp(-mean + n * np.log(mean) - lgamma(n + 1)), z)
    assert found == pytest.approx([chance(n) for n in range(3)], rel=0.03)
    assert sum(found) + sum(chance(n) for n in range(3, 40)) == pytest.approx(1, abs=0.01)


def test_drawn_times_are_as_many_as_the_rate_says_and_where_it_is_high():
    model, window = drifting(level=1.5), torch.tensor([START, START + 3.0], dtype=torch.float64)
    with model.fixed_noise(1):
        draws = model.draw_times(window, 4000)
        again = model.draw_times(window, 10)
    counts = torch.tensor([float(len(t)) for t in draws]).double()
    mean = exp(1.5 + 0.18) * (exp(0.36) - 1) / 0.6  # E exp(0.6 z) = exp(0.18)
    assert (counts.mean() - mean).abs() < 4 * counts.std() / 4000**0.5
    torch.testing.assert_close(torch.cat(again), torch.cat(draws[:10]), rtol=1e-12, atol=1e-6)
    times = torch.cat(draws)
    assert times.dtype == torch.float64 and (times >= START).all() and (times <= START + 3).all()
    later = (times > START + 1.5).double().mean().item()
    share = (exp(0.36) - exp(0.18)) / (exp(0.36) - 1)
    assert later == pytest.approx(share, abs=4 * 0.5 / len(times) ** 0.5)


def test_a_bound_below_the_rate_is_found_out():
    model = turning(2.0, 1.0)
    series = model.standardise(events_at([], []))
    with model.fixed_noise(0):
        rate = model._prior_rate(series, 1)
        bound = torch.tensor([0.1, 1e3]).double() * rate.total()[0]
        assert model._thin(series, rate, bound)[2].tolist() == [True, False]


def test_a_path_whose_bound_is_too_low_moves_no_other(monkeypatch):
    model, window = turning(2.0, 1.0), torch.tensor([START, START + CLOCK]).double()
    thin, bounds = EventTimes._thin, []

    def lowered(self, series, rate, bound):  # at first the first path has a bound that is none
        bounds.append(bound / (1 if bounds else torch.tensor([3.0, 1.0, 1.0]).double()))
        return thin(self, series, rate, bounds[-1])

    with model.fixed_noise(3):
        plain = model.draw_times(window, 3)
        monkeypatch.setattr(EventTimes, "_thin", lowered)
        again = model.draw_times(window, 3)
    assert len(bounds) > 1
    for one, two in zip(plain[1:], again[1:], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-6)


class Events(SeriesData):
    """Times of a model's own draws, one series in ten without any."""

    support = "events"

    def __init__(self, times: list[np.ndarray]):
        super().__init__(50, 0)
        self.times = times

    @property
    def channels(self):
        return ("event",)

    def make(self):
        lengths = [len(t) for t in self.times]
        series = Ragged.joined(
            times=np.concatenate(self.times),
            values=np.ones((sum(lengths), 1)),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            windows=np.tile([START, START + CLOCK], (len(lengths), 1)),
            ids=np.arange(len(lengths)),
        )
        return dict.fromkeys(("train", "val", "test"), series)

    def exact(self, batch):
        """As if the rate were 2 in a unit of time."""
        return batch.counts.sum(1) * log(2.0) - 2.0 * batch.window.diff(dim=1)[:, 0], None


@cache
def drawn() -> Events:
    """Of a strongly periodic process, each series with a phase of its own."""
    model = turning(1.0, 1.5)
    with model.fixed_noise(11):
        return Events(
            [t.numpy() for t in model.draw_times(torch.tensor([START, START + CLOCK], dtype=torch.float64), 150)]
        )


def fit_of(model) -> dict[str, float]:
    with model.fixed_noise(0), torch.no_grad():
        return event_fit(model, drawn(), "test")


def test_rescaled_times_accept_the_true_rate_and_reject_a_constant_one():
    lengths = [len(t) for t in drawn().times]
    assert 0 in lengths and max(lengths) > 8
    constant = turning(log(sum(lengths) / len(lengths)), 0.0)
    true, wrong = fit_of(turning(1.0, 1.5)), fit_of(constant)
    assert true["test/events/ks_p"] > 0.01
    assert wrong["test/events/ks_p"] < 1e-4


def test_rescaled_times_of_a_constant_rate_are_waits_times_the_rate():
    model, batch = turning(log(3.0), 0.0), events_at([100.5, 102.0, 104.0], [], [103.0])
    with model.fixed_noise(0):
        waits, rest = model.rescaled(batch, 7)
    by_rate = torch.tensor([[0.5, 1.5, 2.0], [0, 0, 0], [3.0, 0, 0]], dtype=torch.float64) * 3 / CLOCK
    torch.testing.assert_close(waits, by_rate)
    torch.testing.assert_close(rest, torch.tensor([1.0, 5.0, 2.0]).double() * 3 / CLOCK)


@pytest.mark.slow
def test_events_are_scored_by_their_times_alone():
    model, data = event_model(), drawn()
    found = evaluate(model, data, "test", PROTOCOL, 0) | references(data, PROTOCOL)
    total, count = sum(map(len, data.times)), len(data.times)
    exact = -(total * log(2.0) - 2.0 * CLOCK * count) / total
    assert found["reference/exact/nll_events"] == pytest.approx(exact)
    assert found["test/nll_events"] - exact == pytest.approx(found["test/nll_events_above_exact"])
    assert {"test/nll", "test/nll_joint"}.isdisjoint(found) and not any("interpolation" in k for k in found)
    assert {"test/nll_events_above_exact_se", "test/events/ks", "test/events/ks_p", "test/loss"} <= found.keys()
    assert "nll_events" in run_table.facts(found, "test") and "Kolmogorov" in run_table.facts(found, "test")


def test_a_split_without_any_event_has_finite_scores():
    data = Events([np.zeros(0)] * 3)
    found = evaluate(event_model(), data, "test", PROTOCOL, 0) | references(data, PROTOCOL, event_scale())
    assert np.isfinite(list(found.values())).all() and "test/events/ks" not in found


def test_values_and_times_add_up_to_both():
    """Of one draw from the same posterior: log p(x, t | z) = log p(x | z, t) + log p(t | z)."""
    model, batch = model_of("latent_ode_poisson", double=True), density(batch_of())
    terms = {}
    for parts in (("values",), ("events",), ("values", "events")):
        with model.fixed_noise(0), model.only(*parts):
            terms[parts] = model.loss_terms(batch).nll
    torch.testing.assert_close(terms["values",] + terms["events",], terms["values", "events"])
    with model.fixed_noise(0):
        torch.testing.assert_close(model.loss_terms(batch).nll, terms["values", "events"])


def test_every_parameter_of_an_event_model_gets_a_gradient():
    model = event_model(depth=1)
    terms = model.loss_terms(events_at([101.0, 102.0], [103.0], []))
    (terms.nll + terms.kl).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_events_need_a_model_of_times():
    with pytest.raises(ValueError, match="model=latent_ode_poisson model/head=events"):
        LatentODE(event_scale(), recipe_of(), EventHead)
    with pytest.raises(ValueError, match="point_process=true"):
        model_of("latent_ode").draw_times(torch.tensor([0.0, 1.0]).double(), 2)


@pytest.mark.slow
def test_a_rate_needs_windows_of_some_length():
    """In a moment the density of an event has no bound."""
    with pytest.raises(ConfigError, match="single moment"):
        assemble(compose(["model=latent_ode_poisson", "model/head=bernoulli", "data=digits", "task=density"]))


@pytest.mark.parametrize(
    "task", [["task=within"], ["task=forecast", "task.scored=held_out"], ["task=interpolate", "task.scored=held_out"]]
)
def test_a_task_that_leaves_events_unscored_is_refused(task):
    with pytest.raises(ConfigError, match="task=density"):
        assemble(compose(["model=latent_ode_poisson", "data=periodic", *task]))
    assert assemble(compose(["model=latent_ode_poisson", "data=periodic", "task=mixed"])).model.point_process


def test_real_values_of_a_point_process_are_scored_apart_from_their_times():
    parts = assemble(compose(["model=latent_ode_poisson", "data=ou", "data.train=20", "data.test=6"]))
    found = evaluate(parts.model, parts.data, "test", PROTOCOL, 0)
    assert {"test/nll", "test/nll_events", "test/nll_joint", "test/nll_above_exact", "test/events/ks"} <= found.keys()
    assert not any(k.startswith(("test/nll_events_above", "test/nll_joint_above")) for k in found)
