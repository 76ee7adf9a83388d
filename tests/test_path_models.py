"""The VAE against probabilistic PCA, the RNN-VAE's path against its own recursion, latents of single channels."""

from dataclasses import replace

import pytest
import torch

from helpers.linear import linear_vae, whole_points
from helpers.small import asked, batch_of, density, held_out, model_of, scale_of
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import series_of
from vrnn_lab.models import rnn_vae
from vrnn_lab.models.encoders import RECENT, channel_summary
from vrnn_lab.models.networks import Levels


@pytest.mark.parametrize("dim", [1, 3])
def test_the_linear_vae_with_its_posterior_has_the_likelihood_of_probabilistic_pca(dim):
    model, marginal = linear_vae(dim)
    batch = whole_points(dim)
    log_p = marginal.log_prob(batch.values).sum(1)
    with model.fixed_noise(0):
        torch.testing.assert_close(model.log_weights(batch, 3), log_p.expand(3, -1))


def test_the_vae_knows_nothing_of_time_or_of_other_points():
    model, batch = model_of("vae", double=True), density(batch_of())
    moved = replace(batch, times=batch.times.flip(0) * 3, window=batch.window.flip(0) * 3)
    found = []
    for question in (batch, moved):
        model.noise.seed(0, device=torch.device("cpu"))
        found.append(model.log_weights(question, 3))
    torch.testing.assert_close(*found)
    with model.fixed_noise(0):
        less = asked(batch)
        first = replace(less, seen=less.seen & (torch.arange(8) < 1)[:, None], scored=less.known)
        one, two = model.predict(less, 3).density.mean, model.predict(first, 3).density.mean
    unseen = ~less.seen.any(-1)
    torch.testing.assert_close(one[:, unseen], two[:, unseen])


def test_where_nothing_of_a_point_is_seen_the_vae_answers_with_its_prior():
    model, marginal = linear_vae(2)
    batch = replace(whole_points(2), seen=torch.zeros(5, 8, 2, dtype=torch.bool))
    with model.fixed_noise(0):
        paths = model.predict(batch, 2000).paths.flatten(0, 2)
    assert ((paths.mean(0) - marginal.mean).abs() < 0.03 * marginal.stddev).all()
    torch.testing.assert_close(
        paths.T.cov() / marginal.covariance_matrix, torch.ones(2, 2).double(), rtol=0, atol=0.05
    )


def test_binary_points_go_with_a_bernoulli_head():
    scale = replace(scale_of(support="binary"), mean=torch.zeros(2).double(), std=torch.ones(2).double())
    head = {"_target_": "vrnn_lab.models.heads.BernoulliHead", "_partial_": True}
    batch = batch_of()
    batch = density(replace(batch, values=(batch.values > -6).double()))
    for name in ("vae", "rnn_vae"):
        model = model_of(name, scale, head=head)
        with model.fixed_noise(0):
            paths = model.predict(asked(batch), 3).paths[:, asked(batch).counts]
            bound = log_mean_exp(model.log_weights(batch, 500))
        assert ((paths == 0) | (paths == 1)).all()
        assert (bound < 0).all()  # a probability


