"""Store the names of very many series as packed bytes, and decode each one on access."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PackedStrings(Sequence[str]):
    """Hold texts in one UTF-8 buffer: text i is bytes offsets[i] to offsets[i + 1] - 1; `which` selects texts."""

    def __init__(self, text: NDArray[np.uint8], offsets: NDArray[np.int64], which: NDArray[np.int64]):
        self.text, self.offsets, self.which = text, offsets, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, place) -> Any:
        i = self.which[place]
        return self.text[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def part(self, index: NDArray[np.int64]) -> "PackedStrings":
        return PackedStrings(self.text, self.offsets, self.which[index])
