"""The spread of predictions set right on validation: one factor a channel, inside what was seen and ahead of it."""

import json
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vrnn_lab.config import ConfigError
from vrnn_lab.data.base import SeriesData
from vrnn_lab.folder import write_whole
from vrnn_lab.metrics import Yardstick, batches
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.scores import fair_crps
from vrnn_lab.series import TimeSeries

FILE = "recalibration.json"
PLACES = ("interpolation", "forecast")  # up to the last seen point of a row, and after it
WIDEST = 8.0  # the largest factor, and the inverse of the least
FACTORS = torch.linspace(-log(WIDEST), log(WIDEST), 121, dtype=torch.float64).exp()


def ahead(batch: TimeSeries) -> Bool[Tensor, "batch time"]:
    """The points after the last seen one of their row; all of a row of which nothing is seen."""
    last = torch.where(batch.seen.any(-1), batch.times, -torch.inf).amax(1, keepdim=True)
    return batch.times > last


@dataclass(frozen=True)
class Recalibration:
    """By what the spread of each prediction about its mean is multiplied, channel by channel."""

    channels: tuple[str, ...]
    interpolation: Float[Tensor, " dim"]
    forecast: Float[Tensor, " dim"]

    def apply(self, prediction: Prediction, batch: TimeSeries) -> Prediction:
        """The prediction of a batch, wider or narrower about its mean: density and paths; what is seen stays."""
        inside, after = (getattr(self, place).to(prediction.paths) for place in PLACES)
        factor = torch.where(batch.seen, 1.0, torch.where(ahead(batch)[..., None], after, inside))
        shift = (1 - factor) * prediction.mean
        density = prediction.density.affine(factor, shift)
        return Prediction(torch.where(batch.seen, prediction.paths, prediction.paths * factor + shift), density)

    def save(self, folder: str | Path) -> Path:
        """<folder>/recalibration.json, whole or not at all."""
        named = {place: dict(zip(self.channels, getattr(self, place).tolist(), strict=True)) for place in PLACES}
        write_whole(Path(folder) / FILE, json.dumps(named, indent=1) + "\n")
        return Path(folder) / FILE


def load(folder: str | Path, channels: tuple[str, ...]) -> Recalibration:
    """What was fitted for a run; ConfigError where nothing was, or for other channels."""
    file = Path(folder) / FILE
    cure = f"Fit it: python -m vrnn_lab.evaluate run={folder} recalibrate=true"
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {FILE}: its predictions were not recalibrated yet. {cure}")
    try:
        named = json.loads(file.read_text())
        factors = {place: torch.tensor([float(named[place][c]) for c in channels]).double() for place in PLACES}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is broken, or of other channels than {', '.join(channels)}. {cure}") from error
    return Recalibration(channels, **factors)


def fit(model: SequenceModel, data: SeriesData, yardstick: Yardstick, seed: int) -> Recalibration:
    """The factors of least CRPS on validation, from the held-out values of both questions.

    The CRPS and not the nll: it is convex in the factor, so there is one minimum; a value far out pulls it no
    more than its distance; and no channel's validation CRPS gets worse. One factor a place and not one a gap: a
    model that was fitted widens with the gap by itself.
    """
    if model.scale.support != "real":
        raise ConfigError(
            f"recalibrate=true: values of this run are {model.scale.support}, which have no spread to set right; "
            "expected a run on real values."
        )
    if yardstick.draws < 2:
        raise ConfigError("recalibrate=true: of a single draw there is no spread; set evaluate.draws=99.")
    total = torch.zeros(len(PLACES), len(FACTORS), model.scale.dim, dtype=torch.float64, device=model.device)
    with model.fixed_noise(seed):
        for task in yardstick.questions.values():
            for batch in batches(model, data, "val", task, yardstick.draws):
                _add(total, model.predict(batch, yardstick.draws), batch)
    best = _least(total).cpu()
    return Recalibration(model.scale.channels, *best)


def _add(total: Float[Tensor, "place factor dim"], prediction: Prediction, batch: TimeSeries) -> None:
    """CRPS of the batch's scored values under each factor, added up by place and channel."""
    later = ahead(batch)
    for channel in range(total.shape[2]):
        scored = batch.scored[..., channel]
        mean, value = prediction.mean[..., channel][scored], batch.values[..., channel][scored]
        about = prediction.paths[..., channel][:, scored].sort(0).values - mean
        place = later[scored]
        for i, factor in enumerate(FACTORS.tolist()):
            crps = fair_crps(factor * about, (value - mean).to(about))
            total[0, i, channel] += crps[~place].sum()
            total[1, i, channel] += crps[place].sum()


def _least(total: Float[Tensor, "place factor dim"]) -> Float[Tensor, "place dim"]:
    """The factor of the least total, between two that were tried by a parabola; 1 where nothing was scored."""
    middle = total.argmin(1, keepdim=True).clamp(1, total.shape[1] - 2)
    left, low, right = (total.gather(1, middle + shift)[:, 0] for shift in (-1, 0, 1))
    bend = left - 2 * low + right
    shift = torch.where(bend > 0, (left - right) / (2 * bend), 0).clamp(-1, 1)
    step = FACTORS[1].log() - FACTORS[0].log()
    found = FACTORS.to(total)[middle[:, 0]] * (shift * step).exp()
    return torch.where((total != 0).any(1), found, 1.0)
