"""Define the point process of a latent path: the times of the points, as events of a Poisson process."""

from abc import abstractmethod
from math import log, sqrt

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vrnn_lab.core.series import TimeSeries, compact
from vrnn_lab.models.intensity import Intensity, Rate
from vrnn_lab.models.ode import Path, steps_to_cover
from vrnn_lab.models.paths import PathModel


class EventTimes(PathModel):
    """Model the times of the points too, where `point_process` is set: p(x, t) = p(x | t) p(t).

    (Rubanova et al. 2019, arXiv 1907.03907, section 3.3, eq. 8.)

    Each known point is an event of a Poisson process of rate lambda(z(t)) on the row's window: log p(t | z) = sum_i
    log lambda(z(t_i)) - the integral of lambda over the window, whose end is not an event. So in training all events
    must be known or scored.
    """

    intensity: Intensity | None
    step: float  # of the path, in typical windows
    nodes: int  # steps of the path, and
    panels: int  # those in a window, in training

    @abstractmethod
    def _path(self, series: TimeSeries, z: Tensor) -> Path:
        """Return the path of the latent state from z_0."""

    @abstractmethod
    def _elapsed(self, series: TimeSeries) -> Float64[Tensor, "batch time"]:
        """Return the time of each point since z_0, in typical windows."""

    @abstractmethod
    def _relative_window(self, series: TimeSeries) -> Float64[Tensor, "batch 2"]:
        """Return the window relative to z_0, in typical windows."""

    def _rate(self, series: TimeSeries, path: Path) -> Rate:
        assert self.intensity is not None
        panels = self.panels
        if not series.in_training:
            panels, _ = steps_to_cover(series.window.diff(dim=1), self.step, self.nodes)
        return Rate.over(self.intensity, path, self._relative_window(series), panels + 1)

    def _log_prob_of_times(
        self, series: TimeSeries, path: Path, states: Float[Tensor, "samples batch time latent"]
    ) -> Float[Tensor, "samples batch"]:
        """Return log p(times | path) in nats per series; states: of the path at the points."""
        rate = self._rate(series, path)
        return torch.where(series.counts, rate.intensity(states), 0).sum(2) - rate.total()

    def _log_det(self, batch):
        total = super()._log_det(batch) if "values" in self.parts else torch.zeros_like(batch.window[:, 0])
        if self.point_process and "events" in self.parts:
            total = total + log(self.clock) * batch.counts.sum(1).to(total)
        return total

    def _prior_rate(self, series: TimeSeries, samples: int) -> Rate:
        """Return the rate along paths drawn from the prior."""
        like = next(self.parameters())
        z = self.noise.of_series("latent", series, samples, self.latent, like)
        return self._rate(series, self._path(series, z))

    def rescaled(
        self, batch: TimeSeries, samples: int
    ) -> tuple[Float64[Tensor, "batch time"], Float64[Tensor, " batch"]]:
        """Return each known event's waiting time in rescaled time, and the wait from the last to the window's end.

        tau_i = -log P(no event between t_(i-1) and t_i | events before)

        is of the process whose latent is integrated out by draws z_s of the prior with weights w_s = p(events before
        | z_s):
        tau_i = log sum_s w_s - log sum_s w_s exp(-(L_s(t_i) - L_s(t_(i-1)))), L_s the integral of the rate.

        Concatenated over series, the waits are unit exponentials under the model (Brown et al. 2002). Zero at
        padding.
        """
        series, _ = compact(self.standardise(batch), batch.counts)
        rate, there = self._prior_rate(series, samples), series.counts
        end = self._relative_window(series)[:, 1:]
        times = torch.where(there, self._elapsed(series), end)
        reached = rate.until(torch.cat([self._relative_window(series)[:, :1], times, end], 1)).double()
        log_rate = torch.where(there, rate.log_at(times), 0).double().cumsum(2)
        weights = torch.cat([torch.zeros_like(log_rate[..., :1]), log_rate], 2) - reached[..., :-1]
        waits = weights.logsumexp(0) - (weights - reached.diff(dim=2)).logsumexp(0)
        last = there.sum(1, keepdim=True)
        rest = waits.gather(1, last)
        return torch.where(there, waits[:, :-1], 0), rest[:, 0]

    def draw_times(self, window: Float64[Tensor, " 2"], samples: int) -> list[Float64[Tensor, " time"]]:
        """Draw event times in a window (2,) from the prior, by thinning (Lewis & Shedler 1979), in the data's units.

        Candidates are drawn at a bound on each path's rate, 1.5 times the largest rate at the path's nodes. Where the
        rate at a candidate exceeds the bound, the bound is doubled and the path's times are drawn again. ValueError
        where the model is no point process.
        """
        if not self.point_process:
            raise ValueError(
                "the model is not a point process and has no rate of events; train one with model.point_process=true."
            )
        empty = torch.zeros(samples, 1, self.scale.dim, dtype=torch.bool, device=window.device)
        windows = window.expand(samples, 2)
        series = self.standardise(
            TimeSeries(windows[:, :1], empty.double(), empty, empty, windows, torch.arange(samples).to(window.device))
        )
        with torch.no_grad():
            rate = self._prior_rate(series, 1)
            bound = 1.5 * rate.log_at(rate.edges).exp()[0].amax(1).double()
            times, kept, low = self._thin(series, rate, bound)
            while low.any():
                bound = torch.where(low, 2 * bound, bound)
                times, kept, low = self._thin(series, rate, bound)
        start = self._relative_window(series)[:, :1]
        return [window[0] + self.data_clock * (t[k] - s) for t, k, s in zip(times, kept, start, strict=True)]

    def _thin(
        self, series: TimeSeries, rate: Rate, bound: Float64[Tensor, " batch"]
    ) -> tuple[Float64[Tensor, "batch candidate"], Bool[Tensor, "batch candidate"], Bool[Tensor, " batch"]]:
        """Return candidate times, which of them are kept, and which paths have a rate above their bound."""
        start, end = self._relative_window(series).split(1, 1)
        mean = (bound * (end - start)[:, 0]).max().item()
        most = int(mean + 10 * sqrt(mean) + 20)
        draw = lambda stream: torch.special.ndtr(self.noise.of_series(stream, series, 1, most, bound)[0])
        times = start - draw("candidate").log().cumsum(1) / bound[:, None]
        inside = times < end
        level = rate.log_at(torch.where(inside, times, end)).exp()[0].double() / bound[:, None]
        return times, inside & (draw("kept") < level), (inside & (level > 1)).any(1)
