"""Measure the latent ODE's solve at each row's own times, forward and backward, against public solvers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from bench.harness import OPTIONS, Row, against, installed, missing
from vrnn_lab.core.compile_loops import unrolled
from vrnn_lab.models.layers import VectorField
from vrnn_lab.models.ode import Solver

LATENT, WIDTH, DEPTH, BATCH, TIMES = 10, 100, 2, 50, 100
# With these the error of a step is as large as with trained dynamics: 1e-2 on 5 nodes, 1e-3 on 10, 3e-5 on 25.
RATE, GAIN = 7.0, 1.5
RTOL, ATOL = 1e-3, 1e-4  # of all adaptive peers
NODES = (3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 40, 60, 100)


@dataclass(frozen=True)
class Problem:
    """Define dz/dt = f(z) from z0 at 0, queried at each row's own times in [0, 1], and a loss linear in z."""

    field: VectorField
    z0: Tensor  # (batch, latent), with gradient
    times: Tensor  # (batch, time), float64
    weight: Tensor  # (batch, time, latent): the loss's gradient

    @classmethod
    def of(cls, batch: int = BATCH, times: int = TIMES, seed: int = 1) -> "Problem":
        torch.manual_seed(seed)
        field = VectorField(LATENT, WIDTH, DEPTH, "tanh", RATE)
        with torch.no_grad():
            for parameter in field.parameters():
                parameter *= GAIN
        z0 = torch.randn(batch, LATENT)
        own = torch.rand(batch, times, dtype=torch.float64).sort(1).values
        weight = torch.randn(batch, times, LATENT) / times
        on = lambda x: x.to(OPTIONS.device)
        return cls(on(field), on(z0).requires_grad_(), on(own), on(weight))

    @property
    def shared(self) -> "Problem":
        """Return the easier problem with the first row's times for all rows."""
        return replace(self, times=self.times[:1].expand_as(self.times))

    def exact(self) -> Tensor:
        """Return the states at the queried times in float64, to 1e-10."""
        field = VectorField(LATENT, WIDTH, DEPTH, "tanh", RATE).double().to(self.z0.device)
        field.load_state_dict(self.field.state_dict())
        with torch.no_grad():
            return union(replace(self, field=field, z0=self.z0.double()), 1e-10, 1e-10)


SolveFunction = Callable[[Problem], Tensor]  # returns the states at the queried times, (batch, time, latent)


def ours(nodes: int) -> SolveFunction:
    """Return the solver of the models, read at each row's own times."""
    return lambda problem: Solver().path(problem.field, problem.z0[None], 1 / nodes, nodes, 0).at(problem.times)[0]


def union(problem: Problem, rtol: float = RTOL, atol: float = ATOL) -> Tensor:
    """Solve by torchdiffeq over the union of all rows' times, from which each row picks its own."""
    times = problem.times.to(problem.z0.dtype)
    all_times, place = torch.cat([times.new_zeros(1), times.reshape(-1)]).unique(return_inverse=True)
    states = odeint(problem.field, problem.z0, all_times, rtol=rtol, atol=atol, method="dopri5")
    assert isinstance(states, Tensor)
    row = torch.arange(len(times), device=times.device)[:, None]
    return states[place[1:].view_as(times), row]


def step_of(solve: SolveFunction, problem: Problem) -> Callable[[], Any]:
    """Return a step: forward, and backward to z0 and the weights."""
    inputs = [problem.z0, *problem.field.parameters()]
    return lambda: torch.autograd.grad((solve(problem) * problem.weight).sum(), inputs)


def error_of(states: Tensor, exact: Tensor) -> float:
    return (states.double() - exact).abs().max().item()


def fewest_nodes(problem: Problem, exact: Tensor, error: float) -> tuple[int, float]:
    """Return the fewest of NODES whose error is no larger than a peer's, and that error."""
    for nodes in NODES:
        with torch.no_grad():
            own = error_of(ours(nodes)(problem), exact)
        if own <= error:
            return nodes, own
    raise RuntimeError(f"no number of nodes up to {NODES[-1]} reaches the peer's error of {error:.2g}")


