"""Every density against torch.distributions, in float64."""

from math import log, sqrt

import pytest
import torch

from helpers.small import scale_of
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.models.heads import FLOOR, GaussianHead, on_floor

SHAPE = (4, 3, 5, 2)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian() -> Gaussian:
    return Gaussian(3 * normals(*SHAPE, seed=1), normals(*SHAPE, seed=2).exp())


def test_the_log_density_is_that_of_torch_with_its_constant():
    density, value = gaussian(), normals(*SHAPE)
    truth = torch.distributions.Normal(density.mean, density.std).log_prob(value)
    torch.testing.assert_close(density.log_prob_each(value), truth)
    everything = torch.ones(SHAPE, dtype=torch.bool)
    joint = torch.distributions.Independent(torch.distributions.Normal(density.mean, density.std), 1)
    torch.testing.assert_close(density.log_prob(value, everything), joint.log_prob(value))


def test_a_masked_channel_adds_nothing_whatever_its_value():
    density, value = gaussian(), normals(*SHAPE)
    mask = normals(*SHAPE, seed=3) > 0
    each = torch.distributions.Normal(density.mean, density.std).log_prob(value)
    expected = torch.stack([(each[..., i] * mask[..., i]) for i in range(2)]).sum(0)
    torch.testing.assert_close(density.log_prob(value, mask), expected)
    other = torch.where(mask, value, 1e6)
    assert torch.equal(density.log_prob(other, mask), density.log_prob(value, mask))
    assert torch.equal(density.log_prob(value, torch.zeros_like(mask)), torch.zeros(SHAPE[:3], dtype=torch.float64))


def test_one_std_for_all_points_is_the_same_as_it_spread_out():
    mean, std, value = normals(*SHAPE, seed=1), torch.tensor([0.3, 7.0], dtype=torch.float64), normals(*SHAPE)
    one, two = Gaussian(mean, std), Gaussian(mean, std.expand(SHAPE).clone())
    torch.testing.assert_close(one.log_prob_each(value), two.log_prob_each(value))
    torch.testing.assert_close(one.draw(value), two.draw(value))
    torch.testing.assert_close(one.map(torch.clone).std, two.std)


def test_a_draw_is_the_quantile_of_its_noise():
    density, noise = gaussian(), normals(*SHAPE)
    level = torch.special.ndtr(noise)
    truth = torch.distributions.Normal(density.mean, density.std).icdf(level)
    torch.testing.assert_close(density.draw(noise), truth, rtol=1e-8, atol=1e-8)


def test_affine_is_the_density_of_the_scaled_and_shifted_value():
    density, value = gaussian(), normals(*SHAPE)
    factor, shift = torch.tensor([0.2, 30.0], dtype=torch.float64), torch.tensor([-4.0, 9.0], dtype=torch.float64)
    moved = density.affine(factor, shift)
    torch.testing.assert_close(
        moved.log_prob_each(factor * value + shift), density.log_prob_each(value) - factor.log()
    )
    torch.testing.assert_close(moved.draw(value), factor * density.draw(value) + shift)


