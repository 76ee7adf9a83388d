"""Calibrate the spread of predictions on validation data: one factor per channel for interpolation, one for
forecasts, and one for forecasts beyond the times of training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from math import ceil, exp, inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.core.log_density import LogDensity
from vrnn_lab.core.run_files import RECALIBRATION
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.supports import REAL
from vrnn_lab.core.tasks import Task
from vrnn_lab.data.base import Batches, SeriesData
from vrnn_lab.data.blocks import ValidationBlocks
from vrnn_lab.evaluation.evaluate import EvaluationProtocol, rows_at_once
from vrnn_lab.evaluation.scores import central
from vrnn_lab.models.base import Prediction, SequenceModel

PLACES = ("interpolation", "forecast")  # up to the last observed point of a row, and after it
WIDEST = 1000.0  # the largest factor, and the inverse of the smallest; a factor at a limit is reported
LEAST = 30  # least number of validation values for a channel's own factor
FEWEST = 10  # validation values from which a spread may be widened, but not narrowed
BLOCKS = 9  # least number of validation blocks for narrowing: LEVEL = BLOCKS / (BLOCKS + 1)
APART = 2**32  # distance between the seeds of two patterns
SERIES = 600  # most validation series in a fit
ROUNDING = 1e-9  # relative tolerance of times at the limits of training
LEVEL = 0.9  # target coverage of the central interval of the same level


# (values,) each: the smallest factor, the indices of its place and channel; and (values, 2): its block
Needed = tuple[Tensor, Tensor, Tensor, Tensor]


def ahead(batch: TimeSeries) -> Bool[Tensor, "batch time"]:
    """Return the points after the last observed one of their row; no point of a row without observations."""
    last = torch.where(batch.seen.any(-1), batch.times, -torch.inf).amax(1, keepdim=True)
    return (batch.times > last) & last.isfinite()


def observed(batch: TimeSeries) -> Bool[Tensor, "batch 1 1"]:
    """Return which rows have an observation."""
    return batch.seen.any(-1).any(-1)[:, None, None]


def beyond_training(batch: TimeSeries, end: float, longest: float) -> Float[Tensor, "batch time"]:
    """Return how far each point lies beyond the times of training, in longest windows; at most zero within.

    It is the larger of the time since the end of the last training window, and the time since the start of the row's
    own window less the length of the longest training window.
    """
    room = ROUNDING * max(abs(end), longest)
    late = torch.maximum(batch.times - end, batch.times - batch.window[:, :1] - longest)
    return torch.where(late > room, late, late.clamp(max=0)) / (longest or 1.0)


@dataclass(frozen=True)
class Beyond:
    """Hold factors for forecasts beyond the times of training, by their distance
    (`vrnn_lab.training.out_of_time`)."""

    end: float  # end of the last training window, in the data's time unit
    longest: float  # length of the longest training window
    starts: tuple[float, ...]  # (stretches,): the distance from which each stretch's factors hold, in longest windows
    factors: Float[Tensor, "stretches dim"]
    values: tuple[int, ...] = ()  # (dim,): values used to fit each channel

    def at(self, batch: TimeSeries) -> tuple[Bool[Tensor, "batch time 1"], Float[Tensor, "batch time dim"]]:
        """Return which points are forecasts beyond the times of training, and the factors there."""
        distance = beyond_training(batch, self.end, self.longest)
        starts = torch.tensor(self.starts[1:], dtype=distance.dtype, device=distance.device)
        place = torch.searchsorted(starts, distance.contiguous(), right=True)
        return (ahead(batch) & (distance > 0))[..., None], self.factors.to(batch.values)[place]


@dataclass(frozen=True)
class Recalibration:
    """Hold the factors that multiply the spread of each prediction about its mean, channel by channel."""

    channels: tuple[str, ...]
    interpolation: Float[Tensor, " dim"]
    forecast: Float[Tensor, " dim"]
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by place: validation values of each channel
    blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by place: blocks that contain these values
    beyond: Beyond | None = None  # None: the factors of `forecast` hold beyond the times of training too

    def factors(self, batch: TimeSeries) -> Float[Tensor, "batch time dim"]:
        """Return the factor of every value of a batch; 1 where it is observed.

        A row without observations keeps the model's own spread: its predictions are the prior, which is not what the
        factors were fitted on, and a prior does not get less certain beyond the times of training.
        """
        inside, after = (getattr(self, place).to(batch.values) for place in PLACES)
        factors = torch.where(ahead(batch)[..., None], after, inside)
        if self.beyond:
            factors = torch.where(*self.beyond.at(batch), factors)
        return torch.where(batch.seen | ~observed(batch), 1.0, factors)

    def changed(self, batch: TimeSeries) -> Bool[Tensor, "batch time dim"]:
        """Return which values of a batch have a factor other than 1."""
        return self.factors(batch) != 1

    def widening_ahead(self) -> "Recalibration":
        """Return a copy whose `forecast` factors are at least 1."""
        return replace(self, forecast=self.forecast.clamp(min=1))

    def lines(self) -> list[str]:
        """Format the factors as text, one line per place, with the data each was fitted on."""
        by_place = {
            place: (getattr(self, place), self.values.get(place), "validation", self.blocks.get(place))
            for place in PLACES
        }
        if far := self.beyond:
            for start, factors in zip(far.starts, far.factors, strict=True):
                by = f" by {start:.2g} longest windows or more" if start else ""
                by_place[f"beyond training{by}"] = factors, far.values, "out-of-time", None
        return [
            f"spread x {place:13} {', '.join(self._of_channels(*described))}" for place, described in by_place.items()
        ]

    def _of_channels(
        self, factors: Tensor, counts: tuple[int, ...] | None, kind: str, blocks: tuple[int, ...] | None
    ) -> Iterator[str]:
        for i, (channel, factor) in enumerate(zip(self.channels, factors.tolist(), strict=True)):
            limit = ", at the limit" if factor >= WIDEST or factor <= 1 / WIDEST else ""
            basis = "" if counts is None else f" ({_basis(counts, i, kind, blocks if factor == 1 else None)})"
            yield f"{channel} {factor:.3f}{limit}{basis}"

    def metrics(self) -> dict[str, float]:
        """Return, for metrics.json, each place's number of validation values and geometric mean of factors."""
        metrics: dict[str, float] = {}
        for place in PLACES:
            metrics[f"recalibration/{place}/values"] = float(sum(self.values.get(place, ())))
            metrics[f"recalibration/{place}/factor"] = exp(getattr(self, place).log().mean().item())
        return metrics

    def apply(self, prediction: Prediction, batch: TimeSeries) -> Prediction:
        """Scale a batch's density and paths about the predictive mean; observed values are unchanged.

        Where a channel is modelled by its logarithms, these are scaled about their mean.
        """
        factor, plain = self.factors(batch).to(prediction.paths), prediction.on_log_scale
        shift = (1 - factor) * plain.mean
        scaled = Prediction(plain.paths * factor + shift, plain.density.affine(factor, shift)).like(prediction)
        return replace(scaled, paths=torch.where(batch.seen, prediction.paths, scaled.paths))

    def save(self, folder: str | Path) -> Path:
        """Write <folder>/recalibration.json atomically, and return its path."""
        by_channel = lambda numbers: dict(zip(self.channels, numbers, strict=True))
        named: dict[str, dict] = {place: by_channel(getattr(self, place).tolist()) for place in PLACES}
        if self.values:
            named["values"] = {place: by_channel(counts) for place, counts in self.values.items()}
        if self.blocks:
            named["blocks"] = {place: by_channel(counts) for place, counts in self.blocks.items()}
        if far := self.beyond:
            factors, values = [by_channel(row) for row in far.factors.tolist()], by_channel(far.values)
            reach = {"end": far.end, "longest": far.longest, "starts": list(far.starts)}
            named["beyond"] = reach | {"factors": factors, "values": values}
        write_json(Path(folder) / RECALIBRATION, named)
        return Path(folder) / RECALIBRATION


