"""Define recognition networks, which read the observed points of a row from the last to the first."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from vrnn_lab.core.series import Scale, TimeSeries, compact, pick
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.layers import Activation, GRUCell, mlp
from vrnn_lab.models.losses import Normal
from vrnn_lab.models.networks import CLOCK_FEATURES, ODERNNCell, clock_features, with_covariates
from vrnn_lab.models.ode import ticks_in_training


@dataclass(frozen=True)
class Reading:
    """Hold the encoder's states after each observed point of each row, ordered from the last point to the first."""

    states: Float[Tensor, "batch place width"]
    last: Float[Tensor, "batch width"]  # the state after all of them, at the time of z_0
    elapsed: Float64[Tensor, "batch place"]  # times since z_0; beyond `count`, that of the first point
    count: Int64[Tensor, "batch 1"]  # the number of observed points

    def summary(self) -> Float[Tensor, "batch summary"]:
        """Return the last state, the mean of all states (a short gradient path to every point), and the first point's
        time."""
        real = (torch.arange(self.states.shape[1], device=self.count.device) < self.count)[..., None]
        mean = torch.where(real, self.states, 0).sum(1) / self.count.clamp(min=1)
        return torch.cat([self.last, mean, pick(self.elapsed, last_place(self.count)).to(mean)], -1)


def last_place(count: Int64[Tensor, "batch 1"]) -> Int64[Tensor, "batch 1"]:
    return (count - 1).clamp(min=0)


class Encoder(nn.Module, ABC):
    """Read observed points: the values, which of them are observed, the gap to the later point, the time, and the
    covariates."""

    def __init__(self, scale: Scale, width: int):
        super().__init__()
        self.inputs = 2 * scale.dim + 1 + CLOCK_FEATURES + len(scale.covariates)  # inputs per point
        self.usual_gap = (scale.gap / scale.clock).item()
        self.summary = 2 * width + 1  # size of a summary

    @abstractmethod
    def _read(
        self,
        inputs: Float[Tensor, "batch place input"],
        elapsed: Float64[Tensor, "batch place"],
        count: Int64[Tensor, "batch 1"],
        reach: float | None,
    ) -> tuple[Float[Tensor, "batch place width"], Float[Tensor, "batch width"]]:
        """Return the state after each point, and the one at z_0; `reach` bounds `elapsed` where a bound is known."""

    def forward(
        self, series: TimeSeries, elapsed: Float64[Tensor, "batch time"], reach: float | None = None
    ) -> Reading:
        """Encode the observed points of a batch.

        elapsed: times since z_0, in typical windows; reach: an upper bound on them that is known without
        synchronising with the device, or None.
        """
        seen_points = series.seen.any(-1)
        count = seen_points.sum(1, keepdim=True)
        most = series.most_seen if series.in_training else None
        # Unobserved points are dropped, so that the loop is as long as the row with the most observed points.
        series, index = compact(series, seen_points)
        most = series.times.shape[1] if most is None else most
        place = (count - 1 - torch.arange(max(most, 1), device=count.device)).clamp(min=0)  # last point first
        elapsed = pick(pick(elapsed, index), place)
        values, seen = pick(series.values, place), pick(series.seen, place).to(series.values)
        # Gaps are differences in float64, since elapsed times may be much larger than gaps.
        gap = elapsed.diff(dim=1, prepend=elapsed[:, :1]).neg().to(values)
        time_features = [torch.log1p(gap / self.usual_gap)[..., None], clock_features(elapsed.to(values))]
        covariates = None if series.covariates is None else pick(series.covariates, place)
        inputs = with_covariates(torch.cat([values * seen, seen, *time_features], -1), covariates)
        states, last = self._read(inputs, elapsed, count, reach)
        return Reading(states, last, elapsed, count)


class GRUEncoder(Encoder):
    """Encode by a fused GRU (Chen et al. 2018, arXiv 1806.07366, section 5)."""

    def __init__(self, scale: Scale, width: int):
        super().__init__(scale, width)
        self.memory = GRUCell(self.inputs, width)

    def _read(self, inputs, elapsed, count, reach):
        states = self.memory.over(inputs)
        return states, pick(states, last_place(count))[:, 0]


