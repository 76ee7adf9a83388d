"""Copy weights of our models to JAX, and compute with them what our layers compute."""

import jax
import numpy as np
import torch
from jax import numpy as jnp

from vrnn_lab.models.heads import FLOOR

Weights = dict[str, jax.Array]


def array(tensor: torch.Tensor) -> jax.Array:
    """Return a tensor as a JAX array of float32, or of its own type where it holds whole numbers or truths."""
    numbers = tensor.detach().cpu().numpy()
    return jnp.asarray(numbers.astype(np.float32) if numbers.dtype.kind == "f" else numbers)


def linear_of(layer: torch.nn.Linear) -> Weights:
    """Return the matrix, transposed, and the bias of a linear map."""
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    return {"matrix": array(layer.weight.t()), "bias": array(bias)}


def layers_of(network: torch.nn.Sequential) -> list[Weights]:
    return [linear_of(layer) for layer in network if isinstance(layer, torch.nn.Linear)]


def linear(layer: Weights, x: jax.Array) -> jax.Array:
    return x @ layer["matrix"] + layer["bias"]


def network(layers: list[Weights], x: jax.Array) -> jax.Array:
    """Compute linear maps with tanh between them."""
    for layer in layers[:-1]:
        x = jnp.tanh(linear(layer, x))
    return linear(layers[-1], x)


def gru(recur: Weights, gates: jax.Array, state: jax.Array) -> jax.Array:
    """Compute the next state of a gated recurrent unit from its input's gates."""
    size, both = state.shape[-1], linear(recur, state)
    reset, keep = jnp.split(jax.nn.sigmoid(gates[..., : 2 * size] + both[..., : 2 * size]), 2, -1)
    new = jnp.tanh(gates[..., 2 * size :] + reset * both[..., 2 * size :])
    return new + keep * (state - new)


def gaussian(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the bounded log-std of a network's output."""
    mean, log_std = jnp.split(raw, 2, -1)
    return mean, 5 * jnp.tanh((log_std + 2) / 5) - 2


def kl(mean, log_std, other_mean=0.0, other_log_std=0.0) -> jax.Array:
    """Return the sum of the KL of diagonal Gaussians, in nats."""
    ratio, shift = log_std - other_log_std, (mean - other_mean) * jnp.exp(-other_log_std)
    return (0.5 * (jnp.exp(2 * ratio) + shift * shift - 1) - ratio).sum()


def nll(values, scored, mean, log_std) -> jax.Array:
    """Return -log p of the scored values, in nats, averaged over samples, the first axis of the mean.

    The std is that of our heads, which have a floor.
    """
    log_std = 0.5 * jnp.logaddexp(2 * log_std, 2 * jnp.log(FLOOR))
    shift = (values - mean) * jnp.exp(-log_std)
    each = 0.5 * shift * shift + log_std + 0.5 * jnp.log(2 * jnp.pi)
    return jnp.where(scored, each, 0).mean(0).sum()


def step_of(loss, weights, *inputs):
    """Return the loss, and a call that computes it and its gradient, compiled; inputs are traced, not constants."""
    gradient = jax.jit(jax.value_and_grad(loss))
    step = lambda: jax.block_until_ready(gradient(weights, *inputs))
    return float(step()[0]), step
