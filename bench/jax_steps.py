"""Compute the losses of our latent ODE and SDE in JAX, with our weights, our noise and our encoder's inputs.

So that a loss is the same function, everything that does not depend on the weights (the encoder's features, which
node of a path is read with which weight) is computed by us once and given to JAX, whose step need not compute it.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import diffrax
import jax
import lineax
import numpy as np
import torch
from jax import numpy as jnp

from bench import jax_layers as nn
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.latent_ode import LatentODE
from vrnn_lab.models.latent_sde import LatentSDE
from vrnn_lab.models.ode import Path, linear_read

STEPS = 64  # of diffrax; as checkpoints too, which was fastest in bench.diffrax_peer
TOLERANCES = 1e-3, 1e-4  # relative and absolute, as in bench.solve


class Given(NamedTuple):
    """Hold what a JAX loss is given of a batch: values, which count, times, features of the encoder and noise."""

    values: Any
    scored: Any
    times: Any
    features: Any  # (batch, place, inputs) of the observed points, the last one first
    first: Any  # (batch, 1), the time of the first observed point
    noise: Any


def given(model: LatentODE | LatentSDE, encoder, series: TimeSeries, noise: torch.Tensor) -> Given:
    """Return the standardised inputs of a loss; every row needs as many observed points."""
    captured: list[torch.Tensor] = []
    handle = encoder.memory.gates.register_forward_pre_hook(lambda layer, inputs: captured.append(inputs[0]))
    with torch.no_grad():
        reading = encoder(series, series.times)
    handle.remove()
    if (reading.count != reading.count[0]).any():
        raise RuntimeError("the rows of the batch have different numbers of observed points; expected equal ones")
    features = captured[0].transpose(0, 1)[:, : int(reading.count[0])]  # the encoder runs over time first
    first = reading.elapsed.gather(1, reading.count - 1)
    return Given(*map(nn.array, (series.values, series.scored, series.times, features, first, noise)))


def encoder_of(encoder) -> dict[str, nn.Weights]:
    return {"gates": nn.linear_of(encoder.memory.gates), "recur": nn.linear_of(encoder.memory.recur)}


def encode(encoder, features: jax.Array) -> jax.Array:
    """Return the GRU's state after each observed point, (place, batch, state)."""
    gates = nn.linear(encoder["gates"], features.transpose(1, 0, 2))
    size = encoder["recur"]["matrix"].shape[0]

    def step(state, gate):
        state = nn.gru(encoder["recur"], gate, state)
        return state, state

    return jax.lax.scan(step, jnp.zeros((features.shape[0], size)), gates)[1]


def summary(states: jax.Array, first: jax.Array) -> jax.Array:
    return jnp.concatenate([states[-1], states.mean(0), first], -1)


# ---- latent ODE ----------------------------------------------------------------------------------------------


def reading_of(model: LatentODE, series: TimeSeries) -> jax.Array:
    """Return the weights (batch, time, 2 nodes) of a path's states and slopes in the state at each point."""
    nodes = model.nodes + 1
    unit = torch.eye(2 * nodes, device=series.times.device)[:, None, None]  # each node's number in a state of its own
    path = Path(*unit.expand(-1, 1, len(series.ids), -1).split(nodes), model.step, 0)
    return nn.array(path.at(series.times)[0])


