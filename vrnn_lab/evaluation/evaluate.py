"""Evaluate every model by one fixed protocol of tasks and scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from sys import maxsize
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc

from vrnn_lab.cli.progress import tracked
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.supports import NUMBERS, REAL
from vrnn_lab.core.tasks import DensityTask, Task
from vrnn_lab.core.types import Count
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.calibration import CalibrationAccumulator, pit
from vrnn_lab.evaluation.scores import SeriesSums, energy, sample_scores
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import on_floor
from vrnn_lab.models.losses import Activity

POINTS_AT_ONCE = 400_000  # most samples x rows x points of one evaluation batch, to bound its memory
EVENT_DRAWS, EVENT_SERIES = 500, 300  # latent draws, and series, in the test of an event rate


@dataclass(frozen=True)
class EvaluationProtocol:
    """Define the evaluation of every model: held-out points, the bound's number of samples, and draws per prediction.

    With 99 draws the order statistics cut the line into 100 parts that are equally likely under a calibrated model,
    so the 5th and the 95th enclose exactly 90 % of it.
    """

    interpolation: Task
    forecast: Task
    samples: Count = 100
    draws: Count = 99

    @property
    def questions(self) -> dict[str, Task]:
        return {"interpolation": self.interpolation, "forecast": self.forecast}


Change = Callable[[Prediction, TimeSeries], Prediction]


def evaluate(
    model: SequenceModel,
    data: SeriesData,
    split: str,
    protocol: EvaluationProtocol,
    seed: int,
    recalibrated: Change | None = None,
    crps: dict[str, SeriesSums] | None = None,
) -> dict[str, float]:
    """Return every score of a model on a split, with keys `<split>/...`; noise is a function of (seed, series id).

    recalibrated: a change of predictions, whose scores of held-out values are added as `recalibrated/<split>/...`.
    crps: is filled with the CRPS of each series in training stds, by the name of the task.
    """
    with model.fixed_noise(seed):
        scores = _nll(model, data, split, protocol) if model.has_density else {}
        if model.classifier is not None:
            scores |= _labels(model, data, split)
        if model.point_process:
            scores |= event_fit(model, data, split)
    questions = protocol.questions | data.questions
    return scores | held_out_scores(
        model, data, split, protocol, seed, questions=questions, recalibrated=recalibrated, crps=crps
    )


def held_out_scores(
    model: SequenceModel,
    data: SeriesData,
    split: str,
    protocol: EvaluationProtocol,
    seed: int,
    change: Change | None = None,
    most: int | None = None,
    questions: dict[str, Task] | None = None,
    recalibrated: Change | None = None,
    crps: dict[str, SeriesSums] | None = None,
) -> dict[str, float]:
    """Return the scores of held-out values, `<split>/<task>/...`; an empty dict for events.

    change: applied to each prediction first; most: the number of series to use; questions: tasks other than the
    protocol's; recalibrated: a change whose scores are added as `recalibrated/<split>/<task>/...`, from the same
    predictions; crps: is filled with the CRPS of each series in training stds, before recalibration, by the name of
    the task.
    """
    scores: dict[str, float] = {}
    if model.scale.support == "events":  # events have no values
        return scores
    with model.fixed_noise(seed):
        for name, task in (questions or protocol.questions).items():
            changes = {split: change} | ({f"recalibrated/{split}": recalibrated} if recalibrated else {})
            sums = None if crps is None else crps.setdefault(name, SeriesSums())
            scores |= _held_out_scores(model, data, split, protocol, name, task, changes, most, sums)
    return scores


def rows_at_once(data: SeriesData, split: str, task: Task, samples: int) -> int:
    """Return how many series of a split an evaluation batch may hold within POINTS_AT_ONCE."""
    series = data.series_for(split, task)
    longest = int(series.lengths.max(initial=1))
    return max(1, min(len(series), POINTS_AT_ONCE // (samples * max(1, longest))))


def batches(model: SequenceModel, data: SeriesData, split: str, task: Task, samples: int, alike: bool = True):
    """Yield batches of a split under a task, sized for `samples` draws, on the model's device."""
    of_split = data.batches(split, task, rows_at_once(data, split, task, samples), alike)
    for batch in tracked(
        of_split, f"scoring the {split} split", lambda: len(data.series_for(split, task)), count_of_series
    ):
        yield batch.to(model.device)


