"""Record a run in Weights & Biases: config, losses, scores and figures."""

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger
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


class WandB(RunLogger, WandbLogger):
    """Record a run in a project of Weights & Biases; a resumed run continues there.

    offline: keep the records in <save_dir>/wandb, from where `wandb sync` sends them. save_dir: the folder of the
    package's own files. group: a name by which the site groups runs.
    """

    remote = True
    started: Any = None  # the run of the package that this class started last in this process

    def __init__(
        self,
        folder: Path,
        project: str = "vrnn_lab",
        entity: str | None = None,
        group: str | None = None,
        offline: bool = False,
        save_dir: str = "outputs",
    ):
        required("wandb", "wandb")
        from wandb import Settings

        self.folder, self.offline, self.where = folder, offline, f"{entity or ''}/{project}"
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        with environment_kept("WANDB_MODE"):
            super().__init__(
                name=name_of(folder),
                save_dir=save_dir,
                id=known_id(folder, "wandb", self.where),
                offline=offline,
                project=project,
                entity=entity,
                group=group,
                resume="allow",
                # The terminal is a run's own, and run.log holds its text.
                settings=Settings(silent=True, console="off"),
            )
        # Lightning sets it, and the package then warns that it has no effect.
        self._wandb_init.pop("anonymous", None)

    def connect(self) -> None:
        import wandb

        if wandb.run is not None and wandb.run is WandB.started:  # of an earlier run, which was interrupted
            wandb.finish()
        try:
            with environment_kept("WANDB_MODE"):
                run = WandB.started = self.experiment
        except Exception as error:
            raise ConfigError(
                f"logger=wandb cannot start a run: {error}\nLog in by `wandb login`, set logger.wandb.offline=true, "
                "or choose another logger (logger=tensorboard)."
            ) from error
        if not self.offline:
            log.info("wandb    %s", run.url)

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        run = self.experiment
        keep_id(self.folder, "wandb", self.where, run.id)
        chosen = choices_of_run(self.folder) | {"command": command_of(self.folder)}
        self.attempt(lambda: run.config.update(chosen, allow_val_change=True))

    @rank_zero_only
    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        import wandb

        self.attempt(lambda: self.experiment.log({name: wandb.Image(figure), "trainer/global_step": step}))

    def end(self, metrics: dict[str, Any]) -> None:
        self.lost = False  # the service may be back
        self.attempt(lambda: self._end(metrics))

    def _end(self, metrics: dict[str, Any]) -> None:
        import wandb

        self.experiment.summary.update(final(metrics) | {"status": metrics["status"]})
        if pictures := sorted((self.folder / run_files.FIGURES).glob("*.png")):
            self.experiment.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in pictures})
        wandb.finish(exit_code=0 if metrics["status"] == "completed" else 1)
        WandB.started = None