def latent_ode(
    model: LatentODE, series: TimeSeries, noise: torch.Tensor, way: str
) -> tuple[float, Any, torch.Tensor]:
    """Return the loss, a step, and the states at the points, (samples, batch, time, latent).

    way: `same`, rk4 on our nodes; `together`, dopri5 of all rows at once, for shared times; `rows`, of each row.
    """
    of = given(model, model.recognition.encoder, series, noise)
    rate, step, count = model.field.rate, model.step, model.nodes
    weights = {
        "encoder": encoder_of(model.recognition.encoder),
        "posterior": nn.layers_of(model.recognition.posterior),
        "field": nn.layers_of(model.field.layers),
        "decoder": nn.layers_of(model.decoder),
        "log_std": nn.array(model.head.log_std),
    }
    reading = reading_of(model, series) if way == "same" else None

    def field(time, z, layers):
        return rate * nn.network(layers, z)

    def same(layers, z, of):
        def forward(z, _):
            a = field(0, z, layers)
            b = field(0, z + step / 2 * a, layers)
            c = field(0, z + step / 2 * b, layers)
            d = field(0, z + step * c, layers)
            return z + step / 6 * (a + 2 * b + 2 * c + d), (z, a)

        last, (states, slopes) = jax.lax.scan(forward, z, None, length=count)
        nodes = jnp.concatenate([states, last[None], slopes, field(0, last, layers)[None]])
        return jnp.einsum("btn,nsbl->sbtl", reading, nodes)

    def solve(layers, z, times):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, count * step, None, z, args=layers,
            saveat=diffrax.SaveAt(ts=times), stepsize_controller=diffrax.PIDController(*TOLERANCES),
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=STEPS), max_steps=STEPS,
        ).ys  # fmt: skip

    def together(layers, z, of):
        return solve(layers, z, of.times[0]).transpose(1, 2, 0, 3)

    def rows(layers, z, of):
        of_row = jax.vmap(solve, (None, 0, 0))
        return jax.vmap(of_row, (None, 0, None))(layers, z, of.times)

    path = {"same": same, "together": together, "rows": rows}[way]

    def parts(weights, of):
        read = summary(encode(weights["encoder"], of.features), of.first)
        mean, spread = nn.gaussian(nn.network(weights["posterior"], read))
        return mean, spread, path(weights["field"], mean + jnp.exp(spread) * of.noise, of)

    def loss(weights, of):
        mean, spread, states = parts(weights, of)
        out = nn.network(weights["decoder"], states)
        total = nn.nll(of.values, of.scored, out, model.head.speed * weights["log_std"]) + nn.kl(mean, spread)
        return total / of.scored.sum()

    states = torch.from_numpy(np.array(jax.jit(parts)(weights, of)[2])).to(noise.device)
    return *nn.step_of(loss, weights, of), states


# ---- latent SDE ----------------------------------------------------------------------------------------------


def plan_of(model: LatentSDE, series: TimeSeries) -> tuple[torch.Tensor, ...]:
    """Return (guided, place, features) of the chain's steps.

    guided: whether the posterior guides a step, (steps, batch, 1). place: of the point that guides it, in the
    encoder's states, (batch, steps). features: of the time to that point, (batch, steps, 4).
    """
    captured: list[torch.Tensor] = []
    handle = model.steering.told.register_forward_pre_hook(lambda layer, inputs: captured.append(inputs[0]))
    with torch.no_grad():
        reading = model.encoder(series, series.times)
        numbers = torch.arange(reading.states.shape[1], device=series.times.device)[None, :, None]
        numbered = replace(reading, states=numbers.expand_as(reading.states).float())
        times = torch.arange(model.nodes, device=series.times.device, dtype=torch.float64) * model.step
        there = model._plan(numbered, times.expand(len(series.ids), -1))[0]
    handle.remove()
    return there[:, 0], captured[0][..., 0].long(), captured[0][..., -4:]


