"""Compute simple baselines for every result, and exact scores where the process is known."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.cli.progress import tracked
from vrnn_lab.core.densities import Bernoulli, Gaussian
from vrnn_lab.core.log_density import LogDensity
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.supports import BINARY, EVENTS, REAL
from vrnn_lab.core.tasks import DensityTask, Task
from vrnn_lab.data.base import PLAIN, SeriesData, generator
from vrnn_lab.evaluation.analog import CHANGES, COMPARED, VALUES, Analog, records_of
from vrnn_lab.evaluation.baseline_units import Predictor, as_real, in_units, on_log_scale, series_on_log_scale
from vrnn_lab.evaluation.calibration import CalibrationAccumulator, plain_pit
from vrnn_lab.evaluation.evaluate import EvaluationProtocol, count_of_series, rows_at_once
from vrnn_lab.evaluation.gaussian_process import SharedProcess, available
from vrnn_lab.evaluation.linear_process import LinearProcess, fit_batch
from vrnn_lab.evaluation.scores import Plain, ScoreAccumulator, Scores, SeriesSums, energy_of, plain_scores
from vrnn_lab.evaluation.trends import seasonal, with_drift

log = logging.getLogger("vrnn_lab")
GAUSSIAN_PROCESS, LINEAR_PROCESS, ANALOG = "gaussian process", "linear process", "analog"
MOST_SEEN = 200  # most observed values per series and channel for a Gaussian process
MOST_SERIES = 200  # most series of a task for a Gaussian process
MOST_CHANNELS = 5  # most channels for a Gaussian process
MOST_VALUES = 250_000  # most points times channels of a task for analog and linear process
STRETCHES = 32, 512  # least and largest number of training stretches compared with a series
READ = 10_000_000  # values of training stretches read in one pass over a task, about half a second
DRAWS = 20  # draws for a baseline's energy score, which is unbiased for any number
Guess = Callable[[TimeSeries, Tensor], Tensor]


def constant(series: TimeSeries, mean: Tensor) -> Float[Tensor, "batch time dim"]:
    """Predict the mean of a row's observed values, or the training mean where nothing is observed."""
    return _row_mean(series, mean, 0.0).expand_as(series.values)


def _row_mean(series: TimeSeries, mean: Tensor, shrink: float) -> Float[Tensor, "batch 1 dim"]:
    count = series.seen.sum(1, keepdim=True).to(series.values)
    total = torch.where(series.seen, series.values, 0).sum(1, keepdim=True)
    none = (count + shrink == 0).to(total)
    return (total + (shrink + none) * mean) / (count + shrink + none)


def _neighbour(series: TimeSeries, later: bool) -> tuple[Tensor, Tensor]:
    """Return, per value, the index of the last observed one up to it (later: the next one), and if it exists."""
    places = torch.arange(series.times.shape[1], device=series.times.device)[None, :, None]
    if later:
        at = torch.where(series.seen, places, places.numel())
        at = at.flip(1).cummin(1).values.flip(1)
        return at.clamp(max=places.numel() - 1), at < places.numel()
    at = torch.where(series.seen, places, -1).cummax(1).values
    return at.clamp(min=0), at >= 0


def last(series: TimeSeries, mean: Tensor) -> Float[Tensor, "batch time dim"]:
    """Predict the last observed value, or the row's mean before the first one."""
    at, exists = _neighbour(series, later=False)
    return torch.where(exists, series.values.gather(1, at), constant(series, mean))


def linear(series: TimeSeries, mean: Tensor) -> Float[Tensor, "batch time dim"]:
    """Interpolate linearly between observed neighbours in time; constant beyond the ends."""
    (left, has_left), (right, has_right) = _neighbour(series, False), _neighbour(series, True)
    times = series.times[..., None].expand_as(series.values)
    low, high = series.values.gather(1, left), series.values.gather(1, right)
    start, end = times.gather(1, left), times.gather(1, right)
    share = torch.where(end > start, (times - start) / (end - start), 0)
    inside = low + share.to(low) * (high - low)
    flat = torch.where(has_left, low, torch.where(has_right, high, constant(series, mean)))
    return torch.where(has_left & has_right, inside, flat)


