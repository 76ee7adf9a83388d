"""Solve an ODE once for a batch, and read the path at each row's own time stamps.

The path is computed at nodes, equally spaced in a row's own time from the point where its state is given, in both
directions. Between two nodes it is the Hermite interpolant of values and derivatives at three nodes, these two and
the one before them, whose error is O(step^6); so the nodes may lie as far apart as the Runge-Kutta steps allow. The
cost is that of the nodes, however many distinct times the batch queries. The position of the nodes, and which of them
are read, does not depend on other queries, so adding (or moving) queries changes no other prediction.

Where a state jumps at each row's own points and follows the ODE in between (`integrate_with_jumps`), every row takes
its own steps: step lengths are a function of its own gaps alone, and a batch takes as many steps as its longest row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.series import pick
from vrnn_lab.models.fused.runge_kutta import JumpRungeKutta, RungeKutta
from vrnn_lab.models.fused.tape import Weights, fused_enabled
from vrnn_lab.models.layers import GRUCell, VectorField

Field = Callable[[Float[Tensor, ""], Float[Tensor, "*rows state"]], Float[Tensor, "*rows state"]]
Method = Literal["rk4", "euler", "midpoint", "dopri5", "dopri8", "bosh3"]
ADAPTIVE = {"dopri5", "dopri8", "bosh3"}
MOST_NODES = 100_000
LEAST = 2  # steps that the interpolant of three nodes needs
MOST_STEPS = 5000  # solver steps in one training step
MOST_ADAPTIVE = 300  # steps of an adaptive method between two nodes; a smooth field takes one or two


@dataclass(frozen=True)
class Path:
    """Hold node values and derivatives; node i lies at (i - before) * step after the time of the given state.

    At least LEAST steps lie on each side on which it is read.
    """

    states: Float[Tensor, "nodes samples batch state"]
    slopes: Float[Tensor, "nodes samples batch state"]
    step: float
    before: int

    def at(self, elapsed: Float64[Tensor, "batch time"]) -> Float[Tensor, "samples batch time state"]:
        """Interpolate the state at each row's own times, counted from the time of the given state."""
        place = elapsed / self.step + 0.0  # turns -0 into +0, which copysign below would read as before the start
        place = place if self.before else place.clamp(min=0)
        side, far = torch.ones_like(place).copysign(place), place.abs()
        nodes = len(self.states)
        last = torch.where(place < 0, self.before, nodes - 1 - self.before)
        middle = far.floor().clamp(min=1).minimum(last - 1)
        u = (far - middle).to(self.states.dtype)
        # The quintic Hermite basis on the nodes -1, 0, 1 about the middle one. A time before the start is read
        # mirrored, so that both sides use the same rule and no query depends on how far the path reaches.
        ahead, behind, inner = u * u * (1 + u) ** 2, u * u * (1 - u) ** 2, (1 - u * u) ** 2
        values = [behind * (1 + 0.75 * u), inner, ahead * (1 - 0.75 * u)]
        slopes = [behind * (1 + u) / 4, u * inner, ahead * (u - 1) / 4]
        around = torch.stack([middle - 1, middle, middle + 1], 2) * side[..., None] + self.before
        around = around.long()
        weights = torch.cat([torch.stack(values, 2), torch.stack(slopes, 2) * (side * self.step)[..., None]], 2)
        return _mixed(torch.cat([self.states, self.slopes]), torch.cat([around, around + nodes], 2), weights.to(u))


def linear_read(
    states: Float[Tensor, "nodes samples batch state"],
    step: float,
    before: int,
    elapsed: Float64[Tensor, "batch time"],
) -> Float[Tensor, "samples batch time state"]:
    """Read a path without derivatives at each row's own times, linearly between nodes; constant beyond the ends."""
    place = (elapsed / step + before).clamp(0, len(states) - 1)
    left = place.floor().clamp(max=len(states) - 2)
    s, left = (place - left).to(states.dtype), left.long()
    return _mixed(states, torch.stack([left, left + 1], 2), torch.stack([1 - s, s], 2))


