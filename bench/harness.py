"""How a row is measured, and what it holds: two things alternately in one process, medians, no garbage collection."""

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
Sense = Literal[">=", "<="]
FIELDS = ("name", "ours", "peer", "peer_name", "unit", "ratio", "target", "ok")


@dataclass
class Options:
    """How the process measures; set once, by its worker."""

    device: str = "cpu"
    quick: bool = False  # small and few: shows that it works, measures nothing
    slow: bool = False  # what takes many minutes, too


OPTIONS = Options()


def synchronize() -> None:
    if OPTIONS.device == "cuda":
        import torch

        torch.cuda.synchronize()


@dataclass(frozen=True)
class Taken:
    """Seconds of a call: of the clock, and of all cores together, which tell more where others are at work."""

    wall: float
    cpu: float


def timed(call: Callable[[], object]) -> Taken:
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


SLICE = 0.05  # seconds a fast thing is called again and again before it is the other's turn


def turn(call: Callable[[], object]) -> list[Taken]:
    """The calls of one turn."""
    taken = [timed(call)]
    while total(taken) < SLICE:
        taken.append(timed(call))
    return taken


def total(taken: list[Taken]) -> float:
    return sum(each.wall for each in taken)


def alternate(
    calls: dict[str, Callable[[], object]], budget: float = 1.0, least: int = 5, few: int = 3
) -> dict[str, list[Taken]]:
    """What every call takes: a, b, a, b, ... for at least `least` rounds and `budget` seconds each, when warm.

    Where a call takes longer than the budget, `few` rounds are enough.
    """
    if OPTIONS.quick:
        budget, least, few = 0.0, 2, 1
    for call in calls.values():
        call()
    gc.collect()
    gc.freeze()  # what is there by now need not be looked through after every round
    gc.disable()
    try:
        taken = {name: turn(call) for name, call in calls.items()}
        brief = all(min(each.wall for each in first) <= budget for first in taken.values())
        rounds = 1
        while rounds < (least if brief else few) or (brief and min(map(total, taken.values())) < budget):
            for name, call in calls.items():
                taken[name] += turn(call)
            rounds += 1
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return taken


def spread(values: list[float]) -> float:
    """Half of them lie in an interval so wide, in medians."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def row(
    name: str,
    ours: float | None,
    peer: float | None,
    peer_name: str,
    unit: str,
    target: float | None = None,
    sense: Sense = ">=",
    **more: Any,
) -> Row:
    """ratio: with >=, how many times less ours takes than the peer; with <=, ours over the peer.

    Without a peer, or ours, there is no ratio and ok is null; so it is without a target: then the row reports.
    """
    ratio = None
    if ours is not None and peer is not None:
        ratio = peer / ours if sense == ">=" else ours / peer
    ok = None
    if ratio is not None and target is not None:
        ok = ratio >= target if sense == ">=" else ratio <= target
    values = (name, ours, peer, peer_name, unit, ratio, target, ok)
    return {**dict(zip(FIELDS, values, strict=True)), "sense": sense, **more}


def against(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    target: float | None = None,
    sense: Sense = ">=",
    **more: Any,
) -> Row:
    """A row of milliseconds, measured here and now."""
    taken = alternate({"ours": ours, "peer": peer})
    ms = {key: 1e3 * statistics.median(each.wall for each in calls) for key, calls in taken.items()}
    told = {
        "cpu_ms": [round(1e3 * statistics.median(each.cpu for each in calls), 3) for calls in taken.values()],
        "repeats": [len(calls) for calls in taken.values()],
        "spread": [round(spread([each.wall for each in calls]), 3) for calls in taken.values()],
    }
    return row(name, ms["ours"], ms["peer"], peer_name, "ms", target, sense, **more, **told)


def within(name: str, ours: float, limit: float, unit: str, **more: Any) -> Row:
    """A row that is held to an absolute limit."""
    return row(name, ours, limit, "limit", unit, 1.0, "<=", **more)


def missing(name: str, package: str, target: float | None = None, sense: Sense = ">=", **more: Any) -> Row:
    """The row of a peer that is not installed."""
    note = f"{package} is not installed; run: pip install 'vrnn_lab[bench]'"
    return row(name, None, None, package, "ms", target, sense, note=note, **more)


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)
