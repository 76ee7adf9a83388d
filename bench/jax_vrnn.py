"""Compute the loss of our VRNN in JAX, with our weights and our noise."""

from typing import Any

import jax
import torch
from jax import numpy as jnp

from bench import jax_layers as nn
from vrnn_lab.models.vrnn import VRNN


def vrnn(model: VRNN, values: torch.Tensor, noise: torch.Tensor) -> tuple[float, Any]:
    """Return the loss and a step of a VRNN with a Bernoulli head, all values known at equal gaps of the usual length.

    values: (batch, time, dim); noise: (time, batch, latent).
    """
    assert isinstance(model.prior, torch.nn.Sequential)
    weights = {name: nn.layers_of(getattr(model, name)) for name in ("phi_x", "phi_z", "prior", "output")} | {
        "gates": nn.linear_of(model.memory.gates),
        "gates_of_z": nn.linear_of(model.gates_of_z),
        "recur": nn.linear_of(model.memory.recur),
        "of_x": nn.linear_of(model.posterior_of_x),
        "of_state": nn.linear_of(model.posterior_of_state),
        "posterior": nn.linear_of(model.posterior_out),
    }

    def features(layers, x):
        return jnp.tanh(nn.network(layers, x))

    def loss(weights, x, noise):
        time, batch, dim = x.shape
        of_x = features(weights["phi_x"], jnp.concatenate([x, jnp.ones_like(x)], -1))
        nothing = features(weights["phi_x"], jnp.zeros((1, batch, 2 * dim)))
        gap = jnp.ones((time, batch, 1)).at[0].set(0.0)
        before = jnp.concatenate([nothing, of_x[:-1]])
        gates = nn.linear(weights["gates"], jnp.concatenate([before, jnp.log1p(gap), jnp.exp(-gap)], -1))
        from_x = nn.linear(weights["of_x"], of_x)

        def forward(carry, now):
            state, of_latent = carry
            gate, from_x, eps = now
            state = nn.gru(weights["recur"], gate + of_latent, state)
            raw = nn.linear(weights["posterior"], jnp.tanh(from_x + nn.linear(weights["of_state"], state)))
            mean, log_std = nn.gaussian(raw)
            feature = features(weights["phi_z"], mean + jnp.exp(log_std) * eps)
            return (state, nn.linear(weights["gates_of_z"], feature)), (state, raw, feature)

        first = nn.linear(weights["gates_of_z"], features(weights["phi_z"], jnp.zeros((batch, noise.shape[-1]))))
        start = jnp.zeros((batch, weights["recur"]["matrix"].shape[0])), first
        _, (states, raw, feature) = jax.lax.scan(forward, start, (gates, from_x, noise))
        logits = nn.network(weights["output"], jnp.concatenate([feature, states], -1))
        nll = (jnp.maximum(logits, 0) - logits * x + jnp.log1p(jnp.exp(-jnp.abs(logits)))).sum()
        return (nll + nn.kl(*nn.gaussian(raw), *nn.gaussian(nn.network(weights["prior"], states)))) / x.size

    return nn.step_of(loss, weights, nn.array(values.transpose(0, 1)), nn.array(noise))