def load(folder: str | Path, channels: tuple[str, ...]) -> Recalibration:
    """Read the factors that were fitted for a run; ConfigError where there are none, or for other channels."""
    file = Path(folder) / RECALIBRATION
    cure = f"Fit it: python -m vrnn_lab.evaluate run={folder} recalibrate=true"
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {RECALIBRATION}: its predictions were not recalibrated yet. {cure}")
    try:
        named = read_json(file, cure)
        factors = {place: torch.tensor([float(named[place][c]) for c in channels]).double() for place in PLACES}
        values, blocks = (
            {place: tuple(int(each[c]) for c in channels) for place, each in named.get(key, {}).items()}
            for key in ("values", "blocks")
        )
        beyond = _beyond(named["beyond"], channels) if "beyond" in named else None
    except DamagedError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is broken, or holds factors of other channels than {', '.join(channels)}. {cure}"
        ) from error
    return Recalibration(channels, **factors, values=values, blocks=blocks, beyond=beyond)


def _beyond(named: dict[str, Any], channels: tuple[str, ...]) -> Beyond:
    factors = torch.tensor([[float(row[c]) for c in channels] for row in named["factors"]]).double()
    values, starts = (int(named["values"][c]) for c in channels), map(float, named["starts"])
    return Beyond(float(named["end"]), float(named["longest"]), tuple(starts), factors, tuple(values))


