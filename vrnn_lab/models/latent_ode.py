"""The latent ODE with a recurrent encoder."""

from typing import Literal

import torch
from torch import Tensor, nn

from vrnn_lab.checks import Count, Natural, Positive
from vrnn_lab.losses import LossTerms, Normal
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.networks import CLOCK_FEATURES, Activation, Memory, clock_features, mlp
from vrnn_lab.ode import Method, Path, Solver, steps_to_cover
from vrnn_lab.recipe import Recipe
from vrnn_lab.series import Scale, TimeSeries, compact, pick

MOST_STEPS = 5000  # of the solver in one training step


class VectorField(nn.Module):
    """dz/dt = rate f(z), t in windows: fresh weights move a state of size one `rate` times in a window."""

    def __init__(self, latent: int, width: int, depth: int, activation: Activation, rate: float):
        super().__init__()
        self.layers, self.rate = mlp(latent, width, latent, depth, activation), rate

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        return self.rate * self.layers(state)


class LatentODE(SequenceModel):
    """One latent state a series, and an ODE that carries it through time (Chen et al. 2018, arXiv 1806.07366,
    section 5; Rubanova et al. 2019, arXiv 1907.03907, with the RNN encoder).

    q(z_0 | seen) = N(encoder),  p(z_0) = N(0, I),  dz/dt = f(z),  x_i ~ head(decoder(z(t_i))).

    The encoder is a GRU that reads the seen points from the last to the first. z_0 sits at the start of the
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
        samples: Count = 1,
    ):
        super().__init__(scale, recipe, head(scale))
        self.latent, self.origin, self.samples = latent, origin, samples
        self.field = VectorField(latent, width, depth, activation, rate)
        self.encoder = Memory(2 * scale.dim + 1 + CLOCK_FEATURES, encoder_width)
        self.posterior = mlp(2 * encoder_width + 1, encoder_width, 2 * latent, 1, activation)
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

    def _encode(self, series: TimeSeries) -> Normal:
        seen_points = series.seen.any(-1)
        count = seen_points.sum(1, keepdim=True)
        elapsed = self._elapsed(series)
        series, index = compact(series, seen_points)
        most = series.most_seen if series.in_training else None
        most = series.times.shape[1] if most is None else most
        place = (count - 1 - torch.arange(max(most, 1), device=count.device)).clamp(min=0)  # last point first
        elapsed = pick(pick(elapsed, index), place)
        values, seen = pick(series.values, place), pick(series.seen, place).to(series.values)
        gap = (elapsed.diff(dim=1, prepend=elapsed[:, :1]).neg() / self.usual_gap).to(values)
        read = torch.cat([values * seen, seen, torch.log1p(gap)[..., None], clock_features(elapsed.to(values))], -1)
        states = self.encoder.over(read)
        last = (count - 1).clamp(min=0)
        # The mean of the states beside the last one: a short way for the gradient to every point.
        real = (torch.arange(states.shape[1], device=count.device) < count)[..., None]
        mean = torch.where(real, states, 0).sum(1) / count.clamp(min=1)
        summary = torch.cat([pick(states, last)[:, 0], mean, pick(elapsed, last).to(values)], -1)
        posterior = Normal.of(self.posterior(summary))
        return posterior.where(count > 0, Normal.standard(posterior.mean))

    def _path(self, series: TimeSeries, z: Tensor) -> tuple[Path, Tensor]:
        elapsed = self._elapsed(series)
        if series.in_training:
            after, before = self.nodes, 0
        else:
            after, before = steps_to_cover(elapsed, self.step, self.nodes)
        return self.solver.path(self.field, z, self.step, after, before), elapsed

    def _decode(self, series: TimeSeries, z: Tensor):
        path, elapsed = self._path(series, z)
        return self.head(self.decoder(path.at(elapsed)))

    def _draw(self, posterior: Normal, series: TimeSeries, samples: int) -> Tensor:
        return posterior.draw(self.noise.of_series("latent", series, samples, self.latent, posterior.mean))

    def _log_prob(self, series: TimeSeries, samples: int):
        posterior = self._encode(series)
        z = self._draw(posterior, series, samples)
        log_prob = self._decode(series, z).log_prob(series.values, series.scored).sum(2)
        return log_prob, z, posterior

    def _loss_terms(self, series):
        log_prob, _, posterior = self._log_prob(series, self.samples)
        return LossTerms(-log_prob.mean(0), posterior.kl(Normal.standard(posterior.mean)))

    def _log_weights(self, series, samples):
        log_prob, z, posterior = self._log_prob(series, samples)
        return log_prob + Normal.standard(z).log_prob(z) - posterior.log_prob(z)

    def _predict(self, series, samples):
        density = self._decode(series, self._draw(self._encode(series), series, samples))
        noise = self.noise.at_points("value", series, samples, self.head.draws, density.mean)
        return Prediction(density.draw(noise), density)
