"""Paths against closed forms and tight solves, read at each row's own times, forward and backward."""

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from vrnn_lab.models.layers import VectorField
from vrnn_lab.models.ode import (
    MOST_NODES,
    ROUNDING,
    Path,
    Solver,
    Ticks,
    integrate_with_jumps,
    linear_read,
    rk4,
    steps_in_training,
    steps_to_cover,
    ticks_in_training,
)

TURN = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)


class Linear(nn.Module):
    """dz/dt = z A, whose solution is z exp(A t)."""

    def forward(self, time, state):
        return state @ TURN


def exactly(start, elapsed):
    return torch.einsum("sbi,btij->sbtj", start, torch.matrix_exp(elapsed[..., None, None] * TURN))


def own_times(rows=4, count=30, low=-1.0, high=3.0):
    rng = torch.Generator().manual_seed(0)
    return (low + (high - low) * torch.rand(rows, count, generator=rng, dtype=torch.float64)).sort(1).values


def start(samples=2, rows=4):
    return torch.randn(samples, rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "error"),
    [("rk4", 1e-5), ("midpoint", 2e-2), ("euler", 0.5), ("dopri5", 1e-4), ("dopri8", 1e-4), ("bosh3", 1e-3)],
)
@pytest.mark.parametrize("adjoint", [False, True])
def test_every_method_follows_a_linear_field_both_ways(method, error, adjoint):
    elapsed, step = own_times(), 0.05
    solver = Solver(method, 1e-7, 1e-8, adjoint)
    after, before = steps_to_cover(elapsed, step, 1)
    path = solver.path(Linear(), start(), step, after, before)
    assert (path.at(elapsed) - exactly(start(), elapsed)).abs().max() < error


def test_as_many_steps_to_both_sides_are_solved_at_once_and_as_one_by_one():
    torch.manual_seed(0)
    field, state = VectorField(2, 8, 2, "tanh", 5.0).double(), start().requires_grad_()
    elapsed = own_times(low=-0.6, high=0.6)
    inputs, found = [state, *field.parameters()], []
    for after in (6, 7):  # unlike the steps before it, which are solved apart then
        states = Solver().path(field, state, 0.1, after, 6).at(elapsed)
        found.append((states, torch.autograd.grad(states.square().sum(), inputs)))
    (one, of_one), (two, of_two) = found
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_one, of_two, rtol=1e-9, atol=1e-9)


def test_the_error_falls_with_the_fourth_power_of_the_step():
    elapsed = own_times(low=0.0)
    errors = []
    for step in (0.1, 0.05):
        path = Solver().path(Linear(), start(), step, *steps_to_cover(elapsed, step, 1))
        errors.append((path.at(elapsed) - exactly(start(), elapsed)).abs().max())
    assert 12 < errors[0] / errors[1] < 20


