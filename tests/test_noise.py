"""Noise: standard normal, independent wherever it should be, and a function of little else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.small import batch_of, density, with_empty_points
from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import series_of

LIKE = torch.zeros(1, dtype=torch.float64)


def noise(fixed: int | None = 3) -> Noise:
    made = Noise()
    made.fixed = fixed
    return made


def points(series, samples=5, dim=2, stream="value", fixed: int | None = 3):
    return noise(fixed).at_points(stream, series, samples, dim, LIKE)


def grid(rows: int = 40, time: int = 30, first_id: int = 0):
    """Everyone at the times 0, 1, 2, ...: the numbers most alike."""
    times = torch.arange(time, dtype=torch.float64).expand(rows, time)
    return series_of(times, torch.zeros(rows, time, 1), ids=torch.arange(rows) + first_id)


def correlation(one: torch.Tensor, two: torch.Tensor) -> float:
    """In units of its standard error under independence."""
    one, two = one.flatten(), two.flatten()
    return np.corrcoef(one, two)[0, 1].item() * len(one) ** 0.5


def test_fixed_noise_at_points_is_standard_normal():
    draws = points(grid(), samples=20).flatten().numpy()
    count = len(draws)
    assert abs(draws.mean()) < 4 / count**0.5
    assert abs(draws.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((draws**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((draws**4).mean() - 3) < 4 * (96 / count) ** 0.5
    assert stats.kstest(draws, "norm").pvalue > 1e-3


def test_fixed_noise_of_series_is_standard_normal():
    draws = noise().of_series("latent", grid(2000, 1), 5, 3, LIKE).flatten().numpy()
    assert stats.kstest(draws, "norm").pvalue > 1e-3
    assert abs(draws.var() - 1) < 4 * (2 / len(draws)) ** 0.5


@pytest.mark.parametrize("axis", range(4))
def test_fixed_noise_is_independent_along_every_axis(axis):
    draws = points(grid(), samples=8, dim=4).transpose(0, axis)
    for lag in (1, 2):
        one, two = draws[lag:], draws[:-lag]
        assert abs(correlation(one, two)) < 4
        assert abs(correlation(one**2, two**2)) < 4
    assert draws.unique().numel() == draws.numel()


@pytest.mark.parametrize("other", ["stream", "seed", "ids"])
def test_another_stream_or_seed_or_series_has_other_noise(other):
    draws = points(grid())
    changed = {
        "stream": lambda: points(grid(), stream="latent"),
        "seed": lambda: points(grid(), fixed=4),
        "ids": lambda: points(grid(first_id=40)),
    }[other]()
    assert abs(correlation(draws, changed)) < 4
    assert not np.isin(draws.numpy(), changed.numpy()).any()


def test_noise_of_series_and_noise_at_points_are_not_the_same_numbers():
    series = grid(time=1)
    one, two = points(series, stream="a")[:, :, 0], noise().of_series("a", series, 5, 2, LIKE)
    assert not np.isin(one.numpy(), two.numpy()).any()


def test_a_draw_per_series_is_independent_of_its_neighbours():
    draws = noise().of_series("latent", grid(3000, 1), 4, 3, LIKE)
    for axis in range(3):
        moved = draws.transpose(0, axis)
        assert abs(correlation(moved[1:], moved[:-1])) < 4


def same(one, two):
    """Equal but for the last digits, which may depend on the shapes that are computed together."""
    torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


def test_fixed_noise_is_the_same_in_any_order_and_company():
    batch = density(batch_of())
    draws = points(batch)
    order = torch.tensor([3, 0, 4, 2, 1])
    same(points(batch.rows(order)), draws[:, order])
    same(points(batch.rows([2])), draws[:, [2]])
    of_series = noise().of_series("latent", batch, 5, 2, LIKE)
    same(noise().of_series("latent", batch.rows(order), 5, 2, LIKE), of_series[:, order])


def test_fixed_noise_is_the_same_wherever_padding_stands():
    batch = batch_of()
    wider, place = with_empty_points(batch)
    same(points(wider)[:, :, place], points(batch))
    same(noise().of_series("z", wider, 5, 2, LIKE), noise().of_series("z", batch, 5, 2, LIKE))


def test_fixed_noise_is_the_same_whatever_else_is_asked():
    batch = density(batch_of())
    some = torch.tensor([0, 2, 3, 7])
    fewer = replace(batch, **{n: getattr(batch, n)[:, some] for n in ("times", "values", "seen", "scored")})
    same(points(fewer), points(batch)[:, :, some])


def test_fixed_noise_is_the_same_for_the_same_values_and_others():
    batch = density(batch_of())
    same(points(replace(batch, values=batch.values + 1, window=batch.window - 5)), points(batch))


def test_points_at_one_time_have_draws_of_their_own():
    series = series_of([[0.0, 1.0, 1.0, 1.0, 2.0]], torch.zeros(1, 5, 1))
    draws = points(series)
    assert draws.flatten().unique().numel() == draws.numel()


def test_padding_between_points_at_one_time_does_not_change_their_draws():
    series = series_of([[1.0, 1.0, 1.0, 2.0]], torch.zeros(1, 4, 1))
    padded = series_of([[1.0, 1.0, 1.0, 1.0, 1.0, 2.0]], [[[0.0], [np.nan], [0.0], [np.nan], [0.0], [0.0]]])
    same(points(padded)[:, :, [0, 2, 4, 5]], points(series))


def test_minus_zero_is_the_time_zero():
    plus, minus = (series_of([[zero, 1.0]], torch.zeros(1, 2, 1)) for zero in (0.0, -0.0))
    same(points(plus), points(minus))


def test_times_one_bit_apart_have_draws_of_their_own():
    late = 1.7e9
    series = series_of([[late, np.nextafter(late, 2e9)]], torch.zeros(1, 2, 1))
    draws = points(series)
    assert not (draws[:, :, 0] == draws[:, :, 1]).any()


def test_the_first_draws_are_the_same_when_more_are_asked():
    series = grid(4, 5)
    same(points(series, samples=20)[:7], points(series, samples=7))
    one, two = (noise().of_series("latent", series, k, 3, LIKE) for k in (20, 7))
    same(one[:7], two)


def test_single_precision_draws_are_the_double_ones_rounded():
    series = grid(4, 5)
    single = noise().at_points("value", series, 5, 2, torch.zeros(1))
    assert single.dtype == torch.float32
    assert torch.equal(single, points(series).float())


def test_training_noise_is_a_function_of_its_seed():
    series, device = grid(4, 5), torch.device("cpu")

    def draws(*seed: int):
        made = noise(None)
        made.seed(*seed, device=device)
        return made.at_points("value", series, 3, 2, LIKE), made.of_series("latent", series, 3, 2, LIKE)

    one, again = draws(0, 17, 0), draws(0, 17, 0)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    others = [draws(*seed)[0] for seed in ((0, 18, 0), (1, 17, 0), (0, 17, 1), (0, 170))]
    assert not any(np.isin(one[0].numpy(), other.numpy()).any() for other in others)


def test_training_noise_is_standard_normal_and_goes_on():
    made, series = noise(None), grid()
    made.seed(0, device=torch.device("cpu"))
    one, two = (made.at_points("value", series, 10, 2, LIKE) for _ in range(2))
    assert stats.kstest(torch.cat([one, two]).flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(correlation(one, two)) < 4


def test_fixed_noise_does_not_advance_the_training_generator():
    made, series = noise(None), grid(4, 5)
    made.seed(0, device=torch.device("cpu"))
    state = made.generator.get_state()
    made.fixed = 1
    made.at_points("value", series, 3, 2, LIKE)
    made.of_series("latent", series, 3, 2, LIKE)
    assert torch.equal(made.generator.get_state(), state)


def test_training_noise_does_not_touch_everyones_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    made = noise(None)
    made.at_points("value", grid(2, 2), 3, 2, LIKE)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_the_same_however_many_are_made_at_a_time(monkeypatch):
    series = grid(rows=4, time=7)
    together = points(series)
    monkeypatch.setattr("vrnn_lab.core.noise.AT_ONCE", 90)  # two points of all rows and samples
    torch.testing.assert_close(points(series), together, rtol=1e-12, atol=0)
