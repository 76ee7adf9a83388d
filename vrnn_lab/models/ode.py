"""Solve an ODE once for a batch; read the path at each row's own times.

The path is known at nodes, equally spaced in a row's own time from where its state is given, in both
directions. Between two nodes it is the Hermite interpolant of values and derivatives at these and at the one before
them, whose error is O(step^6): the nodes may lie as far apart as the Runge-Kutta steps allow. The cost is that of the
nodes, whatever number of distinct times the batch asks for. Where the nodes lie, and which of them are read, depends
on no other query, so asking more (or farther) changes no other answer.

Where a state jumps at each row's own points and follows the ODE in between (`through`), every row walks its own
way: step lengths are a function of its own gaps alone, and a batch takes as many ticks as its longest row.
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
from vrnn_lab.models.fused.runge_kutta import RungeKutta, Walk
from vrnn_lab.models.fused.tape import Weights, by_hand
from vrnn_lab.models.layers import GRUCell, VectorField

Field = Callable[[Float[Tensor, ""], Float[Tensor, "*rows state"]], Float[Tensor, "*rows state"]]
Method = Literal["rk4", "euler", "midpoint", "dopri5", "dopri8", "bosh3"]
ADAPTIVE = {"dopri5", "dopri8", "bosh3"}
MOST_NODES = 100_000
LEAST = 2  # steps, between whose nodes a path can be read
MOST_STEPS = 5000  # in one training step
MOST_ADAPTIVE = 300  # steps of an adaptive method from one node to the next, of which a smooth field takes one or two


@dataclass(frozen=True)
class Path:
    """Node values and derivatives; node i stands at (i - before) * step after the given state's time.

    At least LEAST steps lie on each side on which it is read.
    """

    states: Float[Tensor, "nodes samples batch state"]
    slopes: Float[Tensor, "nodes samples batch state"]
    step: float
    before: int

    def at(self, elapsed: Float64[Tensor, "batch time"]) -> Float[Tensor, "samples batch time state"]:
        """The state at each row's own times, counted from where the state was given."""
        place = elapsed / self.step + 0.0  # -0 is not before the start
        place = place if self.before else place.clamp(min=0)
        side, far = torch.ones_like(place).copysign(place), place.abs()
        nodes = len(self.states)
        last = torch.where(place < 0, self.before, nodes - 1 - self.before)
        middle = far.floor().clamp(min=1).minimum(last - 1)
        u = (far - middle).to(self.states.dtype)
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
    """As `Path.at`, linear between nodes, for paths without derivatives; beyond the ends the end's state."""
    place = (elapsed / step + before).clamp(0, len(states) - 1)
    left = place.floor().clamp(max=len(states) - 2)
    s, left = (place - left).to(states.dtype), left.long()
    return _mixed(states, torch.stack([left, left + 1], 2), torch.stack([1 - s, s], 2))


