"""Validate out of time: a second model, fitted without the ends of the series, forecasts these ends.

Whole series that are split by name cover one span of time. Validation series then never ask for what lies beyond the
times of training, which is what users of a panel ask for.
"""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import instantiate
from vrnn_lab.core import run_files
from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.evaluation.baseline_units import on_log_scale
from vrnn_lab.evaluation.baselines import baselines, level_of
from vrnn_lab.evaluation.recalibration import (
    FEWEST,
    LEAST,
    Beyond,
    Recalibration,
    beyond_training,
    evenly,
    factors_of,
    needed,
    possible,
)
from vrnn_lab.evaluation.scores import ScoreAccumulator
from vrnn_lab.evaluation.value_scores import ValueScores, value_scores
from vrnn_lab.forecasting.backtest import Folds
from vrnn_lab.forecasting.context_window import choose_window
from vrnn_lab.runs import checkpoints
from vrnn_lab.runs.build import Parts, assemble
from vrnn_lab.training.callbacks import interruptible
from vrnn_lab.training.ddp import launched
from vrnn_lab.training.devices import accelerator_of, processes_of

log = logging.getLogger("vrnn_lab")
MODEL = "model"
STRETCHES = 3  # intervals of the time beyond training, at most, each with a factor of its own


@dataclass(frozen=True)
class OutOfTime:
    """Hold the second model's result on the ends of the series that lie beyond the times of its training."""

    starts: list[float]  # (stretches,): distances from the times of training, in longest windows
    factors: list[list[float]]  # (stretches, dim): factors of the predictive std from there on
    values: list[int]  # (dim,): the numbers of values that the factors were fitted to
    scores: dict[str, float]  # keys as in metrics.json

    def save(self, folder: Path) -> None:
        """Write <folder>/out_of_time.json atomically."""
        write_json(folder / run_files.OUT_OF_TIME, vars(self))

    def beyond(self, scale: Scale, forecast: Tensor) -> Beyond:
        """Return the factors for the model of this scale, fitted to the whole series.

        forecast: its factors (dim,) of other forecasts. No factor is below them, nor below that of a nearer time.
        """
        factors = torch.maximum(torch.tensor(self.factors).double(), forecast).cummax(0).values
        return Beyond(*_reach(scale), tuple(self.starts), factors, tuple(self.values))


AGAIN = "Remove it; a second fit then measures it again."


def measured(parts: Parts, folder: Path, among_others: bool = False) -> OutOfTime | None:
    """Return the result in a run's folder, or fit and score the second model; None where it is not wanted.

    parts: of the run, whose model is fitted. The second model takes as many steps as led to the run's best
    checkpoint. among_others: the run is one of a sweep or a search, which compare runs by validation alone. Raise
    DamagedError where the file in the folder is not ours.
    """
    if (file := folder / run_files.OUT_OF_TIME).is_file():
        try:
            return OutOfTime(**read_json(file, AGAIN))
        except TypeError as error:
            raise DamagedError(f"{file} was not written by vrnn_lab: {error}. {AGAIN}") from error
    if not wanted(parts, among_others):
        return None
    steps = checkpoints.read(folder / run_files.BEST)["global_step"]
    level = logging.DEBUG if among_others else logging.INFO
    log.log(level, "out-of-time validation: a second fit of %d steps, without the second half of each series", steps)
    found = validate(parts, max(1, steps))
    if not found:
        return None
    result, values = found
    values.save(folder / run_files.OUT_OF_TIME_VALUES)
    result.save(folder)
    return result


def check(parts: Parts) -> None:
    """Raise ConfigError, before anything is trained, where the config requires a second fit that cannot be made."""
    if parts.config.get("out_of_time") is True and (reason := impossible(parts)):
        raise ConfigError(f"out_of_time=true: {reason}; leave it out, for the default out_of_time=auto.")


def wanted(parts: Parts, among_others: bool) -> bool:
    """Return whether the second fit is to be made; among_others as in `measured`."""
    chosen = parts.config.get("out_of_time", False)  # runs of earlier versions have no such key
    return not impossible(parts) if chosen == "auto" and not among_others else chosen is True


