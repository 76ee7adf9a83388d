"""Group validation points into blocks that count as independent when predictive stds are calibrated."""

from math import inf

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.series import TimeSeries
from vrnn_lab.data.base import SeriesData
from vrnn_lab.data.splits import names_of


class ValidationBlocks:
    """Assign every point of validation batches to a block.

    A block is a validation series with all windows that were cut from it. For series that are split in time, whose
    later part is to be predicted, a block is a span of the length of the longest training window.
    """

    def __init__(self, data: SeriesData):
        longest = float(data.scale.longest)
        self.span = longest if data.split_in_time and longest > 0 else inf
        self.sources = []
        for series in (data.splits["val"], data.reaching_back("val")[0]):
            order = np.argsort(series.ids, kind="stable")
            self.sources.append((series.ids[order], order, names_of(series)))
        self.numbers: dict[str, int] = {}

    def of(self, batch: TimeSeries) -> Float64[Tensor, "batch time 2"]:
        """Return, for every point of a batch, the number of its series and of its span within that series."""
        names = [self._name(int(id)) for id in batch.ids]
        numbers = torch.tensor([self.numbers.setdefault(name, len(self.numbers)) for name in names])
        spans = torch.floor(batch.times / self.span).cpu()
        return torch.stack([numbers[:, None].expand_as(spans).double(), spans], -1)

    def _name(self, number: int) -> str:
        """Return the name of the series to which the id of a window or of a series belongs."""
        for ids, order, names in self.sources:
            place = int(np.searchsorted(ids, number))
            if place < len(ids) and ids[place] == number:
                return names[int(order[place])]
        return str(number)
