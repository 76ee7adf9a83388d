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


def seconds_of(call: Callable[[], object]) -> float:
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


SLICE = 0.05  # seconds a fast thing is called again and again before it is the other's turn


def turn(call: Callable[[], object], slice_of: float = SLICE) -> list[float]:
    """Seconds of each call of one turn."""
    taken = [seconds_of(call)]
    while sum(taken) < slice_of:
        taken.append(seconds_of(call))
    return taken


def alternate(
    calls: dict[str, Callable[[], object]], budget: float = 1.0, least: int = 5, few: int = 3, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of every call: a, b, a, b, ... for at least `least` rounds and `budget` seconds each.

    Where a call takes longer than the budget, `few` rounds are enough, and once is warm.
    """
    if OPTIONS.quick:
        budget, least, few, warm = 0.0, 2, 1, 1
    slow = {name: seconds_of(call) > budget for name, call in calls.items()}
    for _ in range(warm - 1):
        for name in (n for n in calls if not slow[n]):
            calls[name]()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    rounds, enough = 0, few if any(slow.values()) else least
    gc.collect()
    gc.disable()
    try:
        while rounds < enough or (not any(slow.values()) and min(map(sum, taken.values())) < budget):
            for name, call in calls.items():
                taken[name] += turn(call)
            rounds += 1
            gc.collect()
    finally:
        gc.enable()
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
    ms = {key: 1e3 * statistics.median(each) for key, each in taken.items()}
    repeats, wide = zip(*((len(each), round(spread(each), 3)) for each in taken.values()), strict=True)
    more = {**more, "repeats": list(repeats), "spread": list(wide)}
    return row(name, ms["ours"], ms["peer"], peer_name, "ms", target, sense, **more)


def within(name: str, ours: float, limit: float, unit: str, **more: Any) -> Row:
    """A row that is held to an absolute limit."""
    return row(name, ours, limit, "limit", unit, 1.0, "<=", **more)


def missing(name: str, package: str, target: float | None = None, sense: Sense = ">=", **more: Any) -> Row:
    """The row of a peer that is not installed."""
    note = f"{package} is not installed; run: pip install 'vrnn_lab[bench]'"
    return row(name, None, None, package, "ms", target, sense, note=note, **more)


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)
