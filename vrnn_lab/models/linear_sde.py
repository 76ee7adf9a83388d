"""Define the linear SDE, exact where its output is linear and Gaussian, and bounded by Gaussian sites elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from math import pi
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vrnn_lab.core.densities import Density, Gaussian
from vrnn_lab.core.kalman import log_likelihood, posterior
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.base import Prediction
from vrnn_lab.models.gaussian_sites import Site, Sites, decoder
from vrnn_lab.models.heads import GaussianHead
from vrnn_lab.models.linear_readout import Readout
from vrnn_lab.models.linear_signal import LinearSignal
from vrnn_lab.models.linear_state import Coupled, Independent, Parts, lower_root
from vrnn_lab.models.lines import PathLevel
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.models.networks import with_covariates
from vrnn_lab.models.prior_paths import PriorPaths, chained
from vrnn_lab.models.recipe import Recipe

MANY = 2  # channels up to which a joint state is worth its cost


class LinearSDE(LinearSignal):
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

    takes_covariates = takes_error = True
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
            raise ValueError(
                "the state has no component; set model.ou, model.matern or model.oscillators to 1 or more."
            )
        independent = Independent(parts, scale.dim, oscillators, self.usual_gap, self._turning(known, harmonics))
        self.dynamics = Coupled(independent) if coupling == "full" else independent
        self.joint = scale.dim > 1 and (coupling == "full" or (scale.dim <= MANY if shared == "auto" else shared))
        self.readout = Readout(scale, parts, level, mean, self.joint, coupling == "full")
        exact = isinstance(self.head, GaussianHead) and self.head.width == scale.dim and not decoder_depth
        self.sites = None if exact else Sites(scale, encoder_width)
        self.decoder = None if exact else decoder(scale, self.head, decoder_width, decoder_depth)

    def _turning(self, periods: Sequence[float], harmonics: int) -> list[float]:
        """Return the frequencies of the harmonics of known periods, in radians per typical window."""
        return [2 * pi * k * self.clock / period for period in periods for k in range(1, harmonics + 1)]

    # ---- observations and their densities -------------------------------------------------------------------------

    def _observed(self, series: TimeSeries) -> Site:
        """Return the filter's observations: the data with their noise variance, error bars included; or sites."""
        if self.sites is not None:
            start = self.sites.start(series, lambda signal: self._decode(series, signal))
            return self.sites(series, start, *self._marginals(series, self._smoothed(series, start)))
        std = self.head(torch.zeros_like(series.values)).std.double()
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
        many = replace(series.map(lambda x: x.repeat(len(masks), *[1] * (x.ndim - 1))), covariates=None)
        rest = (series.values.double() - self.readout.mean(series)).repeat(len(masks), 1, 1)
        parts = torch.cat(masks), many.times[..., None], rest, self._observed(many).variance
        mask, times, rest, variance = parts if self.joint else _observed_alone(*parts)
        values, mask = self._split(rest[..., None])[..., 0], self._split(mask[..., None])[..., 0]
        log_probs = log_likelihood(self._space(times, variance), values, mask)
        return log_probs.view(len(masks), len(series.ids), -1).sum(-1).to(series.values)

    def _loss_terms(self, series, samples):
        if self.sites is not None:
            return self._elbo(series, samples)
        known, given = series.known, series.seen & ~series.scored
        if _some(given):
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
        drawn, noisy = self._prior(series, self._space(series.times[..., None], site.variance), site, moving)
        smoothed = self._smoothed(series, site, noisy)
        means = self._join(smoothed.means).movedim(-1, 0)
        signal = drawn + means[:1] - means[1:] + self.readout.mean(series)
        ratio = smoothed.log_z - site.log_prob(signal, series.seen)
        return self._log_likelihood(series, signal) + ratio.to(series.values)

    @torch.no_grad()
    def _label_states(self, series: TimeSeries) -> Float[Tensor, "1 batch time state"] | None:
        """Return the smoothed means of the parts, if a classifier of labels reads them; no gradient flows back."""
        if self.classifier is None:
            return None
        site = self._observed(series)
        space, rest = (
            self._space(series.times[..., None], site.variance),
            (site.value - self.readout.mean(series))[..., None],
        )
        states, _ = posterior(space, self._split(rest), self._split(series.seen[..., None])[..., 0])
        parts = self.dynamics.groups * self.dynamics.states
        if not self.joint:
            states = self._join(states[:, :, None, : self.dynamics.states, 0]).flatten(2)
        return states.reshape(*series.times.shape, -1)[None, :, :, :parts].to(series.values)

    def _predict(self, series, samples):
        site, mean = self._observed(series), self.readout.mean(series)
        space = self._space(series.times[..., None], site.variance)
        with self.noise.repeatable(series.times.device):
            drawn, noisy = self._prior(
                series, space, site, PriorPaths(self.dynamics, self.noise, series, samples).draw()
            )
            noise = self.noise.at_points("value", series, samples, self.scale.dim, drawn)
        columns = torch.cat([(site.value - mean)[..., None], noisy.movedim(0, -1)], -1)
        signal, variance = self._signal(series, space, columns)
        first, others = signal[..., :1], signal[..., 1:]
        paths = drawn + (first - others).movedim(-1, 0) + mean
        if self.sites is not None:
            return self._prediction_from(self._decode(series, paths), series, samples)
        paths = paths + site.variance.sqrt() * noise
        std = (variance + site.variance).sqrt()
        density = Gaussian((first[..., 0] + mean).expand_as(paths), std.expand_as(paths))
        return Prediction(paths.to(series.values), density.map(lambda x: x.to(series.values)))


def _observed_alone(
    mask: Bool[Tensor, "batch time dim"],
    times: Float64[Tensor, "batch time 1"],
    values: Float64[Tensor, "batch time dim"],
    variance: Float64[Tensor, "batch time dim"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the arguments with only the masked points of each channel, moved to the front; (batch, most, dim) each.

    A channel with a state of its own needs no step at the points of other channels. In tables of many channels that
    are seldom observed together, most points have one value: 41 channels of PhysioNet have 3 to 60 values each at
    over 100 points of a series. The arguments are unchanged where reading the mask is expensive.
    """
    if not _readable(mask):
        return mask, times, values, variance
    most = max(1, int(mask.numpy().sum(1).max()))
    order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    mask, times, values, variance = (x.expand(mask.shape).gather(1, order) for x in (mask, times, values, variance))
    return mask, torch.where(mask, times, times[:, :1]).cummax(1).values, values, variance


def _readable(mask: Tensor) -> bool:
    """Return whether a mask can be read at no cost; on a GPU, or in a graph, that would wait for the device."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling()


def _some(mask: Bool[Tensor, "..."]) -> bool:
    """Return whether any entry may be set; True where reading the mask is expensive (on a GPU, in a graph)."""
    return bool(mask.numpy().any()) if _readable(mask) else True