def blend(series: TimeSeries, mean: Tensor) -> Float[Tensor, "batch time dim"]:
    """Predict half the last value plus half the row's mean, shrunk to the training mean by one pseudo-observation."""
    return 0.5 * last(series, mean) + 0.5 * _row_mean(series, mean, 1.0)


def drift(series: TimeSeries, mean: Tensor) -> Float[Tensor, "batch time dim"]:
    """Interpolate linearly; after the last observed value, continue with the slope from the first one to it."""
    return with_drift(series, linear(series, mean))


REFERENCES: dict[str, Callable[[TimeSeries, Tensor], Tensor]] = {
    "constant": constant,
    "last": last,
    "blend": blend,
    "linear": linear,
}


def guesses_of(scale: Scale) -> dict[str, Guess]:
    """Return the baselines that read the observed values alone: drift for real values, seasonal ones given a period.

    Each reads and predicts a batch `on_log_scale`. Among several known periods the longest is used.
    """
    guesses: dict[str, Guess] = dict(REFERENCES)
    if scale.support == REAL:
        guesses["drift"] = drift
    if scale.periods:
        period = max(scale.periods)
        guesses["seasonal naive"] = lambda series, mean: seasonal(series, last(series, mean), period)
        if scale.support == REAL:
            guesses["seasonal naive + drift"] = lambda series, mean: seasonal(
                series, last(series, mean), period, True
            )
    return guesses


def baselines(data: SeriesData, scale: Scale) -> dict[str, Guess]:
    """Return the baselines that suit a dataset: those of its scale, and the analog where values are real."""
    guesses = guesses_of(scale)
    if scale.support == REAL and (similar := analog(data, scale)):
        guesses[ANALOG] = similar
    return guesses


