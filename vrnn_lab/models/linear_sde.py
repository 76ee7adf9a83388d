"""The linear SDE with an exact likelihood."""

from collections.abc import Sequence
from dataclasses import replace
from math import pi
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor, nn

from vrnn_lab.checks import Natural, Positive
from vrnn_lab.densities import Gaussian
from vrnn_lab.kalman import Pairs, StateSpace, log_likelihood, posterior
from vrnn_lab.likelihoods import GaussianHead
from vrnn_lab.losses import LossTerms
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.linear_readout import Readout
from vrnn_lab.models.linear_state import Coupled, Independent, Parts
from vrnn_lab.models.lines import PathLevel
from vrnn_lab.models.prior_paths import PriorPaths
from vrnn_lab.recipe import Recipe
from vrnn_lab.series import Scale, TimeSeries

MANY = 2  # channels: a state for more of them together costs more than it gains


class LinearSDE(SequenceModel):
    """A linear-Gaussian state in continuous time, with its exact likelihood (Sarkka & Solin 2019, chapter 12).

    x_c(t) = mean_c(t) + covariates' beta_c + sum_j C_cj z_j(t) + level_c + slope_c u_c(t) + e,
    e ~ N(0, noise_c^2 + error^2),
    dz = F z dt + G dW,  z(t) ~ N(0, I),  t in typical training windows from the start of the row's window;
    u_c(t) = (1 - e^(-k_c t)) / k_c, also in the mean: trends fade (Gardner & McKenzie 1985).

    z of each channel: `ou` Ornstein-Uhlenbeck processes, `matern` Matern-3/2 processes, `oscillators`, damped, and
    for each known period `harmonics` more whose frequencies stay fixed: a season that changes slowly. Level and
    slope are drawn once a series, with learned variances: a mixed model (Laird & Ware 1982). With shared=true every
    channel also reads the parts of the others, by learned loadings. coupling=full: any stable F and G.

    log p and its gradient come from the Kalman filter, marginals from the smoother, joint paths by Matheron's rule: a
    path of the prior, moved by the smoother's mean of what is seen less what that path would have shown.
    """

    takes_covariates = takes_error = True
    usual_steps = 400  # of parameters that change SPEED times as fast as other weights
    head: GaussianHead

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
    ):
        known = list(scale.periods if periods == "auto" else periods)
        oscillators = int(not known) if oscillators == "auto" else oscillators
        parts = Parts(ou, matern, oscillators + harmonics * len(known))
        states = scale.dim * parts.states
        super().__init__(scale, recipe, head(scale), states=states)
        if not isinstance(self.head, GaussianHead) or self.head.width != scale.dim:
            raise ValueError(
                "the output of a linear SDE is Gaussian with one std a channel, and this head says something else; "
                "choose model/head=gaussian_channel, or model=latent_sde."
            )
        if not parts.states:
            raise ValueError("the state has no part; set model.ou, model.matern or model.oscillators to 1 or more.")
        each = Independent(parts, scale.dim, oscillators, self.usual_gap, self._turning(known, harmonics))
        self.dynamics = Coupled(each) if coupling == "full" else each
        self.joint = scale.dim > 1 and (coupling == "full" or (scale.dim <= MANY if shared == "auto" else shared))
        self.readout = Readout(scale, parts, level, mean, self.joint, coupling == "full")

    def _turning(self, periods: Sequence[float], harmonics: int) -> list[float]:
        """Frequencies of the harmonics of known periods, in radians a typical window."""
        return [2 * pi * k * self.clock / period for period in periods for k in range(1, harmonics + 1)]

    # ---- the state space of a batch: a row a series, or where channels are separate a row a channel ---------------

    def _space(self, series: TimeSeries) -> StateSpace:
        observe = self.readout.observe(series.times)
        observe = observe if self.joint else observe.transpose(1, 2).flatten(0, 1)[:, :, None]
        one = torch.eye(observe.shape[-1], dtype=observe.dtype, device=observe.device)
        variance = self._split(self._variance(series)[..., None])[..., 0]
        gap = torch.diff(series.times, dim=1, prepend=series.times[:, :1])
        return StateSpace(one[0] * 0, one, self._transition(gap, len(one)), None, observe, variance)

    def _transition(self, gap: Float64[Tensor, "batch time"], size: int) -> Tensor | Pairs:
        """Levels and slopes, which stand last, stay what they are."""
        pad = nn.functional.pad
        if isinstance(self.dynamics, Coupled):
            still = size - self.dynamics.states
            more = (torch.arange(size, device=gap.device) >= self.dynamics.states).double().diag()
            return pad(self.dynamics.matrices(gap), (0, still, 0, still)) + more
        rows = lambda x: x.flatten(2) if self.joint else x.transpose(1, 2).flatten(0, 1)
        own, cross = (rows(x) for x in self.dynamics.pairs(gap))
        still = size - own.shape[-1]
        other = torch.arange(size, device=gap.device)
        partner = self.dynamics.other + other[: own.shape[-1] : self.dynamics.states, None]
        other = torch.cat([partner.flatten(), other[own.shape[-1] :]])
        return Pairs(pad(own, (0, still), value=1.0), pad(cross, (0, still)), other)

    def _split(self, x: Shaped[Tensor, "batch time dim column"]) -> Shaped[Tensor, "rows time channels column"]:
        return x if self.joint else x.transpose(1, 2).flatten(0, 1)[:, :, None]

    def _join(self, x: Float64[Tensor, "rows time channels column"]) -> Float64[Tensor, "batch time dim column"]:
        return x if self.joint else x[:, :, 0].unflatten(0, (-1, self.scale.dim)).transpose(1, 2)

    def _variance(self, series: TimeSeries) -> Float64[Tensor, "batch time dim"]:
        """Of the noise, error bars included."""
        std = self.head(torch.zeros_like(series.values)).std.double()
        return std.square() if series.error is None else std.square() + series.error.double().square()

    # ---- the contract --------------------------------------------------------------------------------------------

    def _log_prob(self, series: TimeSeries, *masks: Bool[Tensor, "batch time dim"]) -> Float[Tensor, "masks batch"]:
        """log p of the values of each mask."""
        many = replace(series.map(lambda x: x.repeat(len(masks), *[1] * (x.ndim - 1))), covariates=None)
        rest = (series.values.double() - self.readout.mean(series)).repeat(len(masks), 1, 1)[..., None]
        values, mask = self._split(rest)[..., 0], self._split(torch.cat(masks)[..., None])[..., 0]
        each = log_likelihood(self._space(many), values, mask)
        return each.view(len(masks), len(series.ids), -1).sum(-1).to(series.values)

    def _loss_terms(self, series, samples):
        known, given = series.known, series.seen & ~series.scored
        if _some(given):
            both = self._log_prob(series, known, given)
            log_prob = both[0] - both[1]
        else:
            log_prob = self._log_prob(series, known)[0]
        states = None if self.classifier is None else self._states(series)
        return LossTerms(-log_prob, log_prob.new_zeros(len(log_prob)), states=states)

    def _log_weights(self, series, samples):
        return self._log_prob(series, series.known)[0].expand(samples, -1)

    @torch.no_grad()
    def _states(self, series: TimeSeries) -> Float[Tensor, "1 batch time state"]:
        """Return the smoothed means of the parts, which a classifier of labels reads; no gradient flows back."""
        rest = (series.values.double() - self.readout.mean(series))[..., None]
        states, _ = posterior(self._space(series), self._split(rest), self._split(series.seen[..., None])[..., 0])
        parts = self.dynamics.groups * self.dynamics.states
        if not self.joint:
            states = self._join(states[:, :, None, : self.dynamics.states, 0]).flatten(2)
        return states.reshape(*series.times.shape, -1)[None, :, :, :parts].to(series.values)

    def _predict(self, series, samples):
        space, mean = self._space(series), self.readout.mean(series)
        with self.noise.repeatable(series.times.device):
            drawn, shown, noise = self._prior(series, space, samples)
        actual = (series.values.double() - mean)[..., None]
        columns = torch.cat([actual, shown.movedim(0, -1)], -1)
        states, variance = posterior(space, self._split(columns), self._split(series.seen[..., None])[..., 0])
        signal = self._join(space.observe.expand(*states.shape[:2], -1, -1) @ states)
        first, others = signal[..., :1], signal[..., 1:]
        paths = drawn + (first - others).movedim(-1, 0) + mean + noise
        std = (self._join(variance[..., None])[..., 0] + self._variance(series)).sqrt()
        density = Gaussian((first[..., 0] + mean).expand_as(paths), std.expand_as(paths))
        return Prediction(paths.to(series.values), density.map(lambda x: x.to(series.values)))

    def _prior(self, series: TimeSeries, space: StateSpace, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of the signal, of what would have been seen of it, and of the noise of what is asked."""
        std, dim = self._variance(series).sqrt(), self.scale.dim
        asked = replace(series, scored=torch.zeros_like(series.seen))
        seen = self.noise.at_points("seen", asked, samples, dim, std)
        noise = self.noise.at_points("value", series, samples, dim, std)
        signal = self._join(space.observe @ self._prior_states(series, samples, space.observe.shape[-1]))
        signal = signal.movedim(-1, 0)
        return signal, signal + std * seen, std * noise

    def _prior_states(
        self, series: TimeSeries, samples: int, size: int
    ) -> Float64[Tensor, "rows time state samples"]:
        moving = PriorPaths(self.dynamics, self.noise, series, samples).draw()
        if self.joint:
            moving = moving.flatten(3)[..., None, :]
        groups = moving.shape[3]
        still = self.noise.of_series("level", series, samples, groups * (size - moving.shape[-1]), moving)
        still = still.unflatten(-1, (groups, -1))[:, :, None].expand(-1, -1, moving.shape[2], -1, -1)
        return torch.cat([moving, still], -1).permute(1, 3, 2, 4, 0).flatten(0, 1)


def _some(mask: Bool[Tensor, "..."]) -> bool:
    """Whether anything is marked; where looking would cost time (on a GPU, in a graph), it may be."""
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return bool(mask.numpy().any())
