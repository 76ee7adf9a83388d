"""The densities beside the Gaussian, against torch.distributions and SciPy, in float64."""

from dataclasses import replace
from math import sqrt

import pytest
import scipy.stats
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from helpers.small import scale_of
from vrnn_lab.core.densities import Bernoulli, Laplace
from vrnn_lab.models.heads import FLOOR, BernoulliHead, GaussianHead, LaplaceHead, MixtureHead, on_floor

POINTS, COMPONENTS = 6, 3
EVERYTHING = torch.ones(POINTS, 2, dtype=torch.bool)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(covariance: str, dim: int = 2):
    head = MixtureHead(scale_of(dim), COMPONENTS, covariance).double()
    return head(1.5 * normals(POINTS, head.width, seed=1))


def whole(density):
    """The same mixture, by torch, over both channels."""
    rho = density.correlation
    covariance = torch.diag_embed(density.stds.square())
    covariance[..., 0, 1] = covariance[..., 1, 0] = rho * density.stds.prod(-1)
    return MixtureSameFamily(Categorical(logits=density.log_weight), MultivariateNormal(density.means, covariance))


def marginal(density, channel: int):
    each = Normal(density.means[..., channel], density.stds[..., channel])
    return MixtureSameFamily(Categorical(logits=density.log_weight), each)


both_covariances = pytest.mark.parametrize("covariance", ["diagonal", "full"])


@both_covariances
def test_a_mixture_is_that_of_torch_jointly_and_channel_by_channel(covariance):
    density, value = mixture(covariance), normals(POINTS, 2)
    torch.testing.assert_close(density.log_prob(value, EVERYTHING), whole(density).log_prob(value))
    for channel in range(2):
        alone = marginal(density, channel)
        torch.testing.assert_close(density.log_prob_each(value)[:, channel], alone.log_prob(value[:, channel]))
        torch.testing.assert_close(density.mean[:, channel], alone.mean)
        torch.testing.assert_close(density.std[:, channel], alone.stddev)


def test_a_mixture_of_many_channels_is_one_component_for_all_of_them():
    density, value = mixture("diagonal", dim=4), normals(POINTS, 4)
    truth = MixtureSameFamily(
        Categorical(logits=density.log_weight), Independent(Normal(density.means, density.stds), 1)
    )
    torch.testing.assert_close(density.log_prob(value, torch.ones(POINTS, 4).bool()), truth.log_prob(value))
    mask = torch.tensor([True, False, True, False]).expand(POINTS, 4)
    part = replace(density, means=density.means[..., ::2], stds=density.stds[..., ::2])
    torch.testing.assert_close(
        density.log_prob(value, mask), part.log_prob(value[:, ::2], torch.ones(POINTS, 2).bool())
    )


@both_covariances
@pytest.mark.parametrize("channel", [0, 1])
def test_a_missing_channel_leaves_the_marginal_of_the_other(covariance, channel):
    density, value = mixture(covariance), normals(POINTS, 2)
    mask = torch.zeros(POINTS, 2, dtype=torch.bool)
    mask[:, channel] = True
    wild = torch.where(mask, value, 1e9)
    torch.testing.assert_close(density.log_prob(wild, mask), marginal(density, channel).log_prob(value[:, channel]))
    assert torch.equal(density.log_prob(wild, ~EVERYTHING), torch.zeros(POINTS, dtype=torch.float64))


@both_covariances
@pytest.mark.parametrize("channel", [0, 1])
def test_given_one_channel_the_other_follows_bayes(covariance, channel):
    density, value = mixture(covariance), normals(POINTS, 2)
    mask = torch.zeros(POINTS, 2, dtype=torch.bool)
    mask[:, channel] = True
    told = density.given(value, mask)
    joint, alone = density.log_prob(value, EVERYTHING), density.log_prob(value, mask)
    torch.testing.assert_close(told.log_prob_each(value)[:, 1 - channel], joint - alone)
    torch.testing.assert_close(told.log_prob(value, ~mask), joint - alone)
    free = density.given(value, ~EVERYTHING)
    torch.testing.assert_close(free.log_prob(value, EVERYTHING), joint)


