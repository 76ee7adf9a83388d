"""Define the latent ODE."""

from math import ceil, log, sqrt
from typing import Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from vrnn_lab.core.series import Scale, TimeSeries, compact
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.encoders import GRUEncoder, Recognition
from vrnn_lab.models.intensity import Intensity, Rate
from vrnn_lab.models.layers import Activation, VectorField, mlp
from vrnn_lab.models.lines import PathLevel
from vrnn_lab.models.networks import Levels
from vrnn_lab.models.ode import Method, Path, Solver, steps_in_training, steps_to_cover
from vrnn_lab.models.paths import PathModel
from vrnn_lab.models.recipe import Recipe


class LatentODE(PathModel):
    """Model a series by one latent state that an ODE carries through time (Chen et al. 2018, arXiv 1806.07366,
    section 5; Rubanova et al. 2019, arXiv 1907.03907).

    q(z_0 | seen) = N(encoder),  p(z_0) = N(0, I),  dz/dt = f(z),  x_i ~ head(decoder(z(t_i))).

    The encoder reads the observed points from the last to the first; it is a GRU, or an ODE-RNN that continues to the
    time of z_0. That time is the start of the row's window (origin=row), the earliest training window's start
    (origin=common), or the middle between that and the latest training window's end (origin=middle), from where the
    distance to any window, over which an error of z_0 grows, is at most half as long. origin=auto is middle where the
    dataset declares that its series are pieces of curves over one time axis (`Scale.common_time`), and row elsewhere
    and for point processes.

    The path is solved once, on `nodes` steps per typical training window, and read at each row's own times. With
    origin=middle it takes half as many steps per window, since it covers all windows in both directions and would
    otherwise cost twice as much.

    point_process: p(x, t) = p(x | t) p(t) (Rubanova et al., section 3.3, eq. 8). Each known point is an event of a
    Poisson process of rate lambda(z(t)) on the row's window: log p(t | z) = sum_i log lambda(z(t_i)) - the integral
    of lambda over the window, whose end is not an event. So in training all events must be known or scored.
    """

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        latent: Count = 8,
        width: Count = 64,
        depth: Natural = 2,
        encoder_width: Count = 64,
        decoder_width: Count = 64,
        decoder_depth: Natural = 1,
        activation: Activation = "tanh",
        rate: Positive = 5.0,
        origin: Literal["row", "common", "middle", "auto"] = "row",
        nodes: Count = 20,
        method: Method = "rk4",
        rtol: float = 1e-4,
        atol: float = 1e-5,
        adjoint: bool = False,
        point_process: bool = False,
        levels: Natural = 0,
        level: PathLevel = "none",
        encoder=GRUEncoder,
    ):
        level_dim = scale.dim if levels else 0
        super().__init__(scale, recipe, head(scale), latent + level_dim, point_process, level)
        if origin == "auto":
            origin = "middle" if scale.common_time and not point_process else "row"
        self.moving, self.latent, self.origin = latent, latent + levels * level_dim, origin
        self.levels = Levels(scale.dim, levels) if levels else None
        self.field = VectorField(latent, width, depth, activation, rate)
        self.recognition = Recognition(
            encoder(scale, encoder_width), latent, encoder_width, activation, levels, scale.dim
        )
        self.decoder = self.intensity = None
        if self.head.width:
            inputs = latent + level_dim + len(scale.covariates)
            self.decoder = self.head.begin(mlp(inputs, decoder_width, self.head.width, decoder_depth, activation))
        if point_process:
            self.intensity = Intensity(latent, decoder_width, activation, self.usual_gap)
        self.solver = Solver(method, rtol, atol, adjoint)
        nodes = ceil(nodes / 2) if origin == "middle" else nodes
        self.step = 1 / nodes
        # Training's largest distance from z_0, so that a training batch needs no synchronisation with the device.
        longest, reach = (scale.longest / scale.clock).item(), (scale.reach / scale.clock).item()
        self.zero = reach / 2 if origin == "middle" else 0.0  # the time of z_0 on the data's common time axis
        self.reach = longest if origin == "row" else reach - self.zero
        self.encoder_reach = self.reach + (
            longest if origin == "middle" else 0.0
        )  # the encoder's largest distance, from the last point to z_0
        self.nodes, self.panels = steps_in_training(nodes, self.reach), steps_in_training(nodes, longest)

    def _elapsed(self, series: TimeSeries) -> Tensor:
        """Return the time of each point since z_0, in typical windows."""
        return series.times if self.origin == "row" else series.times + (series.window[:, :1] - self.zero)

    def _moving(self, series: TimeSeries) -> Tensor:
        """Return the time since z_0 at each point, clamped to the training range where the model has a line.

        Beyond the training range the field is unconstrained, and a line alone extrapolates a series better.
        """
        elapsed = self._elapsed(series)
        if self.lines is None:
            return elapsed
        return elapsed.clamp(-self.reach if self.origin == "middle" else 0, self.reach)

    def _encode(self, series):
        return self.recognition(series, self._elapsed(series), self.encoder_reach if series.in_training else None)

    def _relative_window(self, series: TimeSeries) -> Tensor:
        """Return the window relative to z_0, (batch, 2), in typical windows."""
        return series.window - (series.window[:, :1] if self.origin == "row" else self.zero)

    def _path(self, series: TimeSeries, z: Tensor) -> Path:
        if series.in_training:
            after, before = self.nodes, 0
        else:
            times = self._moving(series)
            if self.point_process:
                times = torch.cat([times, self._relative_window(series)], 1)
            after, before = steps_to_cover(times, self.step, self.nodes)
        if self.origin == "middle":  # equal numbers of steps in both directions are solved as one batch
            after = before = max(after, before)
        return self.solver.path(self.field, z[..., : self.moving], self.step, after, before)

    def _rate(self, series: TimeSeries, path: Path) -> Rate:
        assert self.intensity is not None
        panels = self.panels
        if not series.in_training:
            panels, _ = steps_to_cover(series.window.diff(dim=1), self.step, self.nodes)
        return Rate.over(self.intensity, path, self._relative_window(series), panels + 1)

    def backward(self, loss, *args, **options) -> None:
        """Compute the gradients of a loss; ValueError where the adjoint method cannot solve the ODE backwards."""
        with self.solver.solver_errors():
            super().backward(loss, *args, **options)

    def _states(self, series, z):
        return self._read(series, z, self._path(series, z))

    def _read(self, series: TimeSeries, z: Tensor, path: Path) -> Tensor:
        """Return the state at each point: the ODE's state, then each channel's level."""
        states = path.at(self._moving(series))
        if self.levels is None:
            return states
        return torch.cat([states, self.levels(z[..., self.moving :], self._elapsed(series))], -1)

    def _decode(self, states):
        density = self.head(states[..., :0] if self.decoder is None else self.decoder(states))
        if self.levels is None:
            return density
        return density.affine(states.new_ones(()), states[..., self.moving : self.moving + self.scale.dim])

    def _log_likelihood(self, series, z, line):
        path = self._path(series, z)
        states = self._read(series, z, path)
        total = states.new_zeros(states.shape[:2])
        if "values" in self.parts:
            total = total + self._log_prob(series, states, line).sum(2)
        if self.point_process and "events" in self.parts:
            rate = self._rate(series, path)
            total = (
                total
                + torch.where(series.counts, rate.intensity(states[..., : self.moving]), 0).sum(2)
                - rate.total()
            )
        return total, states

    def _log_det(self, batch):
        total = super()._log_det(batch) if "values" in self.parts else torch.zeros_like(batch.window[:, 0])
        if self.point_process and "events" in self.parts:
            total = total + log(self.clock) * batch.counts.sum(1).to(total)
        return total

    # ---- event times --------------------------------------------------------------------------------------

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
