"""Recognition networks: what is seen of a row, read from its last point to its first."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from vrnn_lab.networks import CLOCK_FEATURES, Memory, clock_features
from vrnn_lab.series import Scale, TimeSeries, compact, pick


@dataclass(frozen=True)
class Reading:
    """The seen points of each row from the last to the first, and the state after each."""

    states: Float[Tensor, "batch place size"]
    elapsed: Float64[Tensor, "batch place"]  # times since z_0; beyond `count`, that of the first point
    count: Int64[Tensor, "batch 1"]  # of seen points

    def summary(self) -> Float[Tensor, "batch summary"]:
        """The last state, the mean of all (a short way for the gradient to every point), the first point's time."""
        real = (torch.arange(self.states.shape[1], device=self.count.device) < self.count)[..., None]
        mean = torch.where(real, self.states, 0).sum(1) / self.count.clamp(min=1)
        last = (self.count - 1).clamp(min=0)
        return torch.cat([pick(self.states, last)[:, 0], mean, pick(self.elapsed, last).to(mean)], -1)


class Encoder(nn.Module, ABC):
    """A gated recurrent unit over values, which of them are seen, the gap to the later point, and the clock."""

    def __init__(self, scale: Scale, size: int):
        super().__init__()
        self.memory = Memory(2 * scale.dim + 1 + CLOCK_FEATURES, size)
        self.usual_gap = (scale.gap / scale.clock).item()
        self.summary = 2 * size + 1  # numbers a summary holds

    @abstractmethod
    def _states(
        self, inputs: Float[Tensor, "batch place input"], gap: Float[Tensor, "batch place"], longest: float | None
    ) -> Float[Tensor, "batch place size"]:
        """The state after each point; `gap` in typical windows, `longest` bounds it where that is known."""

    def forward(self, series: TimeSeries, elapsed: Float64[Tensor, "batch time"]) -> Reading:
        """elapsed: times since z_0, in typical windows."""
        seen_points = series.seen.any(-1)
        count = seen_points.sum(1, keepdim=True)
        longest, most = (series.longest_seen_gap, series.most_seen) if series.in_training else (None, None)
        series, index = compact(series, seen_points)
        most = series.times.shape[1] if most is None else most
        place = (count - 1 - torch.arange(max(most, 1), device=count.device)).clamp(min=0)  # last point first
        elapsed = pick(pick(elapsed, index), place)
        values, seen = pick(series.values, place), pick(series.seen, place).to(series.values)
        gap = elapsed.diff(dim=1, prepend=elapsed[:, :1]).neg().to(values)
        told = [torch.log1p(gap / self.usual_gap)[..., None], clock_features(elapsed.to(values))]
        return Reading(self._states(torch.cat([values * seen, seen, *told], -1), gap, longest), elapsed, count)


class GRUEncoder(Encoder):
    """The states of a GRU, fused (Chen et al. 2018, arXiv 1806.07366, section 5)."""

    def _states(self, inputs, gap, longest):
        return self.memory.over(inputs)
