"""Loops over points or solver steps, where a training step is compiled (trainer.compile)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
unroll = False  # whether loops become part of what is compiled


def loop(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a function that loops: it stays as it is between what is compiled before and after it.

    Unrolled, it is compiled step by step, for minutes, and for each number of steps anew.
    """
    as_it_is: Any = torch.compiler.disable(function)

    @wraps(function)
    def call(*args: P.args, **keys: P.kwargs) -> R:
        if torch.compiler.is_compiling() and not unroll:
            return as_it_is(*args, **keys)
        return function(*args, **keys)

    return call


@contextmanager
def unrolled(whole: bool) -> Iterator[None]:
    """Within, what is compiled takes loops in, or does not."""
    global unroll
    before, unroll = unroll, whole
    try:
        yield
    finally:
        unroll = before