def impossible(parts: Parts) -> str:
    """Return why no second fit can be made, empty where one can."""
    scale = parts.model.scale
    if not possible(parts.model, parts.protocol):
        return "the predictions have no spread that could be recalibrated (values are not real, or there is one draw)"
    if processes_of(parts.config) > 1 or launched()[1] > 1:
        return "the run is fitted by several processes"
    if not scale.own_levels or not scale.whole_series or scale.trend is not None or parts.data.split_in_time:
        return (
            "it needs a table of whole series that are split by their names; where series are cut into windows, or "
            "split in time, validation lies beyond the times of training already"
        )
    return ""


def validate(parts: Parts, steps: int) -> tuple[OutOfTime, ValueScores] | None:
    """Fit a second model of the same config for `steps` steps without the second half of each series, and score it.

    Return the result, and the scores of single values of the recalibrated second model. Return None where the series
    are too short, or where that fit failed to give finite numbers.
    """
    cut = without_ends(parts.data)
    queries = ends(parts.data, cut.scale, parts.model.keep_start) if cut else None
    if cut is None or queries is None:
        return None
    second = assemble(parts.config, cut.scale)
    second.data = cut
    _fit(second, steps)
    second.model.to(parts.model.device)
    if not all(bool(p.isfinite().all()) for p in second.model.parameters()):
        return None
    result = _scored(second, queries)
    if result is None:
        return None
    ones = torch.ones(second.model.scale.dim, dtype=torch.float64)
    factors = Recalibration(tuple(cut.channels), ones, ones, beyond=result.beyond(second.model.scale, ones))
    batches = (batch for batch, _ in _beyond(queries, second.model.scale, second.protocol.draws))
    draws, seed = second.protocol.draws, second.config.seed
    return result, value_scores(second.model, batches, draws, seed, factors.apply)


def queries_beyond(parts: Parts) -> Iterator[TimeSeries]:
    """Yield the queries of `validate`: the ends of the training and validation series, given what precedes them."""
    cut = without_ends(parts.data)
    queries = ends(parts.data, cut.scale, parts.model.keep_start) if cut else None
    if cut is not None and queries is not None:
        yield from (batch for batch, _ in _beyond(queries, cut.scale, parts.protocol.draws))


def without_ends(data: SeriesData) -> SeriesData | None:
    """Return the dataset without the second half of each series' points, None where no series is long enough."""
    cut = copy.copy(data)
    cut.trainer = None
    vars(cut).pop("scale", None)  # drop the cached scale of the whole series
    cut._splits = {split: _without_end(series) for split, series in data.splits.items()}
    whole = cut.splits["train"]
    return cut if (whole.windows[:, 1] > whole.windows[:, 0]).any() else None


def _without_end(series: Ragged) -> Ragged:
    end = series.first + _kept(series.lengths)
    last = np.maximum(end - 1, series.first)
    times = series.points.times[np.minimum(last, len(series.points.times) - 1)]
    shorter = end < series.end
    windows = np.where(shorter[:, None], np.stack([series.windows[:, 0], times], 1), series.windows)
    return replace(series, end=end, windows=windows)