def possible(model: SequenceModel, protocol: EvaluationProtocol) -> bool:
    """Return whether predictions have a spread that can be fitted."""
    return model.scale.support == REAL and protocol.draws > 1


def fit(
    model: SequenceModel,
    data: SeriesData,
    protocol: EvaluationProtocol,
    seed: int,
    further: Iterable[TimeSeries] = (),
) -> Recalibration:
    """Fit the factors on held-out validation values, so that 90 % of them lie in the central 90 % interval.

    The values are those of the protocol's tasks on at most SERIES validation series, evenly chosen, and those of the
    batches in `further`. Each value needs some smallest factor to lie in its interval; the factor of a place and
    channel is the ceil(.9 (n + 1))-th smallest of these, as in split conformal prediction (Papadopoulos et al. 2002).
    A channel with fewer than LEAST values takes the factor of all channels together. With fewer than LEAST in all,
    but FEWEST or more, that factor only widens; with fewer still it is 1. ConfigError where values are not real, or
    for a single draw.

    A factor below 1 must also hold for a new block (`vrnn_lab.data.blocks`): values of one series are dependent, and
    a single quiet series is little evidence about the next. It is at least the weighted quantile of hierarchical
    conformal prediction (Lee, Barber, Willett 2023), which covers 90 % of the values of a new block whatever the
    blocks' distribution, and which does not exist below BLOCKS blocks: there a factor is never below 1.

    The rule was chosen by simulation (spread too small by 3, n = 30, 100, 1000): with Gaussian errors this rule, the
    least CRPS and the least nll all cover 89 to 91 % out of sample. With Student's t (3 degrees of freedom) and with
    errors of varying size the coverage stays at .90, where the least CRPS ends at .87 and .85 and the least nll at
    .93 and .92; the CRPS is at most 2.5 % above that of the least CRPS at n = 100 and above (4.5 % at n = 30). There
    is one factor per place, not per gap, since a trained model widens with the gap by itself.

    The rule for blocks, by simulation (40 values per block, whose spreads vary by a log-normal factor of scale 0.7
    about a correct model's): from 1, 3, 12 and 100 blocks split conformal prediction covers 78, 86, 89 and 90 % of
    the values of new blocks, this rule 87, 89, 89 and 90 %. For a model twice too wide it covers 95, 95, 95 and 91 %,
    split conformal prediction 79, 86, 89 and 90 %.
    """
    if model.scale.support != REAL:
        raise ConfigError(
            f"recalibrate=true: the values of this run are {model.scale.support}, so its predictions have no spread "
            "that could be recalibrated; expected a run on real values."
        )
    if protocol.draws < 2:
        raise ConfigError("recalibrate=true: a single draw has no spread; set evaluate.draws=99.")
    needed_factors: list[Needed] = []
    blocks = ValidationBlocks(data)
    with model.fixed_noise(seed):
        validation = (batches_of(data, task, protocol.draws) for task in protocol.questions.values())
        for batch in chain(chain.from_iterable(validation), further):
            if batch.scored.any():
                places = blocks.of(batch)
                batch = batch.to(model.device)
                needed_factors.append(needed(model.predict(batch, protocol.draws), batch, places))
    factors, *counts = factors_of(needed_factors, model.scale.dim)
    by_place: list[dict[str, tuple[int, ...]]] = [
        {place: tuple(row) for place, row in zip(PLACES, each.tolist(), strict=True)} for each in counts
    ]
    values, blocks_of = by_place
    return Recalibration(model.scale.channels, factors[0], factors[1], values, blocks_of)


