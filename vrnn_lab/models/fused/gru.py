"""Run gated recurrent units over a sequence in one fused function."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.models.fused.tape import aten, once, places_of


class Gates:
    """Store the steps of a gated recurrent unit, `layers.GRUCell`: the activations at each step."""

    def __init__(self, matrix: Tensor, shift: Tensor, kept: Sequence[Tensor]):
        self.matrix, self.transposed, self.shift = matrix, matrix.t(), shift
        self.kept = tuple(kept)  # (places, rows, 3, 2 and 1 states)
        both, opened, new = self.kept
        size = 2 * new.shape[-1]
        self.at = places_of((both, both[..., :size], both[..., size:], opened, *opened.chunk(2, -1), new))

    @staticmethod
    def empty(places: int, rows: int, size: int, like: Tensor) -> list[Tensor]:
        return [like.new_empty(places, rows, many * size) for many in (3, 2, 1)]

    def step(self, place: int, early: Tensor, late: Tensor, state: Tensor, out: Tensor) -> Tensor:
        """Write the next state to `out`; early: the input's reset and update gates, late: its candidate gates."""
        both, first, second, opened, reset, keep, new = self.at[place]
        torch.addmm(self.shift, state, self.transposed, out=both)
        torch.add(early, first, out=opened).sigmoid_()
        torch.addcmul(late, reset, second, out=new).tanh_()
        return torch.lerp(new, state, keep, out=out)

    def fill(self, gates: Float[Tensor, "steps rows gates"], states: Float[Tensor, "steps rows state"]) -> None:
        """Recompute the activations of all steps at once, from their inputs' gates and the states before them."""
        at_once = Gates(self.matrix, self.shift, [x.flatten(0, 1)[None] for x in self.kept])
        states = states.flatten(0, 1)
        at_once.step(0, *early_and_late(gates.flatten(0, 1)), states, torch.empty_like(states))

    def prepare_backward(self, of_gates: Tensor) -> None:
        """Prepare the backward pass, which writes the gates' gradients to `of_gates`, (places, rows, 3 states)."""
        self.of_gates, self.of_second = of_gates, torch.empty_like(self.kept[2])
        early, late = early_and_late(of_gates)
        self.back = places_of((early, *early.chunk(2, -1), late, self.of_second))

    def step_back(self, place: int, pull: Tensor, state: Tensor, out: Tensor) -> Tensor:
        """Return the gradient of a step's state and store its gates' gradients; pull: gradient of the next state."""
        _, _, second, opened, reset, keep, new = self.at[place]
        of_early, of_reset, of_keep, of_new, of_second = self.back[place]
        # The next state is new + keep (state - new): `new` receives pull (1 - keep), `keep` pull (state - new).
        torch.addcmul(pull, pull, keep, value=-1, out=of_new)
        aten.tanh_backward.grad_input(of_new, new, grad_input=of_new)
        torch.mul(of_new, second, out=of_reset)
        torch.mul(of_new, reset, out=of_second)
        torch.mul(pull, state - new, out=of_keep)
        aten.sigmoid_backward.grad_input(of_early, opened, grad_input=of_early)
        size = state.shape[-1]
        torch.mm(of_early, self.matrix[: 2 * size], out=out).addmm_(of_second, self.matrix[2 * size :])
        return out.addcmul_(pull, keep)

    def add_gradients(self, sums: Sequence[Tensor], states: Tensor) -> None:
        """Add the gradients of the recurrent matrix and its shift to `sums`, from the states before the steps."""
        size, states = 2 * states.shape[-1], states.flatten(0, 1)
        early = early_and_late(self.of_gates)[0]
        for part, slope in ((slice(size), early), (slice(size, None), self.of_second)):
            sums[0][part].addmm_(slope.flatten(0, 1).t(), states)
            sums[1][part].add_(slope.sum((0, 1)))


def early_and_late(gates: Float[Tensor, "*rows three"]) -> tuple[Tensor, Tensor]:
    """Split gates into those of reset and update, and those of the candidate state."""
    early, late = gates.split([gates.shape[-1] // 3 * 2, gates.shape[-1] // 3], -1)
    return early, late


class GatedSequence(torch.autograd.Function):
    """Return the states of a gated recurrent unit after each of its inputs, given as gates (time, rows, 3 states)."""

    @staticmethod
    def forward(ctx, keep: bool, gates: Tensor, start: Tensor, matrix: Tensor, shift: Tensor):
        rows, size = start.shape
        steps = Gates(matrix, shift, Gates.empty(len(gates) if keep else 1, rows, size, start))
        states = start.new_empty(len(gates) + 1, *start.shape)
        state_at, states[0] = states.unbind(0), start
        for n, (early, late) in enumerate(places_of(early_and_late(gates))):
            steps.step(n if keep else 0, early, late, state_at[n], state_at[n + 1])
        ctx.save_for_backward(matrix, shift, states, *steps.kept)
        return states[1:]

    @staticmethod
    @once
    def backward(ctx, of_states: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        matrix, shift, states, *kept = ctx.saved_tensors
        steps, state_at, of_state_at = Gates(matrix, shift, kept), states.unbind(0), of_states.unbind(0)
        of_gates = torch.empty_like(kept[0])
        steps.prepare_backward(of_gates)
        pull, carried = torch.zeros_like(states[0]), torch.empty_like(states[0])
        for n in reversed(range(len(of_state_at))):
            pull, carried = steps.step_back(n, pull.add_(of_state_at[n]), state_at[n], carried), pull
        sums = [torch.zeros_like(matrix), torch.zeros_like(shift)]
        steps.add_gradients(sums, states[:-1])
        return None, of_gates, pull, *sums
