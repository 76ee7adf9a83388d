"""Define the latent SDE."""

from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.densities import Density
from vrnn_lab.core.series import Scale, TimeSeries, pick
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.encoders import GRUEncoder, Reading
from vrnn_lab.models.fused.chain import GuidedChain
from vrnn_lab.models.fused.tape import Weights
from vrnn_lab.models.layers import Activation, VectorField, hooked, mlp
from vrnn_lab.models.lines import Line, Lines, PathLevel
from vrnn_lab.models.losses import Latents, LossTerms, Normal
from vrnn_lab.models.networks import with_covariates
from vrnn_lab.models.ode import fused_weights, linear_read, steps_in_training, steps_to_cover
from vrnn_lab.models.recipe import Recipe


@dataclass(frozen=True)
class SDEPath:
    """Hold draws of the chain from its start to its last node, and the posterior drift of each step.

    Given z_k, q(z_(k+1)) = N(m + s pull, (s spread)^2), where the prior's step is N(m, s^2). Steps that follow the
    prior have pull 0 and spread 1.
    """

    states: Float[Tensor, "nodes samples batch latent"]
    pull: Float[Tensor, "steps samples batch latent"]  # sqrt(step) u
    log_spread: Float[Tensor, "steps 1 batch latent"]
    noise: Float[Tensor, "steps samples batch latent"]

    @property
    def log_ratio(self) -> Float[Tensor, "samples batch"]:
        """Return log p(z_1 .. | z_0) - log q(z_1 .. | z_0) of the draws, in nats.

        With spread 1 it is that of Girsanov's theorem, -sum_k (u_k eps_k sqrt(step) + u_k^2 step / 2).
        """
        spread = self.log_spread.exp()
        moved = self.pull * spread * self.noise + 0.5 * self.pull.square()
        narrowed = self.log_spread + 0.5 * (1 - spread.square()) * self.noise.square()
        return (narrowed - moved).sum((0, 3))

    @property
    def kl(self) -> Float[Tensor, "samples batch latent"]:
        """Return KL(q || p) of the steps, each given its initial state; with spread 1 the sum of u^2 step / 2."""
        return (0.5 * (self.pull.square() + torch.expm1(2 * self.log_spread)) - self.log_spread).sum(0)


class PosteriorDrift(nn.Module):
    """Compute a step's pull and log spread from its initial state, the encoder's state at the next observed point and
    the time to that point.

    pull = a + b z + C tanh(d + D z), where a, b, d and the log spread are computed from context and time for all
    steps at once. Where process and output are linear and Gaussian the exact pull is a + B z.
    """

    def __init__(self, latent: int, context: int, width: int, activation: Activation, narrowed: bool):
        super().__init__()
        self.sizes = [latent, latent, width] + [latent] * narrowed
        self.told = mlp(context + 4, width, sum(self.sizes), 1, activation)
        self.enter, self.leave = nn.Linear(latent, width, bias=False), nn.Linear(width, latent, bias=False)
        with torch.no_grad():  # an untrained posterior stays close to the prior
            for layer in (self.told[-1], self.leave):
                for parameter in layer.parameters():
                    parameter *= 0.1

    def plan(
        self, context: Float[Tensor, "batch steps context"], gap: Float[Tensor, "batch steps"], near: Tensor
    ) -> list[Float[Tensor, "steps 1 batch _"]]:
        """Return (a, b, d, log spread) per step; the next observed point is `gap` usual gaps or `near` steps away."""
        time_features = torch.stack([torch.log1p(gap), torch.exp(-gap), torch.log1p(near), torch.exp(-near)], -1)
        parts = self.told(torch.cat([context, time_features], -1)).transpose(0, 1)[:, None].split(self.sizes, -1)
        spread = -nn.functional.softplus(parts[3] - 2) if len(parts) > 3 else torch.zeros_like(parts[0])
        return [*parts[:3], spread]

    def forward(self, state: Tensor, shift: Tensor, slope: Tensor, hidden: Tensor) -> Tensor:
        return torch.addcmul(shift, slope, state) + self.leave(torch.tanh(hidden + self.enter(state)))

    def fused_weights(self) -> Weights | None:
        """Return the weights of C tanh(d + D z), d excluded, in fused form; None where a subclass changes them."""
        layers = (self.enter, self.leave)
        if hooked(layers) or type(self) is not PosteriorDrift:
            return None
        matrices = tuple(layer.weight for layer in layers)
        return Weights("tanh", matrices, tuple(m.new_zeros(len(m)) for m in matrices)).for_fused()


