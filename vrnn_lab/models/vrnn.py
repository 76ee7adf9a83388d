"""Define the variational recurrent network."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.series import Scale, TimeSeries, compact, put_back
from vrnn_lab.core.types import Count, Dropout, Natural
from vrnn_lab.models.fused.tape import Weights, fused_enabled
from vrnn_lab.models.fused.vrnn import VariationalSequence
from vrnn_lab.models.last_value import StepLevel, last_values
from vrnn_lab.models.latent_steps import BackwardNetwork, GatedTransition
from vrnn_lab.models.layers import ACTIVATIONS, Activation, GRUCell, mlp, weights_of
from vrnn_lab.models.losses import Latents, LossTerms, Normal
from vrnn_lab.models.networks import GAP_FEATURES, gap_features, with_covariates
from vrnn_lab.models.particles import choose_ancestors
from vrnn_lab.models.recipe import FIVO, BalancedKL, Recipe
from vrnn_lab.models.steps import StepModel


class VRNN(StepModel):
    """Model a series by an RNN with a latent at every step (Chung et al. 2015, arXiv 1506.02216, eq. 5 to 11).

    s_i = GRU([phi_x(x_{i-1}, known_{i-1}), gap_i, u_i, phi_z(z_{i-1})], s_{i-1})
    prior      z_i ~ N(phi_prior(s_i)), or N(0, I) with prior=standard (the paper's VRNN-I)
    posterior  z_i ~ N(phi_enc(phi_x(x_i, known_i), s_i))
    output     x_i ~ head(phi_dec(phi_z(z_i), s_i))

    s_i is the paper's h_{i-1}, with the gap and the covariates u_i of the next point as further inputs.

    Bound: sum_i log p(x_i | z_<=i, x_<i) - KL(q(z_i | x, z_<i) || p(z_i | x_<i, z_<i)). Only what depends on the
    state runs in the loop over points; features of x, prior and output heads are computed once for all points.

    posterior=smooth: phi_enc also reads a_i, the state of a network that runs backward over the points from the last
        one to point i (`BackwardNetwork`, as in the SRNN of Fraccaro et al. 2016, arXiv 1605.07571), because the
        values after a point tell more about its latent. A prediction at a query still uses no value after its time.
    residual: the posterior's mean is the prior's plus the network's output (as in that paper).
    prior=markov: a deep Markov model (Krishnan et al. 2017, arXiv 1609.09869). s_i = [z_{i-1}, gap_i, u_i], the
        prior is a `GatedTransition` of s_i, and the output reads z_i alone: x_i ~ head(phi_dec(phi_z(z_i))). With
        level=none nothing but the latents carries the past on.
    dropout: the share of numbers that training sets to zero, at random, in phi_x(x_{i-1}), and in s_i where the prior
        and the output read it; with prior=markov in phi_z(z_i) where the output reads it.

    The constructor raises ValueError where two options do not go together.
    """

    takes_covariates = takes_error = True
    takes_free_bits = takes_balance = True

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        width: Count = 64,
        latent: Count = 16,
        depth: Natural = 1,
        feature_width: Count = 64,
        feature_depth: Natural = 1,
        prior: Literal["learned", "standard", "markov"] = "learned",
        activation: Activation = "tanh",
        level: StepLevel = "none",
        posterior: Literal["filter", "smooth"] = "filter",
        residual: bool = False,
        dropout: Dropout = 0.0,
    ):
        markov, covariates = prior == "markov", len(scale.covariates)
        state = latent + GAP_FEATURES + covariates if markov else width
        super().__init__(scale, recipe, head, feature_width + state, level, dropout)
        refuse_options(recipe, prior, residual, dropout)
        self.width, self.latent, self.state_size = width, latent, state
        self.residual, self.markov = residual, markov
        self.named: Activation = activation
        self.activation = ACTIVATIONS[activation]()
        self.phi_x = mlp(2 * self._read_scale().dim, feature_width, feature_width, feature_depth, activation)
        self.phi_z = mlp(latent, feature_width, feature_width, feature_depth, activation)
        if not self.markov:
            self.memory = GRUCell(feature_width + GAP_FEATURES + covariates, width)
            self.gates_of_z = nn.Linear(feature_width, 3 * width, bias=False)
        self.backward_network = BackwardNetwork(feature_width, covariates, width) if posterior == "smooth" else None
        self.posterior_of_x = nn.Linear(feature_width + (width if posterior == "smooth" else 0), width)
        self.posterior_of_state = nn.Linear(state, width, bias=False)
        self.posterior_out = nn.Linear(width, 2 * latent)
        if self.markov:
            self.prior = GatedTransition(latent, state - latent, width, depth, activation)
        else:
            self.prior = mlp(width, width, 2 * latent, depth, activation) if prior == "learned" else None
        read = feature_width + (0 if self.markov else width)
        self.output = self.head.begin(mlp(read, width, self.head.width, depth, activation))

    def _features(self, values: Tensor, known: Tensor) -> Tensor:
        return self.activation(self.phi_x(torch.cat([values * known, known.to(values)], -1)))

    def _features_of_z(self, z: Tensor) -> Tensor:
        return self.activation(self.phi_z(z))

    def _raw_posterior(self, from_x: Tensor, state: Tensor) -> Tensor:
        raw = self.posterior_out(self.activation(from_x + self.posterior_of_state(state)))
        if not self.residual or self.prior is None:
            return raw
        mean, log_std = raw.chunk(2, -1)
        return torch.cat([mean + self.prior(state)[..., : self.latent], log_std], -1)

    def _posterior(self, from_x: Tensor, state: Tensor) -> Normal:
        return Normal.of(self._raw_posterior(from_x, state))

    def _prior(self, state: Tensor) -> Normal:
        if self.prior is None:
            return Normal.standard(state.new_zeros(*state.shape[:-1], self.latent))
        return Normal.of(self.prior(state))

    def _output(self, from_z: Tensor, state: Tensor) -> Tensor:
        """Return the head's numbers of a point."""
        return self.output(from_z if self.markov else torch.cat([from_z, state], -1))

    def _inputs(self, before: Tensor, gap: Tensor, covariates: Tensor | None) -> Tensor:
        """Return what a step takes in beside the latent, from the features of the previous point and its gap."""
        inputs = gap_features(gap) if self.markov else torch.cat([before, gap_features(gap)], -1)
        inputs = with_covariates(inputs, covariates)
        return inputs if self.markov else self.memory.gates(inputs)

    def _carry(self, z: Tensor, feature: Tensor) -> Tensor:
        """Return what the next step takes in of a latent: the gates of its features; with prior=markov itself."""
        return z if self.markov else self.gates_of_z(feature)

    def _step(self, inputs: Tensor, carried: Tensor, state: Tensor) -> Tensor:
        """Return the next state."""
        if self.markov:
            return torch.cat([carried, inputs.expand(*carried.shape[:-1], -1)], -1)
        return self.memory(inputs + carried, state)

    def _prepare(
        self, series: TimeSeries
    ) -> tuple[Float[Tensor, "time batch inputs"], Float[Tensor, "time batch width"]]:
        """Compute what does not depend on the state: the inputs of each step, and the posterior's features of x."""
        values, known = (x.transpose(0, 1) for x in self._readings(series))
        features, gap = self._features(values, known), self._gap(series)
        zero = torch.zeros_like(values[:1])
        before = torch.cat([self._features(zero, zero), features[:-1]])
        if not self.markov:
            before = self._dropped("dropout of inputs", series, before.transpose(0, 1)).transpose(0, 1)
        covariates = None if series.covariates is None else series.covariates.transpose(0, 1)
        inputs = self._inputs(before, gap.transpose(0, 1), covariates)
        if self.backward_network is not None:
            ahead = self.backward_network.over(features.transpose(0, 1), gap, series.covariates, series.counts)
            features = torch.cat([features, ahead.transpose(0, 1)], -1)
        return inputs, self.posterior_of_x(features)

    def _begin(self, series: TimeSeries, samples: int) -> tuple[Tensor, Tensor]:
        """Return the initial state, and what the first step takes in of a zero latent before it."""
        state = self._start(series.values, samples, len(series.ids))
        z = state.new_zeros(self.latent)
        return state, self._carry(z, self._features_of_z(z))

    def _terms(self, series: TimeSeries, samples: int):
        """Return (p(x | z) of each point, posterior, prior, z, states for labels) of compacted rows."""
        noise = self.noise.at_points("latent", series, samples, self.latent, series.values).permute(2, 0, 1, 3)
        inputs = *self._prepare(series), noise, *self._begin(series, samples)
        state, raw, z, feature = self._sequence(*inputs)
        by_time = lambda x: x.permute(1, 2, 0, 3)
        drop = lambda place, x: self._dropped(f"dropout before the {place}", series, by_time(x)).permute(2, 0, 1, 3)
        to_output = (drop("output", feature), state) if self.markov else (feature, drop("output", state))
        output = self._output(*to_output)
        density = self._moved(self.head(by_time(output)), series).with_measurement_error(series.error)
        prior = self._prior(state if self.markov else drop("prior", state)).map(by_time)
        both = torch.cat([feature, state], -1)
        return density, Normal.of(by_time(raw)), prior, by_time(z), by_time(both)

    @loop
    def _sequence(self, inputs, from_x, noise, state, carried) -> list[Tensor]:
        """Return (states, the posterior's raw numbers, z, features of z), each (time, samples, batch, _)."""
        weights = self._weights() if fused_enabled() else None
        if weights:
            return self._fused_sequence(inputs, from_x, noise, state, carried, *weights)
        steps = []
        for each, x, eps in zip(inputs, from_x, noise, strict=True):
            state = self._step(each, carried.expand(*eps.shape[:-1], -1), state)
            raw = self._raw_posterior(x, state)
            z = Normal.of(raw).draw(eps)
            feature = self._features_of_z(z)
            carried = self._carry(z, feature)
            steps.append((state, raw, z, feature))
        return [torch.stack(x) for x in zip(*steps, strict=True)]

    def _weights(self) -> tuple[Weights, Weights] | None:
        """Return fused weights of the posterior (from the state) and of z's gates (from z), or None.

        None where options, a subclass or changed layers have no fused form.
        """
        if self.markov or self.residual:
            return None
        read = (self.posterior_of_state.weight, self.posterior_out.weight)
        shift = self.posterior_out.bias
        posterior = Weights(self.named, read, (shift.new_zeros(len(read[0])), shift))
        features, gates = weights_of(self.phi_z, self.named), self.gates_of_z.weight
        if type(self) is not VRNN or features is None:
            return None
        matrices, shifts = (*features.matrices, gates), (*features.shifts, gates.new_zeros(len(gates)))
        fused_posterior, fused_gates = posterior.for_fused(), Weights(self.named, matrices, shifts).for_fused()
        return (fused_posterior, fused_gates) if fused_posterior and fused_gates else None

    def _fused_sequence(
        self, gates, from_x, noise, state, gates_of_z, posterior: Weights, latent_gates: Weights
    ) -> list[Tensor]:
        """Run `_sequence` as one fused function with its own backward pass."""
        samples, batch = noise.shape[1:3]
        rows = lambda x: x[:, None].expand(-1, samples, -1, -1).flatten(1, 2)
        # Fused weights express tanh(x) as 2 sigmoid(2 x) - 1: the first shift, from_x, is doubled, and the
        # features, which are sigmoids y, stand for 2 y - 1.
        tanh = self.named == "tanh"
        outputs = VariationalSequence.apply(
            posterior.activation,
            len(posterior.flat),
            torch.is_grad_enabled(),
            rows(gates),
            rows(2 * from_x if tanh else from_x),
            noise.flatten(1, 2),
            state.flatten(0, 1),
            gates_of_z.expand(samples * batch, -1),
            self.memory.recur.weight,
            self.memory.recur.bias,
            *posterior.flat,
            *latent_gates.flat,
        )
        state, raw, z, feature = (x.unflatten(1, (samples, batch)) for x in outputs)
        return [state, raw, z, 2 * feature - 1 if tanh else feature]

    def _loss_terms(self, series, samples):
        series, index = compact(series, series.counts)
        density, posterior, prior, _, states = self._terms(series, samples)
        kl_each = self.recipe.beta.kl_each(posterior, prior)
        kl = torch.where(series.counts[..., None], kl_each, 0).sum(2).mean(0)
        shift, draws = posterior.shift(prior).detach(), series.counts.to(kl).sum(1)
        latents = Latents(kl, draws, shift, series.counts.expand(shift.shape[:-1]))
        log_prob = density.log_prob(series.values, series.scored).sum(2).mean(0)
        return LossTerms(-log_prob, kl.sum(-1), latents, put_back(states, index, 2))

    def _log_weights(self, series, samples):
        series, _ = compact(series, series.counts)
        density, posterior, prior, z, _ = self._terms(series, samples)
        ratio = torch.where(series.counts, prior.log_prob(z) - posterior.log_prob(z), 0)
        return (density.log_prob(series.values, series.scored) + ratio).sum(2)

    @loop
    def _filter_bound(self, series, samples):
        """Return the FIVO bound, resampling particles where their effective number is below half of them.

        Gradients do not flow through the choice of ancestors, as in Maddison et al. 2017, arXiv 1705.09279.
        """
        series, _ = compact(series, series.counts)
        inputs, from_x = self._prepare(series)
        noise = self.noise.at_points("latent", series, samples, self.latent, series.values).unbind(2)
        chance = torch.special.ndtr(self.noise.at_points("ancestor", series, 1, 1, series.values))[0, :, :, 0].unbind(
            1
        )
        state, carried = self._begin(series, samples)
        carried = carried.expand(*state.shape[:2], -1)
        weight, bound = state.new_zeros(state.shape[:2]), state.new_zeros(state.shape[1])
        last, ever = last_values(series.values, series.known)
        for i in range(len(inputs)):
            state = self._step(inputs[i], carried, state)
            posterior, prior = self._posterior(from_x[i], state), self._prior(state)
            z = posterior.draw(noise[i])
            feature = self._features_of_z(z)
            density = self.head(self._output(feature, state))
            density = density if self.last is None else self.last.move(density, last[:, i], ever[:, i])
            density = density.with_measurement_error(None if series.error is None else series.error[:, i])
            log_prob = density.log_prob(series.values[:, i], series.scored[:, i])
            weight = weight + torch.where(
                series.counts[:, i], log_prob + prior.log_prob(z) - posterior.log_prob(z), 0
            )
            carried = self._carry(z, feature)
            ancestors, resampled = choose_ancestors(weight.detach(), chance[i])
            bound = bound + torch.where(resampled, log_mean_exp(weight), 0)
            weight = torch.where(resampled, 0, weight)
            follow = lambda x: x.gather(0, ancestors[..., None].expand(-1, -1, x.shape[-1]))  # noqa: B023 - used at once
            state, carried = follow(state), follow(carried)
        return bound + log_mean_exp(weight)

    def _start(self, like, *rows):
        return like.new_zeros(*rows, self.state_size)

    def _remember(self, values, known, gap, covariates, latent, state):
        inputs = self._inputs(self._features(values, known), gap[..., 0], covariates)
        return self._step(inputs, self._carry(latent, self._features_of_z(latent)), state)

    def _look_ahead(self, series):
        if self.backward_network is None:
            return super()._look_ahead(series)
        reading = self._readings(replace(series, scored=series.seen))  # of the observed values alone
        asked = (series.scored & ~series.seen).any(-1)
        return self.backward_network.within_stretches(
            self._features(*reading), self._gap(series), series.covariates, series.counts, asked
        )

    def _emit(self, state, values, seen, noise, ahead):
        features = self._features(values, seen)
        features = torch.cat([features, ahead.to(features).expand(*features.shape[:-1], -1)], -1)
        posterior = self._posterior(self.posterior_of_x(features), state)
        latent = posterior.where(seen.any(-1, keepdim=True), self._prior(state)).draw(noise)
        return self.head(self._output(self._features_of_z(latent), state)), latent


def refuse_options(recipe: Recipe, prior: str, residual: bool, dropout: float) -> None:
    """Raise ValueError for options of a VRNN of which one would undo the other, or do nothing."""
    fivo = isinstance(recipe.objective, FIVO)
    for wrong, text in (
        (
            residual and prior == "standard",
            "model.residual=true adds the prior's mean, which model.prior=standard has at 0",
        ),
        (
            residual and dropout and prior == "learned",
            "model.residual=true adds the mean of the prior without model.dropout",
        ),
        (
            residual and isinstance(recipe.beta, BalancedKL),
            "beta=balance cannot hold the prior still in a residual posterior",
        ),
        (
            prior == "standard" and isinstance(recipe.beta, BalancedKL),
            "beta=balance needs a learned prior, and model.prior=standard is none; set beta=constant",
        ),
        (fivo and dropout, "objective=fivo has no form with model.dropout"),
    ):
        if wrong:
            raise ValueError(f"{text}; leave one of the two options out.")
