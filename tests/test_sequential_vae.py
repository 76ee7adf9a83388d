"""The sequential VAEs: posteriors that read ahead, Markov priors, dropout, and remedies for collapse."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from helpers.small import asked, batch_of, density, held_out, model_of, recipe_of, scale_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check
from vrnn_lab.core.series import series_of
from vrnn_lab.data.steps import in_steps
from vrnn_lab.models.heads import BernoulliHead
from vrnn_lab.models.latent_steps import BackwardNetwork, GatedTransition
from vrnn_lab.models.losses import Latents, LossTerms, Normal
from vrnn_lab.models.recipe import ELBO, FIVO, BalancedKL, ConstantBeta, FreeBits, Recipe, cosine
from vrnn_lab.reports.run_table import facts

ADAM = partial(torch.optim.Adam, lr=5e-3)
SMOOTH = "vrnn model.posterior=smooth"
KINDS = [SMOOTH, f"{SMOOTH} model.prior=markov", f"{SMOOTH} model.residual=true", f"{SMOOTH} model.level=last"]


def step_by_step(network: BackwardNetwork, features, gap, counts, stop):
    """The states of the network by the definition, one row and one point at a time."""
    out = torch.zeros(*gap.shape, network.memory.size, dtype=features.dtype)
    inputs = network._inputs(features, gap, None)
    for row in range(len(gap)):
        state = torch.zeros(network.memory.size, dtype=features.dtype)
        for i in reversed(range(int(counts[row].sum()))):
            before = torch.zeros_like(state) if stop[row, i] else state
            state = network.memory(network.memory.gates(inputs[row, i]), before)
            out[row, i] = state
    return out


def test_a_backward_network_summarises_each_point_and_those_after_it():
    torch.manual_seed(0)
    network = BackwardNetwork(4, 0, 5).double()
    features, gap = torch.randn(3, 7, 4).double(), torch.rand(3, 7).double()
    counts = torch.arange(7) < torch.tensor([[7], [4], [1]])
    nowhere, some = torch.zeros(3, 7, dtype=torch.bool), torch.rand(3, 7) < 0.4
    whole = network.over(features, gap, None, counts)
    torch.testing.assert_close(whole[counts], step_by_step(network, features, gap, counts, nowhere)[counts])
    parts = network.within_stretches(features, gap, None, counts, some)
    torch.testing.assert_close(parts[counts], step_by_step(network, features, gap, counts, some)[counts])
    assert not torch.allclose(parts[0], whole[0])


@pytest.mark.parametrize("name", KINDS)
def test_no_prediction_reads_a_value_after_its_own_time(name):
    model, batch = model_of(name, double=True), asked(batch_of(20, 10))
    for place in range(2, 9):
        later = (torch.arange(10) > place)[:, None] & batch.seen
        other = replace(batch, values=torch.where(later, batch.values + 50.0, batch.values))
        with model.fixed_noise(5):
            one, two = model.predict(batch, 3), model.predict(other, 3)
        asks = (batch.scored & ~batch.seen).any(-1) & (torch.arange(10) <= place)
        torch.testing.assert_close(one.density.mean[:, asks], two.density.mean[:, asks], rtol=0, atol=0)


def test_a_smoothing_posterior_does_read_the_values_after_a_point():
    batch = density(batch_of(4, 6))
    changed = replace(batch, values=torch.where((torch.arange(6) == 5)[:, None], batch.values + 3, batch.values))
    for name, reads in (("vrnn", False), (SMOOTH, True)):
        model = model_of(name, double=True)
        first = []
        for each in (batch, changed):
            with model.fixed_noise(1):
                first.append(model._terms(model.standardise(each), 2)[1].mean[:, :, 0])
        assert torch.equal(*first) is not reads


def test_the_mean_of_a_residual_posterior_is_the_priors_plus_the_networks():
    plain, residual = model_of(SMOOTH, double=True), model_of(f"{SMOOTH} model.residual=true", double=True)
    residual.load_state_dict(plain.state_dict())
    from_x, state = torch.randn(5, 12).double(), torch.randn(5, 12).double()
    one, two = plain._posterior(from_x, state), residual._posterior(from_x, state)
    torch.testing.assert_close(two.mean, one.mean + plain._prior(state).mean)
    torch.testing.assert_close(two.log_std, one.log_std)


def test_a_gated_transition_that_is_shut_keeps_the_latent():
    torch.manual_seed(1)
    transition, state = GatedTransition(3, 2, 8, 1, "tanh"), torch.randn(6, 5)
    torch.nn.init.constant_(transition.gate[-1].bias, -50.0)
    mean, log_std = transition(state).chunk(2, -1)
    torch.testing.assert_close(mean, state[:, :3])
    assert log_std.shape == (6, 3)


def test_with_a_markov_prior_the_past_reaches_a_point_through_its_latent_alone():
    """Given z_i, neither the output at point i nor the prior of point i + 1 depends on any value before."""
    model, batch = model_of("vrnn model.prior=markov", double=True), density(batch_of(3, 5))
    other = replace(batch, values=torch.where((torch.arange(5) < 3)[:, None], batch.values + 9, batch.values))
    z = torch.randn(4, 3, 3).double()
    results = []
    for each in (batch, other):
        inputs, _ = model._prepare(model.standardise(each))
        state = model._step(inputs[4], model._carry(z, model._features_of_z(z)), torch.randn(4, 3, model.state_size))
        results.append((model._prior(state).mean, model._output(model._features_of_z(z), state)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["vrnn", f"{SMOOTH} model.prior=markov", "rnn", "gru_d", "ode_rnn"])
def test_dropout_acts_in_training_alone_and_there_on_the_share_asked_for(name):
    plain, dropping = model_of(name, double=True), model_of(f"{name} model.dropout=0.3", double=True)
    batch = held_out(batch_of())
    loss = lambda model: torch.stack([model.loss_terms(batch).nll, model.loss_terms(batch).kl])
    for model in (plain, dropping):
        model.noise.seed(3, device=torch.device("cpu"))
    assert not torch.allclose(loss(plain), loss(dropping))
    with plain.fixed_noise(3), dropping.fixed_noise(3):
        assert torch.equal(loss(plain), loss(dropping))
        one, two = plain.predict(asked(batch), 3), dropping.predict(asked(batch), 3)
    assert torch.equal(one.paths, two.paths)
    wide = torch.ones(5, 8, 5000).double()
    dropped = dropping._dropped("any", batch, wide)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)  # 4.9 standard errors


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_all_or_less_than_nothing_cannot_be_dropped(share):
    with pytest.raises(ConfigError, match=rf"model\.dropout={share}: expected a fraction from 0 and below 1"):
        check(compose(["model=rnn", f"model.dropout={share}"]))


def test_a_filter_bound_of_a_smoothing_posterior_is_unbiased():
    """Over all outcomes of three points of one binary channel, the expected exponential of the bound sums to one."""
    scale = replace(scale_of(1, support="binary"), mean=torch.zeros(1).double(), std=torch.ones(1).double())
    model = model_of(f"{SMOOTH} model/head=bernoulli", scale, recipe=Recipe(ADAM, cosine, objective=FIVO(4)))
    torch.nn.init.constant_(model.posterior_out.bias[model.latent :], 0.7)
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)[:, :, None].repeat(2000, 1, 1)
    times = torch.tensor([[101.0, 102.0, 104.5]]).double().expand(len(outcomes), 3)
    batch = density(
        series_of(times, outcomes, window=torch.tensor([[100.0, 105.0]]).double().expand(len(outcomes), 2))
    )
    with torch.no_grad():
        bound = -model.loss_terms(batch).nll.double()
    each = bound.exp().view(2000, 8).sum(1)
    assert (each.mean() - 1).abs() < 4 * each.std() / 2000**0.5


# remedies for collapse


def test_free_bits_count_the_kl_of_each_dimension_above_a_limit():
    kl = torch.tensor([[0.5, 3.0], [0.1, 0.2]], requires_grad=True)
    latents = Latents(kl, torch.tensor([10.0, 1.0]), torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    terms = LossTerms(torch.zeros(2), kl.sum(-1) + torch.tensor([0.0, 7.0]), latents)
    penalty = FreeBits(0.15).penalty(terms)
    torch.testing.assert_close(penalty, torch.tensor([1.5 + 3.0, 0.15 + 0.2 + 7.0]))
    (slope,) = torch.autograd.grad(penalty.sum(), kl)
    assert slope.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("name", ["vrnn", "vae", "latent_ode", "latent_sde", "rnn_vae", "latent_ode_poisson"])
def test_free_bits_reach_the_training_of_every_model_with_latents(name):
    weights = (ConstantBeta(), FreeBits(1e-9), FreeBits(1e6))
    gradients = []
    batch = held_out(batch_of())
    for beta in weights:
        model = model_of(name, double=True, recipe=replace(recipe_of(), beta=beta))
        model.noise.seed(3, device=torch.device("cpu"))
        terms = model.loss_terms(batch)
        penalty = terms.kl if terms.penalty is None else terms.penalty
        gradients.append(
            torch.autograd.grad((terms.nll + penalty).sum(), list(model.parameters()), allow_unused=True)
        )
    same = lambda i: all(a is b or torch.allclose(a, b) for a, b in zip(gradients[0], gradients[i], strict=True))
    assert same(1) and not same(2)


def test_a_balanced_kl_divides_the_gradient_between_prior_and_posterior():
    means = torch.randn(2, 4, 3, requires_grad=True)
    q, p = Normal(means[0], torch.full((4, 3), -0.5)), Normal(means[1], torch.zeros(4, 3))
    (plain,) = torch.autograd.grad(q.kl(p).sum(), means)
    kl = BalancedKL(0.75).kl_each(q, p)
    torch.testing.assert_close(kl, q.kl_each(p))
    (balanced,) = torch.autograd.grad(kl.sum(), means)
    torch.testing.assert_close(balanced, plain * torch.tensor([0.25, 0.75])[:, None, None])


def test_a_balanced_kl_reaches_the_prior_of_a_vrnn():
    gradients = []
    for share in (0.0, 1.0):
        model = model_of("vrnn", double=True, recipe=replace(recipe_of(), beta=BalancedKL(share)))
        model.loss_terms(held_out(batch_of())).kl.sum().backward()
        gradients.append([p.grad for p in model.prior.parameters()])
    assert all(g is None or not g.any() for g in gradients[0])
    assert all(g.any() for g in gradients[1])


@pytest.mark.parametrize(
    "name, beta",
    [("rnn", FreeBits()), ("neural_ode", FreeBits()), ("linear_sde", FreeBits())]
    + [(name, BalancedKL()) for name in ("rnn", "vae", "latent_ode", "latent_sde", "vrnn model.prior=standard")],
)
def test_a_weight_that_a_model_cannot_use_is_refused(name, beta):
    with pytest.raises(ConfigError, match=r"beta=(free_bits|balance) .* set beta=constant"):
        model_of(name, recipe=replace(recipe_of(), beta=beta))


@pytest.mark.parametrize(
    ("options", "beta", "objective"),
    [
        ("model.prior=standard model.residual=true", ConstantBeta(), ELBO()),
        ("model.residual=true model.dropout=0.2", ConstantBeta(), ELBO()),
        ("model.residual=true", BalancedKL(), ELBO()),
        ("model.dropout=0.2", ConstantBeta(), FIVO(3)),
        ("model.prior=markov model.dropout=0.2", ConstantBeta(), FIVO(3)),
    ],
)
def test_options_of_which_one_would_undo_the_other_are_refused(options, beta, objective):
    with pytest.raises(ConfigError, match="leave one of the two options out"):
        model_of(f"vrnn {options}", recipe=replace(recipe_of(), beta=beta, objective=objective))


def test_a_collapsed_model_is_called_one():
    metrics = {"test/nll": 1.0, "test/nll_samples": 10, "test/latent/kl_0": 0.0, "test/latent/kl_1": 0.001}
    assert "posterior collapse" in facts({**metrics, "test/latent/active_units": 0.0}, "test")
    assert "posterior collapse" not in facts({**metrics, "test/latent/active_units": 1.0}, "test")


# binary values that are rarely one


def test_a_binary_output_begins_at_the_share_of_ones():
    share = torch.tensor([0.0, 0.04, 0.5]).double()
    scale = replace(scale_of(3, support="binary"), share_of_ones=share)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    torch.nn.init.zeros_(network[0].weight)
    torch.nn.init.zeros_(network[0].bias)
    head = BernoulliHead(scale)
    mean = head(head.begin(network)(torch.randn(2, 4))).mean
    torch.testing.assert_close(mean, torch.tensor([0.001, 0.04, 0.5]).expand(2, 3))


def test_the_share_of_ones_is_counted_over_the_known_training_values():
    rolls = [torch.tensor([[1.0, 0.0], [1.0, float("nan")]]).numpy(), torch.tensor([[0.0, 1.0]]).numpy()]
    scale = in_steps(rolls, ["a", "b"]).scale(("x", "y"), "binary")
    assert scale.share_of_ones.tolist() == pytest.approx([2 / 3, 1 / 2])
