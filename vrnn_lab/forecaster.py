"""Fit a model to a data frame and query it, as the commands do with files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from re import escape, sub
from typing import Any

import pandas as pd

from vrnn_lab.cli.arguments import refuse_repeated
from vrnn_lab.config.compose import choices, compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import typed
from vrnn_lab.config.validate import check
from vrnn_lab.core import run_files
from vrnn_lab.core.files import write_whole
from vrnn_lab.data.table.time_format import spans
from vrnn_lab.forecasting.crossings import DRAWS, Level
from vrnn_lab.forecasting.ensemble import Ensemble, check_splits, load_runs
from vrnn_lab.forecasting.forecast import Forecasts, Query, recalibration_of, schema_of
from vrnn_lab.forecasting.mixture_folder import expanded
from vrnn_lab.runs.build import Parts, load_parts

Ahead = float | int | str | timedelta  # in the data's unit of time; for dates also a text such as 1h, or a Timedelta


class Forecaster:
    """Fit a model, given by overrides as on the command line, to a data frame in a run folder, and query it.

    `Forecaster("model=rnn", "optim.lr=0.003").fit(frame).predict(frame, horizon=10, every=1)`
    """

    def __init__(self, *overrides: str, folder: str | Path | None = None):
        """Take the overrides; raise ConfigError for an unknown key and for a value of a wrong type.

        Raise ValueError for a key that is given two values.

        folder: the run folder, by default a new one in outputs/.
        """
        if reserved := [o for o in overrides if o.lstrip("+~").split("=")[0] in ("data", "data.path")]:
            raise ConfigError(
                f"{reserved[0]}: a Forecaster's data is the frame that it is fitted to; leave this override out."
            )
        refuse_repeated(overrides)
        if overrides:
            check(compose(["data=table", "data.path=frame.csv", *overrides]))
        self.overrides = list(overrides)
        self.folder = Path(folder or f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
        self._parts: Parts | None = None

    @classmethod
    def load(cls, folder: str | Path | Sequence[str | Path], trust: bool | str | Sequence[str] = ()) -> "Forecaster":
        """Load a run that is finished, or interrupted after its first checkpoint, whatever started it; or several.

        Several folders give one forecaster: the mixture of the runs' predictions with equal weights, each
        recalibrated by its own factors. The folder of vrnn_lab.auto gives the mixture of its runs with their weights.
        Raise ConfigError where they differ in channels, covariates, units or kind of
        time.

        trust: names of the modules of your own classes that the runs are built of and that you have not imported;
        True trusts the folders. Otherwise a folder from somebody else runs no code: ConfigError says what it would
        run.
        """
        folders = [folder] if isinstance(folder, (str, Path)) else list(folder)
        if len({Path(path).absolute() for path in folders}) < max(1, len(folders)):
            raise ConfigError(f"Forecaster.load({folders}): expected one run folder, or several, each once.")
        mixture = expanded([Path(path) for path in folders])
        forecaster = cls(folder=mixture.folders[0])
        modules = (trust,) if isinstance(trust, str) else trust
        allowed = modules if isinstance(modules, bool) else tuple(modules)
        forecaster._parts = load_runs(mixture.folders, trust=allowed, weights=mixture.unequal)
        return forecaster

    def fit(
        self,
        frame: pd.DataFrame,
        id: str | None = "id",
        time: str = "time",
        values: Sequence[str] | None = None,
        channel: str | None = None,
        value: str | None = None,
        known: Sequence[str] = (),
        static: Sequence[str] = (),
        error: Sequence[str | None] | None = None,
    ) -> "Forecaster":
        """Train on the frame, which is kept as data.csv in the run folder, and return the Forecaster.

        The columns are named as those of data=table. Raise ConfigError where config and frame cannot work.
        """
        from vrnn_lab.cli.arguments import configure_logging
        from vrnn_lab.training import fit as fitting

        if self._parts and isinstance(self._parts.model, Ensemble):
            raise ConfigError(
                "an ensemble of runs cannot be fitted; fit a Forecaster for each run, then load them together."
            )

        named: dict[str, Any] = {"id": id, "time": time, "channel": channel, "value": value}
        named |= {"known": list(known), "static": list(static)}
        named |= {"values": values and list(values), "error": error and list(error)}
        file = self._keep(frame)
        keys = {"data.path": str(file), **{f"data.{key}": name for key, name in named.items()}}
        overrides = ["data=table", *(f"{key}={typed(name)}" for key, name in keys.items()), *self.overrides]
        configure_logging()
        try:
            fitting.run(compose(overrides), self.folder, overrides, choices(overrides))
        except ValueError as refused:
            if not (self.folder / ".hydra").exists():  # refused before anything was trained: leave no copy
                file.unlink()
                with suppress(OSError):
                    self.folder.rmdir()
            raise type(refused)(of_frame(str(refused), file)) from refused
        self._parts = load_parts(self.folder)
        return self

    def _keep(self, frame: pd.DataFrame) -> Path:
        file = (self.folder / run_files.FRAME).absolute()
        written = frame.to_csv(index=False, lineterminator="\n")
        if file.exists() and file.read_text() != written:
            raise ConfigError(f"{self.folder} holds a run on another frame; choose another folder.")
        write_whole(file, written)
        return file

    @property
    def parts(self) -> Parts:
        """Return the fitted parts; raise ConfigError before `fit` or `load`."""
        if self._parts is None:
            raise ConfigError("the Forecaster is not fitted; call fit(frame), or Forecaster.load(<run folder>).")
        return self._parts

    def predict(
        self,
        frame: pd.DataFrame,
        at: pd.DataFrame | None = None,
        horizon: Ahead | None = None,
        every: Ahead | None = None,
        fill: bool = False,
        draws: int = 99,
        seed: int = 0,
        paths: int = 0,
        recalibrate: bool | None = None,
        future: pd.DataFrame | None = None,
        **columns: str | None,
    ) -> pd.DataFrame:
        """Return predictions as the command `predict` makes them: a row for each queried value.

        One of at (a frame of id and time), horizon with every (in the data's unit of time), and fill (the empty
        cells). future: a frame of id, time and the covariates after the last observations, for a horizon where the
        model needs them. recalibrate: None: where the run has factors. columns: id, time, channel, value, where their
        names are not those of the fit. Raise ValueError where these do not fit together or to the model.
        """
        if unknown := columns.keys() - {"id", "time", "channel", "value"}:
            raise TypeError(
                f"predict() has no argument '{min(unknown)}'; its names of columns are id, time, channel and value."
            )
        for name, given in (("at", at), ("future", future)):
            if given is not None and not isinstance(given, pd.DataFrame):
                raise TypeError(f"{name} is a {type(given).__name__}; expected a data frame.")
        horizon, every = spans(horizon, every)
        query = Query(at, horizon, every, fill, draws, seed, paths, recalibrate, future)
        return self._predicted(frame, query, columns)

    def when(
        self,
        frame: pd.DataFrame,
        above: float | int | None = None,
        below: float | int | None = None,
        channel: str | None = None,
        within: Ahead | None = None,
        every: Ahead | None = None,
        draws: int = DRAWS,
        seed: int = 0,
        recalibrate: bool | None = None,
        columns: Mapping[str, str | None] | None = None,
        signal: bool = False,
    ) -> pd.DataFrame:
        """Predict when each series is first at or above, or at or below, a level, as `predict` with when= does.

        above, below: one of the two, in the data's units. channel: which one, where there are several. within: how
        far ahead, in steps of every, from each series' last observed time on. columns: id, time, channel, value,
        where their names are not those of the fit. Raise ValueError where these do not fit together or to the model.

        Return a row for each series and queried time: id, time, channel, crossed (probability that it has crossed by
        then) and, the same in all rows of a series, already (its last observed value is past the level), never, q05
        to q95 (quantiles of the time of the first crossing, empty beyond the horizon). Crossings are of values as
        they would be observed at the queried times; with signal=True of the value without its observation noise, at
        any time up to each queried one, for model=linear_sde.
        """
        named = [(level, side) for level, side in ((above, True), (below, False)) if level is not None]
        if len(named) != 1:
            raise ValueError(
                f"above={above}, below={below}: expected exactly one of the two, the level to be crossed."
            )
        if within is None:
            raise ValueError("within is missing: expected how far ahead to predict, in the data's unit of time.")
        level = Level(float(named[0][0]), named[0][1], channel, signal)
        horizon, step = spans(within, every)
        query = Query(None, horizon, step, draws=draws, seed=seed, recalibrate=recalibrate, when=level)
        return self._predicted(frame, query, dict(columns or {}))

    def _predicted(self, frame: pd.DataFrame, query: Query, columns: dict[str, str | None]) -> pd.DataFrame:
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"frame is a {type(frame).__name__}; expected a data frame.")
        forecasts = Forecasts.of(self.parts, frame, query, schema_of(self.parts.config, columns), self.folder)
        return pd.concat([forecasts.frame(summary) for summary in forecasts.summaries(whole=True)], ignore_index=True)

    def backtest(
        self, horizon: Ahead, every: Ahead | None = None, folds: int = 5, split: str = "test"
    ) -> pd.DataFrame:
        """Return forecasts from rolling cutoffs of a split of the data of the fit, value by value.

        The columns are those of `forecasting.backtest.backtest`. Several runs are scored as their mixture, each
        recalibrated as in `predict`; raise ConfigError where their test series differ.
        """
        from vrnn_lab.forecasting.backtest import backtest

        ahead, step = spans(horizon, every)
        assert ahead is not None
        if not isinstance(self.parts.model, Ensemble):
            return backtest(self.parts, ahead, step, folds, split)
        check_splits(self.parts.model.names)
        factors = recalibration_of(self.parts.model, None, None)
        return backtest(self.parts, ahead, step, folds, split, factors and factors.apply)


def of_frame(message: str, file: Path) -> str:
    """Reword a message about the file that a frame was written to, and the commands in it, to be about the frame."""
    read = escape(f"pd.read_csv({str(file)!r}")
    message = message.replace("import pandas as pd; ", "")
    message = sub(rf"frame = {read}[^)]*\); ", "", message)
    message = sub(rf"{read}[^)]*\)", "frame = frame", message)
    message = sub(r"(; frame)?\.to_csv\('[^']*', index=False\)", "", message)
    return message.replace(str(file), "the data frame")
