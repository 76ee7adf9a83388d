"""Write what TensorBoard shows of a run besides figures: curves, its row of the HParams tab, its config as text.

No run writes the summary `experiment` of the HParams tab, as torch and Lightning do: TensorBoard would take the
columns of one run for those of all. Without it the columns are the union over the runs, those that differ first.
"""
# pyright: reportAttributeAccessIssue=false

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

from vrnn_lab.config.plain import to_dict
from vrnn_lab.runs.folder import SCORE, choices_of, command_of, config_of

ENDING = ".ending"  # suffix of the events file that says how a run ended, which a retry removes
COST = ("fit/seconds", "model/parameters")
TESTED = re.compile(r"test/(nll|(forecast|interpolation)/mse|labels/accuracy)")


class Board(TensorBoardLogger):
    """Write a run's events file, opened on the first write."""

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)  # Lightning adds epoch

    def save(self) -> None:  # Lightning's own method would write an hparams.yaml
        self.experiment.flush()

    @rank_zero_only
    def begin(self, step: int = 0) -> None:
        """Record that a fit starts, or resumes after `step`: what an earlier attempt logged beyond it is void."""
        folder = Path(self.log_dir)
        config = config_of(folder)
        row = SessionStartInfo()
        for key, value in choices(to_dict(config), choices_of(folder)).items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(row.hparams[key], kind, value)
        file = self.experiment._get_file_writer()
        file.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)
        file.add_summary(_hparams(metadata.SESSION_START_INFO_TAG, session_start_info=row), step)
        self.experiment.add_text("config", f"```\n{command_of(folder)}\n\n{OmegaConf.to_yaml(config)}```", step)


def end(folder: Path, metrics: dict[str, Any]) -> None:
    """Record the end of a run: its status, and its final numbers if it has any."""
    status = api_pb2.STATUS_SUCCESS if metrics["status"] == "completed" else api_pb2.STATUS_FAILURE
    step = metrics.get("fit/steps", 0)
    with SummaryWriter(str(folder), filename_suffix=ENDING) as writer:
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


def final(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the few numbers that runs are compared by: score and test of best.ckpt as best/..., and the cost.

    best/ sorts first in TensorBoard's alphabetical order, and apart from the curve of val/loss.
    """
    best = {"best/score": metrics.get(SCORE)}
    best |= {f"best/{key}": value for key, value in metrics.items() if TESTED.fullmatch(key)}
    numbers = best | {key: metrics.get(key) for key in COST}
    return {key: value for key, value in numbers.items() if value is not None and isfinite(value)}


def choices(config: dict[str, Any], chosen: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Return what was chosen: options by group (/model, /model/head, /optim, /trick), all else by key (model.width).

    The slash, Hydra's own, sorts groups before keys in TensorBoard: they are what runs of different models share, and
    a run without a value drops out of its plots. A part that no group chose is named by its class; null values and
    parts in lists are left out.
    """
    known = {k: v for k, v in config.items() if k not in ("evaluate", "sweep", "tricks")}
    options = {f"/{group}": option for group, option in chosen.items() if isinstance(option, str)}
    tricks = "+".join(config.get("tricks", {})) or "none"
    return {**dict(_flat(known)), **options, "/trick": tricks}


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield "/" + prefix.rstrip(".").replace(".", "/"), value.rpartition(".")[2]
        elif isinstance(value, (bool, int, float, str)) and not key.startswith("_"):
            yield prefix + key, value
        elif isinstance(value, list) and not any(isinstance(part, dict) for part in value):
            yield prefix + key, str(value)
