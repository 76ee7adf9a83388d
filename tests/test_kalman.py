"""Exact inference against the dense joint Gaussian, and the two data sets that carry it."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from vrnn_lab.core import kalman_blocks
from vrnn_lab.core.kalman import Pairs, StateSpace, log_likelihood, posterior, smooth
from vrnn_lab.core.series import TimeSeries, series_of
from vrnn_lab.core.tasks import DensityTask, Interpolate
from vrnn_lab.data.base import generator
from vrnn_lab.data.datasets.lgssm import LGSSM
from vrnn_lab.data.datasets.ou import OU

PROCESSES = [OU(theta=0.6, sigma=0.9, mean=-1.5, val=60), LGSSM(radius=0.9, period=7.0, val=60, points=30)]
by_name = pytest.mark.parametrize("data", PROCESSES, ids=lambda data: type(data).__name__)


def random_series(data, rows=4, time=12, seed=0) -> TimeSeries:
    """Whole-numbered times with ties, a third of the values seen, a third scored, the rest unknown."""
    rng = generator(seed)
    dim = len(data.channels)
    times = np.sort(rng.integers(0, 15, (rows, time)), 1).astype(float)
    part = rng.integers(0, 3, (rows, time, dim))
    batch = series_of(times, rng.normal(data_level(data), 1.5, (rows, time, dim)), part == 0, part == 1)
    return replace(batch, values=torch.where(batch.known, batch.values, 0))


def data_level(data) -> float:
    return data.mean if isinstance(data, OU) else 0.0


def covariance_over(data, gap: float) -> np.ndarray:
    """Cov(y(t + gap), y(t)) without the observation noise, (dim, dim), from the processes' textbook form."""
    if isinstance(data, OU):
        return np.array([[0.9**2 / 1.2 * np.exp(-0.6 * gap)]])
    angle = 2 * np.pi * gap / 7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return data.observe @ (0.9**gap * turn * 0.3**2 / (1 - 0.9**2)) @ data.observe.T


def dense_covariance(data, times: np.ndarray) -> np.ndarray:
    """(time * dim, time * dim), without the observation noise."""
    block = lambda t, s: covariance_over(data, t - s) if t >= s else covariance_over(data, s - t).T
    return np.block([[block(t, s) for s in times] for t in times])


def dense_log_prob(mean, covariance, noise, values, mask) -> float:
    known = mask.ravel()
    joint = (covariance + np.diag(noise))[np.ix_(known, known)]
    error = (values.ravel() - mean)[known]
    return -0.5 * (error @ np.linalg.solve(joint, error) + np.linalg.slogdet(2 * np.pi * joint)[1])


def dense_answer(mean, covariance, noise, values, mask) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of another noisy look at every value, given the masked ones."""
    known = mask.ravel()
    gain = np.linalg.solve((covariance + np.diag(noise))[np.ix_(known, known)], covariance[known]).T
    answer = mean + gain @ (values.ravel() - mean)[known]
    variance = np.diag(covariance - gain @ covariance[known]) + noise
    return answer.reshape(values.shape), np.sqrt(variance).reshape(values.shape)


def assert_close(value, expected):
    np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-9, atol=1e-9)


@by_name
def test_exact_equals_the_dense_joint_gaussian(data):
    batch = random_series(data)
    log_prob, answer = data.exact(batch)
    noise = np.full(batch.values[0].numel(), data.noise_std**2)
    for row in range(len(batch.times)):
        values, covariance = batch.values[row].numpy(), dense_covariance(data, batch.times[row].numpy())
        joint = (data_level(data), covariance, noise, values)
        assert_close(log_prob[row], dense_log_prob(*joint, batch.known[row].numpy()))
        mean, std = dense_answer(*joint, batch.seen[row].numpy())
        assert_close(answer.mean[row], mean)
        assert_close(answer.std[row], std)


def random_space(seed=1, rows=3, time=9, state=3, dim=2) -> StateSpace:
    normal = torch.from_numpy(generator(seed).standard_normal((rows, time, 2, state, state)))
    root = normal[0, 0, 0]
    return StateSpace(
        mean=root[0],
        covariance=root @ root.mT,
        transition=0.6 * normal[:, :, 0],
        process=normal[:, :, 1] @ normal[:, :, 1].mT,
        observe=normal[0, 1, 1, :dim],
        noise=root[1, :dim] ** 2 + 0.1,
    )


def known_start(space):
    return replace(space, covariance=torch.zeros_like(space.covariance))


def one_moving_part(space):
    process = torch.zeros_like(space.process)
    process[..., 0, 0] = 0.5
    return replace(known_start(space), process=process)


def standing_still(space):
    still = torch.eye(len(space.mean)).to(space.transition).expand_as(space.transition)
    return replace(space, transition=still, process=torch.zeros_like(space.process))


def standing_still_where_known(space):
    return known_start(standing_still(space))


SHAPES = [lambda space: space, known_start, one_moving_part, standing_still, standing_still_where_known]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_state_space_equals_its_dense_joint_gaussian_even_where_covariances_are_singular(shape):
    space = shape(random_space())
    rng = generator(2)
    values = rng.standard_normal((3, 9, 2))
    mask = rng.random(values.shape) < 0.5
    log_prob = log_likelihood(space, torch.from_numpy(values), torch.from_numpy(mask))
    answer = smooth(space, torch.from_numpy(values), torch.from_numpy(mask))
    for row in range(3):
        joint = (*dense_moments(space, row), np.tile(space.noise.numpy(), 9), values[row])
        assert_close(log_prob[row], dense_log_prob(*joint, mask[row]))
        mean, std = dense_answer(*joint, mask[row])
        assert_close(answer.mean[row], mean)
        assert_close(answer.std[row], std)


def dense_moments(space: StateSpace, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of one row's noise-free observations: a state is a linear map of all noise."""
    time, state = space.transition.shape[1:3]
    maps = np.zeros((time, state, time * state))
    means = [space.mean.numpy()]
    for i in range(time):
        move = space.transition[row, i].numpy()
        if i:
            maps[i] = move @ maps[i - 1]
            means.append(move @ means[-1])
        maps[i, :, i * state : (i + 1) * state] = np.eye(state)
    sources = [space.covariance, *space.process[row, 1:]]
    noise = torch.block_diag(*sources).numpy()
    observe = space.observe.numpy() @ maps
    flat = observe.reshape(-1, time * state)
    return (np.stack(means) @ space.observe.numpy().T).ravel(), flat @ noise @ flat.T


