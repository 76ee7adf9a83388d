"""Solve an ODE once for a batch; read the path at each row's own times.

The path is known at nodes, equally spaced in a row's own time from where its state is given, in both
directions. Between nodes it is the cubic Hermite interpolant of node values and node derivatives, whose
error is O(step^4), as that of the Runge-Kutta step. The cost is that of the nodes, whatever number of
distinct times the batch asks for. Where the nodes lie depends on no query, so asking more (or farther)
changes no other answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

Field = Callable[[Float[Tensor, ""], Float[Tensor, "*rows state"]], Float[Tensor, "*rows state"]]
Method = Literal["rk4", "euler", "midpoint", "dopri5", "dopri8", "bosh3"]
ADAPTIVE = {"dopri5", "dopri8", "bosh3"}
MOST_NODES = 100_000


@dataclass(frozen=True)
class Path:
    """Node values and derivatives; node i stands at (i - before) * step after the given state's time."""

    states: Float[Tensor, "nodes samples batch state"]
    slopes: Float[Tensor, "nodes samples batch state"]
    step: float
    before: int

    def at(self, elapsed: Float64[Tensor, "batch time"]) -> Float[Tensor, "samples batch time state"]:
        """The state at each row's own times, counted from where the state was given."""
        nodes = len(self.states)
        place = elapsed / self.step + self.before
        left = place.floor().clamp(0, nodes - 2)
        s = (place - left).to(self.states.dtype)
        left = left.long()
        weights = [
            (1 + 2 * s) * (1 - s) ** 2,
            s * s * (3 - 2 * s),
            s * (1 - s) ** 2 * self.step,
            s * s * (s - 1) * self.step,
        ]
        places = [left, left + 1, left + nodes, left + nodes + 1]
        return blend(torch.cat([self.states, self.slopes]), places, weights)


def blend(
    values: Float[Tensor, "nodes samples batch state"],
    places: list[Int64[Tensor, "batch time"]],
    weights: list[Float[Tensor, "batch time"]],
) -> Float[Tensor, "samples batch time state"]:
    """The sum over i of weights[i] values[places[i]], for each row's own times."""
    nodes, samples, batch, state = values.shape
    # A product with a narrow matrix of weights: on CPU several times cheaper, backward, than a gather.
    spread = weights[0].new_zeros(*places[0].shape, nodes).scatter(2, torch.stack(places, 2), torch.stack(weights, 2))
    return (
        torch.bmm(spread, values.permute(2, 0, 1, 3).reshape(batch, nodes, -1))
        .view(batch, -1, samples, state)
        .permute(2, 0, 1, 3)
    )


@dataclass(frozen=True)
class Solver:
    """How to integrate: rk4 in a plain loop, all else through torchdiffeq.

    Adaptive methods control the error over the whole batch at once: there a stiff row changes the steps,
    and within the tolerance the answers, of all others.
    """

    method: Method = "rk4"
    rtol: float = 1e-4
    atol: float = 1e-5
    adjoint: bool = False

    def nodes(self, field: Field, start: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
        """States and slopes at `count` + 1 nodes from `start` on; a negative step goes back in time."""
        if self.method == "rk4" and not self.adjoint:
            return rk4(field, start, step, count)
        times = torch.arange(count + 1, dtype=start.dtype, device=start.device) * step
        solve = odeint_adjoint if self.adjoint else odeint
        tolerances = {"rtol": self.rtol, "atol": self.atol} if self.method in ADAPTIVE else {}
        states: Tensor = solve(field, start, times, method=self.method, **tolerances)  # pyright: ignore
        return states, field(times[0], states)

    def path(
        self, field: Field, start: Float[Tensor, "samples batch state"], step: float, after: int, before: int
    ) -> Path:
        """The path over `after` steps forward and `before` steps backward from `start`."""
        states, slopes = self.nodes(field, start, step, max(after, 1))
        if before:
            earlier, earlier_slopes = self.nodes(field, start, -step, before)
            states = torch.cat([earlier[1:].flip(0), states])
            slopes = torch.cat([earlier_slopes[1:].flip(0), slopes])
        return Path(states, slopes, step, before)


def rk4(field: Field, start: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
    """The classical Runge-Kutta method; its first stage is the slope that Hermite reading needs anyway."""
    time = start.new_zeros(())
    state, states, slopes = start, [start], []
    for _ in range(count):
        one = field(time, state)
        two = field(time, torch.add(state, one, alpha=step / 2))
        three = field(time, torch.add(state, two, alpha=step / 2))
        four = field(time, torch.add(state, three, alpha=step))
        state = state + (step / 6) * (one + 2 * (two + three) + four)
        states.append(state)
        slopes.append(one)
    slopes.append(field(time, state))
    return torch.stack(states), torch.stack(slopes)


def steps_to_cover(elapsed: Float64[Tensor, "batch time"], step: float, least: int) -> tuple[int, int]:
    """(after, before): how many steps reach the latest and the earliest of some times. Asks the device."""
    low, high = torch.aminmax(elapsed.detach())
    after = max(least, ceil(high.item() / step - 1e-9))
    before = max(0, ceil(-low.item() / step - 1e-9))
    if after + before > MOST_NODES:
        raise ValueError(
            f"a time lies {max(after, before)} solver steps from where its series starts, and at most {MOST_NODES} "
            "are taken. Ask nearer times, or train on longer windows (or with fewer nodes)."
        )
    return after, before
