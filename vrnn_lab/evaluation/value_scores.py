"""Keep the scores of single held-out values, by which mixtures of models are weighted."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vrnn_lab.core.files import DamagedError, write_bytes
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.evaluation.evaluate import Change
from vrnn_lab.evaluation.scores import sample_scores
from vrnn_lab.models.base import SequenceModel


@dataclass(frozen=True)
class ValueScores:
    """Hold the scores of held-out values, each with what tells it from all others."""

    series: NDArray[np.int64]  # (values,): the hash of the name of each one's series
    origin: NDArray[np.float64]  # (values,): the time of the last observation, -inf where nothing is observed
    time: NDArray[np.float64]  # (values,)
    channel: NDArray[np.int64]  # (values,): index of the channel
    nll: NDArray[np.float64]  # (values,): in nats, of the value given what was observed
    ncrps: NDArray[np.float64]  # (values,): in training stds; of binary values the Brier score
    # (values,): the number of the pattern of observed values, where there are several of each series; None: one.
    pattern: NDArray[np.int64] | None = None

    @classmethod
    def of_patterns(cls, scores: "Sequence[ValueScores]") -> "ValueScores":
        """Join scores of several patterns of observed values, which are numbered in their order."""
        own = [field.name for field in fields(cls) if field.name != "pattern"]
        joined = {name: np.concatenate([getattr(each, name) for each in scores]) for name in own}
        return cls(**joined, pattern=np.repeat(np.arange(len(scores)), [len(each.nll) for each in scores]))

    @property
    def distinct(self) -> int:
        """Return the number of different values, each of which may have been scored under several patterns."""
        return len(pd.DataFrame({key: getattr(self, key) for key in ("series", "time", "channel")}).drop_duplicates())

    def save(self, file: Path) -> None:
        """Write the scores to an .npz file, atomically."""
        content = io.BytesIO()
        np.savez_compressed(content, **{name: each for name, each in vars(self).items() if each is not None})
        write_bytes(file, content.getbuffer())

    @classmethod
    def load(cls, file: Path) -> "ValueScores":
        """Read such a file; raise DamagedError for any other."""
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
                known = {field.name for field in fields(cls)} - ({"pattern"} - {*found})
                return cls(**{name: found[name] for name in known})
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DamagedError(f"{file} holds no scores of values ({error}). Remove it.") from error


def common(scores: Sequence[ValueScores]) -> list[ValueScores]:
    """Return the scores of the values that all models were asked for, in one order."""
    keys = ["series", "origin", "time", "channel", "pattern"]
    tables = [pd.DataFrame({**vars(each), "pattern": 0 if each.pattern is None else each.pattern}) for each in scores]
    frames = [table.drop_duplicates(keys).set_index(keys) for table in tables]
    index = frames[0].index
    for frame in frames[1:]:
        index = index.intersection(frame.index, sort=False)
    tables = [frame.loc[index].reset_index() for frame in frames]
    return [ValueScores(*(table[field.name].to_numpy() for field in fields(ValueScores))) for table in tables]


def value_scores(
    model: SequenceModel, batches: Iterable[TimeSeries], draws: int, seed: int, change: Change | None = None
) -> ValueScores:
    """Score a model on the held-out values of batches; change: applied to each prediction first."""
    parts: list[list[NDArray]] = []
    std = model.data_score_std.cpu()
    with model.fixed_noise(seed):
        for batch in batches:
            if not batch.scored.any():
                continue
            batch = batch.to(model.device)
            prediction = model.predict(batch, draws)
            prediction = change(prediction, batch) if change else prediction
            scores, held_out = sample_scores(prediction, batch.values), batch.scored.cpu()
            row, point, channel = (index.numpy() for index in held_out.nonzero(as_tuple=True))
            last = torch.where(batch.seen.any(-1), batch.times, -torch.inf).amax(1).cpu().numpy()
            times, ids = batch.times.cpu().numpy(), batch.ids.cpu().numpy()
            error = scores["crps"].cpu() / std if "crps" in scores else scores["brier"].cpu()
            nll, crps = scores["nll"].cpu()[held_out], error[held_out]
            place = [ids[row], last[row], times[row, point], channel]
            parts.append([*place, nll.double().numpy(), crps.double().numpy()])
    if not parts:
        index, number = np.zeros(0, np.int64), np.zeros(0)
        return ValueScores(index, number, number, index, number, number)
    return ValueScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
