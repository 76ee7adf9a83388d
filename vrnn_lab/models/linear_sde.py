"""Define the linear SDE, exact where its output is linear and Gaussian, and bounded by Gaussian sites elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from math import pi
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vrnn_lab.core.densities import Density
from vrnn_lab.core.kalman import log_likelihood, posterior
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.gaussian_sites import Site, Sites, decoder
from vrnn_lab.models.heads import GaussianHead
from vrnn_lab.models.linear_mixture import Components, Factors, chosen
from vrnn_lab.models.linear_paths import LinearPaths
from vrnn_lab.models.linear_readout import Readout
from vrnn_lab.models.linear_state import Coupled, Independent, Parts, lower_root
from vrnn_lab.models.lines import PathLevel
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.models.networks import with_covariates
from vrnn_lab.models.observed_points import log_likelihood_by_length, observed_alone, some
from vrnn_lab.models.prior_paths import chained
from vrnn_lab.models.recipe import Recipe

MANY = 2  # channels up to which a joint state is worth its cost
SEVERAL = 4  # components by default where series differ
UNLIKE = 0.5  # heterogeneity of the training series (`Variation`) above which they are taken to differ


class LinearSDE(LinearPaths):
    """Model a linear-Gaussian state in continuous time, with its exact likelihood (Sarkka & Solin 2019, chapter 12).

    u_c(t) = mean_c(t) + covariates' beta_c + sum_j C_cj z_j(t) + level_c + slope_c r_c(t),
    x_c(t) = u_c(t) + e,  e ~ N(0, noise_c^2 + error^2),
    dz = F z dt + G dW,  z(t) ~ N(0, I),  t in typical training windows from the start of the row's window;
    r_c(t) = (1 - e^(-k_c t)) / k_c, also in the mean: trends are damped (Gardner & McKenzie 1985).

    z of each channel consists of `ou` Ornstein-Uhlenbeck processes, `matern` Matern-3/2 processes, `oscillators`
    damped oscillations, and for each known period `harmonics` oscillations of fixed frequencies, a slowly changing
    season. Level and slope are drawn once per series, with learned variances: a mixed model (Laird & Ware 1982). With
    shared=true every channel also reads the parts of the others, by learned loadings. coupling=full: any stable F and
    G.

    components=K: a mixture of K such SDEs, which differ in how far and how fast the parts move and in their noise
    (`models.linear_mixture`), for series that differ in these; each series belongs to one of them, or, where channels
    are separate, each channel of a series.

    log p and its gradient come from the Kalman filter, marginals from the smoother, and joint paths from Matheron's
    rule: a path of the prior, plus the smoother's mean of the difference between the observed values and those of
    that path.

    With any head other than a Gaussian of one std per channel, or with decoder_depth > 0, x(t) ~ head(u(t) +
    network(u(t))), and q(z) = p(z) prod_i N(y_i; u_i, v_i) / Z with a Gaussian site at every observed value
    (`models.gaussian_sites`). The filter gives log Z, the smoother q, and
    log w = sum_i log p(x_i | u_i) - sum_i log N(y_i; u_i, v_i) + log Z

    gives the bounds (Markovian Gaussian process VAE, Zhu et al. 2023, arXiv 2207.05543). ValueError where the state
    would have no part.
    """

    takes_covariates = takes_error = answers_apart = True
    usual_steps = 400  # few, since its parameters change SPEED times as fast as other weights

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        ou: Natural = 1,
        matern: Natural = 1,
        oscillators: Literal["auto"] | Natural = "auto",
        periods: Literal["auto"] | list[Positive] = "auto",
        harmonics: Natural = 3,
        level: PathLevel = "auto",
        mean: Literal["auto", "constant", "linear"] = "auto",
        shared: Literal["auto"] | bool = "auto",
        coupling: Literal["none", "full"] = "none",
        components: Literal["auto"] | Count = "auto",
        decoder_depth: Natural = 0,
        decoder_width: Count = 64,
        encoder_width: Count = 64,
    ):
        known = list(scale.periods if periods == "auto" else periods)
        oscillators = int(not known) if oscillators == "auto" else oscillators
        parts = Parts(ou, matern, oscillators + harmonics * len(known))
        states = scale.dim * parts.states
        super().__init__(scale, recipe, head(scale), states=states)
        if not parts.states:
            raise ValueError("the state has no part; set model.ou, model.matern or model.oscillators to 1 or more.")
        independent = Independent(parts, scale.dim, oscillators, self.usual_gap, self._turning(known, harmonics))
        self.dynamics = Coupled(independent) if coupling == "full" else independent
        self.joint = scale.dim > 1 and (coupling == "full" or (scale.dim <= MANY if shared == "auto" else shared))
        self.readout = Readout(scale, parts, level, mean, self.joint, coupling == "full")
        exact = isinstance(self.head, GaussianHead) and self.head.width == scale.dim and not decoder_depth
        self.has_signal = exact
        self.sites = None if exact else Sites(scale, encoder_width)
        self.decoder = None if exact else decoder(scale, self.head, decoder_width, decoder_depth)
        count = components if components != "auto" else _default_components(scale) if exact else 1
        if count > 1 and not exact:
            raise ValueError(
                f"model.components={count} needs an exact likelihood, with model/head=gaussian_channel and "
                "model.decoder_depth=0; set model.components=1, or leave those two as they are."
            )
        groups = 1 if self.joint else scale.dim
        self.mixture = Components(count, scale.dim, groups, paced=not known) if count > 1 else None

    def _turning(self, periods: Sequence[float], harmonics: int) -> list[float]:
        """Return the frequencies of the harmonics of known periods, in radians per typical window."""
        return [2 * pi * k * self.clock / period for period in periods for k in range(1, harmonics + 1)]

    # ---- observations and their densities -------------------------------------------------------------------------

    def _observed(self, series: TimeSeries, factors: Factors | None = None) -> Site:
        """Return the filter's observations: the data with their noise variance, error bars included; or sites.

        factors: those of the series, where these are the rows of a mixture.
        """
        if self.sites is not None:
            start = self.sites.start(series, lambda signal: self._decode(series, signal))
            return self.sites(series, start, *self._marginals(series, self._smoothed(series, start)))
        std = self.head(torch.zeros_like(series.values)).std.double()
        std = std if factors is None else std * factors.noise
        variance = std.square() if series.error is None else std.square() + series.error.double().square()
        return Site(series.values.double(), variance)

    def _decode(self, series: TimeSeries, signal: Float[Tensor, "*samples batch time dim"]) -> Density:
        """Return p(x | signal), without error bars."""
        signal = signal.to(series.values)
        raw = self.head.located(signal)
        return self.head(
            raw if self.decoder is None else raw + self.decoder(with_covariates(signal, series.covariates))
        )

    # ---- methods of the contract (`models.base`) -----------------------------------------------------------------

    def _log_prob(self, series: TimeSeries, *masks: Bool[Tensor, "batch time dim"]) -> Float[Tensor, "masks batch"]:
        """Return log p of the values under each mask, in nats per series."""
        log_probs = self._log_probs(series, *masks)
        if self.mixture is not None:
            log_probs = self.mixture.joint(log_probs).logsumexp(0, keepdim=True)
        return log_probs[0].sum(-1).to(series.values)

    def _log_probs(
        self, series: TimeSeries, *masks: Bool[Tensor, "batch time dim"]
    ) -> Float64[Tensor, "components masks batch groups"]:
        """Return log p of the values of each group of channels under each mask and component."""
        many, factors = self._rows(series, len(masks))
        copies = len(many.ids) // len(series.ids)
        rest = (series.values.double() - self.readout.mean(series)).repeat(copies, 1, 1)
        mask = torch.cat(masks).repeat(copies // len(masks), 1, 1)
        parts = mask, many.times[..., None], rest, self._observed(many, factors).variance
        mask, times, rest, variance = parts if self.joint else observed_alone(*parts)
        values, mask = self._split(rest[..., None])[..., 0], self._split(mask[..., None])[..., 0]
        likelihood = log_likelihood if self.joint else log_likelihood_by_length
        log_probs = likelihood(self._space(times, variance, factors), values, mask)
        return log_probs.view(-1, len(masks), len(series.ids), 1 if self.joint else self.scale.dim)

    def _rows(self, series: TimeSeries, copies: int = 1) -> tuple[TimeSeries, Factors | None]:
        """Return the series `copies` times for each component, and the factors of the rows.

        Repeated series are without covariates.
        """
        if self.mixture is None and copies == 1:
            return series, None
        count = 1 if self.mixture is None else self.mixture.count
        repeated = series.map(lambda x: x.repeat(count * copies, *[1] * (x.ndim - 1)))
        factors = None if self.mixture is None else self.mixture.factors(copies * len(series.ids))
        return replace(repeated, covariates=None), factors

    @property
    def has_kl(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - of this model it depends on the head
        return self.sites is not None

    def _loss_terms(self, series, samples):
        if self.sites is not None:
            return self._elbo(series, samples)
        known, given = series.known, series.seen & ~series.scored
        if some(given):
            both = self._log_prob(series, known, given)
            log_prob = both[0] - both[1]
        else:
            log_prob = self._log_prob(series, known)[0]
        return LossTerms(-log_prob, log_prob.new_zeros(len(log_prob)), states=self._label_states(series))

    def _elbo(self, series: TimeSeries, samples: int) -> LossTerms:
        """Return the ELBO's terms, with each point's signal drawn from its own marginal and the KL in closed form.

        The bound is a sum over points, so marginal draws suffice, and they have less variance than joint draws.
        """
        site = self._observed(series)
        smoothed = self._smoothed(series, site)
        noise = self.noise.at_points("signal", series, samples, self.scale.dim, site.value)
        drawn = self._join(smoothed.means + lower_root(smoothed.covariance) @ self._split(noise.movedim(0, -1)))
        log_prob = self._log_likelihood(series, drawn.movedim(-1, 0) + self.readout.mean(series))
        kl = site.expected(*self._marginals(series, smoothed), series.seen) - smoothed.log_z
        return LossTerms(-log_prob.mean(0), kl.to(log_prob), states=self._label_states(series))

    def _log_likelihood(self, series: TimeSeries, signal: Tensor) -> Float[Tensor, "samples batch"]:
        """Return log p(scored | signal) in nats per series."""
        density = self._decode(series, signal).with_measurement_error(series.error)
        return density.log_prob(series.values, series.scored).sum(2)

    def _log_weights(self, series, samples):
        if self.sites is None:
            return self._log_prob(series, series.known)[0].expand(samples, -1)
        site = self._observed(series)
        moving = chained(self.dynamics, self.noise, series, samples)
        space = self._space(series.times[..., None], site.variance)
        drawn, noisy = (self._join(x).movedim(-1, 0) for x in self._prior(series, space, self.noise, moving))
        smoothed = self._smoothed(series, site, noisy)
        means = self._join(smoothed.means).movedim(-1, 0)
        signal = drawn + means[:1] - means[1:] + self.readout.mean(series)
        ratio = smoothed.log_z - site.log_prob(signal, series.seen)
        return self._log_likelihood(series, signal) + ratio.to(series.values)

    @torch.no_grad()
    def _label_states(self, series: TimeSeries) -> Float[Tensor, "1 batch time state"] | None:
        """Return the smoothed means of the parts, if a classifier of labels reads them; no gradient flows back.

        In a mixture they are averages over the components, by their probabilities given the observed values.
        """
        if self.classifier is None:
            return None
        many, factors = self._rows(series)
        site = self._observed(many, factors)
        rest = site.value - self.readout.mean(series).repeat(len(many.ids) // len(series.ids), 1, 1)
        space = self._space(many.times[..., None], site.variance, factors)
        states, _ = posterior(space, self._split(rest[..., None]), self._split(many.seen[..., None])[..., 0])
        states = states.view(-1, len(series.ids), *([1] if self.joint else [self.scale.dim]), *states.shape[1:3])
        if self.mixture is not None:
            log_probs = self.mixture.joint(self._log_probs(series, series.seen)[:, 0])
            states = states * log_probs.softmax(0)[..., None, None]
        states = states.sum(0)[
            ..., : self.dynamics.groups * self.dynamics.states if self.joint else self.dynamics.states
        ]
        return states.transpose(1, 2).flatten(2)[None].to(series.values)

    def _predict(self, series, samples):
        with self.noise.repeatable(series.times.device):
            drawn = self._draw(series, samples, series.known)
            if self.sites is not None:
                return self._prediction_from(self._decode(series, drawn.signal), series, samples)
            noise = self.noise.at_points("value", series, samples, self.scale.dim, drawn.signal)
        return drawn.prediction(drawn.signal + drawn.noise * noise, series)

    def _extremes(self, series, samples, highest):
        """Draw the maximum, or minimum, of the Brownian bridge between neighbouring points of every path.

        Between values x and y, of a process whose increments have variance v over the gap, P(maximum > m) =
        exp(-2 (m - x) (m - y) / v) (Karatzas & Shreve 1991, 4.3.40), solved for m at a uniform number. Between points
        the parts are taken as Brownian motions, which they are over gaps that are short relative to their decay.
        """
        with self.noise.repeatable(series.times.device):
            drawn = self._draw(series, samples, torch.ones_like(series.seen))
            log_uniform = torch.special.log_ndtr(
                self.noise.at_points("extreme", series, samples, self.scale.dim, drawn.signal)
            )
        rate = chosen(self._rate(series).expand(samples, -1, *series.values.shape[1:]), drawn.component)
        variance = rate * torch.diff(series.times, dim=1, prepend=series.times[:, :1])[..., None]
        before = torch.cat([drawn.signal[:, :, :1], drawn.signal[:, :, :-1]], 2)
        apart = ((drawn.signal - before).square() - 2 * variance * log_uniform).sqrt()
        return drawn.prediction(0.5 * (before + drawn.signal + (apart if highest else -apart)), series)


def _default_components(scale: Scale) -> int:
    """Return several where the training series move by different amounts in any channel, and one otherwise."""
    measured = None if scale.variation is None else scale.variation.heterogeneity
    return SEVERAL if measured is not None and bool((measured > UNLIKE).any()) else 1
