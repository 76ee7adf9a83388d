"""Integrate a network by fused Runge-Kutta steps, with and without jumps of the state between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.models.fused.gru import Gates, early_and_late
from vrnn_lab.models.fused.tape import Tape, Weights, memory, once, places_of

TAPE = 2**28  # bytes of activations above which they are recomputed in the backward pass
BLOCK = 2048  # rows whose weight gradients are computed at once


@dataclass(frozen=True)
class Lengths:
    """Hold step lengths and their fractions, (), or (steps, rows, 1)."""

    whole: Tensor
    half: Tensor
    third: Tensor
    sixth: Tensor

    @classmethod
    def of(cls, whole: Tensor) -> "Lengths":
        return cls(whole, whole / 2, whole / 3, whole / 6)

    def each(self, steps: int) -> list["Lengths"]:
        if not self.whole.ndim:
            return [self] * steps
        parts = (x.unbind(0) for x in (self.whole, self.half, self.third, self.sixth))
        return [Lengths(*x) for x in zip(*parts, strict=True)]

    def part(self, steps: slice) -> "Lengths":
        """Return the lengths of some of the steps."""
        return Lengths.of(self.whole[steps]) if self.whole.ndim else self

    def flat(self) -> "Lengths":
        """Return the lengths with steps and rows merged into one batch."""
        return Lengths.of(self.whole.flatten(0, 1)) if self.whole.ndim else self


class RungeKuttaSteps(Tape):
    """Store Runge-Kutta steps along a network; stage j of step n has place j steps + n on the tape."""

    def __init__(self, weights: Weights, inputs: Sequence[Tensor]):
        super().__init__(weights, inputs)
        self.steps = len(inputs[0]) // 4
        _, rows, width = inputs[0].shape
        *self.stages, self.carried = memory(4, rows, width, inputs[0]).unbind(0)

    def step(self, n: int, state: Tensor, length: Lengths, slope: Tensor, out: Tensor) -> None:
        """Write the state one step later to `out`, and the field at `state` to `slope`."""
        one, two, three, four = (self.at[n + j * self.steps] for j in range(4))
        second, third, fourth = self.stages
        self.evaluate((one[0].copy_(state), *one[1:]), slope)
        torch.addcmul(state, slope, length.half, out=two[0])
        self.evaluate(two, second)
        torch.addcmul(state, second, length.half, out=three[0])
        self.evaluate(three, third)
        torch.addcmul(state, third, length.whole, out=four[0])
        self.evaluate(four, fourth)
        torch.addcmul(state, second.add_(third).mul_(2).add_(slope).add_(fourth), length.sixth, out=out)

    def step_back(self, n: int, pull: Tensor, length: Lengths, of_slope: Tensor | None = None) -> Tensor:
        """Turn `pull` from the gradient of the next state into that of step n's; of_slope: the slope's gradient."""
        one, two, three, four = (n + j * self.steps for j in range(4))
        carried, back = self.carried, self.back
        # The next state weighs the four slopes by 1/6, 1/3, 1/3, 1/6; each stage's input is the state plus a
        # multiple of the stage before it. So stages are pulled back from the last, and each adds to the one before.
        torch.mul(pull, length.sixth, out=back[one][-1])
        if of_slope is not None:
            back[one][-1].add_(of_slope)
        torch.mul(pull, length.third, out=back[two][-1])
        torch.mul(pull, length.third, out=back[three][-1])
        torch.mul(pull, length.sixth, out=back[four][-1])
        pull.add_(self.pull(four, carried))
        back[three][-1].addcmul_(carried, length.whole)
        pull.add_(self.pull(three, carried))
        back[two][-1].addcmul_(carried, length.half)
        pull.add_(self.pull(two, carried))
        back[one][-1].addcmul_(carried, length.half)
        return pull.add_(self.pull(one, carried))

    def fill(self, states: Float[Tensor, "steps rows state"], lengths: Lengths) -> None:
        """Recompute the activations of all steps at once, from the states before them."""
        stage = [[x[j * self.steps : (j + 1) * self.steps].flatten(0, 1) for x in self.inputs] for j in range(4)]
        states, lengths = states.flatten(0, 1), lengths.flat()
        slope = torch.empty_like(states)
        stage[0][0].copy_(states)
        following_stages = zip(stage, stage[1:], (lengths.half, lengths.half, lengths.whole), strict=False)
        for inputs, following, length in following_stages:
            self.evaluate(inputs, slope)
            torch.addcmul(states, slope, length, out=following[0])
        self.evaluate(stage[3], slope)


def _blocks(steps: int, rows: int) -> list[slice]:
    """Return blocks of steps whose weight gradients are computed at once, with as many rows as fit a CPU cache."""
    many = max(1, BLOCK // max(1, 4 * rows))
    return [slice(first, min(first + many, steps)) for first in range(0, steps, many)]


def _fits(weights: Weights, steps: int, rows: int, like: Tensor, extra: int = 0) -> bool:
    """Return whether a tape of the steps may be kept; extra: further numbers per row and step."""
    numbers = extra + 4 * sum(matrix.shape[1] for matrix in weights.matrices)
    return numbers * steps * rows * like.element_size() <= TAPE


class RungeKutta(torch.autograd.Function):
    """Return (states, slopes) at `count` + 1 nodes of dz/dt = network(z), the fused counterpart of `ode.rk4`.

    length: one for every step, (), or one for the steps of each row, (rows, 1).
    """

    @staticmethod
    def forward(ctx, activation: str, keep: bool, count: int, length: Tensor, start: Tensor, *flat: Tensor):
        weights, lengths, rows = Weights.of(activation, flat), Lengths.of(length), len(start)
        keep = keep and _fits(weights, count, rows, start)
        states, slopes = (memory(count + 1, rows, start.shape[1], start) for _ in range(2))
        states[0] = start
        kept: list[Tensor] = []
        step_by_step = RungeKuttaSteps(weights, Tape.empty(weights, 4, rows, start))
        for block in _blocks(count, rows):
            steps = step_by_step
            if keep:
                steps = RungeKuttaSteps(weights, Tape.empty(weights, 4 * (block.stop - block.start), rows, start))
                kept += steps.inputs
            for n in range(block.start, block.stop):
                steps.step(n - block.start if keep else 0, states[n], lengths, slopes[n], states[n + 1])
        _evaluated(weights, states[count], slopes[count])
        ctx.activation, ctx.layers = activation, len(flat)
        ctx.save_for_backward(length, states, *flat, *kept)
        return states, slopes

    @staticmethod
    @once
    def backward(ctx, of_states: Tensor, of_slopes: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        length, states, *rest = ctx.saved_tensors
        flat, kept = rest[: ctx.layers], rest[ctx.layers :]
        weights, lengths, count, rows = (
            Weights.of(ctx.activation, flat),
            Lengths.of(length),
            len(states) - 1,
            states.shape[1],
        )
        of_states, of_slopes = (torch.empty_like(states).copy_(x) for x in (of_states, of_slopes))  # in their layout
        sums = [torch.zeros_like(x) for x in flat]
        last = _evaluated(weights, states[count], torch.empty_like(states[0]))
        last.prepare_backward()
        last.back[0][-1].copy_(of_slopes[count])
        pull = last.pull(0, torch.empty_like(states[0])).add_(of_states[count])
        last.add_gradients(sums)
        for block in reversed(_blocks(count, rows)):
            if kept:
                steps = RungeKuttaSteps(weights, [kept.pop() for _ in weights.matrices][::-1])
            else:  # a tape too long to keep: recompute this block's activations from its states
                steps = RungeKuttaSteps(weights, Tape.empty(weights, 4 * (block.stop - block.start), rows, states))
                whole = length.expand(block.stop - block.start, *length.shape) if length.ndim else length
                steps.fill(states[block], Lengths.of(whole))
            steps.prepare_backward(last)
            for n in reversed(range(block.start, block.stop)):
                steps.step_back(n - block.start, pull, lengths, of_slopes[n]).add_(of_states[n])
            steps.add_gradients(sums)
            last = steps
        return None, None, None, None, pull, *sums


def _evaluated(weights: Weights, state: Tensor, out: Tensor) -> Tape:
    """Return a tape of one evaluation, whose output is written to `out`."""
    tape = Tape(weights, Tape.empty(weights, 1, len(state), state))
    tape.evaluate((tape.at[0][0].copy_(state), *tape.at[0][1:]), out)
    return tape


class JumpRungeKutta(torch.autograd.Function):
    """Return (j, s) of `ode.integrate_with_jumps` tick by tick, (tick, rows, _), for a gated recurrent unit and a
    network."""

    @staticmethod
    def forward(ctx, activation: str, keep: bool, gates, first, length, start, matrix, shift, *flat: Tensor):
        weights, (ticks, rows, _), size = Weights.of(activation, flat), gates.shape, start.shape[-1]
        keep = keep and _fits(weights, ticks, rows, start, 6 * size)
        jumped, arrived = start.new_empty(2, ticks, *start.shape).unbind(0)
        at_tick = places_of((*early_and_late(gates), first, jumped, arrived))
        lengths, kept, state, slope = Lengths.of(length).each(ticks), [], start, torch.empty_like(start)
        jumps, steps = _tick_tape(weights, matrix, shift, 1, start)
        for block in _blocks(ticks, rows):
            if keep:
                jumps, steps = _tick_tape(weights, matrix, shift, block.stop - block.start, start)
                kept += [*jumps.kept, *steps.inputs]
            for n in range(block.start, block.stop):
                place, (early, late, begins, jump, arrival) = n - block.start if keep else 0, at_tick[n]
                jumps.step(place, early, late, state, jump)
                torch.where(begins, jump, state, out=jump)
                steps.step(place, jump, lengths[n], slope, arrival)
                state = arrival
        ctx.activation, ctx.layers = activation, len(flat)
        ctx.save_for_backward(gates, first, length, start, jumped, arrived, matrix, shift, *flat, *kept)
        return jumped, arrived

    @staticmethod
    @once
    def backward(ctx, of_jumped: Tensor, of_arrived: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gates, first, length, start, jumped, arrived, matrix, shift, *rest = ctx.saved_tensors
        flat, kept = rest[: ctx.layers], rest[ctx.layers :]
        weights, lengths, (ticks, rows, _) = Weights.of(ctx.activation, flat), Lengths.of(length), gates.shape
        before = torch.cat([start[None], arrived[:-1]])
        at_tick = list(zip(places_of((before, first, of_jumped, of_arrived)), lengths.each(ticks), strict=True))
        pull, carried, of_gates = torch.zeros_like(start), torch.empty_like(start), torch.empty_like(gates)
        sums, of_recurrence = [torch.zeros_like(x) for x in flat], [torch.zeros_like(x) for x in (matrix, shift)]
        steps = None
        for block in reversed(_blocks(ticks, rows)):
            tape = kept[-3 - len(weights.matrices) :]
            del kept[-3 - len(weights.matrices) :]
            later = steps
            jumps, steps = _tick_tape(weights, matrix, shift, block.stop - block.start, start, tape)
            if not tape:  # too long to keep: recompute this block's activations from its states
                jumps.fill(gates[block], before[block])
                steps.fill(jumped[block], lengths.part(block))
            jumps.prepare_backward(of_gates[block])
            steps.prepare_backward(later)
            for n in reversed(range(block.start, block.stop)):
                (state, begins, of_jump, of_arrival), by = at_tick[n]
                steps.step_back(n - block.start, pull.add_(of_arrival), by).add_(of_jump)
                # A jump replaces the state at a gap's first tick alone; elsewhere the gradient passes it by.
                into_jump = pull * begins
                jumps.step_back(n - block.start, into_jump, state, carried)
                pull.sub_(into_jump).add_(carried)
            jumps.add_gradients(of_recurrence, before[block])
            steps.add_gradients(sums)
        return None, None, of_gates, None, None, pull, *of_recurrence, *sums


def _tick_tape(
    weights: Weights, matrix: Tensor, shift: Tensor, ticks: int, start: Tensor, kept: Sequence[Tensor] = ()
) -> tuple[Gates, RungeKuttaSteps]:
    """Return the tapes of some ticks, on the activations in `kept` or on new memory."""
    if not kept:
        kept = Gates.empty(ticks, len(start), start.shape[-1], start) + Tape.empty(
            weights, 4 * ticks, len(start), start
        )
    return Gates(matrix, shift, kept[:3]), RungeKuttaSteps(weights, kept[3:])
