"""The latent SDE's chain, its change of measure and its bound, against closed forms of a linear chain."""

from dataclasses import replace
from math import log

import pytest
import torch
import torchsde
from torch.distributions import MultivariateNormal

from helpers.small import batch_of, density, model_of, scale_of
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import Scale

NODES, LATENT = 8, 2
both_posteriors = pytest.mark.parametrize("posterior", ["shared", "narrowed"])


def linear_model(posterior: str = "narrowed", scale: Scale | None = None, **keys):
    """dz = (A z + b) dt + sigma dW, x = C z + d + noise."""
    model = model_of(
        "latent_sde", scale, True, latent=LATENT, nodes=NODES, depth=0, decoder_depth=0, posterior=posterior, **keys
    )
    torch.nn.init.normal_(model.steering.told[-1].weight, std=0.05)  # a posterior that is far from the prior
    return model


def rows(count: int = 3):
    return density(batch_of(count, 4, dim=1, scale=scale_of(1)))


def chain(model, batch, samples: int = 4000):
    with torch.no_grad(), model.fixed_noise(3):
        return model._chain(model.standardise(batch), samples)


def closed_form(model):
    """Mean and covariance of all states of the prior's chain, end to end."""
    field, step = model.field.layers[0], 1 / NODES
    move = torch.eye(LATENT).double() + step * model.field.rate * field.weight.detach()
    drift = step * model.field.rate * field.bias.detach()
    noise = step * (2 * model.log_sigma.detach()).exp().diag()
    mean, covariance = [torch.zeros(LATENT).double()], torch.zeros(NODES + 1, NODES + 1, LATENT, LATENT).double()
    covariance[0, 0] = torch.eye(LATENT)
    for k in range(NODES):
        mean.append(move @ mean[-1] + drift)
        for i in range(k + 1):
            covariance[k + 1, i] = move @ covariance[k, i]
            covariance[i, k + 1] = covariance[k + 1, i].T
        covariance[k + 1, k + 1] = move @ covariance[k, k] @ move.T + noise
    size = (NODES + 1) * LATENT
    return torch.cat(mean), covariance.permute(0, 2, 1, 3).reshape(size, size)


def exact(model, batch):
    """log p(x) of the chain: its states are jointly Gaussian, and x is linear in them."""
    standard = model.standardise(batch)
    mean, covariance = closed_form(model)
    read, std = model.decoder[0], model.head(torch.zeros(1, 1).double()).std[0].detach()
    place = standard.times / model.step
    left = place.floor().clamp(max=NODES - 1).long()
    out = []
    for i in range(len(batch.ids)):
        there, share = batch.known[i, :, 0], place[i] - left[i]
        hat = torch.zeros(len(share), NODES + 1).double()
        hat[torch.arange(len(share)), left[i]] += 1 - share
        hat[torch.arange(len(share)), left[i] + 1] += share
        observe = torch.einsum("tk,l->tkl", hat, read.weight.detach()[0]).flatten(1)[there]
        noise = std.square() * torch.eye(len(observe)).double()
        law = MultivariateNormal(observe @ mean + read.bias.detach(), observe @ covariance @ observe.T + noise)
        out.append(law.log_prob(standard.values[i, there, 0]) - there.sum() * model.data_std.log()[0])
    return torch.stack(out)


@both_posteriors
def test_with_nothing_seen_the_states_are_those_of_the_prior_s_chain(posterior):
    model, batch = linear_model(posterior, scale_of(1)), rows(1)
    _, _, steps = chain(model, replace(batch, seen=torch.zeros_like(batch.seen)), 40_000)
    states = steps.states[:, :, 0].transpose(0, 1).flatten(1)
    mean, covariance = closed_form(model)
    spread = covariance.diagonal().sqrt()
    assert ((states.mean(0) - mean).abs() < 5 * spread / 200).all()
    assert ((states.T.cov() - covariance).abs() < 5 * spread[:, None] * spread * (2 / 40_000) ** 0.5).all()
    assert (steps.log_ratio == 0).all() and (steps.kl == 0).all()


@both_posteriors
def test_the_ratio_of_the_paths_measures_averages_to_one(posterior):
    """E_q[p / q] = 1, and not without the integral of u dW."""
    _, _, steps = chain(linear_model(posterior, scale_of(1)), rows(), 40_000)
    ratio = steps.log_ratio.exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert (steps.log_ratio.std(0) > 0.05).all() and (error < 0.05).all()
    assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
    if posterior == "shared":
        by_hand = -(steps.pull * steps.noise + 0.5 * steps.pull**2).sum((0, 3))
        torch.testing.assert_close(steps.log_ratio, by_hand)
        without = replace(steps, noise=torch.zeros_like(steps.noise)).log_ratio.exp()
        assert ((without.mean(0) - 1).abs() > 10 * without.std(0) / len(without) ** 0.5).all()


@both_posteriors
def test_the_kl_is_minus_the_mean_log_ratio(posterior):
    _, _, steps = chain(linear_model(posterior, scale_of(1)), rows(), 40_000)
    both = steps.kl.sum(-1) + steps.log_ratio
    assert (both.mean(0).abs() < 4 * both.std(0) / len(both) ** 0.5).all()
    assert (steps.kl.sum(-1).mean(0) > 0.01).all()


