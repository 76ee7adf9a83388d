"""A run says how far the path on its solver's steps is from that of the ODE."""

from math import sqrt

import pytest
import torch

from helpers.small import batch_of, density, model_of
from vrnn_lab.reports.run_table import facts


def error_of(**keys) -> float:
    model, batch = model_of("latent_ode", double=True, depth=0, rate=2.0, **keys), density(batch_of())
    with model.fixed_noise(0):
        apart, spread = model.solver_error(batch)
    return sqrt(apart / spread)


@pytest.mark.parametrize("origin", ["row", "middle"])
def test_it_falls_as_the_fourth_power_of_the_step(origin):
    few, more = (error_of(origin=origin, nodes=nodes) for nodes in (8, 16))
    assert 12 < few / more < 24


def test_it_is_the_error_against_the_exact_solution_where_the_steps_are_few():
    model, batch = model_of("latent_ode", double=True, depth=0, rate=6.0, nodes=4, origin="row"), density(batch_of())
    with model.fixed_noise(0):
        apart, spread = model.solver_error(batch)
        series = model.standardise(batch)
        z = model._encode(series).mean
        layer = model.field.layers[0]
        matrix, shift = 6 * layer.weight, 6 * layer.bias
        # dz/dt = A z + b is linear in (z, 1), whose flow is a matrix exponential.
        whole = torch.zeros(len(matrix) + 1, len(matrix) + 1, dtype=torch.float64)
        whole[:-1, :-1], whole[:-1, -1] = matrix, shift
        flow = torch.linalg.matrix_exp(series.times[..., None, None] * whole)
        exact = torch.einsum("btij,bj->bti", flow, torch.cat([z, torch.ones_like(z[:, :1])], 1))[..., :-1]
        own = model._path(series, z[None]).at(series.times)[0]
    off = (own - exact)[series.counts].square().sum().item()
    assert sqrt(apart / spread) > 1e-4
    assert apart == pytest.approx(off, rel=0.15)  # the path on half the steps has a sixteenth of the error


def test_a_solver_that_holds_a_tolerance_has_none():
    model = model_of("latent_ode", method="dopri5")
    with model.fixed_noise(0):
        assert model.solver_error(density(batch_of())) is None
        assert model_of("vrnn").solver_error(density(batch_of())) is None


def test_a_run_mentions_it_where_it_is_more_than_a_hundredth():
    metrics = {"test/nll": 1.0, "test/nll_samples": 10}
    assert "9.4%" in facts({**metrics, "test/solver_error": 0.094}, "test")
    assert "solver" not in facts({**metrics, "test/solver_error": 0.009}, "test")
