"""Measure rows: two calls alternately in one process, medians of their times, without garbage collection."""

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
    """Hold how this process measures; set once, by its worker."""

    device: str = "cpu"
    quick: bool = False  # small problems, which show that a suite works; their numbers mean nothing
    slow: bool = False  # also measure what takes many minutes


OPTIONS = Options()


def synchronize() -> None:
    if OPTIONS.device == "cuda":
        import torch

        torch.cuda.synchronize()


@dataclass(frozen=True)
class Taken:
    """Hold the seconds of a call: wall clock, and CPU time of all cores, which is steadier on a shared machine."""

    wall: float
    cpu: float


def timed(call: Callable[[], object]) -> Taken:
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


SLICE = 0.05  # seconds for which a fast call is repeated before the other call's turn


def turn(call: Callable[[], object]) -> list[Taken]:
    """Return the times of the calls of one turn."""
    taken = [timed(call)]
    while total(taken) < SLICE:
        taken.append(timed(call))
    return taken


def total(taken: list[Taken]) -> float:
    return sum(each.wall for each in taken)


def alternate(
    calls: dict[str, Callable[[], object]], budget: float = 1.0, least: int = 5, few: int = 3
) -> dict[str, list[Taken]]:
    """Return the times of every call, made in the order a, b, a, b, ... for at least `least` rounds and `budget`
    seconds each, after a warm-up.

    Where a call takes longer than the budget, `few` rounds are enough.
    """
    if OPTIONS.quick:
        budget, least, few = 0.0, 2, 1
    for call in calls.values():
        call()
    gc.collect()
    gc.freeze()  # objects that exist now need not be scanned after every round
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
    """Return the interquartile range of some values, relative to their median."""
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
    """Return a row; its ratio is peer / ours where sense is >= (the speed-up), and ours / peer where it is <=.

    Without a peer or without ours, ratio and ok are None; without a target ok is None, and the row only reports.
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
    """Measure two calls, and return a row of their milliseconds."""
    taken = alternate({"ours": ours, "peer": peer})
    ms = {key: 1e3 * statistics.median(each.wall for each in calls) for key, calls in taken.items()}
    details = {
        "cpu_ms": [round(1e3 * statistics.median(each.cpu for each in calls), 3) for calls in taken.values()],
        "repeats": [len(calls) for calls in taken.values()],
        "spread": [round(spread([each.wall for each in calls]), 3) for calls in taken.values()],
    }
    return row(name, ms["ours"], ms["peer"], peer_name, "ms", target, sense, **more, **details)


def within(name: str, ours: float, limit: float, unit: str, **more: Any) -> Row:
    """Return a row with an absolute limit."""
    return row(name, ours, limit, "limit", unit, 1.0, "<=", **more)


def missing(name: str, package: str, target: float | None = None, sense: Sense = ">=", **more: Any) -> Row:
    """Return the row of a peer that is not installed."""
    note = f"{package} is not installed; run: pip install 'vrnn_lab[bench]'"
    return row(name, None, None, package, "ms", target, sense, note=note, **more)


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)
