"""Read and write the folder of a weighted mixture of runs, which vrnn_lab.auto makes; commands take it as run=."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.core.run_files import MIXTURE
from vrnn_lab.forecasting.ensemble import Weights
from vrnn_lab.runs.packed import unpacked

CURE = "Run the same vrnn_lab.auto command again, which writes it anew from the runs of the folder."


@dataclass(frozen=True)
class Mixture:
    """Hold run folders and their weights."""

    folders: tuple[Path, ...]
    weights: Weights

    @property
    def unequal(self) -> Weights | None:
        """Return the weights where they differ, None where all are equal."""
        every = {*self.weights.gaps, *self.weights.ahead}
        return self.weights if len(every) > 1 else None

    def save(self, folder: Path) -> None:
        """Write <folder>/mixture.json; the runs lie in folders directly within `folder`."""
        names = [run.name for run in self.folders]
        write_json(folder / MIXTURE, {"runs": names, "gaps": self.weights.gaps, "ahead": self.weights.ahead})

    @classmethod
    def read(cls, folder: Path) -> "Mixture":
        """Read <folder>/mixture.json; raise DamagedError for one that no command of ours wrote."""
        content = read_json(folder / MIXTURE, CURE)
        names, gaps, later = (_list(content.get(key)) for key in ("runs", "gaps", "ahead"))
        good = len({*map(str, names)}) == len(names) == len(gaps) == len(later) > 0
        good = good and all(isinstance(n, str) and Path(n).name == n not in ("", ".", "..") for n in names)
        for weights in (gaps, later):
            good = good and all(isinstance(w, (int, float)) and 0 <= w <= 1 for w in weights)
            good = good and math.isclose(sum(weights), 1, abs_tol=1e-6)
        if not good:
            raise DamagedError(
                f"{folder / MIXTURE} holds no mixture; expected the names of runs in this folder, each once, and "
                f"their weights for gaps and for forecasts, which sum to 1. {CURE}"
            )
        return cls(tuple(folder / name for name in names), Weights(tuple(gaps), tuple(later)))


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def expanded(folders: Sequence[Path]) -> Mixture:
    """Return the runs behind folders or packed runs; each counts equally, and some may be mixtures themselves.

    Raise ConfigError where a run is named twice.
    """
    runs: dict[Path, tuple[float, float]] = {}
    for folder in map(unpacked, folders):
        alone = Mixture((folder,), Weights((1.0,), (1.0,)))
        part = Mixture.read(folder) if (folder / MIXTURE).is_file() else alone
        for run, gaps, later in zip(part.folders, part.weights.gaps, part.weights.ahead, strict=True):
            if run in runs:
                raise ConfigError(f"{run} is named twice, once within {folder}; name it once.")
            runs[run] = gaps / len(folders), later / len(folders)
    gaps, later = zip(*runs.values(), strict=True)
    return Mixture(tuple(runs), Weights(gaps, later))
