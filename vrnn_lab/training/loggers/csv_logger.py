"""Write the losses and scores of a run as a CSV file."""

import csv
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from vrnn_lab.core import run_files
from vrnn_lab.training.loggers.base import RunLogger, final


class CSVFile(RunLogger, CSVLogger):
    """Write metrics.csv into the run folder: a row for each record, with the columns step, train/loss, val/loss, ...

    A cell is empty where a record has no such number; the last row holds the final numbers. The run folder has the
    figures as files anyway.
    """

    takes_figures = False

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self.file = folder / run_files.CURVES

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        earlier = self.file.with_name(f".{self.file.name}.earlier")  # it is whole, and a process may be killed below
        if self.file.exists() and not earlier.exists():
            self.file.replace(earlier)
        self.file.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory")  # it would delete metrics.csv
            writer = self.experiment
        if earlier.exists():
            for at, numbers in _rows(earlier):
                if at <= step:
                    writer.log_metrics(numbers, at)
            self.save()
            earlier.unlink()

    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        pass

    def end(self, metrics: dict[str, Any]) -> None:
        if numbers := final(metrics):
            self.log_metrics(numbers, metrics["fit/steps"])


def _rows(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, numbers) of each row; a row that a full disk or a killed process truncated is left out."""
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            with suppress(ValueError, TypeError, AttributeError):
                yield int(row["step"]), {k: float(v) for k, v in row.items() if k != "step" and v}