def test_a_nonlinear_field_agrees_with_a_tight_solve():
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    elapsed = own_times(rows=1, low=0.0)
    path = Solver().path(lambda t, z: field(z), start(rows=1), 0.02, *steps_to_cover(elapsed, 0.02, 1))
    tight = odeint(
        lambda t, z: field(z), start(rows=1), torch.cat([torch.zeros(1), elapsed[0]]), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(path.at(elapsed)[:, 0], tight[1:, :, 0].transpose(0, 1), rtol=1e-6, atol=1e-6)


def test_reading_is_exact_for_polynomials_of_degree_five():
    """Such a path is its own Hermite interpolant, whatever the nodes, on each side and beyond the last of them."""
    nodes = torch.arange(-2.0, 4, dtype=torch.float64)
    curve, slope = lambda t: t**5 - 2 * t**2 + 3, lambda t: 5 * t**4 - 4 * t
    path = Path(curve(nodes).view(6, 1, 1, 1), slope(nodes).view(6, 1, 1, 1), 1.0, 2)
    elapsed = torch.tensor([[-2.5, -1.3, -0.2, 0.0, 0.5, 1.0, 1.7, 3.2]], dtype=torch.float64)
    torch.testing.assert_close(path.at(elapsed)[0, :, :, 0], curve(elapsed))


def test_reading_between_nodes_is_of_sixth_order():
    """Of a sine at exact nodes: half the step, an error of 1/64."""

    def error(step):
        nodes = torch.arange(0, 4.1, step, dtype=torch.float64)
        path = Path(nodes.sin().view(-1, 1, 1, 1), nodes.cos().view(-1, 1, 1, 1), step, 0)
        elapsed = torch.linspace(0, 4, 999, dtype=torch.float64)[None]
        return (path.at(elapsed)[0, 0, :, 0] - elapsed[0].sin()).abs().max()

    assert 50 < error(0.2) / error(0.1) < 75


def test_the_read_out_has_the_gradient_of_the_path():
    z = start().requires_grad_()
    elapsed = own_times()
    path = Solver().path(Linear(), z, 0.02, *steps_to_cover(elapsed, 0.02, 1))
    (gradient,) = torch.autograd.grad(path.at(elapsed).sum(), z)
    (expected,) = torch.autograd.grad(exactly(z, elapsed).sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_far_times_take_more_nodes_and_spoil_nothing_near():
    near = own_times(low=0.0, high=1.0)
    far = torch.cat([near, torch.full((4, 1), 40.0, dtype=torch.float64)], 1)
    paths = [Solver().path(Linear(), start(), 0.05, *steps_to_cover(t, 0.05, 20)) for t in (near, far)]
    # Not to the bit: how sums are grouped depends on the number of nodes and on the processor.
    torch.testing.assert_close(paths[0].at(near), paths[1].at(near), rtol=1e-6, atol=1e-6)
    assert (paths[1].at(far) - exactly(start(), far)).abs().max() < 1e-3


def test_too_far_is_an_error_that_names_the_limit():
    with pytest.raises(ValueError, match=str(MOST_NODES)):
        steps_to_cover(torch.tensor([[1e9]], dtype=torch.float64), 0.05, 20)


def test_steps_cover_what_is_asked_and_no_less_than_the_least():
    elapsed = torch.tensor([[-0.26, 0.0, 0.5]], dtype=torch.float64)
    assert steps_to_cover(elapsed, 0.25, 1) == (2, 2)
    assert steps_to_cover(elapsed, 0.25, 7) == (7, 2)


def test_rk4_slopes_are_the_field_at_the_nodes():
    states, slopes = rk4(Linear(), start(), 0.1, 5)
    torch.testing.assert_close(slopes, states @ TURN)


def gaps_of(rows=5, places=6):
    rng = torch.Generator().manual_seed(2)
    gap = torch.empty(rows, places, dtype=torch.float64).exponential_(4.0, generator=rng)
    sign = torch.randint(0, 2, (rows, places), generator=rng) * 2 - 1
    gap = gap * sign
    gap[1, 2], gap[2], gap[3, 0] = 0.0, 0.0, 0.3  # nowhere to go, and three whole steps
    return gap


def test_ticks_add_up_to_each_gap_in_steps_no_longer_than_asked():
    gap, step = gaps_of(), 0.1
    for most in (None, 200):
        ticks = Ticks.of(gap, step, most)
        total = torch.zeros_like(gap).scatter_add(1, ticks.place, ticks.length)
        torch.testing.assert_close(total, gap, rtol=0, atol=1e-12)
        assert (ticks.length.abs() <= step * (1 + ROUNDING)).all()
        assert (ticks.first.sum(1) == gap.shape[1]).all()
        assert (ticks.end[3, 0] - ticks.begin[3, 0] + 1) == 3
    least = Ticks.of(gap, step).first.shape[1]
    assert least <= ticks_in_training(gap.shape[1], gap.abs().sum(1).max().item(), step)
    assert least <= ticks_in_training(gap.shape[1], 100.0, step, gap.abs().max().item())


def jumping(state, readings):
    return 0.5 * state + readings


def test_a_state_jumps_and_follows_a_linear_field_over_its_own_gaps():
    gap, readings = gaps_of(), torch.randn(5, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jump = lambda readings, state: jumping(state, readings)
    jumped, arrived = integrate_with_jumps(Linear(), jump, readings, gap, readings[:, 0], 0.005)
    state = readings[:, 0]
    for i in range(6):
        state = jumping(state, readings[:, i])
        torch.testing.assert_close(jumped[:, i], state, rtol=1e-7, atol=1e-7)
        state = torch.einsum("bi,bij->bj", state, torch.matrix_exp(gap[:, i, None, None] * TURN))
        torch.testing.assert_close(arrived[:, i], state, rtol=1e-7, atol=1e-7)


def test_the_steps_of_a_row_are_its_own():
    """Beside a row with gaps a hundred times as long, and with a bound far above, its answers stay."""
    gap, readings = gaps_of(), torch.randn(5, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jump = lambda readings, state: jumping(state, readings)
    solve = lambda gap, most=None: integrate_with_jumps(Linear(), jump, readings, gap, readings[:, 0], 0.1, most)[1]
    alone = solve(gap)
    longer = gap.clone()
    longer[4] *= 100
    torch.testing.assert_close(solve(longer)[:4], alone[:4], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solve(gap, 500), alone, rtol=1e-12, atol=1e-12)


def test_the_error_over_gaps_falls_with_the_fourth_power_of_the_step():
    gap, readings = gaps_of().abs() + 0.4, torch.ones(5, 6, 2, dtype=torch.float64)
    jump = lambda readings, state: readings
    exact = torch.einsum("bpi,bpij->bpj", readings, torch.matrix_exp(gap[..., None, None] * TURN))
    errors = [
        (integrate_with_jumps(Linear(), jump, readings, gap, readings[:, 0], h)[1] - exact).abs().max()
        for h in (0.1, 0.05)
    ]
    assert 10 < errors[0] / errors[1] < 25


def test_gaps_that_are_too_long_are_an_error_that_names_the_limit():
    with pytest.raises(ValueError, match=str(MOST_NODES)):
        Ticks.of(torch.full((1, 1), 1e9, dtype=torch.float64), 0.1)


@pytest.mark.parametrize("before", [0, 2])
def test_a_linear_path_is_read_exactly_and_held_beyond_its_ends(before):
    step, last = 0.25, 4
    times = (torch.arange(last + 1, dtype=torch.float64) - before) * step
    line = lambda t: torch.stack([3 - 2 * t, 5 * t], -1)
    states = line(times)[:, None, None].expand(-1, 2, 4, -1)
    elapsed = own_times(low=-2.0, high=2.0)
    found = linear_read(states, step, before, elapsed)
    expected = line(elapsed.clamp(times[0], times[-1])).expand(2, -1, -1, -1)
    torch.testing.assert_close(found, expected)


def test_a_linear_reading_at_the_nodes_is_the_nodes():
    states = torch.randn(5, 2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    elapsed = (0.5 * torch.arange(5, dtype=torch.float64)).expand(3, 5)
    torch.testing.assert_close(linear_read(states, 0.5, 0, elapsed), states.permute(1, 2, 0, 3))


@pytest.mark.parametrize(("windows", "steps"), [(0.0, 20), (0.4, 20), (1.0, 20), (1.01, 21), (3.0, 60)])
def test_training_takes_the_steps_that_cover_its_longest_window(windows, steps):
    assert steps_in_training(20, windows) == steps


def test_training_windows_too_long_for_the_steps_are_refused():
    with pytest.raises(ValueError, match="400 typical windows"):
        steps_in_training(20, 400.0)
