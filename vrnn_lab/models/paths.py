"""Define what models with one latent code of the observed values have in common."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.core.densities import Density, log_mean_exp
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.heads import Head
from vrnn_lab.models.lines import Line, Lines, PathLevel
from vrnn_lab.models.losses import Latents, LossTerms, Normal
from vrnn_lab.models.networks import with_covariates
from vrnn_lab.models.recipe import Recipe


class PathModel(SequenceModel):
    """Model points as independent given a latent: z ~ N(0, I), x_i ~ p(x_i | z, t_i), with a posterior q(z | seen).

    A subclass provides the posterior (`_encode`), of one z per series or per point, the states that z gives at every
    point (`_states`), and the density of a point given its state (`_decode`). With covariates u_i the encoder reads
    those of observed points, and the decoder reads u_i next to the state: p(x_i | z, t_i, u_i).

    With a level (`models.lines`), x_i = line(t_i) + the decoded path, and the encoder reads the residual of the
    expected line.
    """

    takes_covariates = takes_error = takes_free_bits = True
    latent: int

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head: Head,
        states: int = 0,
        point_process: bool = False,
        level: PathLevel = "none",
    ):
        super().__init__(scale, recipe, head, states, point_process)
        if point_process and level in ("constant", "linear"):
            raise ValueError(f"model.level={level}: a point process has no level; set model.level=none.")
        self.lines = None if point_process else Lines.of(level, scale)

    @abstractmethod
    def _encode(self, series: TimeSeries) -> Normal:
        """Return q(z | seen), tensors (batch, latent) or (batch, time, latent); the prior where nothing is
        observed."""

    @abstractmethod
    def _states(
        self, series: TimeSeries, z: Float[Tensor, "samples batch *time latent"]
    ) -> Float[Tensor, "samples batch time state"]:
        """Return the state at every point, a function of z and the point's time."""

    @abstractmethod
    def _decode(self, states: Float[Tensor, "samples batch time state"]) -> Density:
        """Return p(x_i | z), without error bars, from states with the covariates appended."""

    def _line(self, series: TimeSeries, samples: int) -> tuple[TimeSeries, Line | None]:
        """Return the series less its expected line, for the encoder, and the drawn lines (None where the model has
        none)."""
        if self.lines is None:
            return series, None
        line = self.lines(series, samples, self.noise)
        return line.remove(series), line

    def _signal(self, series: TimeSeries, states: Tensor, line: Line | None) -> Density:
        density = self._decode(with_covariates(states, series.covariates))
        return density if line is None else line.add(density)

    def _log_prob(self, series: TimeSeries, states: Tensor, line: Line | None) -> Float[Tensor, "samples batch time"]:
        """Return log p of each point's scored values, error bars included, in nats."""
        return (
            self._signal(series, states, line)
            .with_measurement_error(series.error)
            .log_prob(series.values, series.scored)
        )

    def _draw(self, posterior: Normal, series: TimeSeries, samples: int) -> Tensor:
        noise = self.noise.of_series if posterior.mean.ndim == 2 else self.noise.at_points
        return posterior.draw(noise("latent", series, samples, self.latent, posterior.mean))

    def _log_likelihood(
        self, series: TimeSeries, z: Tensor, line: Line | None
    ) -> tuple[Float[Tensor, "samples batch"], Tensor]:
        """Return log p(scored | z, line) in nats per series, and the states."""
        states = self._states(series, z)
        return self._log_prob(series, states, line).sum(2), states

    def _loss_terms(self, series, samples):
        rest, line = self._line(series, samples)
        posterior = self._encode(rest)
        prior = Normal.standard(posterior.mean)
        log_prob, states = self._log_likelihood(series, self._draw(posterior, series, samples), line)
        there = series.counts if posterior.mean.ndim == 3 else torch.ones_like(series.ids, dtype=torch.bool)
        kl_of_codes = torch.where(there[..., None], posterior.kl_each(prior), 0)
        kl = kl_of_codes.sum(1) if kl_of_codes.ndim == 3 else kl_of_codes
        draws = (there.sum(1) if there.ndim == 2 else series.counts.any(-1)).to(kl)
        latents = Latents(kl, draws, posterior.shift(prior).detach(), there)
        total = kl.sum(-1) if line is None else kl.sum(-1) + line.kl
        return LossTerms(-log_prob.mean(0), total, latents, states)

    def _log_weights(self, series, samples):
        rest, line = self._line(series, samples)
        posterior = self._encode(rest)
        return self._weights(series, posterior, self._draw(posterior, series, samples), line)

    def _weights(
        self, series: TimeSeries, posterior: Normal, z: Tensor, line: Line | None
    ) -> Float[Tensor, "samples batch"]:
        ratio = Normal.standard(z).log_prob(z) - posterior.log_prob(z)
        if ratio.ndim == 3:
            ratio = torch.where(series.counts, ratio, 0).sum(2)
        if line is not None:
            ratio = ratio + line.log_ratio
        return self._log_likelihood(series, z, line)[0] + ratio

    def _importance_bound(self, series, samples):
        """Return the importance-weighted bound with doubly reparameterised gradients (Tucker et al. 2019, arXiv
        1810.04152, eq. 8).

        The encoder's gradients flow through z alone, each sample's multiplied by the square of its normalised weight.
        The gradients of a line's parameters are the plain ones.
        """
        rest, line = self._line(series, samples)
        posterior = self._encode(rest)
        z = self._draw(posterior, series, samples)
        weights = self._weights(series, posterior.detach(), z, line)
        share = weights.softmax(0).detach()
        # The surrogate weighs each sample's gradient by its share, the hook by its share again, as in eq. 8.
        if z.requires_grad:
            z.register_hook(lambda slope: slope * share.view(*share.shape, *[1] * (z.ndim - 2)).to(slope))
        surrogate = (share * weights).sum(0)
        # The value is the bound's, the gradient the surrogate's.
        return log_mean_exp(weights).detach() + surrogate - surrogate.detach()

    def _predict(self, series, samples):
        rest, line = self._line(series, samples)
        states = self._states(series, self._draw(self._encode(rest), series, samples))
        return self._prediction_from(self._signal(series, states, line), series, samples)
