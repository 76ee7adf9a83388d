"""Measure whole training steps, forward and backward, against the same losses in JAX, compiled."""

import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from bench import ours, vrnn
from bench.harness import OPTIONS, Row, against, installed, missing, row
from bench.training import PERIODIC
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.latent_ode import LatentODE
from vrnn_lab.models.latent_sde import LatentSDE
from vrnn_lab.models.ode import Solver
from vrnn_lab.training.fit import trainer_of

SAME = "JAX, our algorithm by a scan"
TIMES = {"shared": "true", "own": "false"}  # the value of data.shared_times
NODES = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 80)  # solver steps a window among which ours are chosen


def rows(quick: bool = False) -> Iterator[Row]:
    if not installed("jax", "equinox", "diffrax"):
        yield missing("steps against JAX", "diffrax")
        return
    from bench import diffrax_peer

    if not diffrax_peer.on(OPTIONS.device):
        note = "the installed JAX does not compute on the device that torch uses"
        yield row("steps against JAX", None, None, "JAX", "ms", note=note)
        return
    yield from latent_ode(quick)
    yield from latent_sde(quick)
    yield from sequences(quick)


def loss_of(model, series: TimeSeries) -> Callable[[], torch.Tensor]:
    """Return a function that computes the loss per scored value in standardised units, after seeding the noise."""

    def loss() -> torch.Tensor:
        model.noise.seed(0, device=series.values.device)
        terms = model._loss_terms(series, model.recipe.objective.samples)
        return ours.loss_of(terms, series)

    return loss


def noise_of(model, series: TimeSeries) -> torch.Tensor:
    """Return the noise of z_0, (samples, batch, latent), that `loss_of` draws."""
    model.noise.seed(0, device=series.values.device)
    like = next(model.parameters())
    return model.noise.of_series("latent", series, model.recipe.objective.samples, model.latent, like)


# ---- latent ODE ----------------------------------------------------------------------------------------------


def latent_ode(quick: bool) -> Iterator[Row]:
    """Measure at fresh weights and, with slow=true, at those of a fit, whose field takes more steps."""
    small = ["data.points=12", "task.seen=6", "data.train=50"] if quick else []
    for times, shared in TIMES.items():
        parts = ours.parts_of(*PERIODIC, f"data.shared_times={shared}", *small)
        batch = next(iter(parts.data.train_dataloader())).to(OPTIONS.device)
        weights = {"fresh": parts.model} | ({"trained": trained(parts)} if OPTIONS.slow else {})
        for state, model in weights.items():
            yield from latent_ode_rows(model, batch, f"latent ODE, {times} times, {state} weights", times)


def trained(parts: Any) -> LatentODE:
    """Return a copy of a model, fitted by the run's recipe."""
    other = deepcopy(parts)
    with tempfile.TemporaryDirectory() as folder:
        trainer_of(other, Path(folder)).fit(other.model, datamodule=other.data, weights_only=True)
    return other.model.to(OPTIONS.device).train()


def with_nodes(model: LatentODE, nodes: int) -> LatentODE:
    """Return the model with another number of solver steps."""
    other = deepcopy(model)
    other.nodes = other.panels = nodes
    other.step = model.step * model.nodes / nodes
    return other


def states_of(model: LatentODE, series: TimeSeries, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.solver.path(model.field, z, model.step, model.nodes, 0).at(series.times)


def latent_ode_rows(model: LatentODE, batch: TimeSeries, name: str, times: str) -> Iterator[Row]:
    """Measure against our algorithm in JAX on the run's nodes, and against diffrax on the fewest nodes with which our
    states are no further than its own from the exact ones."""
    from bench import jax_steps

    series = model.standardise(batch)
    noise = noise_of(model, series)
    with torch.no_grad():
        z = model._encode(series).draw(noise)
        fine = deepcopy(model).double()
        exact = Solver().path(fine.field, z.double(), model.step / 20, 20 * model.nodes, 0).at(series.times)
    error_of = lambda states: ((states - exact).square().mean().sqrt() / exact.std()).item()
    own_error = lambda nodes: error_of(states_of(with_nodes(model, nodes), series, z))
    way = "together" if times == "shared" else "rows"
    dopri = f"JAX, diffrax dopri5, {'one solve of all rows' if times == 'shared' else 'a solve a row'}"
    size = f"batch {len(batch.ids)}, {len(z)} samples"

    theirs, step, states = jax_steps.latent_ode(model, series, noise, "same")
    ours.check_losses(name, loss_of(model, series)().item(), theirs)
    errors = [own_error(model.nodes), error_of(states)]
    details = {"sizes": size, "nodes": model.nodes, "errors": errors}
    yield against(f"{name}: {SAME}", ours.backward_of(model, batch), step, SAME, 1.0, **details)

    _, step, states = jax_steps.latent_ode(model, series, noise, way)
    error = error_of(states)
    nodes = next((n for n in NODES if own_error(n) <= error), NODES[-1])
    chosen = with_nodes(model, nodes)
    details = {"sizes": size, "nodes": nodes, "errors": [own_error(nodes), error]}
    yield against(f"{name}: {dopri}", ours.backward_of(chosen, batch), step, dopri, 1.0, **details)


# ---- latent SDE, VRNN ----------------------------------------------------------------------------------------


def latent_sde(quick: bool) -> Iterator[Row]:
    from bench import jax_steps

    small = ["data.points=12", "task.seen=6", "data.train=50", "model.nodes=8"] if quick else ["task.seen=50"]
    keys = ["model=latent_sde", "data=periodic", "data.shared_times=false", "task=interpolate", "trainer=cpu"]
    for way, posterior, peer in (("same", "narrowed", SAME), ("diffrax", "shared", "JAX, diffrax Euler")):
        parts = ours.parts_of(*keys, f"model.posterior={posterior}", *small)
        model, batch = parts.model, next(iter(parts.data.train_dataloader())).to(OPTIONS.device)
        assert isinstance(model, LatentSDE)
        series = model.standardise(batch)
        noise = noise_of(model, series)
        path_noise = path_noise_of(model, series, noise)
        theirs, step = jax_steps.latent_sde(model, series, noise, path_noise, way)
        name = f"latent SDE, own times, posterior {posterior}"
        if way == "same":
            ours.check_losses(name, loss_of(model, series)().item(), theirs)
        details = {"sizes": f"batch {len(batch.ids)}, {model.nodes} steps"}
        yield against(f"{name}: {peer}", ours.backward_of(model, batch), step, peer, 1.0, **details)


def path_noise_of(model: LatentSDE, series: TimeSeries, start: torch.Tensor) -> torch.Tensor:
    """Return the noise of the steps that `loss_of` draws after that of z_0."""
    times = torch.arange(model.nodes, device=start.device, dtype=torch.float64) * model.step
    return model._noise(series, times.expand(len(series.ids), -1), start)


def sequences(quick: bool) -> Iterator[Row]:
    from bench import jax_vrnn

    for time, size, width in ((4, 3, 8),) if quick else ((28, 128, 100), (200, 32, 64)):
        model, batch = vrnn.model_of(time, width), vrnn.batch_of(size, time, vrnn.PIXELS)
        theirs, step = jax_vrnn.vrnn(model, batch.values, vrnn.noise_of(model, batch).transpose(0, 1))
        name = f"VRNN, T {time}, batch {size}, width {width}"
        ours.check_losses(name, loss_of(model, model.standardise(batch))().item(), theirs)
        yield against(f"{name}: {SAME}", ours.backward_of(model, batch), step, SAME, 1.3)
