"""Select the rows of a batch that this process handles when several processes train one model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vrnn_lab.core.series import TimeSeries


@dataclass(frozen=True)
class Shard:
    """Hold the rows rank, rank + processes, ... of a batch of `total` rows.

    Sums over these rows are multiplied by `weight`, so that their mean over the processes is the sum over the batch.
    A process without a row takes part with the first row at weight 0.
    """

    rows: Tensor | None = None  # None: all of them
    total: int = 0
    weight: int = 1

    @classmethod
    def of(cls, total: int, rank: int, processes: int, device=None) -> "Shard":
        if processes == 1:
            return ALL
        rows = torch.arange(min(rank, total), total, processes, device=device)
        return cls(rows, total, processes) if len(rows) else cls(rows.new_zeros(1), total, 0)

    def part(self, batch: TimeSeries) -> TimeSeries:
        return batch if self.rows is None else batch.rows(self.rows)


ALL = Shard()
