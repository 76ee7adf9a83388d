"""Store the activations of a network's evaluations for a fused backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

aten = torch.ops.aten
# Of each activation: the function, and its input's gradient from its output's gradient and its output; both in place.
KNOWN: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor, Tensor], Any]]] = {
    "sigmoid": (torch.sigmoid_, lambda slope, y: aten.sigmoid_backward.grad_input(slope, y, grad_input=slope)),
    "relu": (torch.relu_, lambda slope, y: slope.mul_(y > 0)),
    "elu": (torch.nn.functional.elu_, lambda slope, y: slope.mul_((y + 1).clamp_(max=1))),
}


NARROW = 16  # numbers in a row up to which rows are stored by columns

_disabled = False


def fused_enabled() -> bool:
    """Return whether fused functions may run: torch.compile, autocast, torch.func and forward mode preclude them."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    cast = torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu")
    return not (_disabled or transformed or cast or forward_ad._current_level >= 0)


@contextmanager
def fused_disabled() -> Iterator[None]:
    """Disable fused functions within the context, so that autograd can differentiate more than once."""
    global _disabled
    before, _disabled = _disabled, True
    try:
        yield
    finally:
        _disabled = before


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a backward pass that cannot be differentiated again; RuntimeError for a second derivative."""

    @wraps(backward)
    def checked(ctx, *slopes: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a second derivative (create_graph=True) was requested of a fused function, whose hand-written "
                "backward pass cannot be differentiated again; run its forward pass within "
                "vrnn_lab.models.fused.tape.fused_disabled()."
            )
        return backward(ctx, *slopes)

    return checked


class QuickTanh(torch.autograd.Function):
    """Compute tanh(x) = 2 sigmoid(2 x) - 1, saving only the result."""

    @staticmethod
    def forward(ctx, x: Tensor):
        y = torch.mul(x, 2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, slope: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return aten.tanh_backward(slope, *ctx.saved_tensors)


@dataclass(frozen=True)
class Weights:
    """Hold the weights of linear maps with one activation between them."""

    activation: str
    matrices: tuple[Float[Tensor, "_ _"], ...]
    shifts: tuple[Float[Tensor, " _"], ...]

    @classmethod
    def of(cls, activation: str, flat: Sequence[Tensor]) -> "Weights":
        half = len(flat) // 2
        return cls(activation, tuple(flat[:half]), tuple(flat[half:]))

    @property
    def flat(self) -> tuple[Tensor, ...]:
        return self.matrices + self.shifts

    def for_fused(self) -> "Weights | None":
        """Return the weights in the form that the fused backward pass needs; None where it lacks the activation."""
        same = self.without_tanh()
        return same if same.activation in KNOWN else None

    def times(self, factor: float) -> "Weights":
        """Return weights of the network whose output is multiplied by a factor."""
        *matrices, last = self.matrices
        *shifts, shift = self.shifts
        return replace(self, matrices=(*matrices, factor * last), shifts=(*shifts, factor * shift))

    def without_tanh(self) -> "Weights":
        """Express tanh as 2 sigmoid(2 x) - 1, its constants absorbed in the weights; 4 times faster on a CPU."""
        if self.activation != "tanh":
            return self
        last, pairs = len(self.matrices) - 1, list(zip(self.matrices, self.shifts, strict=True))
        into = [1 if i == last else 2 for i in range(len(pairs))]
        matrices = [n * (2 if i else 1) * matrix for i, (n, (matrix, _)) in enumerate(zip(into, pairs, strict=True))]
        shifts = [n * (s - m.sum(1) if i else s) for i, (n, (m, s)) in enumerate(zip(into, pairs, strict=True))]
        return Weights("sigmoid", tuple(matrices), tuple(shifts))


class Tape:
    """Store evaluations of one network, each at a place; `inputs` holds the layers' inputs, (places, rows, width)."""

    def __init__(self, weights: Weights, inputs: Sequence[Tensor]):
        self.weights, self.inputs = weights, inputs
        self.transposed = [matrix.t() for matrix in weights.matrices]
        self.activate, self.deactivate = KNOWN[weights.activation]
        self.at = places_of(inputs)

    @classmethod
    def empty(cls, weights: Weights, places: int, rows: int, like: Tensor) -> list[Tensor]:
        return [memory(places, rows, matrix.shape[1], like) for matrix in weights.matrices]

    def evaluate(self, inputs: Sequence[Tensor], out: Tensor, first: Tensor | None = None) -> None:
        """Write the network's output for inputs[0] to `out`, and fill the other layer inputs.

        first: the first layer's shift, one per row, in place of the network's own.
        """
        shifts = self.weights.shifts if first is None else (first, *self.weights.shifts[1:])
        for i, matrix in enumerate(self.transposed[:-1]):
            self.activate(torch.addmm(shifts[i], inputs[i], matrix, out=inputs[i + 1]))
        torch.addmm(shifts[-1], inputs[-1], self.transposed[-1], out=out)

    def prepare_backward(self, before: "Tape | None" = None, last: Tensor | None = None) -> None:
        """Prepare the backward pass by allocating the gradients of the layers' outputs, `slopes` (`back`: by place).

        before: a tape whose memory is reused; last: memory that already holds the output's gradients.
        """
        places, rows, _ = self.inputs[0].shape
        if before and before.inputs[0].shape == self.inputs[0].shape:
            self.slopes, self.back = before.slopes, before.back
            return
        matrices = self.weights.matrices if last is None else self.weights.matrices[:-1]
        self.slopes = [memory(places, rows, len(matrix), self.inputs[0]) for matrix in matrices]
        self.slopes += [] if last is None else [last]
        self.back = places_of(self.slopes)

    def pull(self, place: int, out: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the gradient of a place's input, given that of its output in self.back[place][-1].

        extra: a further gradient of the last layer's input.
        """
        inputs, slopes, matrices = self.at[place], self.back[place], self.weights.matrices
        for i in range(len(matrices) - 1, 0, -1):
            slope = torch.mm(slopes[i], matrices[i], out=slopes[i - 1])
            # An activation's derivative is a function of its output, which is the next layer's input.
            self.deactivate(slope if extra is None else slope.add_(extra), inputs[i])
            extra = None
        return torch.mm(slopes[0], matrices[0], out=out)

    def add_gradients(self, sums: Sequence[Tensor]) -> None:
        """Add the gradients of matrices and shifts, over all places at once, to `sums`."""
        half = len(sums) // 2
        for matrix, shift, slope, inputs in zip(sums[:half], sums[half:], self.slopes, self.inputs, strict=True):
            slope, inputs = slope.flatten(0, 1), inputs.flatten(0, 1)
            if inputs.shape[1] < slope.shape[1]:  # a matrix product with a wide result is faster
                matrix.add_((inputs.t() @ slope).t())
            else:
                matrix.addmm_(slope.t(), inputs)
            shift.add_(slope.sum(0))


def memory(places: int, rows: int, width: int, like: Tensor) -> Float[Tensor, "places rows width"]:
    """Return uninitialised memory for numbers at places.

    Narrow rows are stored by columns: on a CPU a matrix product that reads or writes them takes half the time.
    """
    if width > NARROW:
        return like.new_empty(places, rows, width)
    return like.new_empty(width, places, rows).permute(1, 2, 0)


def places_of(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Transpose a list of tensors into a list over places, which holds each tensor's part at that place."""
    return list(zip(*(x.unbind(0) for x in tensors), strict=True))
