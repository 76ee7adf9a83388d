"""The neural ODE on the data: its law written out by hand on fields whose solution is known."""

from dataclasses import replace

import pytest
import torch
from torchdiffeq import odeint

from helpers.small import density, from_loader, model_of, scale_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.series import series_of

TURN = torch.tensor([[-0.1, 2.0], [-2.0, -0.3]], dtype=torch.float64)
MEAN, STD = torch.tensor([-7.0, -6.0]).double(), torch.tensor([3.0, 6.0]).double()  # of scale_of(2)
TIMES = torch.tensor([[100.5, 101.0, 102.5, 103.0, 104.75]], dtype=torch.float64)  # a window is 5 long


def turning(**keys):
    """dy/dt = TURN y, in standardised units and windows."""
    model = model_of("neural_ode", double=True, **{"depth": 0, "nodes": 300, **keys})
    with torch.no_grad():
        model.layers[0].weight.copy_(TURN)
        model.layers[0].bias.zero_()
        model.first.copy_(torch.tensor([0.3, -0.2]))
        model.log_spread.copy_(torch.tensor([0.1, 0.2]))
    return model


def flow(state, duration):
    return torch.matrix_exp(TURN * duration / 5) @ state


def row(standard, seen):
    """One row of five points; `seen` and all else scored."""
    batch = series_of(TIMES, standard[None] * STD + MEAN, window=[[100.0, 105.0]])
    return replace(batch, seen=seen[None], scored=torch.ones_like(batch.seen))


def standard_values():
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def seen_at(*places):
    seen = torch.zeros(5, 2, dtype=torch.bool)
    for place in places:
        seen[place] = True
    return seen


def locations(y, seen):
    """The law, point by point: backward from the first seen point, then from seen point to seen point."""
    first = seen.any(1).nonzero()[0].item()
    gap = lambda i, j: TIMES[0, j] - TIMES[0, i]
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    taken = torch.where(seen[first], y[first], start)
    found = [flow(taken, gap(first, j)) for j in range(first)] + [start]
    state, at = taken, first
    for j in range(first + 1, 5):
        found.append(flow(state, gap(at, j)))
        if seen[j].any():
            state, at = torch.where(seen[j], y[j], found[-1]), j
    return torch.stack(found)


SEEN = [seen_at(0), seen_at(2), seen_at(1, 3), seen_at(4), seen_at(0, 1, 2, 3, 4)]
HALF = seen_at(1, 3)
HALF[1, 0] = HALF[3, 1] = False
SEEN.append(HALF)


@pytest.mark.parametrize("seen", SEEN)
def test_points_follow_the_solution_from_the_last_seen_point_and_backward_from_the_first(seen):
    model, y = turning(), standard_values()
    batch = row(y, seen)
    expected = locations(y, seen)
    with model.fixed_noise(0):
        prediction = model.predict(batch, 2)
        nll = model.loss_terms(batch).nll
    first = seen.any(1).nonzero()[0].item()
    mean = (prediction.density.mean - MEAN) / STD
    torch.testing.assert_close(mean, expected.expand(2, 1, -1, -1), rtol=1e-7, atol=1e-7)
    spread = model.head(expected).scale.clone()
    spread[first] = (torch.exp(2 * model.log_spread) + 1e-6).sqrt()
    exact = Gaussian(expected, spread).affine(STD, MEAN).log_prob(batch.values[0], batch.scored[0]).sum()
    torch.testing.assert_close(nll, -exact[None], rtol=1e-6, atol=1e-6)


def test_with_nothing_seen_a_path_starts_from_its_first_draw():
    model, batch = turning(), row(standard_values(), seen_at())
    with model.fixed_noise(0):
        prediction = model.predict(batch, 500)
        weights = model.log_weights(density(batch), 1)
        nll = model.loss_terms(batch).nll
    paths = (prediction.paths[:, 0] - MEAN) / STD
    mean = (prediction.density.mean[:, 0] - MEAN) / STD
    for j in range(1, 5):
        carried = flow(paths[:, 0, :, None], TIMES[0, j] - TIMES[0, 0])[..., 0]
        torch.testing.assert_close(mean[:, j], carried, rtol=1e-6, atol=1e-6)
    assert (paths[:, 0].mean(0) - model.first).abs().max() < 0.2
    assert (paths[:, 0].std(0) / model.log_spread.exp()).log().abs().max() < 0.15
    # In the loss the first value itself is the start; of the density task every value is one.
    seen_first = replace(batch, seen=seen_at(0)[None])
    torch.testing.assert_close(nll, model.loss_terms(seen_first).nll)
    assert (weights[0] + nll).abs() > 1