@pytest.mark.slow
@both_posteriors
def test_the_weights_average_to_the_exact_likelihood_and_the_bounds_stay_below(posterior):
    model, batch = linear_model(posterior, scale_of(1)), rows(6)
    with model.fixed_noise(3):
        weights = model.log_weights(batch, 40_000)
        terms = model.loss_terms(batch)
    truth = exact(model, batch)
    effective = 1 / weights.softmax(0).square().sum(0)
    assert (effective > 100).all()
    assert ((log_mean_exp(weights) - truth).abs() < 5 / effective.sqrt()).all()
    assert (log_mean_exp(weights.view(10, 4000, -1)).mean(0) < truth).all()
    assert (-(terms.nll + terms.kl)).mean() < truth.mean()


def test_steps_are_steered_up_to_the_one_that_holds_the_last_seen_point():
    model, batch = linear_model(scale=scale_of(1)), rows(1)
    start, length = batch.window[:, :1], batch.window[:, 1:] - batch.window[:, :1]
    times = start + length * torch.tensor([[-0.5, 0.3, 0.55, 0.9]]).double()  # in steps: before, 2.4, 4.4, 7.2
    values = batch.values[:, :4]
    seen = torch.tensor([[True, True, True, False]])[..., None]
    batch = replace(batch, times=times, values=values, seen=seen, scored=~seen, clean=None)
    _, start, steps = chain(model, batch, 5)
    steered = (steps.pull != 0).any(-1)
    assert steered[:5].all() and not steered[5:].any()
    states = model._points(model.standardise(batch), steps)
    torch.testing.assert_close(states[:, :, 0], start)
    torch.testing.assert_close(states[:, :, 2], 0.6 * steps.states[4] + 0.4 * steps.states[5])


def test_a_point_on_a_node_leads_the_step_before_it_and_no_later_one():
    model, batch = linear_model(scale=scale_of(1)), rows(1)
    times = (batch.window[:, :1] + (batch.window[:, 1:] - batch.window[:, :1]) * 4 / NODES).expand(1, 1)
    batch = replace(
        batch, times=times, values=batch.values[:, :1], seen=times[..., None] > 0, scored=times[..., None] > 0
    )
    standard = model.standardise(replace(batch, window=torch.tensor([[0.0, 8.0]]).double(), times=times * 0 + 2.5))
    reading = model.encoder(standard, standard.times)
    nodes = torch.arange(NODES, dtype=torch.float64)[None] / NODES
    assert model._plan(reading, nodes)[0].flatten().tolist() == [1.0] * 4 + [0.0] * 4


def test_fresh_noise_is_as_large_as_it_is_told():
    assert model_of("latent_sde", sigma=3.0).log_sigma.tolist() == pytest.approx([log(3.0)] * 3)


def test_windows_too_long_for_the_steps_are_refused():
    with pytest.raises(ValueError, match=r"data\.window"):
        model_of("latent_sde", replace(scale_of(), longest=torch.tensor(1e5).double()))


def test_paths_and_their_kl_are_those_of_torchsde_which_leaves_out_what_makes_a_weight():
    """Its Euler on the same noise walks the same paths; its logqp is our KL of the steps, not the log ratio."""
    model, batch = linear_model("shared", scale_of(1)), rows(3)
    series = model.standardise(batch)
    with torch.no_grad(), model.fixed_noise(3):
        _, start, steps = model._chain(series, 5)
        reading = model.encoder(series, series.times)
        times = (torch.arange(NODES).double() / NODES).expand(3, -1)
        there, *plan, _ = model._plan(reading, times)
    sigma = model.log_sigma.detach().exp()

    class Noise(torchsde.BaseBrownian):
        dtype, device, shape, levy_area_approximation = torch.float64, start.device, (15, LATENT + 1), "none"

        def __call__(self, ta, tb=None, return_U=False, return_A=False):
            increment = steps.noise[round(float(ta) * NODES)].reshape(15, LATENT) / NODES**0.5
            return torch.nn.functional.pad(increment, (0, 1))  # one for the logqp it carries along

        def __repr__(self):
            return "noise"

        def size(self):
            return self.shape

    class SDE(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            k = round(float(t) * NODES)
            state = y.view(5, 3, LATENT)
            pull = there[k] * model.steering(state, *(part[k] for part in plan))
            return self.h(t, y) + (sigma * pull * NODES**0.5).view(15, LATENT)

        def h(self, t, y):
            return model.field(t, y)

        def g(self, t, y):
            return sigma.expand_as(y)

    grid = torch.arange(NODES + 1).double() / NODES
    with torch.no_grad():
        found, logqp = torchsde.sdeint(
            SDE(), start.reshape(15, LATENT), grid, bm=Noise(), method="euler", dt=1 / NODES, logqp=True
        )
    torch.testing.assert_close(found.view(NODES + 1, 5, 3, LATENT), steps.states)
    torch.testing.assert_close(logqp.sum(0).view(5, 3), steps.kl.sum(2))
    assert not torch.allclose(-logqp.sum(0).view(5, 3), steps.log_ratio, atol=0.1)
