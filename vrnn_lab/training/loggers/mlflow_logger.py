"""Record a run in MLflow: parameters, losses, scores, figures and its metrics.json."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import MLFlowLogger
from matplotlib.figure import Figure

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.runs.folder import command_of
from vrnn_lab.training.loggers.base import RunLogger, choices_of_run, final, keep_id, known_id, name_of, required

FOLDER = Path("outputs")  # of the default database, below the working directory
STATUS = {"completed": "FINISHED", "pruned": "KILLED"}  # of MLflow, by the status in metrics.json; otherwise FAILED


class MLflow(RunLogger, MLFlowLogger):
    """Record a run in an MLflow experiment; a resumed run continues there.

    tracking_uri: a server (http://...) or a database; without it the environment's MLFLOW_TRACKING_URI, else the file
    outputs/mlflow.db, which `mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db` shows.
    """

    remote = True

    def __init__(self, folder: Path, experiment: str = "vrnn_lab", tracking_uri: str | None = None):
        required("mlflow", "mlflow")
        self.folder = folder
        self.where, files = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""), None
        if not self.where:
            FOLDER.mkdir(exist_ok=True)
            self.where, files = f"sqlite:///{FOLDER.resolve()}/mlflow.db", (FOLDER / "mlflow").resolve().as_uri()
        try:
            super().__init__(
                experiment_name=experiment,
                run_name=name_of(folder),
                tracking_uri=self.where,
                tags={"folder": str(folder.resolve())},
                run_id=known_id(folder, "mlflow"),
                artifact_location=files,
            )
        except Exception as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"logger=mlflow cannot use {self.where}: {error}\nStart the server, set logger.mlflow.tracking_uri, or "
            "choose another logger (logger=tensorboard)."
        )

    def connect(self) -> None:
        try:
            self.experiment.update_run(str(self.run_id), status="RUNNING")
        except Exception as error:
            raise self._unreachable(error) from error

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        keep_id(self.folder, "mlflow", str(self.run_id))
        with self.tolerant():
            self.log_hyperparams({key.strip("/"): value for key, value in choices_of_run(self.folder).items()})
            self.experiment.set_tag(str(self.run_id), "command", command_of(self.folder))
            self.experiment.log_artifact(str(self.run_id), str(self.folder / run_files.CONFIG))

    @rank_zero_only
    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        with self.tolerant():
            self.experiment.log_figure(str(self.run_id), figure, f"figures/{name}/step_{step:06d}.png")

    def end(self, metrics: dict[str, Any]) -> None:
        self.log_metrics(final(metrics), metrics.get("fit/steps", 0))
        with self.tolerant():
            for file in sorted((self.folder / run_files.FIGURES).glob("*.png")):
                self.experiment.log_artifact(str(self.run_id), str(file), "figures")
            self.experiment.log_dict(str(self.run_id), metrics, run_files.METRICS)
            self.experiment.set_terminated(str(self.run_id), STATUS.get(metrics["status"], "FAILED"))