class ODERNNEncoder(Encoder):
    """Encode by an ODE-RNN that runs backwards in time (Rubanova et al. 2019, arXiv 1907.03907, section 3 and
    Algorithm 1).

    Between observed points, and from the earliest of them to the time of z_0, the state follows dh/dt = f(h).
    """

    def __init__(
        self,
        scale: Scale,
        width: int,
        field_width: Count = 64,
        field_depth: Natural = 1,
        activation: Activation = "tanh",
        rate: Positive = 1.0,
        nodes: Count = 10,
    ):
        super().__init__(scale, width)
        self.width = width
        self.memory = ODERNNCell(self.inputs, width, field_width, field_depth, activation, rate, nodes)

    def _read(self, inputs, elapsed, count, reach):
        most = None if reach is None else ticks_in_training(elapsed.shape[1], reach, self.memory.step)
        earlier = torch.cat([elapsed[:, 1:], torch.zeros_like(elapsed[:, :1])], 1)
        place = torch.arange(elapsed.shape[1], device=elapsed.device)
        gap = torch.where(place < count - 1, earlier, 0) - elapsed
        gap = torch.where(place < count, gap, 0)
        jumped, arrived = self.memory(inputs, gap, inputs.new_zeros(len(inputs), self.width), most)
        return jumped, pick(arrived, last_place(count))[:, 0]


class Recognition(nn.Module):
    """Compute q(z | seen), one z per series, from an encoder's summary; it is N(0, I) where nothing is observed.

    The last levels * dim latents are levels of the channels (`networks.Levels`). With them the network also reads
    `channel_summary`, and the mean of the first level is initialised at half the last value plus half the shrunk
    mean, which a network would otherwise have to learn for every channel separately.
    """

    def __init__(
        self, encoder: Encoder, latent: int, width: int, activation: Activation, levels: int = 0, dim: int = 0
    ):
        super().__init__()
        self.encoder, self.levels = encoder, levels * dim
        channel_inputs = CHANNEL_FEATURES * dim + 1 if levels else 0
        self.posterior = mlp(encoder.summary + channel_inputs, width, 2 * (latent + self.levels), 1, activation)
        if levels:
            start = torch.zeros(levels, CHANNEL_FEATURES, dim)
            start[0, :2] = 0.5
            self.direct = nn.Parameter(start)

    def forward(
        self, series: TimeSeries, elapsed: Float64[Tensor, "batch time"], reach: float | None = None
    ) -> Normal:
        """Return q(z | seen), (batch, latent + levels * dim); the arguments are those of `Encoder.forward`."""
        reading = self.encoder(series, elapsed, reach)
        summary = reading.summary()
        if not self.levels:
            posterior = Normal.of(self.posterior(summary))
        else:
            channels = channel_summary(series, elapsed)
            now = pick(reading.elapsed, torch.zeros_like(reading.count)).to(channels)
            posterior = Normal.of(self.posterior(torch.cat([summary, channels.flatten(1), now], -1)))
            level = (self.direct * channels[:, None]).sum(2).flatten(1)
            mean = torch.cat([posterior.mean[:, : -self.levels], posterior.mean[:, -self.levels :] + level], -1)
            posterior = Normal(mean, posterior.log_std)
        return posterior.where(reading.count > 0, Normal.standard(posterior.mean))


CHANNEL_FEATURES = 6
RECENT = 1 / 12  # time constant of the recent mean, in typical windows


def channel_summary(series: TimeSeries, elapsed: Float64[Tensor, "batch time"]) -> Float[Tensor, "batch feature dim"]:
    """Return six features of each channel's observed values.

    They are the last value, the mean and the recent mean (both shrunk to the training mean, zero), log(1 + the number
    of values), exp(-s / RECENT) with s the time from the last value to the row's last observed point, and whether
    there is a value.
    """
    seen, values = series.seen, torch.where(series.seen, series.values, 0)
    time = torch.where(seen, elapsed[..., None], -torch.inf)
    latest, place = time.flip(1).max(1)  # of points at equal times, the later one
    ever = seen.any(1)
    last = values.flip(1).gather(1, place[:, None])[:, 0]
    count = seen.sum(1).to(values)
    since = torch.where(ever, latest.amax(1, keepdim=True) - latest, 0)
    weight = torch.exp((time - latest.amax(1)[:, None, None]).nan_to_num(neginf=-torch.inf) / RECENT).to(values)
    weight = torch.where(seen, weight, 0)
    recent = (weight * values).sum(1) / (weight.sum(1) + 0.1)
    mean = values.sum(1) / (count + 1)
    gone = torch.exp(-since / RECENT).to(values)
    return torch.stack([last, mean, recent, torch.log1p(count), torch.where(ever, gone, 0), ever.to(values)], 1)
