"""What happens to a recurrent state between points, against the papers' equations written out by hand."""

from dataclasses import replace

import pytest
import torch

from helpers.small import asked, batch_of, from_loader, model_of, scale_of
from vrnn_lab.models.cells import GRU, GRUD, ODE, Decay
from vrnn_lab.models.encoders import GRUEncoder, ODERNNEncoder

CELLS = [GRU, Decay, GRUD, ODE]
TURN = torch.tensor([[-0.1, 2.0], [-2.0, -0.3]], dtype=torch.float64)


def cell_of(kind, width: int = 5, **keys):
    torch.manual_seed(0)
    return kind(scale_of(), width, **keys).double()


def points(rows: int = 4, time: int = 6, seed: int = 0):
    """values, known, gaps in usual gaps: nothing before the first point, then irregular ones."""
    rng = torch.Generator().manual_seed(seed)
    known = (torch.rand(rows, time, 2, generator=rng) < 0.6).double()
    values = torch.randn(rows, time, 2, generator=rng, dtype=torch.float64) * known
    gap = torch.empty(rows, time, 1, dtype=torch.float64).exponential_(0.5, generator=rng)
    known[:, 0], values[:, 0], gap[:, 0] = 0, 0, 0
    return values, known, gap


def by_hand(memory, x, m, state):
    """One update of a GRU that is told [x, m]."""
    return memory(memory.gates(torch.cat([x, m], -1)), state)


def linear(memory, matrix) -> None:
    """Sets dh/dt = matrix h, in typical windows."""
    layer = memory.field.layers[0]
    with torch.no_grad():
        layer.weight.copy_(matrix)
        layer.bias.zero_()


def matrix_of(width: int):
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return matrix - 1.5 * torch.eye(width, dtype=torch.float64)


@pytest.mark.parametrize("kind", CELLS)
def test_all_points_at_once_are_the_points_one_by_one(kind):
    cell = cell_of(kind)
    values, known, gap = points()
    together = cell.over(values, known, gap)
    spread = lambda x: x.expand(3, *x.shape)
    state = cell.start(values, 3, len(values))
    for i in range(values.shape[1]):
        state = cell(*(spread(x[:, i]) for x in (values, known, gap)), None, state)
        torch.testing.assert_close(state, spread(together[:, i]))
    assert state.shape[-1] == cell.size


@pytest.mark.parametrize("kind", CELLS)
def test_a_known_bound_on_the_gaps_changes_nothing(kind):
    cell = cell_of(kind)
    values, known, gap = points()
    gap = gap / gap.sum(1, keepdim=True) * 10  # of usual gaps: a training window
    torch.testing.assert_close(cell.over(values, known, gap, longest=gap.max().item()), cell.over(values, known, gap))


def test_rnn_decay_fades_by_the_gap_after_a_point():
    cell = cell_of(Decay)
    values, known, gap = points()
    rate = torch.nn.functional.softplus(cell.rate)
    assert ((rate >= 0.01 - 1e-9) & (rate <= 1)).all()
    state = torch.zeros(4, 5, dtype=torch.float64)
    for i, found in enumerate(cell.over(values, known, gap).unbind(1)):
        state = torch.exp(-rate * gap[:, i]) * by_hand(cell.memory, values[:, i], known[:, i], state)
        torch.testing.assert_close(found, state)


def test_gru_d_follows_the_paper_at_irregular_times():
    """Channel a is known at t = 0 and 5, b at t = 2 alone, and point 4 is asked at t = 5.5: eq. 10 to 16 by hand."""
    cell = cell_of(GRUD)
    with torch.no_grad():
        cell.state_rate.copy_(0.3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1)))  # of both signs
        cell.input_shift.copy_(torch.tensor([0.2, -0.1]))
    row = lambda *x: torch.tensor([x], dtype=torch.float64)
    a, b, c = 1.3, -0.7, 0.4
    fade_x = lambda *d: torch.exp(-(row(*d) * cell.input_rate + cell.input_shift).clamp(min=0))
    fade_h = lambda *d: torch.exp(-(row(*d) @ cell.state_rate.T + cell.state_shift).clamp(min=0))
    # d of the paper at t = 0, 2, 5, 5.5: since a channel was last known before that point
    start = by_hand(cell.memory, row(0, 0), row(0, 0), torch.zeros(1, 5, dtype=torch.float64))
    told = [fade_h(0, 0) * start]
    h = by_hand(cell.memory, row(a, 0), row(1, 0), told[0])
    told.append(fade_h(2, 2) * h)
    h = by_hand(cell.memory, torch.cat([fade_x(2, 2)[:, :1] * a, row(b)], 1), row(0, 1), told[1])
    told.append(fade_h(5, 3) * h)
    h = by_hand(cell.memory, torch.cat([row(c), fade_x(5, 3)[:, 1:] * b], 1), row(1, 0), told[2])
    told.append(fade_h(0.5, 3.5) * h)
    values = torch.stack([row(0, 0), row(a, 0), row(0, b), row(c, 0)], 1)
    known = torch.stack([row(0, 0), row(1, 0), row(0, 1), row(1, 0)], 1)
    gap = row(0, 2, 3, 0.5)[..., None]
    found = cell.over(values, known, gap)
    torch.testing.assert_close(found[..., :5], torch.stack(told, 1))
    torch.testing.assert_close(found[0, -1, 5:], row(c, b, 0.5, 3.5)[0])


