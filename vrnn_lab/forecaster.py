"""Fit a model to a data frame and query it, as the commands do with files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from re import escape, sub
from shutil import copyfile, copytree, rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf

from vrnn_lab.cli.arguments import refuse_repeated
from vrnn_lab.config.compose import choices, compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import typed
from vrnn_lab.config.validate import check
from vrnn_lab.core import run_files
from vrnn_lab.core.files import write_whole, write_yaml
from vrnn_lab.data.table.time_format import spans
from vrnn_lab.evaluation.scores import fair_crps
from vrnn_lab.forecasting.crossings import DRAWS, Level
from vrnn_lab.forecasting.ensemble import Ensemble, Weights, check_splits, load_runs
from vrnn_lab.forecasting.forecast import Forecasts, Query, recalibration_of, schema_of
from vrnn_lab.forecasting.frames import as_pandas, held_out, paired, usual_name
from vrnn_lab.forecasting.mixture_folder import Mixture, expanded
from vrnn_lab.forecasting.summary import path_names
from vrnn_lab.runs.baseline_folder import copy_baseline, is_baseline, run_of
from vrnn_lab.runs.build import Parts, load_parts, roles_of
from vrnn_lab.runs.folder import config_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ahead = float | int | str | timedelta  # in the data's unit of time; for dates also a text such as 1h, or a Timedelta


KEYS = {
    "model": "model",
    "optim": "optim",
    "lr": "optim.lr",
    "batch_size": "data.batch_size",
    "max_steps": "trainer.max_steps",
    "max_time": "trainer.max_time",
    "seed": "seed",
}  # the constructor's parameters that set a key of the config


class Forecaster:
    """Fit a model to a data frame in a run folder, and query it.

    `Forecaster(model="rnn", lr=0.003).fit(frame).predict(frame, horizon=10, every=1)`

    All that the command line can set is set by overrides: `Forecaster("model=rnn", "schedule.warmup=0.1")`.
    Estimators of scikit-learn have the same `get_params`, `set_params` and `score`, and `sklearn.base.clone` copies a
    Forecaster.
    """

    def __init__(
        self,
        *words: str,
        model: str | None = None,
        optim: str | None = None,
        lr: float | int | None = None,
        batch_size: int | None = None,
        max_steps: int | None = None,
        max_time: float | int | str | None = None,
        seed: int | None = None,
        overrides: Sequence[str] = (),
        folder: str | Path | None = None,
    ):
        """Take a model and how to train it; raise ConfigError for an unknown key and for a value of a wrong type.

        model, optim: names of options, such as latent_ode and adamw. lr: optim.lr. batch_size: series a step.
        max_steps, max_time: of the fit (trainer.*), as 2000 and "2m". words, overrides: further keys, as on the
        command line. Raise ValueError for a key that is given two values.

        folder: the run folder; None: a temporary one, which is removed with the Forecaster unless `save` keeps it.
        """
        self._params = {
            "model": model,
            "optim": optim,
            "lr": lr,
            "batch_size": batch_size,
            "max_steps": max_steps,
            "max_time": max_time,
            "seed": seed,
            "overrides": (*words, *overrides) if words else overrides,
            "folder": folder,
        }
        self._parts: Parts | None = None
        self._temporary: Path | None = None
        self._check()

    def _check(self) -> None:
        """Make the overrides of the parameters and check them."""
        named = {KEYS[name]: value for name, value in self._params.items() if name in KEYS and value is not None}
        overrides = [f"{key}={value}" for key, value in named.items()] + list(self._params["overrides"])
        if reserved := [o for o in overrides if o.lstrip("+~").split("=")[0] in ("data", "data.path")]:
            raise ConfigError(
                f"{reserved[0]}: a Forecaster's data is the frame that it is fitted to; leave this override out."
            )
        refuse_repeated(overrides)
        if overrides:
            check(compose(["data=table", "data.path=frame.csv", *overrides]))
        self.overrides = overrides

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor, as scikit-learn's estimators do."""
        return dict(self._params)

    def set_params(self, **params: Any) -> "Forecaster":
        """Change arguments of the constructor; what was fitted is forgotten. Raise ValueError for an unknown one."""
        if unknown := params.keys() - self._params.keys():
            raise ValueError(f"{min(unknown)} is no parameter of a Forecaster; it has {', '.join(self._params)}.")
        self._params |= params
        self._parts = self._temporary = None
        self._check()
        return self

    @property
    def folder(self) -> Path:
        """Return the run folder; where none was given it is a temporary one."""
        if (given := self._params["folder"]) is not None:
            return Path(given)
        if self._temporary is None:
            self._temporary = Path(mkdtemp(prefix="vrnn_lab_"))
            finalize(self, rmtree, self._temporary, ignore_errors=True)
        return self._temporary / "run"

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self._params.items() if value is not None and value != ()]
        if self._parts is None:
            state = "not fitted"
        else:
            scale = self._parts.model.scale
            state = f"fitted to {', '.join(scale.channels[:5])}{', ...' * (len(scale.channels) > 5)}"
        return f"Forecaster({', '.join(given)}): {state}"

    @classmethod
    def load(cls, folder: str | Path | Sequence[str | Path], trust: bool | str | Sequence[str] = ()) -> "Forecaster":
        """Load a run that is finished, or interrupted after its first checkpoint, whatever started it; or several.

        Several folders give one forecaster: the mixture of the runs' predictions with equal weights, each
        recalibrated by its own factors. The folder of vrnn_lab.auto gives the mixture of its runs with their weights.
        Raise ConfigError where they differ in channels, covariates, units or kind of time.

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
        start: "str | Path | Forecaster | None" = None,
    ) -> "Forecaster":
        """Train on the frame, which is kept as data.csv in the run folder, and return the Forecaster.

        frame: of pandas, also with an index (id, time), or of polars. The columns are named as those of data=table;
        the names unique_id, ds and y of other libraries are understood. start: a run, or a fitted Forecaster, of the
        same model and channels, whose weights the fit starts from. Raise ConfigError where config and frame cannot
        work.
        """
        from vrnn_lab.cli.arguments import configure_logging
        from vrnn_lab.training import fit as fitting

        if self._parts and isinstance(self._parts.model, Ensemble):
            raise ConfigError(
                "an ensemble of runs cannot be fitted; fit a Forecaster for each run, then load them together."
            )

        if self._params["folder"] is None:
            self._temporary = None  # each fit has a temporary folder of its own
        frame = as_pandas(frame)
        id, time = usual_name(frame, "id", id), str(usual_name(frame, "time", time))
        named: dict[str, Any] = {"id": id, "time": time, "channel": channel, "value": value}
        named |= {"known": list(known), "static": list(static)}
        named |= {"values": values and list(values), "error": error and list(error)}
        file = self._keep(frame)
        keys = {"data.path": str(file), **{f"data.{key}": name for key, name in named.items()}}
        if isinstance(start, Forecaster) and isinstance(start.parts.model, Ensemble):
            raise ConfigError("start is an ensemble of runs; give one run: its folder, or a Forecaster of it.")
        if start is not None:
            keys["start"] = str(start.folder if isinstance(start, Forecaster) else start)
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
            if given is not None:
                as_pandas(given, name)
        at, future = (None if given is None else as_pandas(given) for given in (at, future))
        horizon, every = spans(horizon, every)
        query = Query(at, horizon, every, fill, draws, seed, paths, recalibrate, future=future)
        return self._predicted(frame, query, columns)

    def surprise(
        self,
        frame: pd.DataFrame,
        draws: int = 99,
        seed: int = 0,
        recalibrate: bool | None = None,
        **columns: str | None,
    ) -> pd.DataFrame:
        """Return how unlikely every observed value is given all others, as `predict` with surprise=true does.

        A row for each observed value: id, time, channel, the prediction of it (mean, std, q05 to q95) from all other
        values of its series, for a step model from those before it, value, and surprise, its two-sided tail
        probability: uniform from 0 to 1 if the model is right. Raise ValueError for values that are not real.
        """
        query = Query(draws=draws, seed=seed, recalibrate=recalibrate, surprise=True)
        return self._predicted(frame, query, dict(columns))

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

    def _forecasts(self, frame: pd.DataFrame, query: Query, columns: dict[str, str | None]) -> Forecasts:
        return Forecasts.of(self.parts, as_pandas(frame), query, schema_of(self.parts.config, columns), self.folder)

    def _predicted(self, frame: pd.DataFrame, query: Query, columns: dict[str, str | None]) -> pd.DataFrame:
        forecasts = self._forecasts(frame, query, columns)
        return pd.concat([forecasts.frame(summary) for summary in forecasts.summaries(whole=True)], ignore_index=True)

    def score(
        self, frame: pd.DataFrame, question: str = "forecast", draws: int = 99, seed: int = 0, **columns: str | None
    ) -> float:
        """Return minus the mean CRPS, in training stds, of held-out values of a frame: higher is better.

        question: forecast: the later half of each series' times is held out; gaps: every second time. Raise
        ValueError for another question, and where no value is held out.
        """
        if question not in ("forecast", "gaps"):
            raise ValueError(f"question={question}: expected forecast or gaps.")
        frame, schema = as_pandas(frame), schema_of(self.parts.config, dict(columns))
        seen, queried = held_out(frame, schema, question)
        scale = self.parts.model.scale
        if not len(queried):
            raise ValueError("no series of the frame has two times, so none can be held out.")
        keys = [name for name in (schema.id, schema.time, *roles_of(self.parts.config, scale).known) if name]
        at = pd.DataFrame(queried[keys]).drop_duplicates()
        query = Query(at, draws=draws, seed=seed, paths=draws, ahead=question == "forecast")
        found = self._predicted(seen, query, dict(columns))
        rows = paired(queried, found, schema, scale.channels)
        if not len(rows):
            raise ValueError("none of the values that were held out is observed.")
        paths = torch.from_numpy(np.array(rows[path_names(draws)]).T).sort(0).values
        crps = fair_crps(paths, torch.from_numpy(np.array(rows["truth"])))
        std = dict(zip(scale.channels, scale.score_std.tolist(), strict=True))
        return -float(np.mean(crps.numpy() / np.array([std[channel] for channel in rows["channel"]])))

    def plot(
        self,
        frame: pd.DataFrame,
        horizon: Ahead | None = None,
        every: Ahead | None = None,
        at: pd.DataFrame | None = None,
        fill: bool = False,
        draws: int = 99,
        seed: int = 0,
        **columns: str | None,
    ) -> "Figure":
        """Return a figure of the first series of a frame: its values, and the median and intervals of the prediction.

        The arguments are those of `predict`.
        """
        from vrnn_lab.forecasting.forecast_figures import figure_of_first

        ahead = spans(horizon, every)
        query = Query(None if at is None else as_pandas(at, "at"), *ahead, fill, draws, seed)
        return figure_of_first(self._forecasts(frame, query, dict(columns)))

    def sample(self, n: int = 16, points: int | None = None, seed: int = 0) -> pd.DataFrame:
        """Return series from the model's prior: a row for each point, with series, time and the channels.

        n: how many; points: evenly spaced times of each, by default as dense as the training series.
        """
        from vrnn_lab.models import prior_samples

        if isinstance(self.parts.model, Ensemble):
            raise ConfigError("an ensemble of runs has no prior of its own; load one of its runs.")
        return prior_samples.table(
            prior_samples.draw(self.parts.model, n, seed, points), self.parts.model.scale.channels
        )

    def save(self, folder: str | Path) -> Path:
        """Copy the run, or the runs of an ensemble with their weights, to a new folder, which `load` reads.

        Raise ConfigError before `fit` or `load`, and where the folder holds anything.
        """
        folder, model = Path(folder), self.parts.model
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"save({folder}): the folder holds something already; name a new one.")
        if not isinstance(model, Ensemble):
            _copied(self.folder, folder)
            return folder
        runs = [Path(name) for name in model.names]
        names = [f"{number}_{run.name}" for number, run in enumerate(runs, 1)]
        copies = {run: name for run, name in zip(runs, names, strict=True) if not is_baseline(run)}
        for run in filter(is_baseline, runs):
            copies.setdefault(run_of(run), run_of(run).name)  # the run whose data and scale it shares
        for run, name in copies.items():
            _copied(run, folder / name)
        for run, name in zip(runs, names, strict=True):
            if is_baseline(run):
                copy_baseline(run, folder / name, copies[run_of(run)])
        equal = (1 / len(runs),) * len(runs)
        Mixture(tuple(folder / name for name in names), model.weights or Weights(equal, equal)).save(folder)
        return folder

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


def _copied(run: Path, folder: Path) -> None:
    """Copy a run folder; a table that lies in it, or was kept beside it by vrnn_lab.auto, goes with it."""
    copytree(run, folder, dirs_exist_ok=True)
    config = config_of(folder)
    path = Path(str(config.data.get("path") or ""))
    if path.name == run_files.FRAME and path.parent in (run.absolute(), run.absolute().parent) and path.is_file():
        copyfile(path, folder / run_files.FRAME)
        config.data.path = str((folder / run_files.FRAME).absolute())
        write_yaml(folder / run_files.CONFIG, OmegaConf.to_yaml(config))


def of_frame(message: str, file: Path) -> str:
    """Reword a message about the file that a frame was written to, and the commands in it, to be about the frame."""
    read = escape(f"pd.read_csv({str(file)!r}")
    message = message.replace("import pandas as pd; ", "")
    message = sub(rf"frame = {read}[^)]*\); ", "", message)
    message = sub(rf"{read}[^)]*\)", "frame = frame", message)
    message = sub(r"(; frame)?\.to_csv\('[^']*', index=False\)", "", message)
    return message.replace(str(file), "the data frame")
