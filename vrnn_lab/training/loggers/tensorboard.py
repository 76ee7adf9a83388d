"""Write what TensorBoard shows of a run: curves, figures, its row of the HParams tab, its config as text.

No run writes the summary `experiment` of the HParams tab, as torch and Lightning do: TensorBoard would take the
columns of one run for those of all. Without it the columns are the union over the runs, those that differ first.
"""
# pyright: reportAttributeAccessIssue=false

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from vrnn_lab.runs.folder import command_of, config_of
from vrnn_lab.training.loggers.base import RunLogger, choices_of_run, final

ENDING = ".ending"  # suffix of the events file that says how a run ended, which a retry removes


class TensorBoard(RunLogger, TensorBoardLogger):
    """Write event files for TensorBoard into the run folder (`tensorboard --logdir outputs`)."""

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def save(self) -> None:  # Lightning's own method would write an hparams.yaml
        self.experiment.flush()

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        folder = Path(self.log_dir)
        row = SessionStartInfo()
        for key, value in choices_of_run(folder).items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(row.hparams[key], kind, value)
        file = self.experiment._get_file_writer()
        file.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)
        file.add_summary(_hparams(metadata.SESSION_START_INFO_TAG, session_start_info=row), step)
        text = f"```\n{command_of(folder)}\n\n{OmegaConf.to_yaml(config_of(folder))}```"
        self.experiment.add_text("config", text, step)

    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        self.experiment.add_figure(name, figure, step)

    def end(self, metrics: dict[str, Any]) -> None:
        status = api_pb2.STATUS_SUCCESS if metrics["status"] == "completed" else api_pb2.STATUS_FAILURE
        step = metrics.get("fit/steps", 0)
        with SummaryWriter(self.log_dir, filename_suffix=ENDING) as writer:
            for name, value in final(metrics).items():
                writer.add_scalar(name, value, step)
            row = _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=SessionEndInfo(status=status))
            writer._get_file_writer().add_summary(row, step)


def forget_end(folder: Path) -> None:
    """Remove the record of a run's end, for a retry."""
    for file in folder.glob(f"events*{ENDING}"):
        file.unlink()


def _hparams(tag: str, **content: Any) -> Summary:
    described = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])
