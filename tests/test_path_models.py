"""The VAE against probabilistic PCA, and the RNN-VAE's path against its own recursion."""

from dataclasses import replace

import pytest
import torch
from linear import linear_vae, whole_points
from small import asked, batch_of, density, model_of, scale_of

from vrnn_lab.losses import log_mean_exp
from vrnn_lab.models import rnn_vae
from vrnn_lab.series import series_of


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
    head = {"_target_": "vrnn_lab.likelihoods.BernoulliHead", "_partial_": True}
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