def analog(data: SeriesData, scale: Scale) -> Analog | None:
    """Build the analog of a dataset's training series; other splits are used only for their sizes.

    The more values validation and test have, the fewer stretches are compared, so that a pass over a task reads about
    READ values. Returns None, with a debug message in the log, where it would still take more than some seconds.
    """
    sizes = [data.splits[split].lengths for split in ("val", "test")]
    channels, values = len(data.channels), max(int(lengths.sum()) for lengths in sizes) * len(data.channels)
    if values > MOST_VALUES:
        log.debug(
            "the analog baseline is left out, since it would take long: validation or test has %d values, at most %d",
            *(values, MOST_VALUES),
        )
        return None
    compared = max(int(np.minimum(lengths, COMPARED).sum()) for lengths in sizes) * channels
    most = int(np.clip(READ / max(compared, 1), *STRETCHES))
    records = records_of(series_on_log_scale(data.splits["train"], scale), most // 2)
    return Analog(records, scale.std.numpy(), linear, most)


def references(
    data: SeriesData,
    protocol: EvaluationProtocol,
    scale: Scale | None = None,
    split: str = "test",
    crps: dict[str, SeriesSums] | None = None,
) -> dict[str, float]:
    """Return `reference/<baseline>/<task>/...`, each baseline as a density fitted per channel on validation.

    The density is a Gaussian about the baseline's guess; for binary values a Bernoulli of the guess mixed with the
    training mean. For real values the linear process and, where it is available, the Gaussian process have spreads of
    their own. crps: a model's CRPS of each validation series, by task; given these, the baselines are compared with
    it on validation.
    """
    scale = scale or data.scale
    if scale.support == EVENTS:
        return _exact_nll(data, split, "nll_events")
    scale = as_real(scale)
    level = level_of(data, scale)
    scores: dict[str, float] = {}
    questions = protocol.questions | data.questions
    guesses = baselines(data, scale)
    processes = fitted_processes(data, scale, level, list(_questions_of(data, questions, split)))
    for name, task in questions.items():
        predictors = {
            baseline: fitted(data.batches("val", task, 256), guess, scale, level)
            for baseline, guess in guesses.items()
        } | processes
        for baseline, predict in predictors.items():
            accumulator = CalibrationAccumulator(data, name, task, scale.score_std)
            of_split = data.batches(split, task, min(256, rows_at_once(data, split, task, DRAWS)))
            series = lambda task=task: len(data.series_for(split, task))
            for batch in tracked(of_split, f"scoring the baseline {baseline}", series, count_of_series):
                density = predict(batch)
                accumulator.add(_scores(density, batch), batch)
                accumulator.add_energy(plain_energy(density, batch, scale.score_std, data.seed))
            scores |= accumulator.result(f"reference/{baseline}/{name}")
            if (
                crps
                and name in protocol.questions
                and name in crps
                and _quick_on_validation(data, baseline, name, task)
            ):
                scores |= on_validation(data, name, task, predict, scale, crps[name], f"reference/{baseline}/{name}")
        scores |= _exact(data, task, split, name, scale)
    return scores | _exact_nll(data, split)


def _quick_on_validation(data: SeriesData, baseline: str, name: str, task: Task) -> bool:
    return baseline != GAUSSIAN_PROCESS or not _too_slow(data, _questions_of(data, {name: task}, "val"))


def on_validation(
    data: SeriesData, name: str, task: Task, predict: Predictor, scale: Scale, model: SeriesSums, prefix: str
) -> dict[str, float]:
    """Return a baseline's CRPS on validation and how much larger a model's is, `<prefix>/val_...`.

    val_crps is in the data's units, val_ncrps in training stds; val_ncrps_above, in training stds, has a standard
    error over series, val_ncrps_above_se, where there are two or more. model: the model's CRPS of each series, in
    training stds. The result is empty where values are not real.

    A baseline whose spread was fitted to these values (one number per channel, and the kind of the analog) is
    slightly favoured; so is the model, whose best checkpoint was chosen on validation.
    """
    if scale.support != REAL:
        return {}
    accumulator, sums = ScoreAccumulator(scale.channels, scale.score_std), SeriesSums()
    for batch in data.batches("val", task, 256):
        crps = plain_scores(predict(batch), batch.values)["crps"]
        accumulator.add({"crps": crps}, batch.scored)
        sums.add(crps / scale.score_std, batch)
    scores = accumulator.result(prefix)
    if not scores:
        return {}
    above, error = model.above(sums)
    return {
        f"{prefix}/val_crps": scores[f"{prefix}/crps"],
        f"{prefix}/val_ncrps": scores[f"{prefix}/ncrps"],
        f"{prefix}/val_ncrps_above": above,
    } | ({} if error is None else {f"{prefix}/val_ncrps_above_se": error})


def _scores(density: Plain | Bernoulli, batch: TimeSeries) -> Scores:
    scores = plain_scores(density, batch.values)
    if not isinstance(density, Bernoulli):
        scores |= plain_pit(density, batch.values)
    return scores if batch.clean is None else {**scores, "mse_clean": (density.mean - batch.clean) ** 2}


def plain_energy(
    density: Plain | Bernoulli, batch: TimeSeries, std: Float[Tensor, " dim"], seed: int
) -> Float[Tensor, " series"]:
    """Return the energy score of a baseline, whose values are independent; empty for binary values.

    A series' draws are a function of (seed, id), the same for all baselines.
    """
    if isinstance(density, Bernoulli):
        return std.new_zeros(0)
    scores = []
    for i, scored in enumerate(batch.scored):
        if scored.any():
            noise = generator(PLAIN, seed, int(batch.ids[i])).standard_normal((DRAWS, int(scored.sum())))
            scores.append(energy_of(_errors_of_draws(density, batch.values, scored, i, std, torch.from_numpy(noise))))
    return torch.stack(scores) if scores else std.new_zeros(0)


def _errors_of_draws(
    density: Plain, values: Tensor, scored: Tensor, row: int, std: Tensor, noise: Float[Tensor, "samples values"]
) -> Float[Tensor, "samples values"]:
    """Return draws of the scored values of a row less the truth, in training stds."""
    some = lambda x: x.expand_as(values)[row][scored]
    if not isinstance(density, LogDensity):
        return some((density.mean - values) / std) + some(density.std / std) * noise
    logs = some(density.inner.mean) + some(density.inner.std) * noise
    return (torch.where(some(density.channels), logs.exp(), logs) - some(values)) / some(std)


def level_of(data: SeriesData, scale: Scale) -> Float[Tensor, " dim"]:
    """Return the training mean in the data's units, or of logarithms where a channel is modelled by them.

    That of binary values is clamped to 1e-4 .. 1 - 1e-4.
    """
    if scale.support != BINARY and scale.trend is None:
        return scale.mean
    if scale.support != BINARY:
        return torch.from_numpy(np.nanmean(series_on_log_scale(data.splits["train"], scale).values, 0))
    return torch.from_numpy(np.nanmean(data.splits["train"].values, 0)).clamp(1e-4, 1 - 1e-4)


@dataclass(frozen=True)
class BaselineQuestion:
    """Hold an evaluation task's batches, and its size, which decides whether slow baselines are computed."""

    name: str
    series: int
    values: int  # points times channels
    batches: Iterable[TimeSeries]


def _questions_of(data: SeriesData, questions: dict[str, Task], split: str) -> Iterator[BaselineQuestion]:
    for name, task in questions.items():
        series = data.series_for(split, task)
        values = int(series.lengths.sum()) * len(data.channels)
        yield BaselineQuestion(name, len(series), values, data.batches(split, task, 16))


def fitted_processes(
    data: SeriesData, scale: Scale, level: Float[Tensor, " dim"], questions: Sequence[BaselineQuestion]
) -> dict[str, Predictor]:
    """Return the baselines that are fitted to training data by their likelihood, except those that are slow."""
    processes = {
        LINEAR_PROCESS: linear_process(data, scale, level, questions),
        GAUSSIAN_PROCESS: gaussian_process(data, scale, level, questions),
    }
    return {name: predict for name, predict in processes.items() if predict}


def linear_process(
    data: SeriesData, scale: Scale, level: Float[Tensor, " dim"], questions: Iterable[BaselineQuestion]
) -> Predictor | None:
    """Fit a linear process to the training series, to be conditioned on the observed values of each series.

    questions: the tasks to predict. Returns None, with a debug message, where that would take more than some seconds;
    None without a message where values are not real.
    """
    if scale.support != REAL:
        return None
    process = LinearProcess(scale, level, data.periods)
    most = MOST_VALUES * 4 // process.states
    for question in questions:
        if question.values > most:
            log.debug(
                "the linear process baseline is left out, since it would take long: %d values in %s, at most %d",
                *(question.values, question.name, most),
            )
            return None
    process.fit(on_log_scale(fit_batch(data.splits["train"]), scale))

    def predict(batch: TimeSeries) -> Gaussian:
        density = process(batch.given())
        return Gaussian(density.mean.to(batch.values), density.std.clamp(min=1e-3 * scale.std).to(batch.values))

    return in_units(predict, scale)


def gaussian_process(
    data: SeriesData, scale: Scale, level: Float[Tensor, " dim"], questions: Iterable[BaselineQuestion]
) -> Predictor | None:
    """Fit a Gaussian process to the training series, to be conditioned on the observed values of each series.

    questions: the tasks to predict. Returns None, with a debug message, where scikit-learn is missing or where it
    would take long: a baseline is scored on the same values as all others or not at all. Returns None without a
    message where values are not real, and for datasets whose series have no levels of their own, whose published
    tables have no such baseline.
    """
    if scale.support != REAL or not scale.own_levels:
        return None
    if not available():
        log.debug(
            "the Gaussian process baseline is left out, since scikit-learn is missing: pip install 'vrnn_lab[gp]'"
        )
        return None
    if reason := _too_slow(data, questions):
        log.debug("the Gaussian process baseline is left out, since it would take long: %s", reason)
        return None
    std = scale.std
    process = SharedProcess(
        _in_random_order(data, scale), level.numpy(), std.numpy(), max(data.periods, default=None)
    )

    def predict(batch: TimeSeries) -> Gaussian:
        mean, spread = process(replace(batch.given(), scored=batch.scored))
        return Gaussian(mean, spread.clamp(min=1e-3 * std))

    return in_units(predict, scale)


def _too_slow(data: SeriesData, questions: Iterable[BaselineQuestion]) -> str:
    """Return why a Gaussian process would take long on some tasks; an empty string where it would not."""
    if len(data.channels) > MOST_CHANNELS:
        return f"{len(data.channels)} channels, at most {MOST_CHANNELS}"
    for question in questions:
        if question.series > MOST_SERIES:
            return f"{question.series} series in {question.name}, at most {MOST_SERIES}"
        most = max((int(batch.seen.sum(1).max()) for batch in question.batches), default=0)
        if most > MOST_SEEN:
            return f"{most} observed values of a series in {question.name}, at most {MOST_SEEN}"
    return ""


def _in_random_order(data: SeriesData, scale: Scale) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield times (points,) and values (points, dim), or their logarithms, of the training series in random order."""
    series = series_on_log_scale(data.splits["train"], scale)
    for place in generator(PLAIN, data.seed).permutation(len(series)):
        own = slice(series.first[place], series.end[place])
        yield series.points.times[own], series.points.values[own]


def fitted(batches: Iterable[TimeSeries], guess: Guess, scale: Scale, level: Float[Tensor, " dim"]) -> Predictor:
    """Return a baseline's predictive function of a batch: its guess, with the spread of its errors on `batches`."""
    if scale.support == BINARY:
        return _bernoulli_of(batches, guess, scale, level)
    return in_units(_gaussian_of((on_log_scale(batch, scale) for batch in batches), guess, scale, level), scale)


def _given(batch: TimeSeries) -> TimeSeries:
    """Return what a guess may read of a batch: the observed values, and which values are scored."""
    return replace(batch.given(), scored=batch.scored)


def _bernoulli_of(
    batches: Iterable[TimeSeries], guess: Guess, scale: Scale, level: Float[Tensor, " dim"]
) -> Callable[[TimeSeries], Bernoulli]:
    """Return the Bernoulli of (1 - a) guess + a level, with the share a of the smallest nll per channel."""
    mixed = lambda mean, share: Bernoulli(((1 - share) * mean + share * level).logit())
    shares = torch.linspace(0.01, 1, 34, dtype=torch.float64)
    total = torch.zeros(len(shares), len(level), dtype=torch.float64)
    for batch in batches:
        points = batch.scored.any(-1)
        mean, values, scored = guess(_given(batch), level)[points], batch.values[points], batch.scored[points]
        for i, share in enumerate(shares):
            nll = -mixed(mean, share).log_prob_each(values)
            total[i] += torch.where(scored, nll, 0).sum(0)
    best = shares[total.argmin(0)]
    return lambda batch: mixed(guess(_given(batch), level), best)


def _gaussian_of(
    batches: Iterable[TimeSeries], guess: Guess, scale: Scale, level: Float[Tensor, " dim"]
) -> Callable[[TimeSeries], Gaussian]:
    """Return a Gaussian about the guess; for the analog, each channel uses the kind with the smaller error."""
    kinds = [CHANGES, VALUES] if isinstance(guess, Analog) else [0]
    tallies = [ScoreAccumulator(scale.channels, scale.std) for _ in kinds]

    def guesses(batch: TimeSeries, kinds: list[int]) -> Float[Tensor, "kind batch time dim"]:
        known = _given(batch)
        return guess.candidates(known, level, kinds) if isinstance(guess, Analog) else guess(known, level)[None]

    for batch in batches:
        for tally, guessed in zip(tallies, guesses(batch, kinds), strict=True):
            tally.add({"mse": (guessed - batch.values) ** 2}, batch.scored)
    errors = [torch.where(t.count > 0, t.sums["mse"] / t.count, scale.std**2) for t in tallies]
    mse, best = torch.stack(errors).min(0)
    spread = mse.sqrt().clamp(min=1e-3 * scale.std)
    taken, place = best.unique(return_inverse=True)

    def predict(batch: TimeSeries) -> Gaussian:
        candidates = guesses(batch, taken.tolist())
        return Gaussian(candidates.gather(0, place.expand(1, *batch.values.shape))[0], spread)

    return predict


def _exact(data: SeriesData, task: Task, split: str, name: str, scale: Scale) -> dict[str, float]:
    accumulator = CalibrationAccumulator(data, name, task, scale.score_std)
    for batch in data.batches(split, task, 256):
        truth = data.exact(batch)
        if truth is None or truth[1] is None:
            return {}
        accumulator.add(_scores(truth[1], batch), batch)
    return accumulator.result(f"reference/exact/{name}")


def _exact_nll(data: SeriesData, split: str, name: str = "nll") -> dict[str, float]:
    total = count = 0.0
    for batch in data.batches(split, DensityTask(), 256):
        truth = data.exact(batch)
        if truth is None:
            return {}
        total -= truth[0].sum().item()
        count += batch.scored.sum().item()
    return {f"reference/exact/{name}": total / max(count, 1)}
