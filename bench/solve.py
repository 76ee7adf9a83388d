"""The latent ODE's solve at each row's own times, forward and backward, against the public solvers."""

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
# With these a step's error is that of trained dynamics: 1e-2 on 5 nodes, 1e-3 on 10, 3e-5 on 25.
RATE, GAIN = 7.0, 1.5
RTOL, ATOL = 1e-3, 1e-4  # of all adaptive peers
NODES = (3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 40, 60, 100)


@dataclass(frozen=True)
class Problem:
    """dz/dt = f(z) from z0 at 0, asked at each row's own times in [0, 1]; a loss that is linear in the answers."""

    field: VectorField
    z0: Tensor  # (batch, latent), which wants its gradient
    times: Tensor  # (batch, time), float64
    weight: Tensor  # (batch, time, latent): the loss's gradient

    @classmethod
    def of(cls, batch: int = BATCH, times: int = TIMES, seed: int = 1) -> "Problem":
        torch.manual_seed(seed)
        field = VectorField(LATENT, WIDTH, DEPTH, "tanh", RATE)
        with torch.no_grad():
            for each in field.parameters():
                each *= GAIN
        z0 = torch.randn(batch, LATENT)
        own = torch.rand(batch, times, dtype=torch.float64).sort(1).values
        weight = torch.randn(batch, times, LATENT) / times
        on = lambda x: x.to(OPTIONS.device)
        return cls(on(field), on(z0).requires_grad_(), on(own), on(weight))

    @property
    def shared(self) -> "Problem":
        """The easier question: the first row's times for all rows."""
        return replace(self, times=self.times[:1].expand_as(self.times))

    def exact(self) -> Tensor:
        """The answers in float64, to 1e-10."""
        field = VectorField(LATENT, WIDTH, DEPTH, "tanh", RATE).double().to(self.z0.device)
        field.load_state_dict(self.field.state_dict())
        with torch.no_grad():
            return union(replace(self, field=field, z0=self.z0.double()), 1e-10, 1e-10)


Answers = Callable[[Problem], Tensor]  # (batch, time, latent)


def ours(nodes: int) -> Answers:
    """The solver of the models, read at each row's own times."""
    return lambda problem: Solver().path(problem.field, problem.z0[None], 1 / nodes, nodes, 0).at(problem.times)[0]


def union(problem: Problem, rtol: float = RTOL, atol: float = ATOL) -> Tensor:
    """torchdiffeq over the union of all rows' times, of which each row picks its own."""
    times = problem.times.to(problem.z0.dtype)
    all_times, place = torch.cat([times.new_zeros(1), times.reshape(-1)]).unique(return_inverse=True)
    states = odeint(problem.field, problem.z0, all_times, rtol=rtol, atol=atol, method="dopri5")
    assert isinstance(states, Tensor)
    row = torch.arange(len(times), device=times.device)[:, None]
    return states[place[1:].view_as(times), row]


def step_of(answers: Answers, problem: Problem) -> Callable[[], Any]:
    """Forward, and backward to z0 and the weights."""
    wanted = [problem.z0, *problem.field.parameters()]
    return lambda: torch.autograd.grad((answers(problem) * problem.weight).sum(), wanted)


def error_of(answers: Tensor, exact: Tensor) -> float:
    return (answers.double() - exact).abs().max().item()


def fewest_nodes(problem: Problem, exact: Tensor, error: float) -> tuple[int, float]:
    """The fewest of NODES whose error is no larger than a peer's, and that error."""
    for nodes in NODES:
        with torch.no_grad():
            own = error_of(ours(nodes)(problem), exact)
        if own <= error:
            return nodes, own
    raise RuntimeError(f"no number of nodes up to {NODES[-1]} comes down to an error of {error:.2g}")


@dataclass(frozen=True)
class Peer:
    """Another solver: the problem it is asked, its answers, and a step of it."""

    name: str
    target: float
    problem: Problem
    answers: Tensor
    step: Callable[[], Any]
    compiled: float | None = None  # what ours compiled must reach


def torchdiffeq_peers(problem: Problem) -> Iterator[Peer]:
    for times, target, asked in (("union of times", 500.0, problem), ("shared times", 4.0, problem.shared)):
        with torch.no_grad():
            answers = union(asked)
        yield Peer(f"torchdiffeq dopri5, {times}", target, asked, answers, step_of(union, asked))


def torchode_peers(problem: Problem) -> Iterator[Peer]:
    from bench.torchode_peer import answers_of

    answers = answers_of(problem.field, RTOL, ATOL)
    with torch.no_grad():
        found = answers(problem)
    yield Peer("torchode dopri5", 3.0, problem, found, step_of(answers, problem))


def diffrax_peers(problem: Problem) -> Iterator[Peer]:
    from bench import diffrax_peer

    if diffrax_peer.on(OPTIONS.device):
        for way in diffrax_peer.WAYS:
            answers, step = diffrax_peer.made(way, problem, RTOL, ATOL)
            yield Peer(f"diffrax dopri5, {way}", 1.8, problem, answers, step, 2.5)


PEERS = {  # by the packages they need
    ("torchdiffeq",): torchdiffeq_peers,
    ("torchode",): torchode_peers,
    ("jax", "equinox", "diffrax"): diffrax_peers,
}


def compiled(problem: Problem, peer: Peer, target: float, **told) -> Row:
    """Ours compiled whole; the time that takes is told, and not counted."""
    as_it_is = step_of(torch.compile(ours(told["nodes"]), dynamic=False), problem)

    def step() -> Any:
        with unrolled(True):
            return as_it_is()

    started = perf_counter()
    step()
    told["compile_seconds"] = perf_counter() - started
    return against(f"solve compiled against {peer.name}", step, peer.step, peer.name, target, **told)


def against_peer(problem: Problem, exact: Tensor, peer: Peer, quick: bool) -> Iterator[Row]:
    """Ours on the fewest nodes whose error is no larger than the peer's."""
    error = error_of(peer.answers, exact if peer.problem is problem else peer.problem.exact())
    nodes, own = fewest_nodes(problem, exact, error)
    told = {"nodes": nodes, "errors": [own, error]}
    step = step_of(ours(nodes), problem)
    yield against(f"solve against {peer.name}", step, peer.step, peer.name, peer.target, **told)
    if peer.compiled and not quick:
        yield compiled(problem, peer, peer.compiled, **told)


def growth(name: str, many: tuple[int, int], few: tuple[int, int], target: float, nodes: int = 10) -> Row:
    """The cost of ten times as much, (batch, times a row), over that of the smaller problem."""
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
    """The solve does not know how many times are asked; reading them is linear in their number, and cheap."""
    most = 2 if quick else 4
    for few, target in ((10, 1.5), (100, 4.0), (1000, 12.0))[: most - 1]:
        yield growth(f"solve: {10 * few} own times a row over {few}", (BATCH, 10 * few), (BATCH, few), target)
    for few, target in ((10, 10.0), (100, 12.0))[: most - 1]:
        yield growth(f"solve: batch {10 * few} over {few}", (10 * few, TIMES), (few, TIMES), target)
