"""Solve with diffrax (JAX): jitted, with value and gradient in one call, each row read at its own times.

Of its adjoints and step limits the fastest here was RecursiveCheckpointAdjoint with a checkpoint at every step and at
most 16 steps. DirectAdjoint and max_steps=4096 took as long or longer.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox
import jax
import numpy as np
import torch
from jax import numpy as jnp
from torch import Tensor

STEPS = 16


def field_of(rate: float) -> Callable:
    """Return the network of `VectorField` as a function; its weights are the argument of the solve."""

    def field(time, state, layers):
        *inner, (weight, bias) = layers
        for matrix, shift in inner:
            state = jnp.tanh(state @ matrix + shift)
        return rate * (state @ weight + bias)

    return field


def solve(field, z0, layers, rtol: float, atol: float, saveat):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        0.0,
        1.0,
        None,
        z0,
        args=layers,
        saveat=saveat,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=STEPS),
        max_steps=STEPS,
    )


def row_by_row(field, z0, times, layers, rtol: float, atol: float):
    """Solve every row on its own, each with its own steps."""
    one = lambda z, own: solve(field, z, layers, rtol, atol, diffrax.SaveAt(ts=own)).ys
    return jax.vmap(one)(z0, times)


def together(field, z0, times, layers, rtol: float, atol: float):
    """Solve all rows at once with shared steps, and read the dense output at each row's own times."""
    path = solve(field, z0, layers, rtol, atol, diffrax.SaveAt(dense=True)).interpolation
    axes = jax.tree.map(lambda x: x.ndim - 2 if x.ndim >= 2 else None, path)  # the axis of the rows
    read = lambda own_path, own: jax.vmap(own_path.evaluate)(own)
    return equinox.filter_vmap(read, in_axes=(axes, 0))(path, times)


WAYS = {"one solve, read densely": together, "a solve a row": row_by_row}


def prepare(way: str, problem: Any, rtol: float, atol: float) -> tuple[Tensor, Callable[[], object]]:
    """Return the states at the queried times, and a step: forward, and backward to z0 and the weights."""
    field = field_of(problem.field.rate)
    array = lambda x: jnp.asarray(x.detach().cpu().numpy().astype(np.float32))
    layers = [(array(m.weight).T, array(m.bias)) for m in problem.field.layers if hasattr(m, "weight")]
    z0, times, weight = map(array, (problem.z0, problem.times, problem.weight))

    def loss(inputs, times):
        states = WAYS[way](field, inputs[0], times, inputs[1], rtol, atol)
        return (states * weight).sum(), states

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    step = lambda: jax.block_until_ready(gradient((z0, layers), times))
    (_, states), _ = step()
    return torch.from_numpy(np.array(states)).to(problem.z0.device), step


def on(device: str) -> bool:
    """Return whether the installed JAX computes on the device that torch uses."""
    return (jax.default_backend() == "gpu") == (device == "cuda")