def test_the_rnn_vae_at_its_nodes_is_the_recursion_and_held_before_the_start():
    model = model_of("rnn_vae", double=True)
    step = model.data_clock / 6
    times = 100 + step * torch.tensor([[-3.0, 0.0, 1.0, 2.0, 2.5, 9.0]], dtype=torch.float64)
    batch = series_of(times, torch.full((1, 6, 2), torch.nan), window=[[100.0, 105.0]])
    z = torch.randn(4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = model._states(model.standardise(batch), z)[:, 0].unbind(1)
    state = torch.tanh(model.start(z[:, 0]))
    states = [state]
    for _ in range(9):
        state = model.memory(model.memory.gates(z[:, 0]), state)
        states.append(state)
    expected = [states[0], states[0], states[1], states[2], (states[2] + states[3]) / 2, states[9]]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


def test_in_training_the_rnn_vae_covers_the_longest_window_without_asking_the_device(monkeypatch):
    scale = replace(scale_of(), longest=torch.tensor(12.5, dtype=torch.float64))
    model, batch = model_of("rnn_vae", scale, double=True), density(batch_of())
    late = replace(batch, times=batch.times + 7.0)
    with model.fixed_noise(0):
        asked_device = model.loss_terms(late).nll
        monkeypatch.setattr(rnn_vae, "steps_to_cover", None)
        torch.testing.assert_close(model.loss_terms(replace(late, in_training=True)).nll, asked_device)


def test_however_long_before_the_window_the_rnn_vae_holds_its_first_state():
    model, batch = model_of("rnn_vae", double=True), asked(batch_of())
    moved = lambda by: replace(batch, times=batch.times.index_fill(1, torch.tensor([0]), 0) - by)
    early = [replace(b, seen=batch.seen & (torch.arange(8) > 0)[:, None]) for b in (moved(1e2), moved(1e9))]
    early = [replace(b, times=torch.cat([b.times[:, :1], batch.times[:, 1:]], 1)) for b in early]
    with model.fixed_noise(0):
        one, two = (model.predict(b, 2).density.mean[:, :, 0] for b in early)
    torch.testing.assert_close(one, two)


def test_levels_are_sums_of_what_fades_at_rates_of_its_own():
    levels, z = Levels(3, 2), torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    elapsed = torch.tensor([[-1.0, 0.0, 0.5, 2.0]], dtype=torch.float64).expand(4, 4)
    found = levels(z, elapsed)
    rate = torch.nn.functional.softplus(levels.rate)
    assert rate[0].max() < 0.02 and rate[1].min() > 1  # one lasts, one fades
    for i, time in enumerate([0.0, 0.0, 0.5, 2.0]):
        each = z.view(5, 4, 2, 3) * torch.exp(-rate * time)
        torch.testing.assert_close(found[:, :, i], each.sum(2))


def test_a_summary_of_channels_is_that_of_a_loop_over_them():
    batch = held_out(batch_of(6, 9, 3))
    model = model_of("latent_ode", scale_of(3), double=True)
    series = model.standardise(batch)
    found = channel_summary(series, series.times)
    latest = torch.where(series.seen.any(-1), series.times, -torch.inf).amax(1)
    for row in range(6):
        for channel in range(3):
            there = series.seen[row, :, channel]
            values, times = series.values[row, there, channel].double(), series.times[row, there]
            if not len(values):
                assert (found[row, :, channel] == 0).all()
                continue
            weight = torch.exp((times - latest[row]) / RECENT)
            expected = [
                values[-1],
                values.sum() / (len(values) + 1),
                (weight * values).sum() / (weight.sum() + 0.1),
                torch.log1p(torch.tensor(float(len(values)))),
                torch.exp((times[-1] - latest[row]) / RECENT),
                1.0,
            ]
            torch.testing.assert_close(found[row, :, channel], torch.tensor(expected).to(found), rtol=1e-4, atol=1e-5)


def test_a_level_moves_its_own_channel_alone_and_starts_at_what_was_seen_of_it():
    model = model_of("latent_ode model.levels=2", scale_of(3), decoder_depth=0)
    with torch.no_grad():
        for part in (model.recognition.posterior[-1], model.decoder[-1]):
            part.weight.zero_(), part.bias.zero_()
    batch = held_out(batch_of(6, 9, 3))
    series = model.standardise(batch)
    told = channel_summary(series, series.times)
    posterior = model._encode(series)
    torch.testing.assert_close(posterior.mean[:, model.moving :][:, :3], told[:, :2].mean(1))
    states = model._states(series, posterior.mean[None])
    torch.testing.assert_close(model._decode(states).mean, states[..., model.moving :])
