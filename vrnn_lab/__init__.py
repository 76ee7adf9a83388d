"""A laboratory for time-series models with latent variables or continuous time."""

from typing import TYPE_CHECKING

__all__ = ["Forecaster", "__version__", "build", "load"]

if TYPE_CHECKING:
    __version__: str
    from pathlib import Path
    from typing import Any

    from vrnn_lab.data.base import SeriesData
    from vrnn_lab.forecaster import Forecaster as Forecaster
    from vrnn_lab.models.base import SequenceModel


def build(overrides: "list[str] | None" = None) -> "tuple[SequenceModel, SeriesData]":
    """An untrained model and its data set from Hydra overrides: `build(["model=vrnn", "data=ou"])`."""
    from vrnn_lab.config.compose import compose
    from vrnn_lab.runs.build import assemble

    parts = assemble(compose(overrides or []))
    return parts.model, parts.data


def load(run: "str | Path") -> "tuple[SequenceModel, SeriesData]":
    """The fitted model (best checkpoint, in evaluation mode) and the data set of a run folder."""
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
        except PackageNotFoundError:  # a checkout that is on the path and not installed
            return "unknown"
    if name != "Forecaster":
        raise AttributeError(f"module 'vrnn_lab' has no attribute '{name}'")
    from vrnn_lab.forecaster import Forecaster

    return Forecaster
