"""Make the loggers that the config of a run names."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import to_dict
from vrnn_lab.config.validate import instantiate
from vrnn_lab.training.loggers.base import RunLogger
from vrnn_lab.training.loggers.tensorboard import TensorBoard


def loggers_of(config: DictConfig, folder: Path) -> Sequence[RunLogger]:
    """Return the loggers of the run in a folder; runs of earlier versions, whose config names none, had TensorBoard.

    Raise ConfigError where a package is missing or a service cannot be used.
    """
    if (named := to_dict(config).get("logger")) is None:
        return [TensorBoard(folder)]
    if not isinstance(named, dict) or not all(
        isinstance(each, dict) and "_target_" in each for each in named.values()
    ):
        raise ConfigError(
            f"logger={named}: expected options of the group logger, as logger=[tensorboard,csv] or none."
        )
    made = [instantiate(node, f"logger.{name}", folder=folder) for name, node in named.items()]
    for name, each in zip(named, made, strict=True):
        if not isinstance(each, RunLogger):
            raise ConfigError(
                f"logger.{name} is a {type(each).__name__}, which is no logger of runs; expected a subclass of "
                "vrnn_lab.training.loggers.base.RunLogger."
            )
    return made
