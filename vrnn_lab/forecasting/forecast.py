"""Answer queries about a user's own series with a fitted model: shared by the predict command and the Forecaster."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig

from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.data.table.reader import SeriesReader, SeriesRows, TableSchema
from vrnn_lab.data.table.time_format import Clock, Span, to_the_second
from vrnn_lab.evaluation.recalibration import FILE, Recalibration, load
from vrnn_lab.evaluation.scores import LEVELS
from vrnn_lab.forecasting.crossings import Level, crossings
from vrnn_lab.forecasting.ensemble import Ensemble, Recalibrations
from vrnn_lab.forecasting.notices import Notices, close
from vrnn_lab.forecasting.queries import SeriesQuery, Times, over_windows
from vrnn_lab.forecasting.summary import Answer, answer, batches
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.runs.build import TABLE, Parts, roles_of

log = logging.getLogger("vrnn_lab")
NO_CELL = (
    "the input has no empty cell. In the long form a cell is a row: give rows with an empty value, or ask with at=."
)
THREE = "at=<file of id, time>, or horizon=<H> (and every=<E>), or fill=true"


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
    when: Level | None = None  # predict when a channel first crosses this level within the horizon

    def __post_init__(self):
        ahead = self.horizon is not None or self.every is not None
        if (self.at is not None) + ahead + bool(self.fill) != 1:
            raise ValueError(f"what is asked? Expected one of three: {THREE}.")
        if self.when and self.horizon is None:
            raise ValueError(
                "when= asks for the time at which a level is first crossed after what was seen; expected horizon=<H> "
                "(and every=<E>) beside it, not at= or fill=."
            )
        every = self.horizon if self.every is None else self.every
        if ahead and (self.horizon is None or every is None or not 0 < every <= self.horizon < float("inf")):
            raise ValueError(
                f"horizon={self.horizon} every={self.every}: expected both positive, every= at most horizon= (it may "
                "be left out: the usual gap between training points); they are in the data's unit of time, days if "
                "times are dates."
            )
        if not 0 <= self.paths <= self.draws or self.draws < 1:
            raise ValueError(
                f"paths={self.paths}, draws={self.draws}: expected as many draws as paths, and at least 1."
            )

    def with_step(self, scale: Scale) -> "Query":
        """Return the query with its step ahead: by default the median gap between training points."""
        if self.horizon is None or self.every is not None:
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
    asked: Query
    recalibration: Recalibration | Recalibrations | None = None

    @classmethod
    def of(
        cls, parts: Parts, found: Path | pd.DataFrame, asked: Query, form: TableSchema, folder: Path | None = None
    ) -> "Forecasts":
        """Check a query against a model and open its inputs; raise ValueError where the model cannot answer it.

        found: the input file or frame. folder: of the run, for its recalibration; an ensemble knows its folders.
        """
        scale = parts.model.scale
        if scale.support == "events":
            raise ValueError(
                "the model is one of events, which have no value to be asked for; draw series of events with "
                "python -m vrnn_lab.sample run=<run folder>."
            )
        asked = asked.with_step(scale)
        beside = roles_of(parts.config, scale)
        if asked.when:
            asked.when.index(scale.channels)
        if scale.dates is False and any(isinstance(x, Span) for x in (asked.horizon, asked.every)):
            raise ValueError(
                f"horizon={asked.horizon} every={asked.every} days: the model's times are numbers, of no known "
                "length; give numbers in their unit."
            )
        if asked.horizon is not None and beside.known:
            raise ValueError(
                f"horizon= asks at times at which {', '.join(beside.known)} must be known, and are not; ask with "
                "at=, a file of id, time and those columns, or with fill=true and rows whose channels are empty."
            )
        known = scale.channels, beside, scale.dates, scale.zoned
        given = SeriesReader(found, "input", form, *known)
        ask = TableSchema(form.id, form.time)
        at = None if asked.at is None else SeriesReader(asked.at, "at", ask, *known)
        return cls(parts, given, at, asked, recalibration_of(parts.model, asked.recalibrate, folder))

    @property
    def small(self) -> bool:
        """Return whether all inputs may be read into memory."""
        return self.given.small and (self.at is None or self.at.small)

    def answers(self, whole: bool) -> Iterator[Answer]:
        """Yield summaries of predictions in the order of the series.

        Each depends on the model, the seed, the rows of its series and the query alone. whole: read all inputs into
        memory.
        """
        asked, model = self.asked, self.parts.model
        paths = asked.draws if asked.when else asked.paths
        exact = to_the_second if model.scale.dates else float
        ahead = lambda found: None if found is None else exact(found)
        wanted = SeriesQuery(self.at, ahead(asked.horizon), ahead(asked.every), asked.fill)
        found = self._met(wanted.of(self.given, whole))
        notices = Notices.of(model)
        each = (
            over_windows(self._checked(rows, notices), times, model.scale, self.given.beside, model.keep_start)
            for rows, times in found
        )
        batch = None
        for batch in batches(chain.from_iterable(each), asked.draws):
            for question in batch:
                for each in notices:
                    each.ask(question)
            yield self._when(answer(lambda series: self._predict(series, notices), batch, paths, model.scale.errors))
        close(notices, self.recalibration)
        if batch is None:
            log.warning("nothing is asked: %s", NO_CELL if asked.fill else "no series has a time to be asked about.")
            yield self._when(Answer.none(paths))

    def _when(self, found: Answer) -> Answer:
        """Return the crossings of the level where the query has one, else the summary as it is."""
        level = self.asked.when
        channels = self.parts.model.scale.channels
        return crossings(found, level, level.index(channels), self.asked.draws) if level else found

    def _met(self, found: Iterator[tuple[SeriesRows, Times]]) -> Iterator[tuple[SeriesRows, Times]]:
        """Yield all pairs of `found`; raise ValueError where there is none."""
        first = next(found, None)
        if first is None:
            raise ValueError(
                f"{self.given.path} has no rows, only the columns {self.given.names}; expected a row per time."
            )
        yield from chain([first], found)

    def _checked(self, rows: SeriesRows, notices: list[Notices]) -> SeriesRows:
        """Return the rows; raise ValueError for a value other than 0 and 1 where the model takes binary values."""
        for each in notices:
            each.read(rows.values)
        other = np.argwhere(~np.isnan(rows.values) & (rows.values != 0) & (rows.values != 1))
        if self.parts.model.scale.support == "binary" and len(other):
            point, channel = other[0]
            raise ValueError(
                f"{self.given.path}: series '{rows.name}' holds {rows.values[point, channel]:g} in channel "
                f"'{self.parts.model.scale.channels[channel]}' at time {rows.times[point]:g}; the model is one of "
                "zeros and ones. Make it 0 or 1."
            )
        return rows

    def _predict(self, batch: TimeSeries, notices: list[Notices]) -> Prediction:
        """Return the recalibrated prediction of a batch; all predictions are made here."""
        model = self.parts.model
        with model.fixed_noise(self.asked.seed):
            batch = batch.to(model.device)
            prediction = model.predict(batch, self.asked.draws)
            notices[0].predicted(batch, self.recalibration)
            return self.recalibration.apply(prediction, batch) if self.recalibration else prediction

    @property
    def clock(self) -> Clock:
        """Return the time format in which times are written: that of at=, else that of the input."""
        return (self.at or self.given).clock or Clock(False)

    def frame(self, found: Answer, text: bool = False) -> pd.DataFrame:
        """Return a summary as the data frame to write; text: dates, also those of crossings, as ISO strings."""
        numbered = self.given.whole_ids and (self.at is None or self.at.whole_ids)
        names = np.array([question.name for question in found.questions], dtype=object)
        head = {
            "id": names[found.owner].astype(np.int64 if numbered else object),
            "time": self.clock.write(found.times, text),
            "channel": np.array(self.parts.model.scale.channels, dtype=object)[found.channel],
        }
        numbers: dict[str, Any] = dict(found.numbers)
        if self.asked.when:
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
        each = [recalibration_of(one, wanted, Path(name)) for one, name in zip(model, model.names, strict=True)]
        found = tuple(one if isinstance(one, Recalibration) else None for one in each)
        return Recalibrations(model.names, found) if any(found) else None
    if folder is None or wanted is False or (model.scale.support != "real" and not wanted):
        return None
    if wanted is None and not (folder / FILE).is_file():
        log.warning(
            "%s holds no %s: spreads are the model's own, not recalibrated. Fit it: python -m vrnn_lab.evaluate "
            "run=%s recalibrate=true",
            folder,
            FILE,
            folder,
        )
        return None
    return load(folder, model.scale.channels)


def form_of(config: DictConfig, changes: dict[str, Any]) -> TableSchema:
    """Return the input's column names: those of `changes`, else of the run's own table, else the default names."""
    own = config.data if config.data.get("_target_") == TABLE else {}
    named: dict[str, Any] = {key: own[key] for key in ("id", "time", "channel", "value") if key in own}
    return TableSchema(**(named | changes))