class LatentSDE(SequenceModel):
    """Model a series by a latent stochastic differential equation (Li et al. 2020, arXiv 2001.01328, section 5).

    dz = f(z) dt + sigma dW,  z_0 ~ N(0, I),  x_i ~ head(decoder(z(t_i))),  t in typical training windows.

    It is discretised as an Euler-Maruyama chain of `nodes` steps per window from the start of the row's own window,
    linear between nodes; before the window the state stays at z_0. The discrete chain is the model, so its bound
    holds without a limit of small steps.

    q(z_0 | seen) = N(encoder);  q(z_(k+1) | z_k, seen) adds sigma u step to the prior's step, where u depends on z_k,
    the encoder's state at the first observed point after node k, and the time to it; after the last observed point u
    = 0. posterior=shared: its steps have the prior's noise, as in the paper; the bound loosens where sigma^2 step is
    not small relative to the observation noise. posterior=narrowed: its noise may be smaller, as in the chain's own
    posterior.

    level: x_i = line(t_i) + the decoded path (`models.lines`); the encoder reads the residual of the expected line.
    """

    takes_covariates = takes_error = takes_free_bits = True

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        latent: Count = 4,
        width: Count = 64,
        depth: Natural = 1,
        encoder_width: Count = 64,
        decoder_width: Count = 64,
        decoder_depth: Natural = 0,
        activation: Activation = "tanh",
        rate: Positive = 2.0,
        sigma: Positive = 1.0,
        posterior: Literal["narrowed", "shared"] = "narrowed",
        nodes: Count = 60,
        level: PathLevel = "none",
        encoder=GRUEncoder,
    ):
        super().__init__(scale, recipe, head(scale), states=latent)
        self.latent = latent
        self.field = VectorField(latent, width, depth, activation, rate)
        self.log_sigma = nn.Parameter(torch.full((latent,), log(sigma)))
        self.encoder = encoder(scale, encoder_width)
        self.start = mlp(self.encoder.summary, encoder_width, 2 * latent, 1, activation)
        self.steering = PosteriorDrift(latent, encoder_width, width, activation, posterior == "narrowed")
        self.decoder = self.head.begin(
            mlp(latent + len(scale.covariates), decoder_width, self.head.width, decoder_depth, activation)
        )
        self.lines = Lines.of(level, scale)
        self.step = 1 / nodes
        self.reach = (scale.longest / scale.clock).item()
        self.nodes = steps_in_training(nodes, self.reach)

    def _line(self, series: TimeSeries, samples: int) -> Line | None:
        return None if self.lines is None else self.lines(series, samples, self.noise)

    def _chain(self, series: TimeSeries, samples: int, line: Line | None = None) -> tuple[Normal, Tensor, SDEPath]:
        """Return q(z_0 | seen), a draw of z_0, and the chain that starts there."""
        series = series if line is None else line.remove(series)
        reading = self.encoder(series, series.times, self.reach if series.in_training else None)
        posterior = Normal.of(self.start(reading.summary()))
        posterior = posterior.where(reading.count > 0, Normal.standard(posterior.mean))
        start = posterior.draw(self.noise.of_series("latent", series, samples, self.latent, posterior.mean))
        return posterior, start, self._simulate(series, reading, start)

    @loop
    def _simulate(
        self, series: TimeSeries, reading: Reading, start: Float[Tensor, "samples batch latent"]
    ) -> SDEPath:
        count = self.nodes
        if not series.in_training:
            count, _ = steps_to_cover(series.times.clamp(min=0), self.step, self.nodes)
        times = torch.arange(count, device=start.device, dtype=torch.float64) * self.step
        there, *plan, log_spread = self._plan(reading, times.expand(len(series.ids), -1))
        noise = self._noise(series, times.expand(len(series.ids), -1), start)
        sigma = sqrt(self.step) * self.log_sigma.exp()
        jumps = sigma * log_spread.exp() * noise
        if (drift := fused_weights(self.field)) and (guide := self.steering.fused_weights()):
            return SDEPath(*self._fused_chain(start, jumps, there, plan, sigma, drift, guide), log_spread, noise)
        time, state, states, pulls = start.new_zeros(()), start, [start], []
        for k in range(count):
            pull = there[k] * self.steering(state, *(part[k] for part in plan))
            state = torch.addcmul(state + jumps[k], sigma, pull) + self.step * self.field(time, state)
            states.append(state)
            pulls.append(pull)
        return SDEPath(torch.stack(states), torch.stack(pulls), log_spread, noise)

    def _fused_chain(
        self,
        start: Tensor,
        jumps: Tensor,
        there: Tensor,
        plan: list[Tensor],
        sigma: Tensor,
        drift: Weights,
        guide: Weights,
    ) -> tuple[Tensor, Tensor]:
        """Return the states and pulls of `_simulate` by one fused function with its own backward pass."""
        samples, batch = start.shape[:2]
        drift = drift.times(self.step)
        shift, slope, hidden = (part[:, 0] for part in plan)
        outputs = GuidedChain.apply(
            (drift.activation, guide.activation),
            len(drift.flat),
            samples,
            torch.is_grad_enabled(),
            start.flatten(0, 1),
            jumps.flatten(1, 2),
            there[:, 0],
            shift,
            slope,
            2 * hidden,  # the guide's tanh(x) is 2 sigmoid(2 x) - 1 in its fused form
            sigma,
            *drift.flat,
            *guide.flat,
        )
        states, pulls = (x.unflatten(1, (samples, batch)) for x in outputs)
        return states, pulls

    def _noise(self, series: TimeSeries, times: Tensor, start: Tensor) -> Float[Tensor, "steps samples batch latent"]:
        """Draw noise for every step as a function of series and node, independent of the number of steps."""
        nothing = torch.zeros(*times.shape, 1, dtype=torch.bool, device=times.device)
        nodes = TimeSeries(times, nothing.to(start), nothing, nothing, series.window, series.ids)
        return self.noise.at_points("path", nodes, start.shape[0], self.latent, start).permute(2, 0, 1, 3)

    def _plan(self, reading: Reading, times: Float64[Tensor, "batch steps"]) -> list[Tensor]:
        """Return which steps have a posterior drift, (steps, 1, batch, 1), and the plan of each step.

        A step is guided by the first observed point after its start, even one before its end. The reading holds the
        points from the last to the first, so that point is the last one in it that is still later.
        """
        later = torch.searchsorted(-reading.elapsed, -times.contiguous()).minimum(reading.count)
        there = (later > 0).T[:, None, :, None]
        next_point = (later - 1).clamp(min=0)
        gap = (pick(reading.elapsed, next_point) - times).clamp(min=0).to(reading.states)
        plan = self.steering.plan(pick(reading.states, next_point), gap / self.usual_gap, gap / self.step)
        return [there.to(gap), *plan[:3], torch.where(there, plan[3], 0)]

    def _points(self, series: TimeSeries, steps: SDEPath) -> Float[Tensor, "samples batch time latent"]:
        """Return the path at every point, linear between nodes, and z_0 before the first node."""
        return linear_read(steps.states, self.step, 0, series.times)

    def _decode(self, series: TimeSeries, states: Tensor, line: Line | None) -> Density:
        """Return the density of every point, without error bars."""
        density = self.head(self.decoder(with_covariates(states, series.covariates)))
        return density if line is None else line.add(density)

    def _log_likelihood(
        self, series: TimeSeries, steps: SDEPath, line: Line | None = None
    ) -> tuple[Float[Tensor, "samples batch"], Tensor]:
        """Return log p(scored | z, line) in nats per series, and the states."""
        states = self._points(series, steps)
        density = self._decode(series, states, line).with_measurement_error(series.error)
        return density.log_prob(series.values, series.scored).sum(2), states

    def _loss_terms(self, series, samples):
        line = self._line(series, samples)
        posterior, _, steps = self._chain(series, samples, line)
        prior = Normal.standard(posterior.mean)
        log_prob, states = self._log_likelihood(series, steps, line)
        kl = posterior.kl_each(prior) + steps.kl.mean(0)
        shift = torch.cat([posterior.shift(prior)[None], steps.pull.mean(1)]).detach()
        there = torch.ones(shift.shape[:2], dtype=torch.bool, device=shift.device)
        total = kl.sum(-1) if line is None else kl.sum(-1) + line.kl
        return LossTerms(-log_prob.mean(0), total, Latents(kl, torch.ones_like(total), shift, there), states)

    def _log_weights(self, series, samples):
        line = self._line(series, samples)
        posterior, start, steps = self._chain(series, samples, line)
        ratio = Normal.standard(start).log_prob(start) - posterior.log_prob(start) + steps.log_ratio
        ratio = ratio if line is None else ratio + line.log_ratio
        return self._log_likelihood(series, steps, line)[0] + ratio

    def _predict(self, series, samples):
        line = self._line(series, samples)
        states = self._points(series, self._chain(series, samples, line)[2])
        return self._prediction_from(self._decode(series, states, line), series, samples)
