"""Show how far a slow part of a command is, with the time that is left, on a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

from vrnn_lab.cli.result import QUIET, has_flag

T = TypeVar("T")
AFTER = 1.0  # seconds without a bar, since most parts take less
_bars: list[str] = []  # what the bars of this process show; a second one would write over the first


@contextmanager
def only_bar(what: str) -> Iterator[None]:
    """Keep every other bar of this process hidden while this one is shown."""
    _bars.append(what)
    try:
        yield
    finally:
        _bars.remove(what)


def tracked(
    items: Iterable[T],
    what: str,
    total: Callable[[], int] | int | None = None,
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Yield the items; on a terminal show from the second second on how many of them are done, and the time left.

    The bar is on the standard error and goes away at the end. There is none with --quiet, or where another bar is
    shown. what: is being done, such as "scoring the test split"; total: of the sizes of all items, None where it is
    unknown, a function being called only where the bar is shown; size: of an item, such as the number of series in
    a batch.
    """
    bar = None if _bars or has_flag(QUIET) or not sys.stderr.isatty() else _bar(what)
    if bar is None or not bar.console.is_terminal:  # a notebook says that it is a terminal, and shows no bar
        yield from items
        return
    begun, shown = monotonic(), False
    with only_bar(what):
        try:
            for item in items:
                if not shown and monotonic() - begun > AFTER:
                    bar.update(bar.task_ids[0], total=total() if callable(total) else total)
                    bar.start()
                    shown = True
                yield item
                bar.advance(bar.task_ids[0], size(item))
        finally:
            bar.stop()


def _bar(what: str) -> Any:
    """Return a bar of Rich that is not shown yet; its clock runs."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from vrnn_lab.cli.terminal import Terminal

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Terminal(file=sys.stderr), transient=True)
    bar.add_task(what, total=None)
    return bar
