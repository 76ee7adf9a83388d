"""Names of very many series, as bytes: a text is made of one when it is asked for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """Texts that stand end to end: text i is bytes offsets[i] to before offsets[i + 1], in UTF-8."""

    def __init__(self, text: NDArray[np.uint8], offsets: NDArray[np.int64], index: NDArray[np.int64]):
        self.text, self.offsets, self.index = text, offsets, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self.part(np.arange(len(self))[place])
        i = self.index[place]
        return self.text[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def __eq__(self, other) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def part(self, index: NDArray[np.int64]) -> "Names":
        return Names(self.text, self.offsets, self.index[index])
