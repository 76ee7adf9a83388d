"""Record a run in MLflow: parameters, losses, scores, figures and its metrics.json."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import MLFlowLogger
from matplotlib.figure import Figure

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.runs.folder import command_of, name_of
from vrnn_lab.training.loggers.base import (
    RunLogger,
    choices_of_run,
    environment_kept,
    final,
    keep_id,
    known_id,
    log,
    required,
)

FOLDER = Path("outputs")  # of the default database, below the working directory
STATUS = {"completed": "FINISHED", "pruned": "KILLED"}  # of MLflow, by the status in metrics.json; otherwise FAILED
# Of a server that does not answer. MLflow's own settings wait for minutes, and a record is not worth that.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow(RunLogger, MLFlowLogger):
    """Record a run in an MLflow experiment; a resumed run continues there.

    tracking_uri: a server (http://...) or a database; without it the environment's MLFLOW_TRACKING_URI, else the file
    outputs/mlflow.db, which `mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db` shows.
    """

    remote = True

    def __init__(self, folder: Path, experiment: str = "vrnn_lab", tracking_uri: str | None = None):
        required("mlflow", "mlflow")
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self.folder, self.lock, files = folder, None, None
        self.where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self.where:
            FOLDER.mkdir(exist_ok=True)
            self.where, files = f"sqlite:///{FOLDER.resolve()}/mlflow.db", (FOLDER / "mlflow").resolve().as_uri()
            self.lock = FileLock(FOLDER / "mlflow.lock")  # jobs that make the database at once would spoil it
        with self._usable():
            known = known_id(folder, "mlflow", self.where)
            if known and not self._has(known):
                log.warning("logger=mlflow: %s has no run %s; it is recorded anew.", self.where, known)
                known = None
            self.resumed = known is not None
            super().__init__(
                experiment_name=experiment,
                run_name=name_of(folder),
                tracking_uri=self.where,
                tags={"folder": str(folder.resolve())},
                run_id=known,
                artifact_location=files,
            )

    def _has(self, run: str) -> bool:
        """Return whether the database or server knows a run."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            return bool(MlflowClient(self.where).get_run(run))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Raise ConfigError for whatever goes wrong in opening the database or the server."""
        try:
            with self.lock or nullcontext(), environment_kept("MLFLOW_TRACKING_URI"):
                yield
        except Exception as error:
            raise ConfigError(
                f"logger=mlflow cannot use {self.where}: {error}\nStart the server, set logger.mlflow.tracking_uri, "
                "or choose another logger (logger=tensorboard)."
            ) from error

    def connect(self) -> None:
        with self._usable():
            self.experiment.update_run(str(self.run_id), status="RUNNING")

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        keep_id(self.folder, "mlflow", self.where, str(self.run_id))
        if self.resumed:  # MLflow refuses other values of what it has, such as a longer fit
            return
        chosen = {key.strip("/"): value for key, value in choices_of_run(self.folder).items()}
        self.attempt(lambda: self.log_hyperparams(chosen))
        self.attempt(lambda: self.experiment.set_tag(str(self.run_id), "command", command_of(self.folder)))
        self.attempt(lambda: self.experiment.log_artifact(str(self.run_id), str(self.folder / run_files.CONFIG)))

    @rank_zero_only
    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        place = f"figures/{name}/step_{step:06d}.png"
        self.attempt(lambda: self.experiment.log_figure(str(self.run_id), figure, place))

    def finalize(self, status: str = "success") -> None:
        """Do nothing at the end of the fit: the scoring follows, and `end` sets the status."""

    def end(self, metrics: dict[str, Any]) -> None:
        self.lost = False  # the service may be back
        self.attempt(lambda: self._end(metrics))

    def _end(self, metrics: dict[str, Any]) -> None:
        run = str(self.run_id)
        for name, value in final(metrics).items():
            self.experiment.log_metric(run, name, value, step=metrics.get("fit/steps", 0))
        for file in sorted((self.folder / run_files.FIGURES).glob("*.png")):
            self.experiment.log_artifact(run, str(file), "figures")
        self.experiment.log_dict(run, metrics, run_files.METRICS)
        self.experiment.set_terminated(run, STATUS.get(metrics["status"], "FAILED"))