def test_affine_densities_integrate_to_one():
    density = Gaussian(torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5, 2.0]]).double())
    moved = density.affine(torch.tensor([0.2, 30.0]).double(), torch.tensor([-4.0, 9.0]).double())
    steps = torch.linspace(-10, 10, 4001, dtype=torch.float64)[:, None]
    grid = moved.mean + steps * moved.std
    total = torch.trapezoid(moved.log_prob_each(grid).exp(), grid, dim=0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_stacked_points_are_the_whole():
    density, value = gaussian(), normals(*SHAPE)
    steps = [Gaussian(density.mean[:, :, i], density.std[:, :, i]) for i in range(SHAPE[2])]
    whole = Gaussian.stack(steps, lambda parts: torch.stack(parts, 2))
    torch.testing.assert_close(whole.log_prob_each(value), density.log_prob_each(value))


@pytest.mark.parametrize("raw", [-1000.0, -50.0, log(FLOOR), -3.0, 0.0, 2.0, 9.0])
def test_every_std_is_the_root_of_its_square_plus_the_floors(raw):
    head = GaussianHead(scale_of())
    out = head(torch.tensor([[0.5, -0.5, raw, raw]], dtype=torch.float64))
    assert out.std.flatten().tolist() == pytest.approx([sqrt(torch.tensor(2 * raw).exp().item() + FLOOR**2)] * 2)
    assert (out.std >= FLOOR * (1 - 1e-12)).all()
    assert out.mean.flatten().tolist() == [0.5, -0.5]


@pytest.mark.parametrize("raw", [-1e4, -7.0, 0.0, 5.0, 1e4])
def test_gradients_through_the_std_are_finite_however_wild_the_network(raw):
    raw = torch.tensor([[0.0, raw]], requires_grad=True)
    density = GaussianHead(scale_of(1))(raw)
    density.log_prob(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    assert density.std.isfinite().all() and raw.grad.isfinite().all()


def test_a_point_head_reads_a_mean_and_a_std_a_channel():
    head = GaussianHead(scale_of(3))
    assert (head.width, head.draws) == (6, 3)
    raw = normals(7, 6)
    density = head(raw)
    torch.testing.assert_close(density.mean, raw[:, :3])
    torch.testing.assert_close(density.std, torch.sqrt(torch.exp(2 * raw[:, 3:]) + FLOOR**2))


@pytest.mark.parametrize("noise, parameters", [("channel", 3), ("global", 1)])
def test_a_learned_noise_is_one_number_a_channel_or_one_for_all(noise, parameters):
    head = GaussianHead(scale_of(3), noise=noise).double()
    assert (head.width, sum(p.numel() for p in head.parameters())) == (3, parameters)
    density = head(normals(5, 4, 3))
    truth = torch.sqrt(torch.exp(2 * head.log_std) + FLOOR**2).expand(5, 4, 3)
    torch.testing.assert_close(density.std.expand(5, 4, 3), truth)


@pytest.mark.parametrize("speed", [1.0, 10.0])
def test_a_learned_noise_begins_at_its_start_and_moves_at_its_speed(speed):
    """Adam's first step changes every weight by its learning rate."""
    head = GaussianHead(scale_of(2), noise="channel", start=0.3, speed=speed)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    std = lambda: head(torch.zeros(1, 2)).std[0].detach()
    torch.testing.assert_close(std(), torch.full((2,), 0.3).square().add(FLOOR**2).sqrt())
    head(torch.zeros(1, 2)).log_prob(torch.full((1, 2), 9.0), torch.ones(1, 2) > 0).sum().neg().backward()
    before = std()
    optimizer.step()
    torch.testing.assert_close(std() / before, torch.full((2,), speed * 1e-3).exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("noise", ["channel", "global"])
def test_a_learned_noise_is_best_at_the_root_mean_square_of_the_residuals(noise):
    head, residual = GaussianHead(scale_of(2), noise=noise).double(), normals(500, 2) * torch.tensor([0.2, 3.0])
    mean_square = residual.square().mean(0) if noise == "channel" else residual.square().mean().view(1)
    for factor, stationary in ((1.0, True), (1.3, False)):
        with torch.no_grad():
            head.log_std.copy_(0.5 * torch.log(factor**2 * mean_square - FLOOR**2))
        head.zero_grad()
        head(torch.zeros_like(residual)).log_prob(residual, torch.ones_like(residual) > 0).sum().backward()
        assert (head.log_std.grad.abs().max().item() < 1e-8 * residual.numel()) == stationary


@pytest.mark.parametrize("noise", ["channel", "global"])
@pytest.mark.parametrize("factor", [1e-6, 0.01, 3.0, 90.0])
def test_a_fixed_noise_is_that_std_in_the_units_of_the_data(noise, factor):
    scale = scale_of(2, factor=factor)
    head = GaussianHead(scale, noise=noise, fixed=0.3)
    assert not list(head.parameters())
    assert "log_std" in head.state_dict()
    density = head(normals(5, 2).float()).map(torch.Tensor.double).affine(scale.std, scale.mean)
    torch.testing.assert_close(density.std, torch.full((5, 2), 0.3, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_fixed_noise_just_at_the_floor_is_the_floor():
    scale = scale_of(1, factor=300.0)
    density = GaussianHead(scale, noise="channel", fixed=0.3)(torch.zeros(1, 1))
    assert (density.std * scale.std).item() == pytest.approx(0.3, rel=1e-5)


def test_a_fixed_noise_below_the_floor_is_refused_with_the_smallest_that_is_allowed():
    with pytest.raises(ValueError, match=r"head\.fixed=0\.005.*smallest allowed here: 0\.006"):
        GaussianHead(scale_of(2, factor=3.0), noise="channel", fixed=0.005)


def test_a_fixed_noise_per_point_is_refused_with_a_cure():
    with pytest.raises(ValueError, match=r"head\.noise=channel, or head\.fixed=null"):
        GaussianHead(scale_of(), noise="point", fixed=0.3)


def test_a_std_is_on_the_floor_where_the_floor_is_most_of_its_square():
    scale = scale_of(1)
    raw = torch.tensor([[0.0, log(0.99 * FLOOR)], [0.0, log(1.01 * FLOOR)], [0.0, -100.0], [0.0, 0.0]]).double()
    density = GaussianHead(scale)(raw).affine(scale.std, scale.mean)
    assert on_floor(density, scale.std).flatten().tolist() == [True, False, True, False]
