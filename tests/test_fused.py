"""Loops differentiated by hand are what autograd makes of them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.small import batch_of, density, model_of
from vrnn_lab.models import layers
from vrnn_lab.models.fused import runge_kutta, tape
from vrnn_lab.models.layers import GRUCell, VectorField
from vrnn_lab.models.ode import Solver, integrate_with_jumps


def values_and_gradients(outputs, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of one fixed function of them."""
    found = outputs()
    noise = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=noise, dtype=x.dtype)).sum() for x in found)
    return [*found, *torch.autograd.grad(total, inputs, allow_unused=True)]


def by_autograd(outputs, inputs: list[Tensor]) -> list[Tensor]:
    with tape.fused_disabled():
        return values_and_gradients(outputs, inputs)


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("kept", "block"), [(1, 1), (1, 50), (2**28, 1), (2**28, 100)])
def test_a_solve_is_that_of_autograd_however_short_the_tape(activation, depth, kept, block, monkeypatch):
    monkeypatch.setattr(runge_kutta, "TAPE", kept)
    monkeypatch.setattr(runge_kutta, "BLOCK", block)
    torch.manual_seed(depth)
    field = VectorField(3, 6, depth, activation, 2.0).double()
    start = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def solve():
        path = Solver().path(field, start, 0.2, 5, 3)
        return path.states, path.slopes

    inputs = [start, *field.parameters()]
    agree(values_and_gradients(solve, inputs), by_autograd(solve, inputs))


@pytest.mark.parametrize(("kept", "block"), [(1, 1), (1, 70), (2**28, 1), (2**28, 70)])
def test_a_walk_is_that_of_autograd_however_short_the_tape(kept, block, monkeypatch):
    monkeypatch.setattr(runge_kutta, "TAPE", kept)
    monkeypatch.setattr(runge_kutta, "BLOCK", block)
    torch.manual_seed(0)
    memory, field = GRUCell(3, 4).double(), VectorField(4, 5, 1, "tanh", 1.0).double()
    readings = torch.randn(6, 7, 3, dtype=torch.float64, requires_grad=True)
    gap = 0.3 * torch.rand(6, 7, dtype=torch.float64) * torch.tensor([[1.0], [-1], [1], [0], [-1], [1]])
    start = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    walk = lambda: integrate_with_jumps(field, memory, memory.gates(readings), gap, start, 0.1)
    inputs = [readings, start, *memory.parameters(), *field.parameters()]
    agree(values_and_gradients(walk, inputs), by_autograd(walk, inputs))


def test_a_gated_sequence_is_torchs():
    torch.manual_seed(0)
    memory = GRUCell(3, 4).double()
    readings = torch.randn(5, 8, 3, dtype=torch.float64, requires_grad=True)
    run = lambda: (memory.over(readings),)
    inputs = [readings, *memory.parameters()]
    agree(values_and_gradients(run, inputs), by_autograd(run, inputs))


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


def test_a_second_derivative_is_refused_rather_than_wrong_and_left_to_autograd_on_demand():
    field = VectorField(3, 6, 1, "tanh", 2.0).double()
    start = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)

    def curvature():
        states, _ = Solver().nodes(field, start, 0.1, 2)
        (slope,) = torch.autograd.grad(states.sum(), start, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), start)[0]

    with pytest.raises(RuntimeError, match="fused_disabled"):
        curvature()
    with tape.fused_disabled():
        assert curvature().abs().sum() > 0


class Leaning(VectorField):
    def forward(self, time, state):
        return super().forward(time, state) - state


def hooked(field: VectorField) -> VectorField:
    field.layers[0].register_forward_hook(lambda layer, readings, out: 2 * out)
    return field


def widened(field: VectorField) -> VectorField:
    field.layers.insert(1, torch.nn.LayerNorm(6))
    return field


@pytest.mark.parametrize("change", [hooked, widened])
def test_a_network_that_was_changed_is_the_one_that_is_solved(change):
    field, start = change(VectorField(3, 6, 2, "tanh", 2.0)), torch.randn(1, 4, 3)
    with tape.fused_disabled():
        known = Solver().nodes(field, start, 0.1, 3)
    torch.testing.assert_close(Solver().nodes(field, start, 0.1, 3), known)


def test_so_is_one_that_was_derived():
    field, start = Leaning(3, 6, 2, "tanh", 2.0), torch.randn(1, 4, 3)
    with tape.fused_disabled():
        known = Solver().nodes(field, start, 0.1, 3)
    torch.testing.assert_close(Solver().nodes(field, start, 0.1, 3), known)


def test_no_rows_are_no_fault():
    states, _ = Solver().nodes(VectorField(3, 6, 2, "tanh", 2.0), torch.randn(1, 0, 3, requires_grad=True), 0.1, 3)
    states.sum().backward()
    assert states.shape == (4, 1, 0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_variational_sequence_is_that_of_autograd(activation, depth, samples):
    model = model_of("vrnn", double=True, activation=activation, feature_depth=depth)
    batch = density(batch_of())

    def weights():
        model.noise.seed(0, device=batch.values.device)
        return (model.log_weights(batch, samples),)

    inputs = list(model.parameters())
    agree(values_and_gradients(weights, inputs), by_autograd(weights, inputs))


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize(
    ("depth", "posterior", "latent"), [(0, "shared", 2), (1, "narrowed", 2), (2, "narrowed", 20)]
)
@pytest.mark.parametrize("samples", [1, 3])
def test_the_chain_of_a_latent_sde_is_that_of_autograd(activation, depth, posterior, latent, samples):
    keys = {"activation": activation, "depth": depth, "posterior": posterior, "latent": latent}
    model, batch = model_of("latent_sde", double=True, **keys), density(batch_of())

    def chain():
        model.noise.seed(0, device=batch.values.device)
        path = model._chain(model.standardise(batch), samples)[2]
        return path.states, path.pull

    inputs = list(model.parameters())
    agree(values_and_gradients(chain, inputs), by_autograd(chain, inputs))
    fused = type(chain()[0].grad_fn.next_functions[0][0]).__name__
    assert (fused == "GuidedChainBackward") == (activation != "silu")


def test_a_chain_without_rows_is_no_fault():
    model, batch = model_of("latent_sde"), density(batch_of())
    nobody = replace(batch.rows(slice(0)), in_training=True, most_seen=batch.times.shape[1])
    terms = model.loss_terms(nobody)
    (terms.nll.sum() + terms.kl.sum()).backward()
    assert terms.nll.shape == (0,)


def test_a_changed_guide_of_a_latent_sde_is_the_one_that_guides():
    model, batch = model_of("latent_sde"), density(batch_of())
    model.steering.leave.register_forward_hook(lambda layer, readings, out: 2 * out)

    def loss():
        model.noise.seed(0, device=batch.values.device)
        return model.loss_terms(batch).nll

    with tape.fused_disabled():
        known = loss()
    torch.testing.assert_close(loss(), known)


@pytest.mark.parametrize("name", ["vrnn", "rnn", "latent_ode", "ode_rnn", "latent_sde"])
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


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch.func's own use of it
def test_a_quick_tanh_has_all_the_derivatives_of_a_tanh():
    x = torch.randn(2 * layers.LARGE, requires_grad=True)

    def curvature(tanh):
        (slope,) = torch.autograd.grad(tanh(x).sum() + x.square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    torch.testing.assert_close(curvature(layers.Tanh()), curvature(torch.tanh), rtol=0, atol=1e-4)
    ones = torch.ones_like(x)
    for ours, theirs in zip(*(torch.func.jvp(f, (x,), (ones,)) for f in (layers.Tanh(), torch.tanh)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