def test_ode_rnn_carries_each_row_over_its_own_gap_after_the_point():
    """On dh/dt = A h: the updated state times exp(A gap); with the gaps reversed or lagged it is another state."""
    cell = cell_of(ODE, field_depth=0, nodes=400)
    matrix = matrix_of(5)
    linear(cell.memory, matrix)
    values, known, gap = points()

    def expected(gap):
        state, states = torch.zeros(4, 5, dtype=torch.float64), []
        for i in range(values.shape[1]):
            state = by_hand(cell.memory.memory, values[:, i], known[:, i], state)
            windows = gap[:, i, :, None] / 10  # a usual gap of scale_of is a tenth of a window
            state = (torch.matrix_exp(matrix * windows) @ state[..., None])[..., 0]
            states.append(state)
        return torch.stack(states, 1)

    found = cell.over(values, known, gap)
    torch.testing.assert_close(found, expected(gap), rtol=1e-7, atol=1e-7)
    for wrong in (gap.flip(1), gap.roll(1, 1), -gap):
        assert (found - expected(wrong)).abs().amax((1, 2)).min() > 0.01


@pytest.mark.parametrize("origin", [0.0, 0.7])
def test_the_ode_rnn_encoder_goes_back_from_point_to_point_and_on_to_the_origin(origin):
    """Rows with 3, 1, 2 and 0 seen points among others, on dh/dt = A h."""
    torch.manual_seed(0)
    encoder = ODERNNEncoder(scale_of(), 5, field_depth=0, nodes=400).double()
    matrix = matrix_of(5)
    linear(encoder.memory, matrix)
    batch = batch_of(4, 7)
    seen = torch.zeros(4, 7, 1, dtype=torch.bool)
    seen[0, [1, 3, 4]] = seen[1, 2] = seen[2, [0, 6]] = True
    batch = replace(batch, seen=seen & torch.tensor([True, False]), scored=batch.known)
    elapsed = (batch.times - batch.window[:, :1]) / 5 + origin
    reading = encoder(batch, elapsed)
    memory = encoder.memory.memory
    gates = []  # of the inputs, in reading order
    memory.gates.register_forward_hook(lambda module, inputs, found: gates.append(found))
    encoder(batch, elapsed)
    flow = lambda state, windows: torch.matrix_exp(matrix * windows) @ state
    for row, place in enumerate(([4, 3, 1], [2], [6, 0])):
        state = torch.zeros(5, dtype=torch.float64)
        for i, p in enumerate(place):
            state = memory(gates[0][row, i], state)
            torch.testing.assert_close(reading.states[row, i], state, rtol=1e-7, atol=1e-7)
            earlier = elapsed[row, place[i + 1]] if i + 1 < len(place) else 0.0
            state = flow(state, earlier - elapsed[row, p])
        torch.testing.assert_close(reading.last[row], state, rtol=1e-7, atol=1e-7)
    bounded = encoder(batch, elapsed, reach=1.0 + origin)
    torch.testing.assert_close(bounded.last[:3], reading.last[:3])


def test_a_gru_encoder_ends_at_the_earliest_seen_point():
    torch.manual_seed(0)
    encoder = GRUEncoder(scale_of(), 5).double()
    batch = asked(batch_of())
    reading = encoder(batch, (batch.times - batch.window[:, :1]) / 5)
    for row, count in enumerate(reading.count[:, 0].tolist()):
        torch.testing.assert_close(reading.last[row], reading.states[row, max(count - 1, 0)])


@pytest.mark.parametrize("name", ["ode_rnn", "latent_ode model/encoder=ode_rnn", "neural_ode"])
def test_what_the_training_loader_knows_changes_no_loss(name):
    """Bounds that are known without asking the device only add ticks of length zero."""
    model, batch = model_of(name, double=True), asked(batch_of())
    with model.fixed_noise(0):
        one, two = model.loss_terms(batch), model.loss_terms(from_loader(batch))
    torch.testing.assert_close(one.nll, two.nll)
    torch.testing.assert_close(one.kl, two.kl)
