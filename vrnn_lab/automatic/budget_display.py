"""Show the progress of vrnn_lab.auto: lines, and on a terminal a bar of the time that is used."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vrnn_lab.cli.progress import only_bar
from vrnn_lab.cli.shown_text import say, terminal


class Once(logging.Filter):
    """Drop log lines that were logged before: the table is read for several runs."""

    def __init__(self):
        super().__init__()
        self.known: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.INFO or text not in self.known:
            self.known.add(text)
            return True
        return False


class BudgetDisplay:
    """Print lines, and on a terminal a bar of the time that is used."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.bar: Any = None

    def __call__(self, line: str) -> None:
        if self.bar:
            self.bar.console.print(terminal(line), soft_wrap=True, highlight=False, markup=False)
        else:
            say(line)

    def progress(self, used: float) -> None:
        """Move the bar to the seconds that are used."""
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=min(used, self.seconds))

    @contextmanager
    def shown(self, used: float) -> Iterator[None]:
        """Show the bar within the block, on a terminal."""
        console = Console()
        if not console.is_terminal:
            yield
            return
        columns = (TextColumn("budget"), BarColumn(40), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
        with only_bar("budget"), Progress(*columns, console=console) as self.bar:
            self.bar.add_task("", total=self.seconds, completed=used)
            yield
        self.bar = None
