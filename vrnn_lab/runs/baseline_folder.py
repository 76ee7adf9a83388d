"""Read and write the folder of a baseline that is a member of a mixture: baseline.json, beside a run."""

from math import isfinite
from pathlib import Path

import torch

from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.core.run_files import BASELINE
from vrnn_lab.evaluation.baseline_model import BaselineModel, Spread
from vrnn_lab.models.base import SequenceModel

CURE = "Run the same vrnn_lab.auto command again, which writes it anew."


def is_baseline(folder: Path) -> bool:
    """Return whether a folder holds a baseline in place of a run."""
    return (folder / BASELINE).is_file()


def save(folder: Path, name: str, run: Path, gaps: Spread, forecasts: Spread) -> None:
    """Write <folder>/baseline.json; run: a run folder beside it, whose data and scale are those of the baseline."""
    spreads = {"gaps": gaps, "forecasts": forecasts}
    numbers = {
        key: {"constant": s.constant.tolist(), "growth": s.growth.tolist(), "furthest": s.furthest}
        for key, s in spreads.items()
    }
    write_json(folder / BASELINE, {"baseline": name, "run": run.name, **numbers})


def run_of(folder: Path) -> Path:
    """Return the run folder beside a baseline's; for any other folder the folder itself."""
    if not is_baseline(folder):
        return folder
    name = read_json(folder / BASELINE, CURE).get("run")
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise DamagedError(f"{folder / BASELINE} names no run folder beside it: {name!r}. {CURE}")
    return folder.parent / name


def copy_baseline(folder: Path, new: Path, run: str) -> None:
    """Copy a baseline's folder; run: the name of its run beside the new folder."""
    content = {key: value for key, value in read_json(folder / BASELINE, CURE).items() if key != "sha256"}
    write_json(new / BASELINE, content | {"run": run})


def name_of(folder: Path) -> str:
    """Return the name of a folder's baseline, as in `metrics.json`."""
    return str(read_json(folder / BASELINE, CURE).get("baseline"))


def load(folder: Path, model: SequenceModel) -> BaselineModel:
    """Return the baseline of a folder, with the scale of the model of its run.

    Raise DamagedError for a file that no command of ours wrote.
    """
    content = read_json(folder / BASELINE, CURE)
    try:
        gaps, forecasts = (_spread(content[key], model.scale.dim) for key in ("gaps", "forecasts"))
        return BaselineModel(model.scale, model.recipe, content["baseline"], gaps, forecasts)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder / BASELINE} holds no baseline of these channels ({error}). {CURE}") from error


def _spread(numbers: dict, dim: int) -> Spread:
    constant, growth = (torch.tensor(numbers[key], dtype=torch.float64) for key in ("constant", "growth"))
    furthest = float(numbers["furthest"])
    good = constant.shape == growth.shape == (dim,) and (constant > 0).all() and (growth >= 0).all()
    if not good or not constant.isfinite().all() or not growth.isfinite().all() or not isfinite(furthest):
        raise ValueError("its spreads are not positive numbers of each channel")
    return Spread(constant, growth, furthest)
