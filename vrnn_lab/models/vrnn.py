"""The variational recurrent network."""

import torch
from torch import Tensor, nn

from vrnn_lab.checks import Count, Natural
from vrnn_lab.losses import LossTerms, Normal
from vrnn_lab.models.steps import StepModel
from vrnn_lab.networks import ACTIVATIONS, GAP_FEATURES, Activation, Memory, gap_features, mlp
from vrnn_lab.recipe import Recipe
from vrnn_lab.series import Scale, TimeSeries, compact


class VRNN(StepModel):
    """A latent variable at every step of an RNN (Chung et al. 2015, arXiv 1506.02216, eq. 5 to 11).

    s_i = GRU([phi_x(x_{i-1}, known_{i-1}), gap_i, phi_z(z_{i-1})], s_{i-1})    (the paper's h_{i-1}, told the gap)
    prior      z_i ~ N(phi_prior(s_i))
    posterior  z_i ~ N(phi_enc(phi_x(x_i, known_i), s_i))
    output     x_i ~ head(phi_dec(phi_z(z_i), s_i))

    Bound: sum_i log p(x_i | z_<=i, x_<i) - KL(q(z_i | x_<=i, z_<i) || p(z_i | x_<i, z_<i)). Only what depends
    on the state runs in the loop over points; features of x, prior and output heads run once over all points.
    """

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        width: Count = 64,
        latent: Count = 16,
        depth: Natural = 1,
        activation: Activation = "tanh",
        samples: Count = 1,
    ):
        super().__init__(scale, recipe, head(scale))
        self.width, self.latent, self.samples = width, latent, samples
        self.activation = ACTIVATIONS[activation]()
        self.phi_x = mlp(2 * scale.dim, width, width, depth, activation)
        self.phi_z = mlp(latent, width, width, depth, activation)
        self.memory = Memory(width + GAP_FEATURES, width)
        self.gates_of_z = nn.Linear(width, 3 * width, bias=False)
        self.posterior_of_x = nn.Linear(width, width)
        self.posterior_of_state = nn.Linear(width, width, bias=False)
        self.posterior_out = nn.Linear(width, 2 * latent)
        self.prior = mlp(width, width, 2 * latent, depth, activation)
        self.output = mlp(2 * width, width, self.head.width, depth, activation)

    def _features(self, values: Tensor, known: Tensor) -> Tensor:
        return self.activation(self.phi_x(torch.cat([values, known.to(values)], -1)))

    def _posterior(self, from_x: Tensor, state: Tensor) -> Normal:
        return Normal.of(self.posterior_out(self.activation(from_x + self.posterior_of_state(state))))

    def _gates_of(self, z: Tensor) -> Tensor:
        return self.gates_of_z(self.activation(self.phi_z(z)))

    def _density(self, from_z: Tensor, state: Tensor):
        return self.head(self.output(torch.cat([from_z, state], -1)))

    def _terms(self, series: TimeSeries, samples: int):
        """Per sample and series: log p(x | z), analytic KL, log p(z) - log q(z)."""
        series, _ = compact(series, series.counts)
        batch, time, _ = series.values.shape
        features = self._features(series.values, series.known)
        zero = torch.zeros_like(series.values[:, :1])
        nothing = self._features(zero, zero)
        before = torch.cat([nothing, features[:, :-1]], 1)
        gap = gap_features(self._gap(series))
        gates = self.memory.gates(torch.cat([before, gap], -1)).unbind(1)
        from_x = self.posterior_of_x(features).unbind(1)
        noise = self.noise.at_points("latent", series, samples, self.latent, features).unbind(2)
        state = features.new_zeros(samples, batch, self.width)
        gates_of_z = self._gates_of(features.new_zeros(self.latent))
        states, raw, draws, from_z = [], [], [], []
        for i in range(time):
            state = self.memory(gates[i] + gates_of_z, state)
            posterior = self._posterior(from_x[i], state)
            z = posterior.draw(noise[i])
            feature = self.activation(self.phi_z(z))
            gates_of_z = self.gates_of_z(feature)
            states.append(state)
            raw.append(posterior)
            draws.append(z)
            from_z.append(feature)
        state, z = torch.stack(states, 2), torch.stack(draws, 2)
        posterior = Normal(torch.stack([p.mean for p in raw], 2), torch.stack([p.log_std for p in raw], 2))
        prior = Normal.of(self.prior(state))
        density = self._density(torch.stack(from_z, 2), state)
        real = series.counts
        log_prob = density.log_prob(series.values, series.scored).sum(2)
        kl = torch.where(real, posterior.kl(prior), 0).sum(2)
        ratio = torch.where(real, prior.log_prob(z) - posterior.log_prob(z), 0).sum(2)
        return log_prob, kl, ratio

    def _loss_terms(self, series):
        log_prob, kl, _ = self._terms(series, self.samples)
        return LossTerms(-log_prob.mean(0), kl.mean(0))

    def _log_weights(self, series, samples):
        log_prob, _, ratio = self._terms(series, samples)
        return log_prob + ratio

    def _remember(self, inputs, latent, state):
        dim = self.scale.dim
        values, known, gap = inputs.split([dim, dim, GAP_FEATURES], -1)
        gates = self.memory.gates(torch.cat([self._features(values, known), gap], -1))
        return self.memory(gates + self._gates_of(latent), state)

    def _emit(self, state, values, seen, noise):
        posterior = self._posterior(self.posterior_of_x(self._features(values, seen)), state)
        latent = posterior.where(seen.any(-1, keepdim=True), Normal.of(self.prior(state))).draw(noise)
        return self._density(self.activation(self.phi_z(latent)), state), latent
