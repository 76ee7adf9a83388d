"""Read and write the folder of a weighted mixture of runs, which vrnn_lab.auto makes; commands take it as run=."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import DamagedError, read_json, write_json
from vrnn_lab.core.run_files import MIXTURE

CURE = "Run the same vrnn_lab.auto command again, which writes it anew from the runs of the folder."


@dataclass(frozen=True)
class Mixture:
    """Hold run folders and their weights, which sum to 1."""

    folders: tuple[Path, ...]
    weights: tuple[float, ...]

    @property
    def unequal(self) -> tuple[float, ...] | None:
        """Return the weights where they differ, None where all are equal."""
        return self.weights if max(self.weights) > min(self.weights) else None

    def save(self, folder: Path) -> None:
        """Write <folder>/mixture.json; the runs lie in folders directly within `folder`."""
        write_json(folder / MIXTURE, {"runs": [run.name for run in self.folders], "weights": list(self.weights)})

    @classmethod
    def read(cls, folder: Path) -> "Mixture":
        """Read <folder>/mixture.json; raise DamagedError for one that no command of ours wrote."""
        content = read_json(folder / MIXTURE, CURE)
        names: list[Any] = content["runs"] if isinstance(content.get("runs"), list) else []
        weights: list[Any] = content["weights"] if isinstance(content.get("weights"), list) else []
        good = len(names) == len(weights) > 0
        good = good and all(isinstance(n, str) and Path(n).name == n not in ("", ".", "..") for n in names)
        good = good and all(isinstance(w, (int, float)) and 0 < w <= 1 for w in weights)
        if not good or not math.isclose(sum(weights), 1, abs_tol=1e-6) or len({*names}) < len(names):
            raise DamagedError(
                f"{folder / MIXTURE} holds no mixture; expected the names of runs in this folder, each once, and "
                f"their weights, which sum to 1. {CURE}"
            )
        return cls(tuple(folder / name for name in names), tuple(map(float, weights)))


def expanded(folders: Sequence[Path]) -> Mixture:
    """Return the runs behind folders, of which each counts equally and some may be mixtures themselves.

    Raise ConfigError where a run is named twice.
    """
    runs: dict[Path, float] = {}
    for folder in folders:
        part = Mixture.read(folder) if (folder / MIXTURE).is_file() else Mixture((folder,), (1.0,))
        for run, weight in zip(part.folders, part.weights, strict=True):
            if run in runs:
                raise ConfigError(f"{run} is named twice, once within {folder}; name it once.")
            runs[run] = weight / len(folders)
    return Mixture(tuple(runs), tuple(runs.values()))
