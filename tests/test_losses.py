"""KL and bounds against torch.distributions and a model whose likelihood is known."""

import itertools
from math import log, pi, sqrt

import pytest
import torch
from torch.distributions import Independent, kl_divergence
from torch.distributions import Normal as TorchNormal

from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.models.losses import Normal


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latent(seed: int) -> Normal:
    return Normal(2 * normals(6, 4, 3, seed=seed), 1.5 * normals(6, 4, 3, seed=seed + 100))


def twin(normal: Normal) -> Independent:
    return Independent(TorchNormal(normal.mean, normal.log_std.exp()), 1)


def test_the_kl_is_that_of_torch_summed_over_the_last_axis():
    one, two = latent(1), latent(2)
    torch.testing.assert_close(one.kl(two), kl_divergence(twin(one), twin(two)))
    torch.testing.assert_close(two.kl(one), kl_divergence(twin(two), twin(one)))
    torch.testing.assert_close(one.kl(one), torch.zeros(6, 4, dtype=torch.float64))


def test_the_log_density_of_a_latent_is_that_of_torch():
    one, value = latent(1), normals(6, 4, 3)
    torch.testing.assert_close(one.log_prob(value), twin(one).log_prob(value))


def test_draws_of_a_latent_have_its_moments_and_follow_its_noise():
    one = latent(1)
    noise = normals(6, 4, 3)
    torch.testing.assert_close(one.draw(noise), one.mean + noise * one.log_std.exp())
    assert torch.equal(one.draw(torch.zeros_like(noise)), one.mean)


def test_the_standard_latent_is_standard():
    value = normals(5, 3)
    standard = Normal.standard(value)
    torch.testing.assert_close(standard.log_prob(value), (-0.5 * value**2 - 0.5 * log(2 * pi)).sum(-1))


def test_a_latent_read_from_a_network_keeps_its_log_std_between_its_bounds():
    raw = torch.linspace(-1e4, 1e4, 2001, dtype=torch.float64)[:, None].expand(-1, 2)
    normal = Normal.of(raw)
    assert torch.equal(normal.mean, raw[:, :1])
    assert normal.log_std.min().item() == pytest.approx(-7)
    assert normal.log_std.max().item() == pytest.approx(3)
    assert (normal.log_std.diff(dim=0) >= 0).all()


def test_between_its_bounds_the_log_std_of_a_latent_is_smooth_and_nearly_the_raw_number():
    raw = torch.tensor([[0.0, -2.0], [0.0, -1.5], [0.0, -3.0]], dtype=torch.float64, requires_grad=True)
    log_std = Normal.of(raw).log_std
    assert log_std[0].item() == -2
    assert log_std.flatten().tolist() == pytest.approx([-2, -1.5, -3], abs=0.02)
    log_std[0].sum().backward()
    assert raw.grad[0, 1].item() == pytest.approx(1)


def test_where_takes_each_side_of_the_mask():
    one, two, mask = latent(1), latent(2), normals(6, 4, 1) > 0
    both = one.where(mask, two)
    rows = mask[..., 0]
    for name in ("mean", "log_std"):
        assert torch.equal(getattr(both, name)[rows], getattr(one, name)[rows])
        assert torch.equal(getattr(both, name)[~rows], getattr(two, name)[~rows])


@pytest.mark.parametrize("shift", [0.0, -5000.0, 5000.0])
def test_the_log_of_a_mean_of_weights_takes_log_k_off_and_never_overflows(shift):
    weights = normals(50, 7)
    truth = weights.exp().mean(0).log() + shift
    torch.testing.assert_close(log_mean_exp(weights + shift), truth)
    torch.testing.assert_close(log_mean_exp(weights[:1]), weights[0])


# ---- z ~ N(0, 1), x | z ~ N(z, NOISE^2): log p(x) is known, and so is every bound ------------------------

X, NOISE = torch.tensor([1.0, -0.4, 2.5], dtype=torch.float64), 0.5
LOG_P = TorchNormal(0.0, sqrt(1 + NOISE**2)).log_prob(X)


def weights(posterior: Normal, samples: int, repeats: int) -> torch.Tensor:
    """(samples, repeats, x): log p(x, z) - log q(z)."""
    z = posterior.draw(normals(samples, repeats, len(X), 1, seed=samples))
    log_p = TorchNormal(z[..., 0], NOISE).log_prob(X) + Normal.standard(z).log_prob(z)
    return log_p - posterior.log_prob(z)


def posterior_of(widen: float, move: float) -> Normal:
    """The exact posterior, made wider and moved."""
    mean = X[:, None] / (1 + NOISE**2) + move
    return Normal(mean, torch.full_like(mean, log(widen * NOISE / sqrt(1 + NOISE**2))))


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    torch.testing.assert_close(weights(posterior_of(1, 0), 3, 5), LOG_P.expand(3, 5, 3))


def test_the_mean_log_weight_is_the_bound_in_closed_form():
    posterior = posterior_of(1.4, 0.3)
    variance = (2 * posterior.log_std).exp()
    expected = -0.5 * ((X[:, None] - posterior.mean) ** 2 + variance) / NOISE**2 - log(NOISE) - 0.5 * log(2 * pi)
    elbo = expected.sum(-1) - posterior.kl(Normal.standard(posterior.mean))
    torch.testing.assert_close(elbo, LOG_P - posterior.kl(posterior_of(1, 0)))
    found = weights(posterior, 1, 100_000)[0]
    error = found.std(0) / sqrt(len(found))
    assert ((found.mean(0) - elbo).abs() < 4 * error).all()


@pytest.mark.parametrize("widen, move", [(1.4, 0.3), (0.8, -0.3)])
def test_the_bound_tightens_with_k_and_does_not_cross_the_likelihood(widen, move):
    repeats = 20_000
    means, errors = [], []
    for samples in (1, 3, 10, 30):
        bound = log_mean_exp(weights(posterior_of(widen, move), samples, repeats))
        means.append(bound.mean(0))
        errors.append(bound.std(0) / sqrt(repeats))
    for low, high in itertools.pairwise(means):
        assert (high > low).all()
    for mean, error in zip(means, errors, strict=True):
        assert (mean < LOG_P + 4 * error).all()
    gap = [(LOG_P - mean).mean().item() for mean in means]
    assert gap[-1] < gap[0] / 5


@pytest.mark.parametrize("samples", [1, 3, 30])
def test_weights_are_unbiased_for_the_likelihood_at_every_k(samples):
    found = log_mean_exp(weights(posterior_of(1.4, 0.3), samples, 20_000)).exp()
    error = found.std(0) / sqrt(len(found))
    assert ((found.mean(0) - LOG_P.exp()).abs() < 4 * error).all()