def latent_sde(model: LatentSDE, series: TimeSeries, noise: torch.Tensor, path_noise: torch.Tensor, way: str):
    """Return the loss and a step; path_noise: of every step, (steps, samples, batch, latent).

    way: `same`, our chain by a scan; `diffrax`, its Euler method on our steps with its Brownian path, and the KL of
    Girsanov's theorem as a further state, whose noise is not ours.
    """
    of = given(model, model.encoder, series, noise)
    weights = {
        "encoder": encoder_of(model.encoder),
        "start": nn.layers_of(model.start),
        "plan": nn.layers_of(model.steering.told),
        "guide": [nn.linear_of(model.steering.enter), nn.linear_of(model.steering.leave)],
        "field": nn.layers_of(model.field.layers),
        "decoder": nn.layers_of(model.decoder),
        "log_sigma": nn.array(model.log_sigma),
        "log_std": nn.array(model.head.log_std),
    }
    rate, step, count, latent, speed = model.field.rate, model.step, model.nodes, model.latent, model.head.speed
    ends = [latent, 2 * latent, 2 * latent + model.steering.enter.out_features]
    narrowed = len(model.steering.sizes) > 3
    there, place, features = map(nn.array, plan_of(model, series))
    unit = torch.eye(count + 1, device=series.times.device)[:, None, None]
    reading = nn.array(linear_read(unit.expand(-1, 1, len(series.ids), -1), step, 0, series.times)[0])

    def guidance(weights, states):
        """Return the guide's shift, slope, hidden shift and log spread of each step, (steps, batch, _)."""
        context = jnp.take_along_axis(states.transpose(1, 0, 2), place[..., None], 1)
        numbers = nn.network(weights["plan"], jnp.concatenate([context, features], -1)).transpose(1, 0, 2)
        shift, slope, hidden, *spread = jnp.split(numbers, ends if narrowed else ends[:2], -1)
        return shift, slope, hidden, jnp.where(there, -jax.nn.softplus(spread[0] - 2), 0) if spread else 0 * shift

    def pull_of(weights, z, guides, shift, slope, hidden):
        enter, leave = weights["guide"]
        return guides * (shift + slope * z + nn.linear(leave, jnp.tanh(hidden + nn.linear(enter, z))))

    def same(weights, z, guidance, sigma, noise):
        shift, slope, hidden, spread = guidance
        jumps = sigma * jnp.exp(spread)[:, None] * noise

        def forward(z, now):
            guides, shift, slope, hidden, jump = now
            pull = pull_of(weights, z, guides, shift, slope, hidden)
            after = z + jump + sigma * pull + step * rate * nn.network(weights["field"], z)
            return after, (after, pull)

        _, (states, pulls) = jax.lax.scan(forward, z, (there, shift, slope, hidden, jumps))
        each = 0.5 * (pulls**2 + jnp.expm1(2 * spread)[:, None]) - spread[:, None]
        return jnp.concatenate([z[None], states]), each.sum() / z.shape[0]

    def euler(weights, z, guidance, sigma, noise):
        shift, slope, hidden, _ = guidance

        def drift(time, state, args):
            z, k = state[..., :latent], jnp.clip((time / step + 0.5).astype(int), 0, count - 1)
            pull = pull_of(weights, z, there[k], shift[k], slope[k], hidden[k])
            return jnp.concatenate(
                [sigma / step * pull + rate * nn.network(weights["field"], z), 0.5 / step * pull**2], -1
            )

        start = jnp.concatenate([z, jnp.zeros_like(z)], -1)
        spread = jnp.concatenate([sigma / jnp.sqrt(step), jnp.zeros_like(sigma)]) * jnp.ones_like(start)
        path = diffrax.VirtualBrownianTree(0.0, count * step, step / 2, start.shape, jax.random.PRNGKey(0))
        noise_term = diffrax.ControlTerm(lambda time, state, args: lineax.DiagonalLinearOperator(spread), path)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), noise_term)
        solved = diffrax.diffeqsolve(
            terms, diffrax.Euler(), 0.0, count * step, step, start,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, count * step, count + 1)), max_steps=count + 1,
        ).ys  # fmt: skip
        return solved[..., :latent], solved[-1, ..., latent:].sum() / z.shape[0]

    chain = {"same": same, "diffrax": euler}[way]

    def loss(weights, of, noise):
        states = encode(weights["encoder"], of.features)
        mean, spread = nn.gaussian(nn.network(weights["start"], summary(states, of.first)))
        sigma = jnp.sqrt(step) * jnp.exp(weights["log_sigma"])
        z = mean + jnp.exp(spread) * of.noise
        nodes, kl = chain(weights, z, guidance(weights, states), sigma, noise)
        out = nn.network(weights["decoder"], jnp.einsum("btn,nsbl->sbtl", reading, nodes))
        total = nn.nll(of.values, of.scored, out, speed * weights["log_std"]) + nn.kl(mean, spread) + kl
        return total / of.scored.sum()

    return nn.step_of(loss, weights, of, nn.array(path_noise))
