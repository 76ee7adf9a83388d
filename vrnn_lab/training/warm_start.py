"""Start a fit from the weights of another run on data of the same channels: start=<run folder>."""

from pathlib import Path

import torch

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.run_files import BEST
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.runs import checkpoints


def take_weights(model: SequenceModel, folder: Path) -> None:
    """Copy the weights of a run's best checkpoint into a model; its scale stays that of its own data.

    No code of the folder is run. Raise ConfigError where it has no checkpoint, or one of another model or of other
    channels.
    """
    file = folder / BEST
    if not file.is_file():
        raise ConfigError(f"start={folder}: expected the folder of a run with a checkpoint ({BEST}).")
    checkpoint = checkpoints.read(file)
    channels = tuple(checkpoint["channels"])
    if channels != model.scale.channels:
        raise ConfigError(
            f"start={folder} was trained on the channels {', '.join(channels)}, and the data have "
            f"{', '.join(model.scale.channels)}; expected the same ones, in the same order."
        )
    theirs, ours = checkpoint["state_dict"], dict(model.named_parameters())
    for name, weight in ours.items():
        if name not in theirs or theirs[name].shape != weight.shape:
            found = tuple(theirs[name].shape) if name in theirs else "nothing"
            raise ConfigError(
                f"start={folder} is a run of another model: of '{name}' it holds {found}, and this model needs "
                f"{tuple(weight.shape)}; set the model, its widths and its covariates as there."
            )
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(theirs[name])