def evenly(count: int, most: int = SERIES) -> np.ndarray:
    """Return at most `most` indices of `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def batches_of(data: SeriesData, task: Task, draws: int, pattern: int = 0) -> Batches:
    """Return batches of at most SERIES validation series, evenly chosen, under a task.

    pattern: the number of the pattern of observed values, where the task draws them; 0 is that of evaluation.
    """
    series = data.splits["val"]
    part = series.part(evenly(len(series)))
    return Batches(part, task, rows_at_once(data, "val", task, draws), data.seed + pattern * APART, alike=True)


def needed(prediction: Prediction, batch: TimeSeries, block: Float64[Tensor, "batch time 2"] | None = None) -> Needed:
    """Return for each scored value the smallest factor whose interval contains it, its place, channel and block.

    Without `block`, all values are in one block. Rows without observations are left out.
    """
    plain, values = prediction.on_log_scale, batch.values
    if isinstance(prediction.density, LogDensity):
        values = prediction.density.on_log_scale(values)
    scored, mean = batch.scored & ~batch.seen & observed(batch), plain.mean
    low, high = central((plain.paths - mean).sort(0).values, round(100 * LEVEL))
    apart = values - mean
    width = torch.where(apart < 0, -low, high).clamp(min=torch.finfo(mean.dtype).tiny)
    place = ahead(batch)[..., None].expand_as(scored)
    channel = torch.arange(scored.shape[2], device=scored.device).expand_as(scored)
    least = (apart.abs() / width)[scored].double().cpu()
    if block is None:
        blocks = torch.zeros(len(least), 2, dtype=torch.float64)
    else:
        blocks = block[:, :, None].expand(*scored.shape, 2)[scored.cpu()]
    return least, place[scored].long().cpu(), channel[scored].cpu(), blocks


def factors_of(needed: list[Needed], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors, and the numbers of values and of blocks used for each, (place, dim) each."""
    factors = torch.ones(len(PLACES), dim, dtype=torch.float64)
    counts = torch.zeros(len(PLACES), dim, dtype=torch.long)
    blocks = torch.zeros(len(PLACES), dim, dtype=torch.long)
    if not needed:
        return factors, counts, blocks
    least, place, channel, pairs = (torch.cat(each) for each in zip(*needed, strict=True))
    block = torch.unique(pairs, dim=0, return_inverse=True)[1]
    for i in range(len(PLACES)):
        pooled = place == i
        for j in range(dim):
            own = pooled & (channel == j)
            counts[i, j] = own.sum()
            chosen = own if own.sum() >= LEAST else pooled
            blocks[i, j] = len(block[chosen].unique())
            if pooled.sum() >= FEWEST:
                factors[i, j] = _factor(least[chosen], block[chosen])
            if pooled.sum() < LEAST:
                factors[i, j].clamp_(min=1)
    return factors, counts, blocks


def _factor(least: Float[Tensor, " values"], block: Int64[Tensor, " values"]) -> float:
    """Return the factor that LEVEL of the values need, and, where it narrows, at least what holds for a new block."""
    rank = min(len(least), ceil(LEVEL * (len(least) + 1)))
    factor = least.kthvalue(rank).values.item()
    if factor < 1:
        factor = min(1.0, max(factor, _of_new_block(least, block)))
    return min(max(factor, 1 / WIDEST), WIDEST)


def _of_new_block(least: Float[Tensor, " values"], block: Int64[Tensor, " values"]) -> float:
    """Return the factor that covers LEVEL of a new block's values, on average over blocks.

    It is the quantile under equal weights of the K blocks and of one more at infinity (Lee, Barber, Willett 2023).
    """
    _, owner, lengths = block.unique(return_inverse=True, return_counts=True)
    if len(lengths) < BLOCKS:
        return inf
    order = least.argsort()
    reached = (1 / ((len(lengths) + 1) * lengths[owner[order]].double())).cumsum(0)
    place = int((reached < LEVEL - ROUNDING).sum())
    return least[order[min(place, len(order) - 1)]].item()


def _basis(counts: tuple[int, ...], channel: int, kind: str, blocks: tuple[int, ...] | None) -> str:
    """Describe the data that a channel's factor was fitted on; blocks: given where they may bound the factor."""
    if blocks and sum(counts) >= LEAST and blocks[channel] < BLOCKS:
        of = f"in {blocks[channel]} block{'' if blocks[channel] == 1 else 's'}"
        return f"{sum(counts)} {kind} values {of}: {BLOCKS} blocks are needed to narrow"
    if counts[channel] >= LEAST:
        return f"{counts[channel]} {kind} values"
    if sum(counts) >= LEAST:
        return (
            f"{counts[channel]} {kind} values, fewer than {LEAST}: fitted on the {sum(counts)} values of all channels"
        )
    if sum(counts) >= FEWEST:
        return f"{sum(counts)} {kind} values, fewer than {LEAST}: may only widen"
    return f"not fitted: {sum(counts)} {kind} values, fewer than {FEWEST}"