def _mixed(
    nodes: Float[Tensor, "nodes samples batch state"],
    places: Int64[Tensor, "batch time few"],
    weights: Float[Tensor, "batch time few"],
) -> Float[Tensor, "samples batch time state"]:
    """The sum of a few nodes, each with its weight, for each row and time."""
    count, samples, batch, state = nodes.shape
    # A product with a narrow matrix of weights: on CPU several times cheaper, backward, than a gather.
    spread = weights.new_zeros(*places.shape[:2], count).scatter(2, places, weights)
    both = nodes.permute(2, 0, 1, 3).reshape(batch, count, -1)
    return torch.bmm(spread, both).view(batch, -1, samples, state).permute(2, 0, 1, 3)


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

    @loop
    def nodes(self, field: Field, start: Tensor, step: float | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """States and slopes at `count` + 1 nodes from `start` on; a negative step goes back in time.

        step: a number, or, of rk4 alone, one for each row as a tensor that broadcasts with `start`.
        """
        if self.method == "rk4" and not self.adjoint:
            return rk4(field, start, step, count)
        times = torch.arange(count + 1, dtype=start.dtype, device=start.device) * step
        solve = odeint_adjoint if self.adjoint else odeint
        states: Tensor
        with self.ending():
            states = solve(field, start, times, method=self.method, **self._control)  # pyright: ignore
        return states, field(times[0], states)

    @property
    def _control(self) -> dict[str, Any]:
        """Return what torchdiffeq takes beside the method; without a limit a stiff field would keep it busy."""
        if self.method not in ADAPTIVE:
            return {}
        limit = {"max_num_steps": MOST_ADAPTIVE}
        beside = {"adjoint_options": {**limit}} if self.adjoint else {}
        return {"rtol": self.rtol, "atol": self.atol, "options": limit, **beside}

    @contextmanager
    def ending(self) -> Iterator[None]:
        """ValueError where torchdiffeq takes too many steps, too short ones, or meets a state that is not finite.

        By the adjoint method it solves again on the way back, in `backward`.
        """
        try:
            yield
        except AssertionError as error:
            found = str(error).splitlines()[0] if str(error) else "no solution"
            raise ValueError(self._no_solution(found)) from error

    def _no_solution(self, found: str) -> str:
        what = {
            "max_num_steps": f"it needs more than {MOST_ADAPTIVE} steps from one node to the next",
            "underflow": "its step became shorter than the precision of time",
            "non-finite": "the state is no longer finite",
        }
        reason = next((text for words, text in what.items() if words in found), found)
        return (
            f"method={self.method} with rtol={self.rtol:g} cannot solve the ODE: {reason}, as where the field became "
            "stiff in training. Expected a smooth field. Take a larger model.rtol (1e-3), or model.method=rk4, whose "
            "steps are fixed; or keep the field smooth: a smaller optim.lr, trick=clip."
        )

    def path(
        self, field: Field, start: Float[Tensor, "samples batch state"], step: float, after: int, before: int
    ) -> Path:
        """The path over `after` steps forward and `before` steps backward from `start`."""
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
        """The path over as many steps forward as backward, solved at once: as rows of one batch."""
        both = torch.stack([start, start])
        forward = both.new_full((1, 1, 1, 1), step)  # filled on its device: a list of numbers would have to be copied
        states, slopes = self.nodes(field, both, torch.cat([forward, -forward]), count)
        joined = lambda nodes: torch.cat([nodes[1:, 1].flip(0), nodes[:, 0]])
        return Path(joined(states), joined(slopes), step, count)


def rk4_step(field: Field, state: Tensor, slope: Tensor, step: Float[Tensor, "..."]) -> Tensor:
    """The state one step on, by the classical Runge-Kutta method; `slope` is the field at `state`."""
    time = state.new_zeros(())
    two = field(time, torch.addcmul(state, slope, step / 2))
    three = field(time, torch.addcmul(state, two, step / 2))
    four = field(time, torch.addcmul(state, three, step))
    return torch.addcmul(state, slope + 2 * (two + three) + four, step / 6)


def rk4(field: Field, start: Tensor, step: float | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """States and slopes at `count` + 1 nodes; a step's first stage is the slope that Hermite reading needs anyway."""
    time, each = start.new_zeros(()), step if isinstance(step, Tensor) else start.new_full((), step)
    if weights := _weights(field):
        rows = start.flatten(0, -2)
        length = each.expand(*start.shape[:-1], 1).reshape(-1, 1) if each.ndim else each
        states, slopes = RungeKutta.apply(
            weights.activation, torch.is_grad_enabled(), count, length, rows, *weights.flat
        )
        return states.view(count + 1, *start.shape), slopes.view(count + 1, *start.shape)
    state, states, slopes = start, [start], []
    for _ in range(count):
        slopes.append(field(time, state))
        state = rk4_step(field, state, slopes[-1], each)
        states.append(state)
    slopes.append(field(time, state))
    return torch.stack(states), torch.stack(slopes)


def _weights(field: Field) -> Weights | None:
    """Of a field whose way back is gone by hand."""
    if not isinstance(field, VectorField) or type(field) is not VectorField or not by_hand():
        return None
    weights = field.weights()
    return weights if weights is None else weights.by_hand()


def steps_in_training(nodes: int, windows: float) -> int:
    """How many steps, `nodes` a typical window, reach as far as training does: known without asking the device.

    windows: the longest way from the path's start in training, in typical windows.
    """
    if nodes * windows > MOST_STEPS:
        raise ValueError(
            f"the longest way from z_0 in training is {windows:.0f} windows, {nodes} solver steps each: more than "
            f"{MOST_STEPS}. Cut long series (data.window), fewer nodes, or origin=row where the model has an origin."
        )
    return max(nodes, ceil(nodes * windows - 1e-6))


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


ROUNDING = 1e-4  # of a step: what a gap may be longer than its steps, and is made up by the last


@dataclass(frozen=True)
class Ticks:
    """The steps that carry each row over its own gaps: full ones, and a shorter one to the end of each gap.

    A gap of length zero has one tick, of length zero; so have rows that have arrived.
    """

    place: Int64[Tensor, "batch tick"]  # whose gap a tick is in
    first: Bool[Tensor, "batch tick"]  # it is the gap's first
    length: Float64[Tensor, "batch tick"]  # with the gap's sign
    begin: Int64[Tensor, "batch place"]  # each gap's first tick
    end: Int64[Tensor, "batch place"]  # and its last

    @classmethod
    def of(cls, gap: Float[Tensor, "batch place"], step: float, most: int | None = None) -> "Ticks":
        """`most`: a bound on a row's ticks; without it the device is asked."""
        gap = gap.double()
        count = (gap.abs() / step - ROUNDING).ceil().clamp(min=1).long()
        after = count.cumsum(1)
        most = int(after[:, -1].max().item()) if most is None else most
        if most > MOST_NODES:
            raise ValueError(
                f"a series takes {most} solver steps, and at most {MOST_NODES} are taken. Ask nearer times, or train "
                "on longer windows (or with fewer nodes)."
            )
        tick = torch.arange(most, device=gap.device).expand(len(gap), -1).contiguous()
        place = torch.searchsorted(after, tick, right=True).clamp(max=gap.shape[1] - 1)
        done = tick - pick(after - count, place)
        whole, later = pick(gap, place), pick(count, place) - 1 - done
        rest = whole.abs() - done.double() * step  # a whole number times a float would be float32
        length = torch.where(later > 0, rest.clamp(max=step), torch.where(later == 0, rest, 0))
        return cls(place, done == 0, length * whole.sign(), after - count, after - 1)


def ticks_in_training(places: int, reach: float, step: float, longest: float | None = None) -> int:
    """A bound on a row's ticks that needs no look at the device: gaps add up to `reach`, none beyond `longest`."""
    most = places + ceil(reach / step)
    return most if longest is None else min(most, places * max(1, ceil(longest / step)))


@loop
def through(
    field: Field,
    jump: Callable[[Float[Tensor, "batch told"], Float[Tensor, "batch state"]], Float[Tensor, "batch state"]],
    told: Float[Tensor, "batch place told"],
    gap: Float[Tensor, "batch place"],
    start: Float[Tensor, "batch state"],
    step: float,
    most: int | None = None,
) -> tuple[Float[Tensor, "batch place state"], Float[Tensor, "batch place state"]]:
    """s_i = flow(j_i, gap_i), j_i = jump(told_i, s_{i-1}), for every place i: (j, s).

    The flow is dz/dt = field(z) over each row's own gap (negative: back in time), in Runge-Kutta steps of `step`.
    """
    ticks = Ticks.of(gap, step, most)
    if isinstance(jump, GRUCell) and type(jump) is GRUCell and (weights := _weights(field)):
        return _by_hand(weights, jump, ticks, told, start)
    time, state, jumped, arrived = start.new_zeros(()), start, [], []
    each = zip(
        pick(told, ticks.place).unbind(1),
        ticks.first[..., None].unbind(1),
        ticks.length[..., None].to(start.dtype).unbind(1),
        strict=True,
    )
    for tell, first, length in each:
        state = torch.where(first, jump(tell, state), state)
        jumped.append(state)
        state = rk4_step(field, state, field(time, state), length)
        arrived.append(state)
    return pick(torch.stack(jumped, 1), ticks.begin), pick(torch.stack(arrived, 1), ticks.end)


def _by_hand(weights: Weights, jump: GRUCell, ticks: Ticks, told: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """As `through`, of a gated recurrent unit and a network."""
    by_tick = lambda x: x.transpose(0, 1)
    jumped, arrived = Walk.apply(
        weights.activation,
        torch.is_grad_enabled(),
        by_tick(pick(told, ticks.place)).contiguous(),
        by_tick(ticks.first[..., None]),
        by_tick(ticks.length[..., None]).to(start.dtype),
        start,
        jump.recur.weight,
        jump.recur.bias,
        *weights.flat,
    )
    return pick(by_tick(jumped), ticks.begin), pick(by_tick(arrived), ticks.end)
