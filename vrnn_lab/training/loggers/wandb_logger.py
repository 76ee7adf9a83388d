"""Record a run in Weights & Biases: config, losses, scores and figures."""

import logging
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.runs.folder import command_of
from vrnn_lab.training.loggers.base import RunLogger, choices_of_run, final, keep_id, known_id, name_of, required

log = logging.getLogger("vrnn_lab")


class WandB(RunLogger, WandbLogger):
    """Record a run in a project of Weights & Biases; a resumed run continues there.

    offline: keep the records in <save_dir>/wandb, from where `wandb sync` sends them. save_dir: the folder of the
    package's own files. group: a name by which the site groups runs.
    """

    remote = True

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

        self.folder, self.offline = folder, offline
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        super().__init__(
            name=name_of(folder),
            save_dir=save_dir,
            id=known_id(folder, "wandb"),
            offline=offline,
            project=project,
            entity=entity,
            group=group,
            resume="allow",
            settings=Settings(silent=True, console="off"),  # the terminal is a run's own, and run.log holds its text
        )
        self._wandb_init.pop("anonymous", None)  # Lightning sets it, and the package then warns that it has no effect

    def connect(self) -> None:
        import wandb

        if wandb.run is not None:  # of an earlier run in this process, which was interrupted
            wandb.finish()
        try:
            run = self.experiment
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
        keep_id(self.folder, "wandb", run.id)
        with self.tolerant():
            run.config.update(
                choices_of_run(self.folder) | {"command": command_of(self.folder)}, allow_val_change=True
            )

    @rank_zero_only
    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        import wandb

        with self.tolerant():
            self.experiment.log({name: wandb.Image(figure), "trainer/global_step": step})

    def end(self, metrics: dict[str, Any]) -> None:
        import wandb

        with self.tolerant():
            if wandb.run is None:  # the run failed before its fit
                return
            self.experiment.summary.update(final(metrics) | {"status": metrics["status"]})
            pictures = sorted((self.folder / run_files.FIGURES).glob("*.png"))
            if pictures:
                self.experiment.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in pictures})
            wandb.finish(exit_code=0 if metrics["status"] == "completed" else 1)