@dataclass(frozen=True)
class Peer:
    """Hold another solver: its problem, its states at the queried times, and a step of it."""

    name: str
    target: float
    problem: Problem
    states: Tensor
    step: Callable[[], Any]
    compiled: float | None = None  # target of our compiled solve


def torchdiffeq_peers(problem: Problem) -> Iterator[Peer]:
    for times, target, variant in (("union of times", 500.0, problem), ("shared times", 4.0, problem.shared)):
        with torch.no_grad():
            states = union(variant)
        yield Peer(f"torchdiffeq dopri5, {times}", target, variant, states, step_of(union, variant))


def torchode_peers(problem: Problem) -> Iterator[Peer]:
    from bench.torchode_peer import solver_of

    solve = solver_of(problem.field, RTOL, ATOL)
    with torch.no_grad():
        states = solve(problem)
    yield Peer("torchode dopri5", 3.0, problem, states, step_of(solve, problem))


def diffrax_peers(problem: Problem) -> Iterator[Peer]:
    from bench import diffrax_peer

    if diffrax_peer.on(OPTIONS.device):
        for way in diffrax_peer.WAYS:
            states, step = diffrax_peer.prepare(way, problem, RTOL, ATOL)
            yield Peer(f"diffrax dopri5, {way}", 1.8, problem, states, step, 2.5)


PEERS = {  # by the packages they need
    ("torchdiffeq",): torchdiffeq_peers,
    ("torchode",): torchode_peers,
    ("jax", "equinox", "diffrax"): diffrax_peers,
}


def compiled(problem: Problem, peer: Peer, target: float, **details) -> Row:
    """Measure our solve compiled as one graph; the time of compilation is stated separately."""
    compiled_step = step_of(torch.compile(ours(details["nodes"]), dynamic=False), problem)

    def step() -> Any:
        with unrolled(True):
            return compiled_step()

    started = perf_counter()
    step()
    details["compile_seconds"] = perf_counter() - started
    return against(f"solve compiled against {peer.name}", step, peer.step, peer.name, target, **details)


def against_peer(problem: Problem, exact: Tensor, peer: Peer, quick: bool) -> Iterator[Row]:
    """Measure our solve on the fewest nodes whose error is no larger than the peer's."""
    error = error_of(peer.states, exact if peer.problem is problem else peer.problem.exact())
    nodes, own = fewest_nodes(problem, exact, error)
    details = {"nodes": nodes, "errors": [own, error]}
    step = step_of(ours(nodes), problem)
    yield against(f"solve against {peer.name}", step, peer.step, peer.name, peer.target, **details)
    if peer.compiled and not quick:
        yield compiled(problem, peer, peer.compiled, **details)


def growth(name: str, many: tuple[int, int], few: tuple[int, int], target: float, nodes: int = 10) -> Row:
    """Measure a problem of size (batch, times per row) against one of a tenth of its size."""
    big, small = (step_of(ours(nodes), Problem.of(*size)) for size in (many, few))
    return against(name, big, small, "a tenth of it", target, "<=", nodes=nodes)


def rows(quick: bool = False) -> Iterator[Row]:
    problem = Problem.of(*(4, 5) if quick else ())
    exact = problem.exact()
    for packages, peers in PEERS.items():
        if not installed(*packages):
            yield missing(f"solve against {packages[-1]}", packages[-1])
            continue
        for peer in peers(problem):
            yield from against_peer(problem, exact, peer, quick)
    yield from growths(quick)


def growths(quick: bool) -> Iterator[Row]:
    """Measure growth: the solve does not depend on the number of queries; reading is linear in it, and cheap."""
    most = 2 if quick else 4
    for few, target in ((10, 1.5), (100, 4.0), (1000, 12.0))[: most - 1]:
        yield growth(f"solve: {10 * few} own times a row over {few}", (BATCH, 10 * few), (BATCH, few), target)
    for few, target in ((10, 10.0), (100, 12.0))[: most - 1]:
        yield growth(f"solve: batch {10 * few} over {few}", (10 * few, TIMES), (few, TIMES), target)
