"""Score a fitted run on validation for what the user wants to know: gaps, or forecasts."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.evaluation.baseline_model import BaselineModel, Spread, best_baseline
from vrnn_lab.evaluation.recalibration import batches_of, load, possible
from vrnn_lab.evaluation.value_scores import ValueScores, value_scores
from vrnn_lab.forecasting.backtest import BacktestPlan, folds
from vrnn_lab.runs.build import Parts
from vrnn_lab.training.fit_recalibration import plans
from vrnn_lab.training.out_of_time import queries_beyond

QUESTIONS = {"fill": ("interpolation",), "ahead": ("forecast",), "both": ("interpolation", "forecast")}
PATTERNS, ENOUGH = 20, 300  # most patterns of observed values; values from which there are no more of them
ORIGINS = 5  # cutoffs in the validation part of a series, for a given horizon


def validation_scores(parts: Parts, folder: Path, question: str, horizon: float | None, beyond: bool) -> ValueScores:
    """Return the scores of a run's recalibrated predictions on validation.

    question: interpolation (half of the points of each series are observed) or forecast. With `beyond`, forecasts are
    those of the second fit beyond the times of its training, which the run then has (`training.out_of_time`), since
    whole series that are split by name never ask for what lies beyond them; otherwise, of series that are split in
    time, forecasts from rolling cutoffs within the validation part, and of others those of the second half of each.
    horizon: how far ahead from such a cutoff, in the data's unit of time; None: up to the longest training window.
    """
    if question == "forecast" and beyond:
        return ValueScores.load(folder / run_files.OUT_OF_TIME_VALUES)
    known = possible(parts.model, parts.protocol)  # values of other kinds than real ones have no factors
    change = load(folder, parts.model.scale.channels).apply if known else None
    return ValueScores.of_patterns(
        [
            value_scores(parts.model, batches, parts.protocol.draws, parts.config.seed, change)
            for batches in validation_patterns(parts, question, horizon)
        ]
    )


def baseline_scores(
    parts: Parts, question: str, horizon: float | None, beyond: bool
) -> tuple[str, Spread, ValueScores] | None:
    """Return the best simple baseline for a question, its spread, and its scores of the values of
    `validation_scores`; None where there is none.

    The baseline and its spread are chosen on those values, as the recalibration of a run is.
    """
    if question == "forecast" and beyond:
        patterns = [list(queries_beyond(parts))]
    else:
        patterns = list(validation_patterns(parts, question, horizon))
    found = best_baseline(chain.from_iterable(patterns), parts.model.scale, question)
    if found is None:
        return None
    name, spread = found
    model = BaselineModel(parts.model.scale, parts.model.recipe, name, spread, spread)
    scores = [value_scores(model, batches, parts.protocol.draws, parts.config.seed) for batches in patterns]
    return name, spread, ValueScores.of_patterns(scores)


def validation_patterns(parts: Parts, question: str, horizon: float | None) -> Iterator[list[TimeSeries]]:
    """Yield the validation batches of a question, but of forecasts beyond the times of training.

    Where validation has few values, gaps are asked for under several patterns of observed values, each a list of
    batches, so that the choice rests on more than the luck of one pattern.
    """
    if question == "forecast":
        rolling = list(_rolling(parts, horizon)) if parts.data.split_in_time else []
        yield rolling or list(batches_of(parts.data, parts.protocol.questions[question], parts.protocol.draws))
        return
    values = 0
    for number in range(PATTERNS):
        batches = list(batches_of(parts.data, parts.protocol.questions[question], parts.protocol.draws, number))
        yield batches
        values += sum(int(batch.scored.sum()) for batch in batches)
        if values >= ENOUGH:
            return


def _rolling(parts: Parts, horizon: float | None) -> Iterator[TimeSeries]:
    longest = parts.model.scale.longest.item()
    given = [] if horizon is None else [BacktestPlan(horizon, horizon / 2, ORIGINS)]
    for plan in [*given, *plans(parts.data, longest)]:
        try:
            queries = folds(parts.data, "val", plan, longest, parts.model.keep_start)
        except ConfigError:  # no validation part is as long as this horizon
            continue
        yield from (batch for batch, _ in queries.batches(parts.protocol.draws))
        if plan in given:
            return