def swept(space: StateSpace, values, mask, monkeypatch, blocks: bool):
    """log p, its gradient in every part of the space and in the values, and the states; in blocks or in one sweep."""
    monkeypatch.setattr(kalman_blocks, "FEWEST", 2 if blocks else 10**9)
    names = [f.name for f in fields(space) if isinstance(getattr(space, f.name), torch.Tensor)]
    inputs = [getattr(space, name).clone().requires_grad_() for name in names]
    space = replace(space, **dict(zip(names, inputs, strict=True)))
    if isinstance(space.transition, Pairs):
        pair = [each.clone().requires_grad_() for each in (space.transition.own, space.transition.cross)]
        space = replace(space, transition=Pairs(*pair, space.transition.other))
        inputs += pair
    values = values.clone().requires_grad_()
    log_prob = log_likelihood(space, values, mask)
    weight = torch.linspace(0.5, 1.5, len(log_prob)).double()
    slopes = torch.autograd.grad((weight * log_prob).sum(), [*inputs, values])
    columns = torch.stack([values, values.flip(0)], -1).detach()
    with torch.no_grad():
        return [log_prob, *slopes, *posterior(space, columns, mask)]


def long_space(pairs: bool, rows: int, time: int) -> StateSpace:
    """Rows of so many points, as general matrices or as pairs of states with a level."""
    if not pairs:
        space = random_space(rows=rows, time=time)
        return replace(space, transition=0.5 * space.transition)
    gap = torch.from_numpy(generator(3).exponential(0.2, (rows, time, 1)))
    own, cross = torch.exp(-gap) * torch.cos(2 * gap), torch.exp(-gap) * torch.sin(2 * gap)
    still = torch.ones_like(gap)
    move = Pairs(torch.cat([own, own, still], -1), torch.cat([-cross, cross, 0 * still], -1), torch.tensor([1, 0, 2]))
    observe = torch.tensor([[1.0, 0.3, 0.7], [0.2, -1.0, 0.5]]).double()
    return StateSpace(
        torch.zeros(3).double(), torch.eye(3).double(), move, None, observe, torch.tensor([0.1, 0.4]).double()
    )


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("rows", "time"), [(1, 64), (3, 201), (1, 1111)])
def test_blocks_side_by_side_say_what_one_sweep_says(pairs, rows, time, monkeypatch):
    space, rng = long_space(pairs, rows, time), generator(7)
    values, mask = rng.standard_normal((rows, time, 2)), rng.random((rows, time, 2)) < 0.6
    mask[:, time // 3 : time // 2] = False  # a block or more of which nothing is seen
    args = space, torch.from_numpy(values), torch.from_numpy(mask), monkeypatch
    assert_close_each(swept(*args, blocks=True), swept(*args, blocks=False))
    assert kalman_blocks.Blocks.of(time, rows).count == 1
    monkeypatch.setattr(kalman_blocks, "FEWEST", 2)
    assert kalman_blocks.Blocks.of(time, rows).count == time // kalman_blocks.SHORTEST


def assert_close_each(found, expected):
    for one, other in zip(found, expected, strict=True):
        scale = float(other.detach().abs().max()) or 1.0
        assert_close((one / scale).detach(), (other / scale).detach())


def test_twenty_thousand_points_are_as_likely_as_their_dense_joint_gaussian_says():
    """A row of 20 000 points of 2000 independent stretches: far apart, each is known from its dense Gaussian."""
    rng, size, count = generator(5), 10, 2000
    gap = rng.exponential(0.3, (count, size))
    gap[:, 0] = 1e6  # the state is forgotten
    times, values = gap.cumsum(1), rng.standard_normal((count, size))
    away = torch.exp(-torch.from_numpy(gap)).reshape(1, -1, 1, 1)
    one = torch.ones(1, 1).double()
    space = StateSpace(one[0] * 0, one, away, 1 - away**2, one, 0.3 * one[0])
    found = log_likelihood(space, torch.from_numpy(values).reshape(1, -1, 1), torch.ones(1, size * count, 1).bool())
    apart = np.exp(-np.abs(times[:, :, None] - times[:, None]))
    each = zip(apart, values, strict=True)
    dense = sum(dense_log_prob(0.0, a, np.full(size, 0.3), v, np.ones(size, bool)) for a, v in each)
    assert found.item() == pytest.approx(dense, rel=1e-9)


def with_empty_points(batch: TimeSeries, seed=3) -> tuple[TimeSeries, list[torch.Tensor]]:
    """Empty points put before, between, at the times of, and behind each row's own; and where those went."""
    rng = generator(seed)
    rows, time, dim = batch.values.shape
    own = batch.times.numpy()
    new = np.concatenate([own[:, ::3], rng.uniform(-3, 20, (rows, 5)), own[:, -1:]], 1)
    times = np.concatenate([own, new], 1)
    order = np.stack([np.lexsort((rng.random(times.shape[1]), row)) for row in times])
    # Ties among a row's own points keep their order, so that its values can be compared one by one.
    place = [torch.from_numpy(np.flatnonzero(row < time)) for row in order]
    size = (rows, times.shape[1], dim)
    values, seen, scored = torch.zeros(size).double(), torch.zeros(size).bool(), torch.zeros(size).bool()
    for row, at in enumerate(place):
        values[row, at], seen[row, at], scored[row, at] = (
            batch.values[row],
            batch.seen[row],
            batch.scored[row],
        )
    times = np.take_along_axis(times, order, 1)
    return series_of(times, values, seen, scored, batch.window), place


@by_name
def test_empty_points_anywhere_change_nothing(data):
    batch = random_series(data, seed=4)
    longer, place = with_empty_points(batch)
    log_prob, answer = data.exact(batch)
    log_prob_longer, answer_longer = data.exact(longer)
    assert_close(log_prob_longer, log_prob)
    for row, at in enumerate(place):
        assert_close(answer_longer.mean[row, at], answer.mean[row])
        assert_close(answer_longer.std[row, at], answer.std[row])


@by_name
def test_a_row_alone_is_the_row_in_its_batch_and_unseen_values_change_no_answer(data):
    batch = random_series(data, seed=5)
    log_prob, answer = data.exact(batch)
    log_prob_alone, answer_alone = data.exact(batch.rows([2]).given())
    assert_close(answer_alone.mean[0], answer.mean[2])
    assert_close(data.exact(batch.rows([2]))[0][0], log_prob[2])
    assert log_prob_alone.shape == (1,)


@by_name
def test_with_nothing_seen_the_answer_is_the_stationary_law_and_with_nothing_known_log_p_is_zero(data):
    batch = random_series(data)
    nothing = torch.zeros_like(batch.seen)
    log_prob, answer = data.exact(replace(batch, seen=nothing, scored=nothing))
    variance = np.diag(covariance_over(data, 0)) + data.noise_std**2
    assert_close(log_prob, 0)
    assert_close(answer.mean, data_level(data))
    assert_close(answer.std, np.broadcast_to(np.sqrt(variance), answer.std.shape))


def test_the_steps_of_lgssm_add_up():
    data = LGSSM()
    space = data.state_space(torch.tensor([[0.0, 1.0, 1.0, 4.0]], dtype=torch.float64))
    one, still, three = space.transition[0, 1:]
    assert_close(still, np.eye(2))
    assert_close(space.process[0, 2], np.zeros((2, 2)))
    assert_close(three, torch.linalg.matrix_power(one, 3))
    assert_close(space.process[0, 1], 0.3**2 * np.eye(2))
    added = space.process[0, 1]
    for _ in range(2):
        added = one @ added @ one.mT + space.process[0, 1]
    assert_close(space.process[0, 3], added)
    assert_close(one @ space.covariance @ one.mT + space.process[0, 1], space.covariance)


def standard_errors(draws: np.ndarray) -> float:
    """How many standard errors the mean of independent draws lies from zero, at most over the channels."""
    return np.abs(draws.mean(0) / (draws.std(0) / len(draws) ** 0.5)).max()


def test_ou_has_the_moments_of_its_theory():
    split = OU().splits["train"]
    first, last = split.offsets[:-1], split.offsets[1:] - 1
    near = first + 1
    variance = 1.3**2 / 1.6
    path, noise = split.clean[:, 0] - 2, (split.values - split.clean)[:, 0]
    for one, other in ((first, near), (near, last)):
        expected = variance * np.exp(-0.8 * (split.times[other] - split.times[one]))
        assert standard_errors(path[one] * path[other] - expected) < 4
    for place in (first, last):
        assert standard_errors(path[place]) < 4
        assert standard_errors(path[place] ** 2 - variance) < 4
    assert standard_errors(noise) < 4
    assert standard_errors(noise**2 - 0.25**2) < 4
    assert standard_errors(noise * path) < 4


def test_ou_has_the_times_it_promises():
    split = OU(train=300).splits["train"]
    lengths = np.diff(split.offsets)
    assert set(lengths) == set(range(20, 41))
    assert all((np.diff(split.times[a:b]) >= 0).all() for a, b in zip(*bounds(split), strict=True))
    assert standard_errors(split.times - 5) < 4
    assert standard_errors((split.times - 5) ** 2 - 100 / 12) < 4
    assert (split.windows == [0, 10]).all()


def bounds(split):
    return split.offsets[:-1], split.offsets[1:]


def test_lgssm_has_the_moments_of_its_theory():
    data = LGSSM(radius=0.9, period=7.0)
    split = data.splits["train"]
    clean = split.clean.reshape(1800, 50, 2)
    noise = split.values - split.clean
    for at, gap in ((0, 0), (0, 1), (10, 3), (46, 3), (49, 0)):
        product = clean[:, at + gap, :, None] * clean[:, at, None, :]
        assert standard_errors((product - covariance_over(data, gap)).reshape(1800, 4)) < 4
        assert standard_errors(clean[:, at]) < 4
    assert standard_errors(noise) < 4
    assert standard_errors(noise**2 - 0.3**2) < 4
    assert standard_errors(noise.prod(1, keepdims=True)) < 4


def test_the_exact_nll_of_ou_is_what_an_independent_computation_gave():
    """Two other draws of 200 series gave 0.943 and 0.973 nats a value, with a standard error of 0.01 each."""
    data = OU()
    batches = list(data.batches("test", DensityTask()))
    log_prob = sum(data.exact(batch)[0].sum() for batch in batches)
    assert 0.94 < -log_prob / sum(batch.known.sum() for batch in batches) < 0.98


@by_name
def test_the_exact_nll_is_the_entropy_of_the_process_on_average(data):
    excess = []
    for batch in data.batches("val", DensityTask(), batch_size=100):
        for row, log_prob in enumerate(data.exact(batch)[0]):
            covariance = dense_covariance(data, batch.times[row, batch.counts[row]].numpy())
            joint = covariance + data.noise_std**2 * np.eye(len(covariance))
            excess.append(-log_prob - 0.5 * np.linalg.slogdet(2 * np.pi * np.e * joint)[1])
    assert standard_errors(np.array(excess)) < 4


@pytest.mark.parametrize("data", [OU(test=200), LGSSM(test=100)], ids=lambda data: type(data).__name__)
def test_held_out_values_scatter_about_the_exact_answer_as_it_says(data):
    excess = []
    for batch in data.batches("test", Interpolate(seen=0.3, scored="held_out")):
        answer = data.exact(batch)[1]
        z = (batch.values - answer.mean) / answer.std
        excess.append(torch.where(batch.scored, z**2 - 1, 0).sum((1, 2)))
    assert standard_errors(torch.cat(excess).numpy()) < 4


@pytest.mark.parametrize("points", [[40, 20], [20]])
def test_ou_refuses_points_that_are_no_range(points):
    with pytest.raises(ValueError, match=r"data\.points"):
        OU(points=points)


def test_lgssm_refuses_a_radius_without_a_stationary_state():
    with pytest.raises(ValueError, match=r"data\.radius"):
        LGSSM(radius=1.0)