def _mixed(
    nodes: Float[Tensor, "nodes samples batch state"],
    places: Int64[Tensor, "batch time few"],
    weights: Float[Tensor, "batch time few"],
) -> Float[Tensor, "samples batch time state"]:
    """Return the weighted sum of a few nodes for each row and time."""
    count, samples, batch, state = nodes.shape
    # A product with a narrow weight matrix: its backward pass is several times cheaper on a CPU than a gather's.
    spread = weights.new_zeros(*places.shape[:2], count).scatter(2, places, weights)
    both = nodes.permute(2, 0, 1, 3).reshape(batch, count, samples * state)
    return torch.bmm(spread, both).unflatten(2, (samples, state)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class Solver:
    """Integrate an ODE: rk4 in a plain loop, all other methods through torchdiffeq.

    Adaptive methods control the error over the whole batch at once: a stiff row changes the steps of all other rows,
    and, within the tolerance, their results.
    """

    method: Method = "rk4"
    rtol: float = 1e-4
    atol: float = 1e-5
    adjoint: bool = False

    @loop
    def nodes(self, field: Field, start: Tensor, step: float | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return states and slopes at `count` + 1 nodes from `start` on; a negative step goes back in time.

        step: a number, or, with rk4 alone, a step per row as a tensor that broadcasts with `start`. ValueError where
        torchdiffeq finds no solution.
        """
        if self.method == "rk4" and not self.adjoint:
            return rk4(field, start, step, count)
        times = torch.arange(count + 1, dtype=start.dtype, device=start.device) * step
        solve = odeint_adjoint if self.adjoint else odeint
        states: Tensor
        with self.solver_errors():
            states = solve(field, start, times, method=self.method, **self._control)  # pyright: ignore
        return states, field(times[0], states)

    @property
    def _control(self) -> dict[str, Any]:
        """Return torchdiffeq's tolerances and a step limit, without which a stiff field would not terminate."""
        if self.method not in ADAPTIVE:
            return {}
        limit = {"max_num_steps": MOST_ADAPTIVE}
        adjoint = {"adjoint_options": {**limit}} if self.adjoint else {}
        return {"rtol": self.rtol, "atol": self.atol, "options": limit, **adjoint}

    @contextmanager
    def solver_errors(self) -> Iterator[None]:
        """Raise ValueError where torchdiffeq takes too many steps, too short ones, or reaches a non-finite state.

        The adjoint method solves again in `backward`, which therefore needs this context too.
        """
        try:
            yield
        except AssertionError as error:
            message = str(error).splitlines()[0] if str(error) else "no solution"
            raise ValueError(self._no_solution(message)) from error

    def _no_solution(self, message: str) -> str:
        known = {
            "max_num_steps": f"it needs more than {MOST_ADAPTIVE} steps from one node to the next",
            "underflow": "its step became shorter than the precision of time",
            "non-finite": "the state is no longer finite",
        }
        reason = next((text for words, text in known.items() if words in message), message)
        return (
            f"method={self.method} with rtol={self.rtol:g} cannot solve the ODE: {reason}; this happens where "
            "training has made the field stiff. Expected a smooth field. Set a larger model.rtol (1e-3), or "
            "model.method=rk4, whose steps are fixed; or keep the field smooth by a smaller optim.lr or trick=clip."
        )

    def path(
        self, field: Field, start: Float[Tensor, "samples batch state"], step: float, after: int, before: int
    ) -> Path:
        """Return the path over `after` steps forward and `before` steps backward from `start`."""
        if before == after and self.method == "rk4" and not self.adjoint:
            return self._both_ways(field, start, step, max(after, LEAST))
        states, slopes = self.nodes(field, start, step, max(after, LEAST))
        if before:
            before = max(before, LEAST)
            earlier, earlier_slopes = self.nodes(field, start, -step, before)
            states = torch.cat([earlier[1:].flip(0), states])
            slopes = torch.cat([earlier_slopes[1:].flip(0), slopes])
        return Path(states, slopes, step, before)

    def _both_ways(self, field: Field, start: Float[Tensor, "samples batch state"], step: float, count: int) -> Path:
        """Return the path over as many steps forward as backward, solved at once as rows of one batch."""
        both = torch.stack([start, start])
        forward = both.new_full((1, 1, 1, 1), step)  # filled on its device: a Python list would be copied there
        states, slopes = self.nodes(field, both, torch.cat([forward, -forward]), count)
        joined = lambda nodes: torch.cat([nodes[1:, 1].flip(0), nodes[:, 0]])
        return Path(joined(states), joined(slopes), step, count)


def rk4_step(field: Field, state: Tensor, slope: Tensor, step: Float[Tensor, "..."]) -> Tensor:
    """Return the state one step later, by the classical Runge-Kutta method; `slope` is the field at `state`."""
    time = state.new_zeros(())
    two = field(time, torch.addcmul(state, slope, step / 2))
    three = field(time, torch.addcmul(state, two, step / 2))
    four = field(time, torch.addcmul(state, three, step))
    return torch.addcmul(state, slope + 2 * (two + three) + four, step / 6)


def rk4(field: Field, start: Tensor, step: float | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return states and slopes at `count` + 1 nodes; the slopes are the steps' first stages, at no extra cost."""
    time, length = start.new_zeros(()), step if isinstance(step, Tensor) else start.new_full((), step)
    if weights := fused_weights(field):
        rows = start.flatten(0, -2)
        row_length = length.expand(*start.shape[:-1], 1).reshape(-1, 1) if length.ndim else length
        states, slopes = RungeKutta.apply(
            weights.activation, torch.is_grad_enabled(), count, row_length, rows, *weights.flat
        )
        return states.view(count + 1, *start.shape), slopes.view(count + 1, *start.shape)
    state, states, slopes = start, [start], []
    for _ in range(count):
        slopes.append(field(time, state))
        state = rk4_step(field, state, slopes[-1], length)
        states.append(state)
    slopes.append(field(time, state))
    return torch.stack(states), torch.stack(slopes)


def fused_weights(field: Field) -> Weights | None:
    """Return the weights of a field that has a fused implementation; None for any other field."""
    if not isinstance(field, VectorField) or type(field) is not VectorField or not fused_enabled():
        return None
    weights = field.weights()
    return weights if weights is None else weights.for_fused()


def steps_in_training(nodes: int, windows: float) -> int:
    """Return how many steps, `nodes` per typical window, cover the training data, without asking the device.

    windows: the longest distance from the path's start in training, in typical windows. ValueError where it takes
    more than MOST_STEPS.
    """
    if nodes * windows > MOST_STEPS:
        raise ValueError(
            f"training reaches {windows:.0f} typical windows from z_0, with {nodes} solver steps per window: more "
            f"than {MOST_STEPS} steps. Cut long series (data.window), take fewer nodes, or set origin=row where "
            "the model has an origin."
        )
    return max(nodes, ceil(nodes * windows - 1e-6))


def steps_to_cover(elapsed: Float64[Tensor, "batch time"], step: float, least: int) -> tuple[int, int]:
    """Return (after, before), the steps that reach the latest and the earliest time; this waits for the device.

    ValueError where more than MOST_NODES steps would be needed.
    """
    low, high = torch.aminmax(elapsed.detach())
    after = max(least, ceil(high.item() / step - 1e-9))
    before = max(0, ceil(-low.item() / step - 1e-9))
    if after + before > MOST_NODES:
        raise ValueError(
            f"a queried time lies {max(after, before)} solver steps from the start of its series; at most "
            f"{MOST_NODES} are allowed. Query nearer times, or train on longer windows (or with fewer nodes)."
        )
    return after, before


ROUNDING = 1e-4  # of a step: a gap may exceed its steps by this much, which the last step covers


@dataclass(frozen=True)
class Ticks:
    """Hold the solver steps (ticks) of each row over its own gaps; the last tick of a gap is shorter.

    A gap of length zero has one tick of length zero; rows that are finished are padded with such ticks.
    """

    place: Int64[Tensor, "batch tick"]  # index of the gap that a tick belongs to
    first: Bool[Tensor, "batch tick"]  # marks the first tick of a gap
    length: Float64[Tensor, "batch tick"]  # signed like the gap
    begin: Int64[Tensor, "batch place"]  # index of each gap's first tick
    end: Int64[Tensor, "batch place"]  # index of each gap's last tick

    @classmethod
    def of(cls, gap: Float[Tensor, "batch place"], step: float, most: int | None = None) -> "Ticks":
        """Lay out the ticks of a batch of gaps; `most` bounds a row's ticks (None: read it from the device).

        ValueError where a row needs more than MOST_NODES ticks.
        """
        gap = gap.double()
        count = (gap.abs() / step - ROUNDING).ceil().clamp(min=1).long()
        after = count.cumsum(1)
        most = int(after[:, -1].max().item()) if most is None else most
        if most > MOST_NODES:
            raise ValueError(
                f"a series needs {most} solver steps; at most {MOST_NODES} are allowed. Query nearer times, or "
                "train on longer windows (or with fewer nodes)."
            )
        tick = torch.arange(most, device=gap.device).expand(len(gap), -1).contiguous()
        place = torch.searchsorted(after, tick, right=True).clamp(max=gap.shape[1] - 1)
        done = tick - pick(after - count, place)
        tick_gap, later = pick(gap, place), pick(count, place) - 1 - done
        rest = tick_gap.abs() - done.double() * step  # an integer tensor times a float would be float32
        length = torch.where(later > 0, rest.clamp(max=step), torch.where(later == 0, rest, 0))
        return cls(place, done == 0, length * tick_gap.sign(), after - count, after - 1)


def ticks_in_training(places: int, reach: float, step: float, longest: float | None = None) -> int:
    """Bound a row's ticks without asking the device: gaps sum to at most `reach`, and none exceeds `longest`."""
    most = places + ceil(reach / step)
    return most if longest is None else min(most, places * max(1, ceil(longest / step)))


@loop
def integrate_with_jumps(
    field: Field,
    jump: Callable[[Float[Tensor, "batch input"], Float[Tensor, "batch state"]], Float[Tensor, "batch state"]],
    inputs: Float[Tensor, "batch place input"],
    gap: Float[Tensor, "batch place"],
    start: Float[Tensor, "batch state"],
    step: float,
    most: int | None = None,
) -> tuple[Float[Tensor, "batch place state"], Float[Tensor, "batch place state"]]:
    """Return (j, s) with j_i = jump(input_i, s_{i-1}) and s_i = flow(j_i, gap_i), for every place i.

    The flow is dz/dt = field(z) over each row's own gap (negative: back in time), in Runge-Kutta steps of `step`.
    inputs: the inputs of the jump at each place.
    """
    ticks = Ticks.of(gap, step, most)
    if isinstance(jump, GRUCell) and type(jump) is GRUCell and (weights := fused_weights(field)):
        return _fused_with_jumps(weights, jump, ticks, inputs, start)
    time, state, jumped, arrived = start.new_zeros(()), start, [], []
    ticks_in_turn = zip(
        pick(inputs, ticks.place).unbind(1),
        ticks.first[..., None].unbind(1),
        ticks.length[..., None].to(start.dtype).unbind(1),
        strict=True,
    )
    for inputs_now, first, length in ticks_in_turn:
        state = torch.where(first, jump(inputs_now, state), state)
        jumped.append(state)
        state = rk4_step(field, state, field(time, state), length)
        arrived.append(state)
    return pick(torch.stack(jumped, 1), ticks.begin), pick(torch.stack(arrived, 1), ticks.end)


def _fused_with_jumps(
    weights: Weights, jump: GRUCell, ticks: Ticks, inputs: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `integrate_with_jumps` by the fused function, for a gated recurrent unit and a plain network."""
    by_tick = lambda x: x.transpose(0, 1)
    jumped, arrived = JumpRungeKutta.apply(
        weights.activation,
        torch.is_grad_enabled(),
        by_tick(pick(inputs, ticks.place)).contiguous(),
        by_tick(ticks.first[..., None]),
        by_tick(ticks.length[..., None]).to(start.dtype),
        start,
        jump.recur.weight,
        jump.recur.bias,
        *weights.flat,
    )
    return pick(by_tick(jumped), ticks.begin), pick(by_tick(arrived), ticks.end)
