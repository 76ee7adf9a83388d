"""Loops differentiated by hand are what autograd makes of them."""

import pytest
import torch
from small import batch_of, density, model_of
from torch import Tensor

from vrnn_lab import layers, ode
from vrnn_lab.layers import Memory, VectorField
from vrnn_lab.models import vrnn
from vrnn_lab.ode import Solver, through
from vrnn_lab.taped import flow, tape


@pytest.fixture
def plainly(monkeypatch):
    """Run something as autograd does it."""

    def run(something):
        with monkeypatch.context() as patch:
            for module in (ode, layers, vrnn):
                patch.setattr(module, "by_hand", lambda: False)
            return something()

    return run


def values_and_gradients(outputs, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of one fixed function of them."""
    found = outputs()
    noise = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=noise, dtype=x.dtype)).sum() for x in found)
    return [*found, *torch.autograd.grad(total, inputs, allow_unused=True)]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("kept", "block"), [(1, 1), (1, 50), (2**28, 1), (2**28, 100)])
def test_a_solve_is_that_of_autograd_however_short_the_tape(activation, depth, kept, block, plainly, monkeypatch):
    monkeypatch.setattr(flow, "TAPE", kept)
    monkeypatch.setattr(flow, "BLOCK", block)
    torch.manual_seed(depth)
    field = VectorField(3, 6, depth, activation, 2.0).double()
    start = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def solve():
        path = Solver().path(field, start, 0.2, 5, 3)
        return path.states, path.slopes

    inputs = [start, *field.parameters()]
    agree(values_and_gradients(solve, inputs), plainly(lambda: values_and_gradients(solve, inputs)))


@pytest.mark.parametrize(("kept", "block"), [(1, 1), (1, 70), (2**28, 1), (2**28, 70)])
def test_a_walk_is_that_of_autograd_however_short_the_tape(kept, block, plainly, monkeypatch):
    monkeypatch.setattr(flow, "TAPE", kept)
    monkeypatch.setattr(flow, "BLOCK", block)
    torch.manual_seed(0)
    memory, field = Memory(3, 4).double(), VectorField(4, 5, 1, "tanh", 1.0).double()
    told = torch.randn(6, 7, 3, dtype=torch.float64, requires_grad=True)
    gap = 0.3 * torch.rand(6, 7, dtype=torch.float64) * torch.tensor([[1.0], [-1], [1], [0], [-1], [1]])
    start = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    walk = lambda: through(field, memory, memory.gates(told), gap, start, 0.1)
    inputs = [told, start, *memory.parameters(), *field.parameters()]
    agree(values_and_gradients(walk, inputs), plainly(lambda: values_and_gradients(walk, inputs)))


def test_a_gated_sequence_is_torchs(plainly):
    torch.manual_seed(0)
    memory = Memory(3, 4).double()
    told = torch.randn(5, 8, 3, dtype=torch.float64, requires_grad=True)
    run = lambda: (memory.over(told),)
    inputs = [told, *memory.parameters()]
    agree(values_and_gradients(run, inputs), plainly(lambda: values_and_gradients(run, inputs)))


def test_the_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    field = VectorField(2, 3, 2, "tanh", 2.0).double()
    start = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)

    def solve(start, *parameters):
        named = dict(zip(dict(field.named_parameters()), parameters, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(field, named):
            return Solver().nodes(field, start, 0.2, 3)

    assert torch.autograd.gradcheck(solve, (start, *field.parameters()))


def test_nothing_is_kept_where_no_gradient_is_asked(monkeypatch):
    kept = []
    empty = tape.Tape.empty.__func__
    monkeypatch.setattr(
        tape.Tape,
        "empty",
        classmethod(lambda cls, w, places, *rest: kept.append(places) or empty(cls, w, places, *rest)),
    )
    field = VectorField(3, 6, 1, "tanh", 2.0)
    with torch.no_grad():
        Solver().nodes(field, torch.randn(1, 4, 3), 0.1, 10)
    assert max(kept) == 4


def test_a_second_derivative_is_refused_rather_than_wrong():
    field = VectorField(3, 6, 1, "tanh", 2.0)
    start = torch.randn(1, 4, 3, requires_grad=True)
    states, _ = Solver().nodes(field, start, 0.1, 2)
    (slope,) = torch.autograd.grad(states.square().sum(), start, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_variational_sequence_is_that_of_autograd(activation, depth, samples, plainly):
    model = model_of("vrnn", double=True, activation=activation, feature_depth=depth)
    batch = density(batch_of())

    def weights():
        model.noise.seed(0, device=batch.values.device)
        return (model.log_weights(batch, samples),)

    inputs = list(model.parameters())
    agree(values_and_gradients(weights, inputs), plainly(lambda: values_and_gradients(weights, inputs)))


@pytest.mark.parametrize("name", ["vrnn", "rnn", "latent_ode", "ode_rnn"])
def test_with_gradients_or_without_a_loss_is_the_same(name):
    model, batch = model_of(name, double=True), density(batch_of())
    with_gradients = model.loss_terms(batch).nll
    model.noise.seed(0, device=batch.values.device)
    first = model.loss_terms(batch).nll
    model.noise.seed(0, device=batch.values.device)
    with torch.no_grad():
        second = model.loss_terms(batch).nll
    assert with_gradients.requires_grad
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_a_quick_tanh_is_a_tanh_and_so_is_its_slope():
    x = torch.linspace(-12, 12, 3 * layers.LARGE, requires_grad=True)
    quick, plain = layers.Tanh()(x), torch.tanh(x)
    assert type(quick.grad_fn).__name__ == "QuickTanhBackward"
    torch.testing.assert_close(quick, plain, rtol=0, atol=2e-7)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (quick, plain)]
    torch.testing.assert_close(*slopes, rtol=0, atol=4e-7)
