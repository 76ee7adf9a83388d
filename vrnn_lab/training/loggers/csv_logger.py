"""Write the losses and scores of a run as a CSV file."""

import csv
import warnings
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
        self.file, self.begun = folder / run_files.CURVES, False

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        self.begun = True
        earlier = self.file.with_name(f".{self.file.name}.earlier")  # remains where a process was killed below
        if self.file.exists():
            self.file.replace(earlier)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory")  # it deletes metrics.csv, which is moved
            writer = self.experiment
        if earlier.exists():
            with earlier.open(newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    if int(row["step"]) <= step:
                        writer.log_metrics(
                            {k: float(v) for k, v in row.items() if k != "step" and v}, int(row["step"])
                        )
            self.save()
            earlier.unlink()

    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        pass

    def end(self, metrics: dict[str, Any]) -> None:
        if numbers := final(metrics):
            if not self.begun:  # the fit was done by an earlier process
                self.begin(metrics["fit/steps"])
            self.log_metrics(numbers, metrics["fit/steps"])
