"""Train, compare and apply time-series models with latent variables or continuous time."""

from typing import TYPE_CHECKING

__all__ = ["Forecaster", "__version__", "auto", "build", "load"]

if TYPE_CHECKING:
    __version__: str
    from pathlib import Path
    from typing import Any

    from vrnn_lab.auto import auto as auto
    from vrnn_lab.data.base import SeriesData
    from vrnn_lab.forecaster import Forecaster as Forecaster
    from vrnn_lab.models.base import SequenceModel


def build(overrides: "list[str] | None" = None) -> "tuple[SequenceModel, SeriesData]":
    """Build an untrained model and its dataset from Hydra overrides: `build(["model=vrnn", "data=ou"])`.

    Raise ConfigError where the overrides make no config that works.
    """
    from vrnn_lab.config.compose import compose
    from vrnn_lab.runs.build import assemble

    parts = assemble(compose(overrides or []))
    return parts.model, parts.data


def load(run: "str | Path") -> "tuple[SequenceModel, SeriesData]":
    """Load the fitted model (best checkpoint, in evaluation mode) and the dataset of a run folder.

    Raise ConfigError where the folder has no checkpoint or names classes that are not ours; DamagedError for a
    damaged file.
    """
    from vrnn_lab.runs.build import load_parts

    parts = load_parts(run)
    return parts.model, parts.data


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("vrnn_lab")
        except PackageNotFoundError:  # a checkout on the path that is not installed
            return "unknown"
    if name == "auto":
        import vrnn_lab.auto

        return vrnn_lab.auto
    if name != "Forecaster":
        raise AttributeError(f"module 'vrnn_lab' has no attribute '{name}'")
    from vrnn_lab.forecaster import Forecaster

    return Forecaster
