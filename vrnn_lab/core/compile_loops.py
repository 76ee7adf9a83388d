"""Decide how torch.compile treats loops over points or solver steps (option trainer.compile)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
unroll = False  # True: loops are compiled too, unrolled step by step


def loop(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that loops, so that torch.compile leaves it out and compiles what comes before and after it.

    Unrolling such a loop takes minutes, and every new number of steps compiles it again.
    """
    uncompiled: Any = torch.compiler.disable(function)

    @wraps(function)
    def call(*args: P.args, **keys: P.kwargs) -> R:
        if torch.compiler.is_compiling() and not unroll:
            return uncompiled(*args, **keys)
        return function(*args, **keys)

    return call


@contextmanager
def unrolled(enabled: bool) -> Iterator[None]:
    """Set, within the context, whether loops marked by `loop` are unrolled and compiled."""
    global unroll
    before, unroll = unroll, enabled
    try:
        yield
    finally:
        unroll = before
