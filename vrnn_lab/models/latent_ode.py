"""Define the latent ODE."""

from math import ceil
from typing import Literal

import torch
from torch import Tensor

from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.encoders import GRUEncoder, Recognition
from vrnn_lab.models.event_times import EventTimes
from vrnn_lab.models.intensity import Intensity
from vrnn_lab.models.layers import Activation, VectorField, mlp
from vrnn_lab.models.lines import PathLevel
from vrnn_lab.models.networks import Levels
from vrnn_lab.models.ode import ADAPTIVE, Method, Path, Solver, steps_in_training, steps_to_cover
from vrnn_lab.models.recipe import Recipe


class LatentODE(EventTimes):
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

    point_process: the times are modelled too (`models.event_times`).
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

    def _path(self, series: TimeSeries, z: Tensor, finer: int = 1) -> Path:
        """Return the path from z, on `finer` solver steps in place of each."""
        if series.in_training:
            after, before = self.nodes, 0
        else:
            times = self._moving(series)
            if self.point_process:
                times = torch.cat([times, self._relative_window(series)], 1)
            after, before = steps_to_cover(times, self.step, self.nodes)
        if self.origin == "middle":  # equal numbers of steps in both directions are solved as one batch
            after = before = max(after, before)
        return self.solver.path(self.field, z[..., : self.moving], self.step / finer, finer * after, finer * before)

    def solver_error(self, batch):
        if self.solver.method in ADAPTIVE:  # its error is that of its tolerances, whatever the steps
            return None
        with torch.no_grad():
            series, _ = self._line(self.standardise(batch), 1)
            z, times = self._encode(series).mean[None], self._moving(series)
            own, half = (self._path(series, z, finer).at(times)[:, series.counts].double() for finer in (1, 2))
        apart = half - half.mean((0, 1))
        return (own - half).square().sum().item(), apart.square().sum().item()

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
            total = total + self._log_prob_of_times(series, path, states[..., : self.moving])
        return total, states
