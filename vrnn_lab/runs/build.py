"""Build the model and data of a config, score the model, and load a fitted one from its run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check, instantiate
from vrnn_lab.core import run_files
from vrnn_lab.core.files import DamagedError
from vrnn_lab.core.log_density import log_array
from vrnn_lab.core.series import Scale, Trend, Variation
from vrnn_lab.core.tasks import Task, Within
from vrnn_lab.data.base import SeriesData
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.evaluation.baselines import references
from vrnn_lab.evaluation.evaluate import Change, EvaluationProtocol, evaluate
from vrnn_lab.evaluation.scores import SeriesSums
from vrnn_lab.models.base import NUMBERS, SequenceModel
from vrnn_lab.models.recipe import KLWeight, Recipe
from vrnn_lab.runs import baseline_folder, checkpoints
from vrnn_lab.runs.dataset_cache import data_of
from vrnn_lab.runs.folder import config_to_build
from vrnn_lab.runs.trust import Trust

TABLE = "vrnn_lab.data.table.dataset.Table"
ROUNDING = 1e-9  # tolerance of the training range, in training stds or as a fraction of a window


@dataclass
class Parts:
    """Hold everything that a config builds, checked before anything is trained."""

    config: DictConfig
    model: SequenceModel
    data: SeriesData
    protocol: EvaluationProtocol


def assemble(config: DictConfig, scale: Scale | None = None) -> Parts:
    """Build the parts of a config; raise ConfigError where they cannot work.

    scale: of a fitted model; with it the dataset is not read.
    """
    check(config)
    data = instantiate(config.data, "data") if scale else data_of(config)
    data.task, data.order = instantiate(config.task, "task"), config.seed
    scale = scale or data.scale
    recipe = _recipe(config)
    pl.seed_everything(config.seed, verbose=False)
    model = instantiate(config.model, "model", scale=scale, recipe=recipe)
    model.seed = config.seed
    if model.point_process and not _all_scored(data.task):
        raise ConfigError(
            "task: a point process takes a point that is not scored for an event that did not happen, and this task "
            "leaves some points unscored; set task.scored=known, or task=density."
        )
    return Parts(config, model, data, instantiate(config.evaluate, "evaluate"))


def _all_scored(task: Task) -> bool:
    """Return whether a task scores every known value of a series."""
    within = getattr(task, "scored", "known") == "known" and not isinstance(task, Within)
    return within and all(map(_all_scored, getattr(task, "tasks", [])))


def _recipe(config: DictConfig) -> Recipe:
    """Build the recipe of a config, and an optimizer and schedule on trial.

    Both refuse impossible values only when they are made, which would otherwise be in training. Raise ConfigError.
    """
    parts = [instantiate(config[part], part) for part in ("optim", "schedule", "beta", "objective", "labels")]
    if not isinstance(parts[2], KLWeight):
        raise ConfigError(
            f"beta is a {type(parts[2]).__name__}; expected a subclass of vrnn_lab.models.recipe.KLWeight. Derive "
            "the class from it."
        )
    try:
        recipe = Recipe(*parts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        recipe.schedule(recipe.optim([torch.nn.Parameter(torch.zeros(1))]), 100)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optim or schedule: {error}") from error
    return recipe


def check_channels(known: Sequence[str], parts: Parts) -> None:
    """Raise ConfigError where the dataset's channels or covariates are not those that the model was trained on."""
    if tuple(known) != tuple(parts.data.channels):
        raise ConfigError(
            f"the model was trained on channels {', '.join(known)}; the data set now has "
            f"{', '.join(parts.data.channels)}. Give it data with the channels of training, in their order."
        )
    trained, now = parts.model.scale.given_covariates, parts.data.covariates
    if trained != now:
        raise ConfigError(
            f"the model was trained with the covariates {', '.join(trained) or 'none'}; the data set now has "
            f"{', '.join(now) or 'none'}. Give it those of training: set data.known and data.static as there."
        )


def score(parts: Parts, recalibrated: Change | None = None) -> dict[str, float]:
    """Return validation and test scores of the model as it is, and those of the baselines.

    recalibrated: a change of predictions, whose test scores are added as `recalibrated/test/...`.
    """
    scores: dict[str, float] = {}
    crps: dict[str, SeriesSums] = {}  # of the model on validation, for standard errors of differences to baselines
    check_channels(parts.model.scale.channels, parts)
    for split in ("val", "test"):
        change = recalibrated if split == "test" else None
        kept = crps if split == "val" else None
        scores |= evaluate(parts.model, parts.data, split, parts.protocol, parts.config.seed, change, kept)
    if parts.data.noise_std is not None:
        scores["noise_floor"] = parts.data.noise_std**2
    scores |= apart_from_training(parts, "test")
    return scores | references(parts.data, parts.protocol, parts.model.scale, crps=crps)