def count_of_series(batch: TimeSeries) -> int:
    """Return the number of series in a batch."""
    return len(batch.ids)


def _nll(model: SequenceModel, data: SeriesData, split: str, protocol: EvaluationProtocol) -> dict[str, float]:
    """Return the loss, and -log p(x) by the importance-weighted bound, compared with any known exact value."""
    scores = _loss(model, data, split) if model.has_loss else {}
    scores[f"{split}/nll_samples"] = float(protocol.samples)
    for name, parts in _parts(model).items():
        with model.only(*parts):
            scores |= _bound(model, data, split, protocol.samples, name)
    return scores


def _loss(model: SequenceModel, data: SeriesData, split: str) -> dict[str, float]:
    """Return the objective under the dataset's task, in nats per value, statistics of the latents, and the error that
    the solver's steps leave in a path, relative to the path's spread."""
    loss = values = apart = spread = 0.0
    activity = Activity()
    for batch in batches(model, data, split, data.task, getattr(model.recipe.objective, "samples", 1)):
        terms = model.loss_terms(batch)
        activity.add(terms.latents)
        loss += (terms.nll + terms.kl).double().sum().item()
        values += batch.scored.sum().item()
        if sums := model.solver_error(batch):
            apart, spread = apart + sums[0], spread + sums[1]
    scores = {f"{split}/loss": loss / max(values, 1)}
    if spread > 0:
        scores[f"{split}/solver_error"] = sqrt(apart / spread)
    return scores | {f"{split}/latent/{name}": value for name, value in activity.result().items()}


def _parts(model: SequenceModel) -> dict[str, tuple[str, ...]]:
    """Return the name of each bound, and the terms it bounds: values given their times, event times, or both."""
    if not model.point_process:
        return {"nll": ("values",)}
    if model.scale.support == "events":
        return {"nll_events": ("events",)}
    return {"nll": ("values",), "nll_events": ("events",), "nll_joint": ("values", "events")}


def _bound(model: SequenceModel, data: SeriesData, split: str, samples: int, name: str) -> dict[str, float]:
    """Return -log p by the importance-weighted bound, in nats per value, and its excess over the exact value."""
    bounds, exact, counts, points, alike = [], [], [], 0, True
    comparable = name == "nll" or model.scale.support == "events"
    for batch in batches(model, data, split, DensityTask(), samples):
        weights = model.log_weights(batch, samples)
        alike = alike and samples > 1 and torch.equal(weights, weights[:1].expand_as(weights))
        bounds.append(log_mean_exp(weights).double())
        counts.append(batch.scored.sum((1, 2)))
        points += int(batch.counts.sum())
        truth = data.exact(batch) if comparable else None
        exact += [] if truth is None else [truth[0]]
    nll, count = -torch.cat(bounds), torch.cat(counts).sum().clamp(min=1)
    scores = {f"{split}/{name}": (nll.sum() / count).item(), f"{split}/{name}_is_exact": float(alike)}
    if len(data.channels) > 1 and name == "nll":
        scores[f"{split}/nll_point"] = nll.sum().item() / max(points, 1)
    if exact:
        above = nll + torch.cat(exact)
        scores[f"{split}/{name}_above_exact"] = (above.sum() / count).item()
        if len(above) > 1:
            scores[f"{split}/{name}_above_exact_se"] = (above.std() * sqrt(len(above)) / count).item()
    return scores


def event_fit(model: Any, data: SeriesData, split: str) -> dict[str, float]:
    """Test the event rate by rescaled times: the Kolmogorov-Smirnov distance of waits from unit exponentials.

    Series are concatenated, so that a wait cut short by a window's end continues in the next series (Brown et al.
    2002). The p-value treats all parameters as known.
    """
    waits = []
    for batch in batches(model, data, split, DensityTask(), EVENT_DRAWS, alike=False):
        part, rest = model.rescaled(batch, EVENT_DRAWS)
        events = torch.arange(part.shape[1], device=part.device) < batch.counts.sum(1, keepdim=True)
        waits += [(row[there], end) for row, there, end in zip(part, events, rest, strict=True)]
        if len(waits) >= EVENT_SERIES:
            break
    arrivals, start = [], torch.zeros_like(waits[0][1])
    for row, end in waits:
        arrivals.append(start + row.cumsum(0))
        start = start + row.sum() + end
    tau = torch.cat([torch.zeros_like(start)[None], *arrivals]).diff()
    if not len(tau):
        return {}
    from scipy.stats import kstest  # a slow import (0.5 s) that only point processes need

    test = kstest(-torch.expm1(-tau).cpu().numpy(), "uniform")
    return {f"{split}/events/ks": float(test.statistic), f"{split}/events/ks_p": float(test.pvalue)}


