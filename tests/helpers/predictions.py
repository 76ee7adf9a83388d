"""Questions to a model whose answers are known, and the table they are about."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from helpers.small import recipe_of, scale_of
from vrnn_lab.config.compose import compose
from vrnn_lab.data.table.reader import TableSchema
from vrnn_lab.forecasting.forecast import Forecasts, Query
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.heads import GaussianHead
from vrnn_lab.runs.build import assemble

LEVELS = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
KEYS = ["model=rnn", "model.width=8", "trainer=cpu", "trainer.max_epochs=1", "evaluate.samples=1", "evaluate.draws=9"]


class Decay(SequenceModel):
    """An Ornstein-Uhlenbeck process a channel, from its last seen value on: x' ~ N(x exp(-t), 1 - exp(-2 t)).

    Its answer is known, and depends on what is seen, on times, and on nothing else.
    """

    def __init__(self, scale):
        super().__init__(scale, recipe_of(), GaussianHead(scale))
        self._ = nn.Parameter(torch.zeros(1))

    def _loss_terms(self, series, samples): ...

    def _log_weights(self, series, samples): ...

    def _predict(self, series, samples):
        mean, std = torch.zeros_like(series.values), torch.ones_like(series.values)
        for row, place, channel in np.ndindex(*series.values.shape):
            seen = series.seen[row, :, channel] & (series.times[row] < series.times[row, place])
            if seen.any():
                last = int(seen.nonzero()[-1])
                decay = torch.exp(-(series.times[row, place] - series.times[row, last]))
                mean[row, place, channel] = series.values[row, last, channel] * decay
                std[row, place, channel] = (1 - decay**2).sqrt()
        density = self.head(torch.cat([mean, (std**2 - 1e-6).sqrt().log()], -1))
        density = density.map(lambda x: x.expand(samples, *x.shape))
        return self._prediction_from(density, series, samples)


@cache
def _parts():
    return assemble(compose(["model=rnn", "data=ou"]), scale_of())


def parts_of(model):
    return replace(_parts(), model=model, config=OmegaConf.create({"data": {}}))


def ask(found, model=None, form=None, in_memory=True, **asked) -> pd.DataFrame:
    model = model or Decay(scale_of())
    all_ = Forecasts.of(parts_of(model), found, Query(**asked), form or TableSchema())
    return pd.concat([all_.frame(summary) for summary in all_.summaries(in_memory)], ignore_index=True)


def table(series: int = 4, seed: int = 0) -> pd.DataFrame:
    """Series of two channels, with empty cells, near the scale of `scale_of`."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(series):
        count = 3 + 2 * number
        values = -7 + 3 * rng.normal(size=(count, 2))
        values[rng.random((count, 2)) < 0.2] = np.nan
        values[0] = -7, -6
        times = 100 + 4 * np.sort(rng.choice(1000, count, replace=False)) / 1000
        frames.append(pd.DataFrame({"id": f"s{number}", "time": times, "a": values[:, 0], "b": values[:, 1]}))
    return pd.concat(frames, ignore_index=True)
