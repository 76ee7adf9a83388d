"""Which rows of a batch are this process's, where several fit one model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vrnn_lab.core.series import TimeSeries


@dataclass(frozen=True)
class Share:
    """Rows rank, rank + processes, ... of a batch of `total`.

    Sums over them count `weight` times: the mean over the processes is then the sum over the batch. A process
    for which there is no row takes part all the same, with the first row at weight 0.
    """

    rows: Tensor | None = None  # None: all of them
    total: int = 0
    weight: int = 1

    @classmethod
    def of(cls, total: int, rank: int, processes: int, device=None) -> "Share":
        if processes == 1:
            return ALL
        rows = torch.arange(min(rank, total), total, processes, device=device)
        return cls(rows, total, processes) if len(rows) else cls(rows.new_zeros(1), total, 0)

    def part(self, batch: TimeSeries) -> TimeSeries:
        return batch if self.rows is None else batch.rows(self.rows)


ALL = Share()