def _kept(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many points of series are kept: half of them, at least two; all of series with fewer than three."""
    return np.where(lengths < 3, lengths, np.maximum(2, (lengths + 1) // 2))


def ends(data: SeriesData, scale: Scale, keep_start: bool) -> Folds | None:
    """Return a forecast query for the end of each training and validation series, None where no series has one.

    scale: of the shortened series. The test split stays unread.
    """
    made, chosen = [], []
    for split in ("train", "val"):
        series = data.splits[split]
        for i in evenly(len(series)):
            times = series.points.times[series.first[i] : series.end[i]]
            kept = int(_kept(np.array([len(times)]))[0])
            if kept < len(times):
                origin, last = times[kept - 1], times[-1]
                begin, end = choose_window(origin, last, times[0], origin, float(scale.longest), keep_start)
                low = np.searchsorted(times, begin)
                made.append((origin, series.first[i] + low, series.end[i], begin, max(end, last)))
                chosen.append((series, i))
    if not made:
        return None
    origin, first, end, begin, stop = map(np.array, zip(*made, strict=True))
    ids = np.array([series.ids[i] for series, i in chosen])
    part = Ragged(data.splits["train"].points, first, end, np.stack([begin, stop], 1), ids)
    return Folds(part, origin, np.ones(len(origin), np.int64), 0.0, Clock.of_training(data))


def _fit(second: Parts, steps: int) -> None:
    """Train as a run does, without validation, checkpoints and figures."""
    config = second.config
    trainer = instantiate(
        config.trainer,
        "trainer",
        accelerator=accelerator_of(config),
        devices=config.trainer.devices,
        max_epochs=-1,
        max_steps=steps,
        max_time=None,
        check_val_every_n_epoch=None,
        val_check_interval=None,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with interruptible():
        trainer.fit(second.model, datamodule=second.data)


def _scored(second: Parts, queries: Folds) -> OutOfTime | None:
    """Score the second model and the baselines beyond the times of its training; return None for too few values."""
    model, data, draws = second.model, second.data, second.protocol.draws
    guesses, level = baselines(data, model.scale), level_of(data, model.scale)
    tallies = {name: ScoreAccumulator(data.channels, model.scale.score_std) for name in (MODEL, *guesses)}
    least, distances, in_log = [], [], model.scale.log_channels
    with model.fixed_noise(second.config.seed):
        for batch, distance in _beyond(queries, model.scale, draws):
            prediction = model.predict(batch.to(model.device), draws)
            least.append(needed(prediction, batch.to(model.device)))
            distances.append(distance[..., None].expand_as(batch.values)[batch.scored])
            given = on_log_scale(batch.given(), model.scale)
            guessed = {name: guess(given, level) for name, guess in guesses.items()}
            means = {name: torch.where(in_log, mean.exp(), mean) for name, mean in guessed.items()}
            for name, mean in ({MODEL: prediction.mean.cpu()} | means).items():
                tallies[name].add({"mse": (mean - batch.values) ** 2}, batch.scored)
    if sum(map(len, distances)) < FEWEST:
        return None
    factor, _, channel, _ = map(torch.cat, zip(*least, strict=True))
    scores = {f"out_of_time/{name}/nmse": tally.result("")["/nmse"] for name, tally in tallies.items()}
    scores["out_of_time/values"] = float(len(factor))
    scores["out_of_time/coverage_90"] = (factor <= 1).double().mean().item()
    starts, factors = by_distance(factor, channel, torch.cat(distances), model.scale.dim)
    return OutOfTime(starts, factors, torch.bincount(channel, minlength=model.scale.dim).tolist(), scores)


def by_distance(
    least: Float[Tensor, " values"], channel: Int64[Tensor, " values"], distance: Float[Tensor, " values"], dim: int
) -> tuple[list[float], list[list[float]]]:
    """Return the distances at which groups of equally many values start, and the factors (groups, dim) of each group.

    There are at most STRETCHES groups, and each has LEAST values or more, unless there is only one.
    """
    order = distance.argsort(stable=True)
    parts = order.tensor_split(max(1, min(STRETCHES, len(order) // LEAST)))
    starts = [0.0, *(distance[part[0]].item() for part in parts[1:])]
    place = torch.bucketize(distance, torch.tensor(starts[1:], dtype=distance.dtype), right=True)
    factors = []
    for i in range(len(starts)):
        in_part = place == i
        block = torch.zeros(int(in_part.sum()), 2, dtype=torch.float64)  # a single one, so that no factor is below 1
        fitted, *_ = factors_of([(least[in_part], torch.zeros_like(channel[in_part]), channel[in_part], block)], dim)
        factors.append(fitted[0].tolist())
    return starts, factors


def _beyond(queries: Folds, scale: Scale, draws: int) -> Iterator[tuple[TimeSeries, Tensor]]:
    """Yield batches of the queries beyond the times of training, with their distances; skip batches without any."""
    for batch, _ in queries.batches(draws):
        distance = beyond_training(batch, *_reach(scale))
        batch = replace(batch, scored=batch.scored & (distance > 0)[..., None])  # all other queries become padding
        if batch.scored.any():
            yield batch, distance


def _reach(scale: Scale) -> tuple[float, float]:
    """Return the end of the last training window, and the length of the longest."""
    return float(scale.start + scale.reach), float(scale.longest)