def _labels(model: SequenceModel, data: SeriesData, split: str) -> dict[str, float]:
    """Return accuracy, AUC (one class against the others, averaged) and nats per label, given all observed values."""
    probabilities, labels = [], []
    for batch in batches(model, data, split, DensityTask(), 10):
        if (truth := batch.labels_that_count) is not None:
            there = truth >= 0
            probabilities.append(model.classify(batch)[there].double())
            labels.append(truth[there])
    if not labels or not sum(map(len, labels)):
        return {}
    probability, truth = torch.cat(probabilities), torch.cat(labels)
    count = len(model.scale.classes)
    scores = {
        "accuracy": multiclass_accuracy(probability, truth, count, average="micro"),
        "nll": -probability.gather(1, truth[:, None]).clamp(min=1e-300).log().mean(),
    }
    if len(truth.unique()) == count:  # the AUC is undefined for a class that does not occur
        scores["auc"] = multiclass_auroc(probability, truth, count)
    return {f"{split}/labels/{name}": value.item() for name, value in scores.items()}


def _held_out_scores(
    model,
    data,
    split,
    protocol,
    name: str,
    task: Task,
    changes: dict[str, Change | None],
    most,
    crps: SeriesSums | None = None,
) -> dict[str, float]:
    """Return the scores of one evaluation task.

    changes: the change applied to each prediction, by the prefix of its scores; crps: receives the CRPS of the
    prefix `split`.
    """
    accumulators = {prefix: CalibrationAccumulator(data, name, task, model.data_score_std) for prefix in changes}
    floored, series = dict.fromkeys(changes, 0.0), 0
    real, numbers = model.scale.support == REAL, model.scale.support in NUMBERS
    for batch in _first(batches(model, data, split, task, protocol.draws), most):
        if not batch.scored.any():
            continue
        series += int(batch.scored.any(2).any(1).sum())
        plain = model.predict(batch, protocol.draws)
        for prefix, change in changes.items():
            prediction = change(plain, batch) if change else plain
            scores = sample_scores(prediction, batch.values)
            if batch.clean is not None and numbers:
                scores["mse_clean"] = (prediction.mean - batch.clean) ** 2
            if numbers:
                scores |= pit(prediction.paths, batch.values, _uniform(model, batch))
                each = energy(prediction.paths, batch.values, batch.scored, model.data_score_std)
                accumulators[prefix].add_energy(each)
            if real:
                low = on_floor(prediction.density, model.data_std).to(batch.values).mean(0)
                floored[prefix] += torch.where(batch.scored, low, 0).sum().item()
            accumulators[prefix].add(scores, batch)
            if crps is not None and prefix == split and numbers:
                crps.add(scores["crps"] / model.data_score_std, batch)
    results: dict[str, float] = {}
    for prefix, accumulator in accumulators.items():
        result = accumulator.result(f"{prefix}/{name}")
        if result:
            result[f"{prefix}/{name}/series"] = float(series)
        if result and real:
            result[f"{prefix}/{name}/on_floor"] = floored[prefix] / accumulator.all.count.sum().item()
        results |= result
    return results


def _first(series_batches: Iterator[TimeSeries], most: int | None) -> Iterator[TimeSeries]:
    """Yield batches up to `most` series; the last batch is cut to that number."""
    left = maxsize if most is None else most
    for batch in series_batches:
        yield batch if len(batch.ids) <= left else batch.rows(slice(left))
        if (left := left - len(batch.ids)) <= 0:
            return


def _uniform(model: SequenceModel, batch: TimeSeries) -> Tensor:
    """Return a uniform number from 0 to 1 for every value, as a function of (seed, series id, time)."""
    return torch.special.ndtr(model.noise.at_points("pit", batch, 1, batch.values.shape[2], batch.values)[0])
