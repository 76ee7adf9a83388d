"""Run the Euler-Maruyama chain of a latent SDE, guided by its posterior drift, in one fused function."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vrnn_lab.models.fused.tape import Tape, Weights, memory, once, places_of


class GuidedChain(torch.autograd.Function):
    """Return the states z, (steps + 1, rows, latent), and pulls u, (steps, rows, latent), of a guided chain.

      u_k = there_k (shift_k + slope_k z_k + guide(z_k; hidden_k)),
      z_(k+1) = z_k + jump_k + sigma u_k + drift(z_k).

    The rows are samples * batch. drift is a network, which includes the step's length; guide is a network with
    hidden_k in place of its first shift. there, shift, slope and hidden are (steps, batch, _), the same for all
    samples; jumps is (steps, rows, latent), start is z_0, sigma (latent,). activations: those of the two networks.
    drifts: the number of the drift's weights in flat, which precede those of the guide. keep: whether a backward pass
    will follow.
    """

    @staticmethod
    def forward(
        ctx, activations, drifts: int, samples: int, keep: bool, start, jumps, there, shift, slope, hidden, sigma,
        *flat: Tensor,
    ):  # fmt: skip
        drift, guide = _networks(activations, drifts, flat)
        (steps, rows, latent), batch = jumps.shape, hidden.shape[1]
        places = steps if keep else 1
        states, pulls = memory(steps + 1, rows, latent, start), memory(steps, rows, latent, start)
        inner = [Tape.empty(network, places, rows, start)[1:] for network in (drift, guide)]
        drift_tape, guide_tape = (Tape(network, kept) for network, kept in zip((drift, guide), inner, strict=True))
        drift_at, guide_at = (places_of(kept) or [()] * places for kept in inner)
        by_sample = lambda x: x.unflatten(1, (samples, batch))
        # Names that end in _s are views with the samples as an axis of their own, beside which the batch's terms fit.
        views = (states[:-1], states[1:], pulls, by_sample(states[:-1]), by_sample(pulls))
        at_step = places_of((*views, jumps, there, shift, slope, hidden))
        first = hidden.new_empty(rows, hidden.shape[2])  # hidden_k, repeated for each sample
        moved, guided = (torch.empty_like(states[0]) for _ in range(2))
        first_s, guided_s = (by_sample(x[None])[0] for x in (first, guided))
        states[0] = start
        for k, (state, after, pull, state_s, pull_s, jump, guides, a, b, d) in enumerate(at_step):
            place = k if keep else 0
            drift_tape.evaluate((state, *drift_at[place]), moved)
            first_s.copy_(d)
            guide_tape.evaluate((state, *guide_at[place]), guided, first)
            torch.addcmul(a, b, state_s, out=pull_s).add_(guided_s).mul_(guides)
            torch.add(state, jump, out=after).addcmul_(sigma, pull).add_(moved)
        ctx.activations, ctx.drifts, ctx.samples = activations, drifts, samples
        ctx.many, ctx.inner = len(flat), len(inner[0])
        ctx.save_for_backward(there, slope, sigma, states, pulls, *flat, *inner[0], *inner[1])
        return states, pulls

    @staticmethod
    @once
    def backward(ctx, of_states: Tensor, of_pulls: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        there, slope, sigma, states, pulls, *rest = ctx.saved_tensors
        flat, inner = rest[: ctx.many], rest[ctx.many :]
        drift, guide = _networks(ctx.activations, ctx.drifts, flat)
        drift_tape = Tape(drift, [states[:-1], *inner[: ctx.inner]])
        guide_tape = Tape(guide, [states[:-1], *inner[ctx.inner :]])
        (steps, rows, latent), batch = pulls.shape, slope.shape[1]
        by_sample = lambda x: x.unflatten(1, (ctx.samples, batch))
        # z_(k+1) is the sum of jump_k, of the drift and of other terms: all three have one gradient, in one memory.
        of_jumps, of_guided = (memory(steps, rows, latent, states) for _ in range(2))
        drift_tape.prepare_backward(last=of_jumps)
        guide_tape.prepare_backward(last=of_guided)
        of_states = torch.empty_like(states).copy_(of_states)  # in their layout
        pull_gradients = torch.empty_like(pulls).copy_(of_pulls)
        carried, passed = (torch.empty_like(states[0]) for _ in range(2))
        passed_s = by_sample(passed[None])[0]
        at_step = places_of(
            (of_jumps, of_states[:-1], pull_gradients, *map(by_sample, (pull_gradients, of_guided)), there, slope)
        )
        gradient = of_states[-1]
        for k in reversed(range(steps)):
            of_jump, of_state, of_pull, of_pull_s, of_guided_s, guides, b = at_step[k]
            of_jump.copy_(gradient)
            of_pull.addcmul_(sigma, of_jump)
            torch.mul(of_pull_s, guides, out=of_guided_s)
            torch.mul(of_guided_s, b, out=passed_s)
            gradient = of_state.add_(of_jump).add_(passed)
            gradient.add_(drift_tape.pull(k, carried)).add_(guide_tape.pull(k, passed))
        sums = [torch.zeros_like(x) for x in flat]
        drift_tape.add_gradients(sums[: ctx.drifts])
        guide_tape.add_gradients(sums[ctx.drifts :])
        over_samples = lambda x: by_sample(x).sum(1)
        of_slope = over_samples(of_guided * states[:-1])
        of_sigma = (of_jumps * pulls).sum((0, 1))
        of_hidden = over_samples(guide_tape.slopes[0])
        given = gradient, of_jumps, None, over_samples(of_guided), of_slope, of_hidden, of_sigma
        return None, None, None, None, *given, *sums


def _networks(activations: Sequence[str], drifts: int, flat: Sequence[Tensor]) -> tuple[Weights, Weights]:
    """Return the weights of the drift and of the guide."""
    return Weights.of(activations[0], flat[:drifts]), Weights.of(activations[1], flat[drifts:])