@both_covariances
def test_draws_of_a_mixture_have_its_joint_moments(covariance):
    density = mixture(covariance)
    draws = density.map(lambda x: x.expand(200_000, *x.shape)).draw(normals(200_000, POINTS, 3))
    truth = whole(density)
    error = truth.stddev / sqrt(200_000)
    assert ((draws.mean(0) - truth.mean).abs() < 5 * error).all()
    weight = density.log_weight.exp()
    product = density.means.prod(-1) + density.correlation * density.stds.prod(-1)
    cross = (draws.prod(-1)).mean(0) - (weight * product).sum(-1)
    assert (cross.abs() < 5 * draws.prod(-1).std(0) / sqrt(200_000)).all()
    level = scipy.stats.kstest(
        draws[:, 0, 0].numpy(),
        lambda x: marginal(density, 0).cdf(torch.as_tensor(x)[:, None].expand(-1, POINTS))[:, 0].numpy(),
    )
    assert level.pvalue > 1e-3


@both_covariances
def test_a_mixture_in_other_units_is_the_mixture(covariance):
    density, value = mixture(covariance), normals(POINTS, 2)
    factor, shift = torch.tensor([0.2, 30.0]).double(), torch.tensor([-4.0, 9.0]).double()
    moved = density.affine(factor, shift)
    expected = density.log_prob(value, EVERYTHING) - factor.log().sum()
    torch.testing.assert_close(moved.log_prob(value * factor + shift, EVERYTHING), expected)


@both_covariances
def test_a_mixture_may_be_moved_point_by_point(covariance):
    density, value, shift = mixture(covariance), normals(POINTS, 2), normals(POINTS, 2, seed=2)
    moved = density.affine(torch.ones(()).double(), shift)
    torch.testing.assert_close(
        moved.log_prob(value + shift, EVERYTHING), density.log_prob(value, EVERYTHING), msg="each point has its own"
    )
    torch.testing.assert_close(moved.mean, density.mean + shift)


def test_a_full_covariance_is_for_two_channels():
    with pytest.raises(ValueError, match="two channels, but the data have 3"):
        MixtureHead(scale_of(3), 2, "full")


def test_the_narrowest_component_is_held_against_the_floor():
    head = MixtureHead(scale_of(1), 2)
    raw = torch.zeros(1, head.width)
    raw[0, head.width // 2 - 1] = -50.0  # one component's log std
    density = head(raw)
    assert on_floor(density, torch.ones(1)).all() and (density.std > 10 * FLOOR).all()


def test_a_laplace_density_is_that_of_torch_and_its_nll_the_l1_loss():
    density = Laplace(3 * normals(POINTS, 2, seed=1), normals(POINTS, 2, seed=2).exp())
    truth = torch.distributions.Laplace(density.loc, density.scale)
    value, noise = normals(POINTS, 2), 2 * normals(POINTS, 2, seed=4)
    torch.testing.assert_close(density.log_prob_each(value), truth.log_prob(value))
    torch.testing.assert_close(density.std, truth.stddev)
    torch.testing.assert_close(density.draw(noise), truth.icdf(torch.special.ndtr(noise)))
    assert density.draw(torch.full((POINTS, 2), 30.0).double()).isfinite().all()


def test_a_fixed_laplace_noise_is_that_std_in_the_units_of_the_data():
    scale = scale_of(2)
    density = LaplaceHead(scale, noise="channel", fixed=0.6).double()(torch.zeros(1, 2).double())
    torch.testing.assert_close(density.affine(scale.std, scale.mean).std, torch.full((1, 2), 0.6).double())


def test_zeros_and_ones_are_those_of_torch_even_far_out():
    logit = torch.tensor([-200.0, -2.0, 0.3, 200.0]).double()
    density, truth = Bernoulli(logit), torch.distributions.Bernoulli(logits=logit)
    for value in (torch.zeros(4).double(), torch.ones(4).double()):
        torch.testing.assert_close(density.log_prob_each(value), truth.log_prob(value))
        assert density.log_prob_each(value).isfinite().all()
    torch.testing.assert_close(density.mean, truth.probs)
    draws = Bernoulli(logit.expand(100_000, 4)).draw(normals(100_000, 4))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), truth.probs, atol=0.01, rtol=0)


def test_a_bernoulli_head_is_for_zeros_and_ones_alone():
    assert BernoulliHead(scale_of(2, support="binary")).support == "binary"
    assert {head.support for head in (MixtureHead, LaplaceHead)} == {"real"}


def test_a_learned_std_begins_where_it_is_told():
    density = GaussianHead(scale_of(2), noise="channel", start=0.3)(torch.zeros(4, 2))
    torch.testing.assert_close(density.std, torch.full((4, 2), 0.3), rtol=1e-4, atol=0)
    for keys in ({"noise": "point"}, {"noise": "channel", "fixed": 0.5}):
        with pytest.raises(ValueError, match=r"head\.start is the initial value of a std that is learned"):
            GaussianHead(scale_of(2), start=0.3, **keys)
