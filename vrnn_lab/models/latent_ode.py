"""The latent ODE."""

from typing import Literal

from torch import Tensor, nn

from vrnn_lab.checks import Count, Natural, Positive
from vrnn_lab.encoders import GRUEncoder
from vrnn_lab.losses import Normal
from vrnn_lab.models.paths import PathModel
from vrnn_lab.networks import Activation, mlp
from vrnn_lab.ode import Method, Path, Solver, steps_to_cover
from vrnn_lab.recipe import Recipe
from vrnn_lab.series import Scale, TimeSeries

MOST_STEPS = 5000  # of the solver in one training step


class VectorField(nn.Module):
    """dz/dt = rate f(z), t in windows: fresh weights move a state of size one `rate` times in a window."""

    def __init__(self, latent: int, width: int, depth: int, activation: Activation, rate: float):
        super().__init__()
        self.layers, self.rate = mlp(latent, width, latent, depth, activation), rate

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return self.rate * self.layers(state)


class LatentODE(PathModel):
    """One latent state a series, and an ODE that carries it through time (Chen et al. 2018, arXiv 1806.07366,
    section 5; Rubanova et al. 2019, arXiv 1907.03907).

    q(z_0 | seen) = N(encoder),  p(z_0) = N(0, I),  dz/dt = f(z),  x_i ~ head(decoder(z(t_i))).

    The encoder reads the seen points from the last to the first: a GRU, or an ODE-RNN. z_0 sits at the start of the
    row's window (origin=row) or at the data's time zero, the earliest training window's start (origin=common).
    The path is solved once, on `nodes` steps a typical training window, and read at each row's own times.
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
        origin: Literal["row", "common"] = "row",
        nodes: Count = 20,
        method: Method = "rk4",
        rtol: float = 1e-4,
        atol: float = 1e-5,
        adjoint: bool = False,
        encoder=GRUEncoder,
    ):
        super().__init__(scale, recipe, head(scale), states=latent)
        self.latent, self.origin = latent, origin
        self.field = VectorField(latent, width, depth, activation, rate)
        self.encoder = encoder(scale, encoder_width)
        self.posterior = mlp(self.encoder.summary, encoder_width, 2 * latent, 1, activation)
        self.decoder = mlp(latent, decoder_width, self.head.width, decoder_depth, activation)
        self.solver = Solver(method, rtol, atol, adjoint)
        self.step = 1 / nodes
        # How far training reaches from z_0: what a batch from the training loader needs, without asking.
        reach = scale.longest if origin == "row" else scale.reach
        if nodes * (reach / scale.clock).item() > MOST_STEPS:
            raise ValueError(
                f"the longest way from z_0 in training is {(reach / scale.clock).item():.0f} windows, {nodes} solver "
                f"steps each: more than {MOST_STEPS}. Cut long series (data.window), fewer nodes, or origin=row."
            )
        self.nodes = max(nodes, -(-int(1e6 * nodes * (reach / scale.clock).item()) // 1_000_000))

    def _elapsed(self, series: TimeSeries) -> Tensor:
        """Time since z_0, in typical windows."""
        return series.times if self.origin == "row" else series.times + series.window[:, :1]

    def _encode(self, series):
        reading = self.encoder(series, self._elapsed(series))
        posterior = Normal.of(self.posterior(reading.summary()))
        return posterior.where(reading.count > 0, Normal.standard(posterior.mean))

    def _path(self, series: TimeSeries, z: Tensor) -> Path:
        if series.in_training:
            after, before = self.nodes, 0
        else:
            after, before = steps_to_cover(self._elapsed(series), self.step, self.nodes)
        return self.solver.path(self.field, z, self.step, after, before)

    def _states(self, series, z):
        return self._path(series, z).at(self._elapsed(series))

    def _decode(self, states):
        return self.head(self.decoder(states))
