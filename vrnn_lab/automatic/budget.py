"""Count the time that vrnn_lab.auto has used, in a file that survives an interrupted command."""

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from vrnn_lab.core.files import read_json, write_json
from vrnn_lab.core.run_files import STUDY

CURE = "Remove it; what is trained already is kept, and the budget begins anew."
SAVED = 2.0  # seconds between two records of the time that is used


def recorded(folder: Path) -> dict[str, Any]:
    """Return what a study recorded in its folder, such as its arguments; empty before it has begun."""
    file = folder / STUDY
    return read_json(file, CURE) if file.is_file() else {}


@dataclass
class Budget:
    """Count the seconds that a study has used, over all its attempts, and keep the count in its folder."""

    seconds: float
    folder: Path
    began: float  # when this attempt began, by time.monotonic
    before: float = 0.0  # used by earlier attempts
    limits: dict[str, float] = field(default_factory=dict)  # seconds of each candidate's fit, once begun
    failed: dict[str, str] = field(default_factory=dict)  # why a candidate was given up
    saved: float = 0.0  # when the count was last written, by time.monotonic

    @classmethod
    def of(cls, folder: Path, seconds: float, began: float) -> "Budget":
        """Return the budget of a study; of one that was interrupted, what is left of it.

        began: when this attempt began, by time.monotonic.
        """
        known = {"used": 0.0, "limits": {}, "failed": {}} | recorded(folder)
        return cls(seconds, folder, began, known["used"], known["limits"], known["failed"])

    @property
    def used(self) -> float:
        """Return the seconds that all attempts have used so far."""
        return self.before + monotonic() - self.began

    @property
    def left(self) -> float:
        """Return the seconds that are left, negative where more were used than there were."""
        return self.seconds - self.used

    @property
    def due(self) -> bool:
        """Return whether the count was last written some time ago."""
        return monotonic() - self.saved > SAVED

    def save(self, **more: Any) -> None:
        """Write the count, and further facts, to the folder."""
        self.saved = monotonic()
        state = {"used": self.used, "limits": self.limits, "failed": self.failed}
        write_json(self.folder / STUDY, recorded(self.folder) | state | more)