def apart_from_training(parts: Parts, split: str) -> dict[str, float]:
    """Return how much of a user's table lies beyond what training showed, empty where that has no meaning.

    `<split>/outside_range` is the fraction of values outside the training values' range, `<split>/longer_windows`
    that of windows longer than any of training.
    """
    scale, series = parts.model.scale, parts.data.splits[split]
    if not scale.own_levels or scale.variation is None or scale.trend is not None:
        return {}
    values = log_array(np.asarray(series.values), scale.log_channels.numpy())
    low, high = (
        (scale.mean + scale.std * each).cpu().numpy()
        for each in (scale.variation.low - ROUNDING, scale.variation.high + ROUNDING)
    )
    known = ~np.isnan(values)
    outside = known & ((values < low) | (values > high))
    longer = series.windows[:, 1] - series.windows[:, 0] > float(scale.longest) * (1 + ROUNDING)
    return {
        f"{split}/outside_range": float(outside.sum() / max(1, known.sum())),
        f"{split}/longer_windows": float(longer.mean()),
    }


def load_parts(folder: str | Path, changes: DictConfig | None = None, trust: Trust = ()) -> Parts:
    """Load the fitted parts of a run folder: the best checkpoint, on the CPU; the dataset is read on first use.

    trust: the modules of the user's own classes, or True (vrnn_lab.runs.trust). Raise ConfigError where the folder
    would build anything else or has no checkpoint; DamagedError where a file is not as it was written.
    """
    folder = Path(folder)
    if baseline_folder.is_baseline(folder):
        parts = load_parts(baseline_folder.run_of(folder), changes, trust)
        return replace(parts, model=baseline_folder.load(folder, parts.model))
    if (folder / run_files.MIXTURE).is_file():
        raise ConfigError(f"{folder} holds a mixture of runs; name one of them, such as {_a_run_in(folder)}.")
    config = config_to_build(folder, trust)
    if changes is not None:
        config = DictConfig(OmegaConf.merge(config, changes))
    file = folder / run_files.BEST
    if not file.is_file():
        raise ConfigError(f"{folder} has no checkpoint yet ({file} does not exist); train it: resume={folder}")
    checkpoint = checkpoints.read(file)
    try:
        scale = _scale(checkpoint)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{file} holds no scale of the training data ({error}); another program wrote it."
        ) from error
    parts = assemble(config, scale)
    try:
        parts.model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{file} does not fit the model of {folder / run_files.CONFIG}: {reason}") from error
    parts.model.eval()
    return parts


def _a_run_in(folder: Path) -> Path:
    """Return the first of the run folders within a folder, or the folder itself where it holds none."""
    return min((path.parent.parent for path in folder.glob(f"*/{run_files.CONFIG}")), default=folder)


def roles_of(config: DictConfig, scale: Scale) -> ColumnRoles:
    """Return the covariate and error-bar columns of a run's own table, or the known covariates of other data."""
    if config.data.get("_target_") != TABLE:
        return ColumnRoles(known=scale.given_covariates)
    named = {key: tuple(config.data.get(key) or ()) for key in ("known", "static", "error")}
    return ColumnRoles(**named)


def _scale(checkpoint: dict[str, Any]) -> Scale:
    """Return the scale of the training data, from a checkpoint's buffers and entries."""
    numbers = {name: checkpoint["state_dict"][f"data_{name}"] for name in NUMBERS}
    return Scale(
        channels=tuple(checkpoint["channels"]),
        support=checkpoint["support"],
        classes=tuple(checkpoint["classes"]),
        labels_of_points=checkpoint["labels_of_points"],
        dates=checkpoint.get("dates"),
        zoned=checkpoint.get("zoned"),
        errors=checkpoint.get("errors", False),
        whole_series=checkpoint.get("whole_series", False),
        own_levels=checkpoint.get("own_levels", False),
        variation=_variation(checkpoint),
        trend=_trend(checkpoint["state_dict"]),
        common_time=checkpoint.get("common_time", False),
        log=tuple(checkpoint.get("log", ())),
        value_std=checkpoint["state_dict"].get("data_score_std"),
        **numbers,
        **_scale_of_covariates(checkpoint),
    )


def _variation(checkpoint: dict[str, Any]) -> Variation | None:
    """Return the variation of the training values; older checkpoints hold `change` in place of `wander`."""
    saved = checkpoint.get("variation")
    return Variation(**({"wander": saved["change"]} | saved)) if saved else None


def _scale_of_covariates(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the scale's entries on covariates, empty where there are none, as in checkpoints of early versions."""
    if not checkpoint.get("covariates"):
        return {}
    state, periods = checkpoint["state_dict"], tuple(checkpoint.get("periods", ()))
    keys = {f"covariate_{name}": f"data_covariate_{name}" for name in ("mean", "std")}
    numbers = {name: state[key] for name, key in keys.items() if key in state}
    return {"covariates": tuple(checkpoint["covariates"]), "periods": periods, **numbers}


def _trend(state: dict[str, Any]) -> Trend | None:
    if "trend_coefficients" not in state:
        return None
    return Trend(state["trend_coefficients"], state["trend_covariance"], state.get("trend_noise"))
