"""Answer queries about a user's own series with a fitted model: shared by the predict command and the Forecaster."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig

from vrnn_lab.core.run_files import RECALIBRATION
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.supports import EVENTS, POSITIVE, REAL, WORDS, first_outside
from vrnn_lab.data.table.reader import SeriesReader, SeriesRows, TableSchema
from vrnn_lab.data.table.time_format import Clock, Span, to_the_second
from vrnn_lab.evaluation.baseline_model import BaselineModel
from vrnn_lab.evaluation.recalibration import Recalibration, load
from vrnn_lab.evaluation.scores import LEVELS
from vrnn_lab.forecasting.crossings import Level, crossings
from vrnn_lab.forecasting.ensemble import Ensemble, Recalibrations
from vrnn_lab.forecasting.notices import Notices, close
from vrnn_lab.forecasting.queries import SeriesQuery, SeriesWindow, Times, left_out, over_windows, with_truth
from vrnn_lab.forecasting.summary import PredictiveSummary, batches, summarise
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.runs.build import TABLE, Parts, roles_of

log = logging.getLogger("vrnn_lab")
NO_CELL = "the input has no empty cell. In the long form a cell is a row: give rows with an empty value, or use at=."
FORMS = "at=<file of id, time>, or horizon=<H> (and every=<E>), or fill=true, or surprise=true"


@dataclass(frozen=True)
class Query:
    """Hold a query to a fitted model: one of `at`, `horizon` with `every`, and `fill`.

    Raise ValueError where not exactly one is given, or where numbers do not fit together.
    """

    at: Path | pd.DataFrame | None = None
    horizon: float | int | None = None
    every: float | int | None = None
    fill: bool = False
    draws: int = 99
    seed: int = 0
    paths: int = 0
    recalibrate: bool | None = None  # None: where the run has factors; True: an error where it has none
    surprise: bool = False  # the tail probability of every observed value, given all others
    ahead: bool = False  # the times of at= lie after all observations of their series
    future: Path | pd.DataFrame | None = None  # covariates after the last observation, for horizon
    when: Level | None = None  # predict when a channel first crosses this level within the horizon

    def __post_init__(self):
        horizon = self.horizon is not None or self.every is not None
        if (self.at is not None) + horizon + bool(self.fill) + self.surprise != 1:
            raise ValueError(f"the query is missing or not unique: expected one of four: {FORMS}.")
        if self.future is not None and self.horizon is None:
            raise ValueError(
                "future= holds the covariates at the times that horizon= asks for; give horizon=<H> too, or name the "
                "queried times by at=."
            )
        if self.when and self.horizon is None:
            raise ValueError(
                "when= predicts the time at which a level is first crossed after the last observation; expected "
                "horizon=<H> (and every=<E>) with it, not at= or fill=."
            )
        every = self.horizon if self.every is None else self.every
        if horizon and (self.horizon is None or every is None or not 0 < every <= self.horizon < float("inf")):
            raise ValueError(
                f"horizon={self.horizon} every={self.every}: expected both to be positive and every= at most "
                "horizon= (every= may be left out: it is then the median gap between training points); they are in "
                "the data's unit of time, days if times are dates."
            )
        if not 0 <= self.paths <= self.draws or self.draws < 1:
            raise ValueError(
                f"paths={self.paths}, draws={self.draws}: expected at least 1 draw, and at least as many draws as "
                "paths."
            )

    def with_step(self, scale: Scale) -> "Query":
        """Return the query with its step ahead: by default the median gap between training points."""
        if self.horizon is None or self.every is not None or self.future is not None:
            return self
        every = min(float(scale.gap), float(self.horizon))
        log.info("every=%.6g%s, the median gap between training points", every, " days" if scale.dates else "")
        return replace(self, every=every)


@dataclass(frozen=True)
class Forecasts:
    """Predict what a query asks of every series of a file or frame."""

    parts: Parts
    given: SeriesReader
    at: SeriesReader | None
    query: Query
    recalibration: Recalibration | Recalibrations | None = None

    @classmethod
    def of(
        cls, parts: Parts, source: Path | pd.DataFrame, query: Query, schema: TableSchema, folder: Path | None = None
    ) -> "Forecasts":
        """Check a query against a model and open its inputs; raise ValueError where the model cannot answer it.

        source: the input file or frame. folder: of the run, for its recalibration; an ensemble knows its folders.
        """
        scale = parts.model.scale
        if scale.support == EVENTS:
            raise ValueError(
                "the model is a point process, which has no values to predict; draw series of events with "
                "python -m vrnn_lab.sample run=<run folder>."
            )
        if query.surprise and scale.support not in (REAL, POSITIVE):
            raise ValueError(
                f"surprise=true: the values of this run are {scale.support}, which have no tail probability; "
                "expected a run on real or positive values."
            )
        query = query.with_step(scale)
        roles = roles_of(parts.config, scale)
        if query.when:
            query.when.index(scale.channels)
            if query.when.signal:
                parts.model.check_signal()
        if scale.dates is False and any(isinstance(x, Span) for x in (query.horizon, query.every)):
            raise ValueError(
                f"horizon={query.horizon} every={query.every} days: the model's times are numbers without a known "
                "unit; give numbers in the same unit."
            )
        if query.horizon is not None and query.future is None and roles.known:
            raise ValueError(
                f"horizon= predicts at times at which the model needs {', '.join(roles.known)}, which are not known "
                "there; give them by future=, a file of id, time and those columns, use at= with such a file, or "
                "fill=true and rows whose channels are empty."
            )
        known = scale.channels, roles, scale.dates, scale.zoned
        given = SeriesReader(source, "input", schema, *known)
        of_queries = TableSchema(schema.id, schema.time)
        key = "at" if query.future is None else "future"
        source_of = query.at if query.future is None else query.future
        at = None if source_of is None else SeriesReader(source_of, key, of_queries, *known)
        return cls(parts, given, at, query, recalibration_of(parts.model, query.recalibrate, folder))

    @property
    def small(self) -> bool:
        """Return whether all inputs may be read into memory."""
        return self.given.small and (self.at is None or self.at.small)

    def summaries(self, whole: bool) -> Iterator[PredictiveSummary]:
        """Yield summaries of predictions in the order of the series.

        Each depends on the model, the seed, the rows of its series and the query alone. whole: read all inputs into
        memory.
        """
        query, model = self.query, self.parts.model
        paths = query.draws if query.when else query.paths
        exact = to_the_second if model.scale.dates else float
        ahead = lambda length: None if length is None else exact(length)
        queried = SeriesQuery(self.at, ahead(query.horizon), ahead(query.every), query.fill or query.surprise)
        pairs = self._not_empty(queried.of(self.given, whole))
        notices = Notices.of(model)
        windows: Iterator[Iterator[SeriesWindow]] = (
            over_windows(self._checked(rows, notices), times, model.scale, self.given.roles, model.keep_start)
            for rows, times in pairs
        )
        if query.surprise:
            windows = (self._left_out(self._checked(rows, notices)) for rows, _ in pairs)
        batch = None
        for batch in batches(chain.from_iterable(windows), query.draws):
            for window in batch:
                for member in notices:
                    member.add_queries(window)
            yield self._when(
                summarise(lambda series: self._predict(series, notices), batch, paths, model.scale.errors)
            )
        close(notices, self.recalibration)
        if batch is None:
            log.warning("there is nothing to predict: %s", NO_CELL if query.fill else "no series has a queried time.")
            yield self._when(PredictiveSummary.none(paths))

    def _left_out(self, rows: SeriesRows) -> Iterator[SeriesWindow]:
        """Yield a window for each observed value of a series, in which all others are observed."""
        model = self.parts.model
        for others, query, value in left_out(rows):
            for window in over_windows(others, query, model.scale, self.given.roles, model.keep_start):
                yield with_truth(window, value)

    def _when(self, forecast: PredictiveSummary) -> PredictiveSummary:
        """Return the crossings of the level where the query has one, else the summary as it is."""
        level = self.query.when
        channels = self.parts.model.scale.channels
        return crossings(forecast, level, level.index(channels), self.query.draws) if level else forecast

    def _not_empty(self, pairs: Iterator[tuple[SeriesRows, Times]]) -> Iterator[tuple[SeriesRows, Times]]:
        """Yield all pairs; raise ValueError where there is none."""
        first = next(pairs, None)
        if first is None:
            raise ValueError(
                f"{self.given.path} has no rows, only the columns {self.given.names}; expected one row per time."
            )
        yield from chain([first], pairs)

    def _checked(self, rows: SeriesRows, notices: list[Notices]) -> SeriesRows:
        """Return the rows; raise ValueError for a value of another kind than the model takes."""
        for member in notices:
            scale = member.scale
            in_log = np.where(scale.log_channels.numpy(), rows.values, np.nan)
            for values, kind in ((rows.values, scale.support), (in_log, POSITIVE)):
                if (place := first_outside(values, kind)) is not None:
                    raise ValueError(
                        f"{self.given.path}: series '{rows.name}' holds {rows.values[place]:g} in channel "
                        f"'{scale.channels[place[1]]}' at time {rows.times[place[0]]:g}; the model takes "
                        f"{WORDS[kind]} there. Correct it, or empty the cell."
                    )
            member.add_inputs(rows.values)
        return rows

    def _predict(self, batch: TimeSeries, notices: list[Notices]) -> Prediction:
        """Return the recalibrated prediction of a batch; all predictions are made here."""
        model = self.parts.model
        # Other queries than of a horizon may be of both kinds, and an ensemble may have other weights for each.
        mixed = isinstance(model, Ensemble) and self.query.horizon is None and not self.query.ahead
        one = model.one_question() if isinstance(model, Ensemble) and mixed else nullcontext()
        with model.fixed_noise(self.query.seed), one:
            batch = batch.to(model.device)
            level = self.query.when
            if level and level.signal:
                prediction = model.predict_extremes(batch, self.query.draws, level.above)
            else:
                prediction = model.predict(batch, self.query.draws)
            notices[0].add_predictions(batch, self.recalibration)
            return self.recalibration.apply(prediction, batch) if self.recalibration else prediction

    @property
    def clock(self) -> Clock:
        """Return the time format in which times are written: that of at=, else that of the input."""
        return (self.at or self.given).clock or Clock(False)

    def frame(self, summary: PredictiveSummary, text: bool = False) -> pd.DataFrame:
        """Return a summary as the data frame to write; text: dates, also those of crossings, as ISO strings."""
        numbered = self.given.whole_ids and (self.at is None or self.at.whole_ids)
        names = np.array([window.name for window in summary.windows], dtype=object)
        head = {
            "id": names[summary.owner].astype(np.int64 if numbered else object),
            "time": self.clock.write(summary.times, text),
            "channel": np.array(self.parts.model.scale.channels, dtype=object)[summary.channel],
        }
        numbers: dict[str, Any] = dict(summary.numbers)
        if self.query.when:
            numbers["already"] = numbers["already"] > 0
            numbers |= {name: self._times(numbers[name], text) for name in LEVELS}
        return pd.DataFrame(head | numbers)

    def _times(self, times: NDArray[np.float64], text: bool) -> Any:
        """Return times as they are written, NaN as empty cells."""
        there = ~np.isnan(times)
        if there.all() or not self.clock.dates:
            return self.clock.write(times, text)
        return pd.Series(self.clock.write(times[there], text), np.flatnonzero(there)).reindex(range(len(times)))


def recalibration_of(
    model: SequenceModel, wanted: bool | None, folder: Path | None
) -> Recalibration | Recalibrations | None:
    """Return the recalibration in a run's folder, those of an ensemble's members, or None where there is none.

    wanted: None takes factors where there are some and warns where there are none; False takes none; True raises
    ConfigError where there are none.
    """
    if isinstance(model, Ensemble):
        of_members = [
            recalibration_of(member, wanted, Path(name)) for member, name in zip(model, model.names, strict=True)
        ]
        weights = model.weights
        used = [not weights or weights.gaps[i] > 0 or weights.ahead[i] > 0 for i in range(len(of_members))]
        factors = tuple(
            member if isinstance(member, Recalibration) and counts else None
            for member, counts in zip(of_members, used, strict=True)
        )
        return Recalibrations(model.names, factors) if any(factors) else None
    if isinstance(model, BaselineModel):  # its spread is fitted to validation already
        return None
    if folder is None or wanted is False or (model.scale.support != REAL and not wanted):
        return None
    if wanted is None and not (folder / RECALIBRATION).is_file():
        log.warning(
            "%s holds no %s: the spread of predictions is the model's own, not recalibrated. To fit the factors: "
            "python -m vrnn_lab.evaluate run=%s recalibrate=true",
            folder,
            RECALIBRATION,
            folder,
        )
        return None
    return load(folder, model.scale.channels)


def schema_of(config: DictConfig, changes: dict[str, Any]) -> TableSchema:
    """Return the input's column names: those of `changes`, else of the run's own table, else the default names."""
    own = config.data if config.data.get("_target_") == TABLE else {}
    named: dict[str, Any] = {key: own[key] for key in ("id", "time", "channel", "value") if key in own}
    return TableSchema(**(named | changes))
