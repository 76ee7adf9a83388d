"""Run a GRU with a latent at every step, drawn from a posterior that reads the state, in one fused function."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.models.fused.gru import Gates, early_and_late
from vrnn_lab.models.fused.tape import Tape, Weights, once, places_of


def bounded(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bound a log-std smoothly to -7 .. 3."""
    return 5 * torch.tanh((raw + 2) / 5) - 2


def slope_of_bounded(log_std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the derivative of `bounded`, given its result."""
    return 1 - ((log_std + 2) / 5).square()


class VariationalSequence(torch.autograd.Function):
    """Return (states, raw, z, features), all (time, rows, _), of a VRNN's loop over points.

      s_i = GRU(gates_i + w_(i-1), s_(i-1)),    raw_i = (m_i, r_i) = posterior(s_i; from_x_i),
      z_i = m_i + exp(bounded(r_i)) noise_i,    w_i = latent_gates(z_i).

    posterior is a network with from_x_i in place of its first shift; latent_gates is a network whose last layer reads
    the features. flat: matrix and shift of the recurrent unit, `layers` weights of the posterior, those of
    latent_gates; start is s_0, first is w_0.
    """

    @staticmethod
    def forward(ctx, activation: str, layers: int, keep: bool, gates, from_x, noise, start, first, *flat: Tensor):
        posterior, latent_gates = _networks(activation, layers, flat)
        (steps, rows, _), places = gates.shape, len(gates) if keep else 1
        jumps = Gates(flat[0], flat[1], Gates.empty(places, rows, start.shape[-1], start))
        hidden = Tape.empty(posterior, places, rows, start)[1:]
        hidden_of_z = Tape.empty(latent_gates, places, rows, start)[1:-1]
        states = start.new_empty(steps + 1, *start.shape)
        raw = start.new_empty(steps, rows, len(posterior.matrices[-1]))
        z, features = torch.empty_like(noise), start.new_empty(steps, rows, latent_gates.matrices[-1].shape[1])
        posterior_tape, gates_tape = Tape(posterior, hidden), Tape(latent_gates, hidden_of_z)
        inner, inner_of_z = (places_of(x) or [()] * places for x in (hidden, hidden_of_z))
        at_step = places_of((states[:-1], states[1:], gates, from_x, noise, raw, *raw.chunk(2, -1), z, features))
        # `total` holds w_(i-1), then gates_i + w_(i-1), which the views early and late read without a copy.
        total, states[0] = first.clone(), start
        early, late = early_and_late(total)
        for i, (before, state, gate, x, draw, both, mean, log_std, latent, feature) in enumerate(at_step):
            place = i if keep else 0
            total.add_(gate)
            jumps.step(place, early, late, before, state)
            posterior_tape.evaluate((state, *inner[place]), both, x)
            torch.addcmul(mean, bounded(log_std).exp_(), draw, out=latent)
            gates_tape.evaluate((latent, *inner_of_z[place], feature), total)
        ctx.activation, ctx.layers, ctx.many = activation, layers, len(flat)
        ctx.save_for_backward(noise, states, raw, z, features, *flat, *jumps.kept, *hidden, *hidden_of_z)
        return states[1:], raw, z, features

    @staticmethod
    @once
    def backward(ctx, of_states, of_raw, of_latents, of_features):  # pyright: ignore[reportIncompatibleMethodOverride]
        noise, states, raw, z, features, *rest = ctx.saved_tensors
        flat, kept, hidden = rest[: ctx.many], rest[ctx.many : ctx.many + 3], rest[ctx.many + 3 :]
        posterior, latent_gates = _networks(ctx.activation, ctx.layers, flat)
        inner = len(posterior.matrices) - 1
        jumps = Gates(flat[0], flat[1], kept)
        posterior_tape = Tape(posterior, [states[1:], *hidden[:inner]])
        gates_tape = Tape(latent_gates, [z, *hidden[inner:], features])
        posterior_tape.prepare_backward()
        # w_(i-1) enters only through gates_i + w_(i-1), so both have the same gradient: one memory for both.
        of_gates = states.new_empty(len(z) + 1, *kept[0].shape[1:])
        of_gates[-1].zero_()  # no step follows the last one
        jumps.prepare_backward(of_gates[:-1])
        gates_tape.prepare_backward(last=of_gates[1:])
        log_std = bounded(raw.chunk(2, -1)[1])
        by_raw = slope_of_bounded(log_std).mul_(log_std.exp()).mul_(noise)  # dz / dr
        given = places_of((states[:-1], by_raw, of_states, *of_raw.chunk(2, -1), of_latents, of_features))
        of_parts = places_of(posterior_tape.slopes[-1].chunk(2, -1))
        of_z, pull, carried = torch.empty_like(z[0]), torch.zeros_like(states[0]), torch.empty_like(states[0])
        for i in reversed(range(len(z))):
            state, by, of_state, of_mean, of_r, of_latent, of_feature = given[i]
            gates_tape.pull(i, of_z, of_feature).add_(of_latent)
            torch.add(of_z, of_mean, out=of_parts[i][0])
            torch.addcmul(of_r, of_z, by, out=of_parts[i][1])
            pull.add_(posterior_tape.pull(i, carried)).add_(of_state)
            jumps.step_back(i, pull, state, carried)
            pull, carried = carried, pull
        sums = [torch.zeros_like(x) for x in flat]
        jumps.add_gradients(sums[:2], states[:-1])
        posterior_tape.add_gradients(sums[2 : 2 + ctx.layers])
        gates_tape.add_gradients(sums[2 + ctx.layers :])
        return None, None, None, of_gates[:-1], posterior_tape.slopes[0], None, pull, of_gates[0].clone(), *sums


def _networks(activation: str, layers: int, flat: Sequence[Tensor]) -> tuple[Weights, Weights]:
    """Return the weights of the posterior, and those of the network that maps z to gates."""
    return Weights.of(activation, flat[2 : 2 + layers]), Weights.of(activation, flat[2 + layers :])