def test_where_every_row_is_known_to_start_from_its_first_point_nothing_is_solved_backward(monkeypatch):
    model = turning()
    batch = replace(from_loader(row(standard_values(), seen_at(0, 3))), longest_gap=None)
    expected, field, rows = model.loss_terms(batch).nll, model._field, []
    monkeypatch.setattr(model, "_field", lambda time, state: rows.append(len(state)) or field(time, state))
    torch.testing.assert_close(model.loss_terms(replace(batch, opens_seen=True)).nll, expected)
    assert set(rows) == {1}
    rows.clear()
    model.loss_terms(replace(batch, opens_seen=True, in_training=False))  # where seen was changed it may be wrong
    assert set(rows) == {2}


@pytest.mark.parametrize("power", [1, 3])
def test_a_nonlinear_field_agrees_with_a_tight_solve(power):
    model, y = model_of("neural_ode", double=True, nodes=100, power=power, spread=0.5), standard_values()
    with model.fixed_noise(0):
        mean = model.predict(row(y, seen_at(2)), 1).density.mean[0, 0]
        zero = MEAN / STD if power > 1 else 0.0  # a cube is one of the values themselves
        field = lambda t, state: model.layers((state + zero) ** power)
        tight = lambda j: odeint(
            field, y[2], torch.stack([TIMES[0, 2], TIMES[0, j]]) / 5, rtol=1e-11, atol=1e-11, method="dopri8"
        )[-1]
        for j in (0, 1, 3, 4):
            torch.testing.assert_close((mean[j] - MEAN) / STD, tight(j), rtol=1e-6, atol=1e-6)


def test_laplace_is_the_l1_loss_of_the_demo():
    """One point seen, the others scored: of two sets of values the losses differ by the distances over the scale."""
    y, other = standard_values(), standard_values()
    other[1:] += torch.linspace(-1, 2, 8, dtype=torch.float64).view(4, 2)
    model = turning_laplace()
    one, two = (replace(row(x, seen_at(0)), scored=~seen_at(0)[None]) for x in (y, other))
    carried = locations(y, seen_at(0))[1:]
    with torch.no_grad():
        distance = ((other[1:] - carried).abs() - (y[1:] - carried).abs()).sum(0)
        found = model.loss_terms(two).nll - model.loss_terms(one).nll
        scale = model.head(carried).scale[0]
    torch.testing.assert_close(found, (distance / scale).sum()[None], rtol=1e-6, atol=1e-6)


def turning_laplace():
    gaussian = turning()
    model = model_of("neural_ode model/head=laplace model.head.noise=channel", double=True, depth=0, nodes=300)
    model.load_state_dict(gaussian.state_dict())
    return model


@pytest.mark.parametrize("head", ["model.head.noise=point", "model/head=gmm"])
def test_a_head_that_wants_more_than_a_location_is_refused(head):
    with pytest.raises(ConfigError, match="noise=channel"):
        model_of(f"neural_ode {head}")


def test_the_longest_way_is_limited_by_name():
    far = replace(row(standard_values(), seen_at(0)), times=TIMES + torch.tensor([0, 0, 0, 0, 1e9]))
    model = model_of("neural_ode", scale_of())
    with model.fixed_noise(0), pytest.raises(ValueError, match="solver steps"):
        model.predict(far, 2)


def test_the_vector_field_is_the_slope_of_its_paths_in_the_units_of_the_data():
    model, scale = model_of("neural_ode", double=True, power=3), scale_of()
    start = scale.mean + scale.std * torch.tensor([[0.5, -1.0]]).double()
    ahead = torch.tensor([[0.0, 1e-4]]).double()
    batch = series_of(101 + ahead, torch.stack([start, start], 1), window=[[100.0, 105.0]])
    first = torch.tensor([True, False])[None, :, None].expand(1, 2, 2)
    asked = replace(batch, seen=first, scored=~first)
    with model.fixed_noise(0):
        moved = model.predict(asked, 1).density.mean[0, 0, 1] - start[0]
    torch.testing.assert_close(moved / 1e-4, model.vector_field(start)[0], rtol=1e-3, atol=1e-6)
