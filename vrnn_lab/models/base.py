"""Define the contract of every model, and what all models share: units, trends, labels and predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vrnn_lab.core.densities import Density, log_mean_exp
from vrnn_lab.core.log_density import LogDensity, logs_of
from vrnn_lab.core.series import Scale, TimeSeries, Trend
from vrnn_lab.core.supports import BINARY, COUNTS, EVENTS, POSITIVE, REAL
from vrnn_lab.models.heads import Head
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.models.networks import Classifier
from vrnn_lab.models.recipe import FIVO, BalancedKL, FreeBits, KLWeight, Recipe
from vrnn_lab.models.training_steps import TrainingSteps

HEADS = {
    REAL: "model/head=gaussian",
    POSITIVE: "model/head=gamma",
    COUNTS: "model/head=poisson or negative_binomial",
    BINARY: "model/head=bernoulli",
    EVENTS: "model/head=events",
}
NUMBERS = ("mean", "std", "clock", "gap", "longest", "start", "reach")  # attributes of the scale that become buffers
TREND_DRAWS = 11  # draws of a trend's coefficients per prediction


@dataclass(frozen=True)
class Prediction:
    """Hold joint draws at every point given the observed values, and each path's output distributions."""

    paths: Float[Tensor, "samples batch time dim"]
    density: Density  # its tensors are (samples, batch, time, dim)

    @property
    def mean(self) -> Float[Tensor, "batch time dim"]:
        """Return the predictive mean, averaged over the densities' means rather than over noisy draws."""
        return self.density.mean.mean(0)

    @property
    def std(self) -> Float[Tensor, "batch time dim"]:
        """Return the std of the mixture over paths, (batch, time, dim)."""
        return (self.density.std.square().mean(0) + self.density.mean.var(0, correction=0)).sqrt()

    @property
    def on_log_scale(self) -> "Prediction":
        """Return the prediction of the logarithms where channels are modelled by those; elsewhere itself."""
        if not isinstance(self.density, LogDensity):
            return self
        return Prediction(self.density.on_log_scale(self.paths), self.density.inner)

    def like(self, other: "Prediction") -> "Prediction":
        """Return this prediction of logarithms in the units of `other`, of which `on_log_scale` gave them."""
        if not isinstance(other.density, LogDensity):
            return self
        density = replace(other.density, inner=self.density)
        return Prediction(density.exponential(self.paths), density)


class SequenceModel(TrainingSteps, ABC):
    """Model p(known values of a series); the base class of all models.

    A subclass provides its constructor, `_loss_terms`, `_log_weights` and `_predict`. These work in standardised
    units: values with the training data's mean 0 and std 1 per channel, times in typical training windows. The public
    methods use the data's own units and add the log-determinant of that change of variables to the nats. The
    constructor raises ValueError where the data have a property that the model or its head cannot use.

    answers_apart: its prediction of a value does not depend on which other values are queried, so that it may read
        which channels are queried at a point.
    causal: predictions at a query cannot use points after it (a step model).
    has_density: it has a density of whole series, or a bound (`log_weights`), as all have except a baseline.
    has_loss: it has an objective to be trained on, as all have except a mixture of trained models
        (`vrnn_lab.forecasting.ensemble`).
    takes_covariates: it reads `series.covariates`; any other model refuses data with covariates.
    has_kl: its ELBO has a KL, which `recipe.beta` weighs in training; without latents it has none.
    takes_free_bits: its loss terms have the KL of each latent dimension (`Latents`).
    takes_balance: its KL is `recipe.beta.kl_each` of a posterior and a learned prior.
    has_signal: it knows its signal's extremes between two points (`predict_extremes`).
    takes_error: every density of a scored or predicted value includes `with_measurement_error(series.error)`.
    states: the size of the states in its loss terms, from which labels can be classified; 0 = none.
    usual_steps: the default number of training steps; None: length.STEPS.
    point_process: times are modelled too: nats are those of p(x, t), and its points are all events of the window.
    """

    answers_apart = False
    causal = False
    has_density = True
    has_loss = True
    has_kl = True
    takes_free_bits = False
    takes_balance = False
    takes_covariates = False
    takes_error = False
    has_signal = False
    usual_steps: int | None = None
    parts: tuple[str, ...] = ("values", "events")  # the terms of the likelihood
    data_mean: Tensor
    data_std: Tensor
    data_score_std: Tensor
    data_in_log: Tensor
    data_covariate_mean: Tensor
    data_covariate_std: Tensor
    data_clock: Tensor
    data_start: Tensor
    data_reach: Tensor
    trend_coefficients: Tensor
    trend_covariance: Tensor
    trend_noise: Tensor

    def __init__(self, scale: Scale, recipe: Recipe, head: Head, states: int = 0, point_process: bool = False):
        super().__init__(scale, recipe)
        if head.support != scale.support:
            raise ValueError(
                f"the output head models {head.support} values, but the values of the data set are {scale.support}; "
                f"choose {HEADS.get(scale.support, 'another head')}, or, for a table of {head.support} values, "
                f"data.support={head.support}."
            )
        self._refuse(scale, head, point_process)
        if scale.support == EVENTS and not point_process:
            raise ValueError(
                "the data set is a point process (event times without values), and "
                f"{type(self).__name__} does not model times; set model=latent_ode_poisson model/head=events."
            )
        if point_process and not scale.longest > 0:
            raise ValueError(
                "every training window is a single moment, over which no rate of events can be estimated; "
                "set model.point_process=false, or choose data with times."
            )
        if isinstance(recipe.objective, FIVO) and type(self)._filter_bound is SequenceModel._filter_bound:
            raise ValueError(
                f"objective=fivo needs a model with a latent at every step, and {type(self).__name__} has none; "
                "choose model=vrnn, or objective=iwae."
            )
        self._refuse_weight_of_kl(recipe.beta)
        self.head, self.point_process = head, point_process
        self.classifier = self._classifier(states) if recipe.labels.weight else None
        for name in NUMBERS:
            self.register_buffer(f"data_{name}", getattr(scale, name).double())
        for name in ("covariate_mean", "covariate_std"):  # not saved in checkpoints of runs without covariates
            numbers = getattr(scale, name).double()
            self.register_buffer(f"data_{name}", numbers, persistent=bool(scale.given_covariates))
        self._keep_logs(scale)
        self._keep_trend(scale)
        # Python numbers, so that no step has to synchronise with the device; all in the model's time unit.
        self.usual_gap, self.clock = (scale.gap / scale.clock).item(), scale.clock.item()

    def _keep_logs(self, scale: Scale) -> None:
        # Not saved in checkpoints of runs in which it equals data_std.
        self.register_buffer(
            "data_score_std", scale.score_std.double().clone(), persistent=scale.value_std is not None
        )
        self.register_buffer("data_in_log", scale.log_channels, persistent=False)

    def _keep_trend(self, scale: Scale) -> None:
        trend = scale.trend or Trend(scale.mean.new_zeros(0, scale.dim), scale.mean.new_zeros(scale.dim, 0, 0))
        for name in ("coefficients", "covariance"):
            numbers = getattr(trend, name).double()
            self.register_buffer(f"trend_{name}", numbers, persistent=scale.trend is not None)
        # Infinite where unknown (older runs): observed values then do not update the coefficients.
        noise = torch.full_like(scale.mean, torch.inf) if trend.noise is None else trend.noise
        self.register_buffer("trend_noise", noise.double().clamp(min=1e-12), persistent=trend.noise is not None)

    def _refuse(self, scale: Scale, head: Head, point_process: bool) -> None:
        """Raise ValueError where the data have covariates, periods or error bars that this model cannot use."""
        name = f"a point process ({type(self).__name__})" if point_process else type(self).__name__
        if scale.periods and not (self.takes_covariates and not point_process):
            raise ValueError(
                f"{name} cannot read covariates, which a known period adds; leave data.period out, or choose a model "
                "that can: model=rnn, vrnn, rnn_vae, latent_ode."
            )
        if scale.covariates and not (self.takes_covariates and not point_process):
            # Without data.values, columns that are no longer covariates would be read as channels.
            without = f"data.known=[] data.static=[] data.values=[{','.join(scale.channels)}]"
            raise ValueError(
                f"{name} cannot read covariates, and the data set has {', '.join(scale.covariates)}; leave them out "
                f"({without}), or choose a model that can read them: model=rnn, vrnn, rnn_vae, latent_ode."
            )
        if scale.log and not head.takes_log:
            raise ValueError(
                f"data.log=[{','.join(scale.log)}] models values by their logarithms, and the mean of such a value "
                f"is infinite under {type(head).__name__}; choose model/head=gaussian or gmm, or leave data.log out."
            )
        if scale.errors and not (self.takes_error and not point_process):
            raise ValueError(
                f"{name} cannot use error bars, and the data set has some; leave them out (data.error=null), or "
                "choose a model that can: model=rnn, vrnn, rnn_vae, latent_ode."
            )
        if scale.errors and not head.takes_error:
            raise ValueError(
                f"the data set has error bars, and {type(head).__name__} has no density of a value plus Gaussian "
                "noise; choose model/head=gaussian or gmm, or leave them out: data.error=null."
            )

    def _refuse_weight_of_kl(self, weight: KLWeight) -> None:
        """Raise ValueError where the weight of the KL asks for latents, or for a prior, that the model lacks."""
        name = type(self).__name__
        if isinstance(weight, FreeBits) and not self.takes_free_bits:
            raise ValueError(
                f"beta=free_bits limits the KL of latents, and {name} has none; set beta=constant, or choose a model "
                "with latents, such as model=vrnn or latent_ode."
            )
        if isinstance(weight, BalancedKL) and not self.takes_balance:
            raise ValueError(
                f"beta=balance divides the KL between the posterior and a learned prior of each latent, and {name} "
                "has no such prior; set beta=constant, or choose model=vrnn with model.prior=learned or markov."
            )

    # ---- methods of a subclass, in standardised units -----------------------------------------------

    @abstractmethod
    def _loss_terms(self, series: TimeSeries, samples: int) -> LossTerms:
        """Return the model's negative ELBO or NLL of the scored values, each part (batch,), in nats."""

    @abstractmethod
    def _log_weights(self, series: TimeSeries, samples: int) -> Float[Tensor, "samples batch"]:
        """Return log p(x, z_s) - log q(z_s | x) of all known values; without latents log p(x), repeated."""

    @abstractmethod
    def _predict(self, series: TimeSeries, samples: int) -> Prediction:
        """Return draws of known values given the observed ones alone; other values are arbitrary, but finite."""

    def _extremes(self, series: TimeSeries, samples: int, highest: bool) -> Prediction:
        """Return draws of the signal's extremes, as `predict_extremes`; a model that has a signal overrides it."""
        raise NotImplementedError

    def _prediction_from(self, density: Density, series: TimeSeries, samples: int) -> Prediction:
        """Draw from a density whose points are dependent only through a latent path, error bars included."""
        density = density.with_measurement_error(series.error)
        density = density.given(series.values.expand(density.mean.shape), series.seen.expand(density.mean.shape))
        noise = self.noise.at_points("value", series, samples, self.head.draws, density.mean)
        return Prediction(density.draw(noise), density)

    def _importance_bound(self, series: TimeSeries, samples: int) -> Float[Tensor, " batch"]:
        """Return the importance-weighted training bound; its gradient may be another unbiased estimator."""
        return log_mean_exp(self._log_weights(series, samples))

    def _filter_bound(self, series: TimeSeries, samples: int) -> Float[Tensor, " batch"]:
        """Return the particle filter's bound on log p(scored values), for models with a latent at every step."""
        raise NotImplementedError  # never reached: the constructor refuses objective=fivo where there is none

    def _classifier(self, states: int) -> Classifier:
        if not self.scale.classes or not states:
            what = "the data set has no labels" if states else f"{type(self).__name__} has no states to classify"
            raise ValueError(f"labels are to be learned, but {what}; set labels=none.")
        return Classifier(states, self.recipe.labels.width, len(self.scale.classes), self.scale.labels_of_points)

    # ---- public methods, in the data's units ----------------------------------------------------------

    def loss_terms(self, batch: TimeSeries) -> LossTerms:
        """Return the objective (negative ELBO or NLL) of scored values: nll, kl, (batch,) each, nats per series."""
        terms = self.recipe.objective(self, self.standardise(batch))
        penalty = self.recipe.beta.penalty(terms)
        return replace(terms, nll=terms.nll + self._log_det(batch).to(terms.nll), penalty=penalty)

    def log_weights(self, batch: TimeSeries, samples: int) -> Float[Tensor, "samples batch"]:
        """Return log p(x, z_s) - log q(z_s | x), in nats; logmeanexp over samples bounds log p(x) from below.

        ValueError unless the observed values are the scored ones (the density task).
        """
        if not torch.equal(batch.seen, batch.scored):
            raise ValueError(
                "log_weights needs seen == scored (the density task); here some values are only seen or only "
                "scored. Use dataclasses.replace(batch, seen=batch.known, scored=batch.known, in_training=False)."
            )
        weights = self._log_weights(self.standardise(batch), samples)
        return weights - self._log_det(batch).to(weights)

    def predict(self, batch: TimeSeries, samples: int) -> Prediction:
        """Draw jointly at every point (samples, batch, time, dim) given only the observed values.

        Values to be predicted are marked `scored`. Where a value is observed, its path equals that value; elsewhere
        the paths have no meaning. Paths and densities are in the data's units.
        """
        return self._in_units(batch, samples, self._predict)

    def predict_extremes(self, batch: TimeSeries, samples: int, highest: bool) -> Prediction:
        """Draw jointly the highest, or lowest, value of the signal since the previous point of each series.

        The signal is the value without observation noise, in continuous time; the draws are the paths of the
        prediction, whose densities are those of `predict`. ValueError where the model has no such signal.
        """
        self.check_signal()
        return self._in_units(batch, samples, partial(self._extremes, highest=highest))

    def solver_error(self, batch: TimeSeries) -> tuple[float, float] | None:
        """Return two sums of squares over the points of a batch: of the distances between the path on the model's
        solver steps and that on steps of half the length, and of the path's distances from its mean.

        None where the model has no path that a solver of fixed steps computes.
        """
        return None

    def check_signal(self) -> None:
        """Raise ValueError where the model does not know the extremes of its signal."""
        if not self.has_signal:
            raise ValueError(
                f"{type(self).__name__} does not know how high its signal rises between two times; use "
                "model=linear_sde with its default head, or ask for crossings of observed values (signal=false)."
            )

    def _in_units(
        self, batch: TimeSeries, samples: int, standard: Callable[[TimeSeries, int], Prediction]
    ) -> Prediction:
        """Return, in the data's units, what a method predicts in standardised units."""
        given = batch.given()
        if self.answers_apart:
            given = replace(given, scored=batch.scored)
        if not len(self.trend_coefficients):
            return self._predicted(given, samples, None, standard)
        counts = [len(part) for part in torch.arange(samples).chunk(TREND_DRAWS)]
        parts = []
        for number, (count, shift) in enumerate(zip(counts, self._trend_draws(given, len(counts)), strict=True)):
            with self.noise.part(number):
                parts.append(self._predicted(given, count, shift, standard))
        density = parts[0].density.stack([part.density for part in parts], torch.cat)
        return Prediction(torch.cat([part.paths for part in parts]), density)

    def _predicted(
        self,
        given: TimeSeries,
        samples: int,
        shift: Tensor | None,
        standard: Callable[[TimeSeries, int], Prediction],
    ) -> Prediction:
        """Predict with the trend's coefficients shifted by `shift` (batch, terms, dim) from their estimates."""
        with torch.no_grad():
            prediction = standard(self.standardise(given, shift), samples)
        std, centre = self.data_std, self._centre(given.times, shift)
        density = prediction.density.map(torch.Tensor.double).affine(std, centre)
        paths = prediction.paths.double() * std + centre
        if self.scale.log:
            density = LogDensity(density, self.data_in_log)
            paths = density.exponential(paths)
        if self.scale.support == COUNTS:  # whole numbers, up to the precision of the model
            paths = paths.round()
        return Prediction(torch.where(given.seen, given.values.to(paths), paths), density)

    def _on_log_scale(self, batch: TimeSeries) -> Float[Tensor, "batch time dim"]:
        """Return the values, with the logarithms of those of the channels that are modelled by them."""
        return logs_of(batch.values, self.data_in_log) if self.scale.log else batch.values

    def _centre(self, times: Tensor, shift: Tensor | None) -> Float64[Tensor, "*points dim"]:
        """Return what is subtracted from values, or their logarithms, before scaling: training mean, plus any
        trend."""
        if not len(self.trend_coefficients):
            return self.data_mean
        coefficients = self.trend_coefficients if shift is None else self.trend_coefficients + shift
        return self.data_mean + self._powers(times) @ coefficients

    def _powers(self, times: Tensor) -> Float64[Tensor, "*points terms"]:
        since = (times - self.data_start) / self.data_reach
        return torch.stack([since**k for k in range(len(self.trend_coefficients))], -1)

    def _trend_draws(self, given: TimeSeries, count: int) -> Float64[Tensor, "draws batch terms dim"]:
        """Draw errors of the trend's coefficients from their posterior given the observed values of each series.

        The prior is the normal distribution of their estimates, N(0, V). Observed values are trend + independent
        noise whose variance s^2 is inflated for their correlation: the precision is V^-1 + P'P / s^2, the mean that
        precision^-1 P'x / s^2. The standard normal numbers depend on the evaluation seed alone and are the same for
        every series.
        """
        terms, dim = self.trend_coefficients.shape
        powers, weight = self._powers(given.times), given.seen / self.trend_noise
        rest = torch.where(given.seen, self._on_log_scale(given).double() - self._centre(given.times, None), 0)
        prior = torch.linalg.inv(self.trend_covariance)
        weighted = torch.einsum("bti,btd->bdti", powers, weight)
        root = torch.linalg.cholesky(prior + torch.einsum("bdti,btj->bdij", weighted, powers))
        moment = torch.einsum("bti,btd->bdi", powers, weight * rest)[..., None]
        mean = torch.cholesky_solve(moment, root)
        rng = torch.Generator().manual_seed(self.seed if self.noise.fixed is None else self.noise.fixed)
        draws = torch.randn(count, 1, dim, terms, 1, generator=rng, dtype=torch.float64).to(mean)
        moved = torch.linalg.solve_triangular(root.mT, draws.expand(-1, len(mean), -1, -1, -1), upper=True)
        return (mean + moved)[..., 0].mT

    def classify(self, batch: TimeSeries, samples: int = 10) -> Float[Tensor, "batch *time classes"]:
        """Return class probabilities of the series, or of its points (as the labels were), given observed values.

        ValueError where the model was trained without labels.
        """
        if self.classifier is None:
            raise ValueError("the model was fitted without labels; train it with labels=learn.")
        # Gaps between the remaining points may exceed the bound that the training loader computed.
        seen = replace(batch, scored=batch.seen, in_training=False)
        with torch.no_grad():
            terms = self._loss_terms(self.standardise(seen), samples)
        return self.classifier(terms.states, seen.counts).softmax(-1).mean(0)

    def standardise(self, batch: TimeSeries, shift: Tensor | None = None) -> TimeSeries:
        """Return the batch in the model's units and precision; times count from the window's start (float64).

        shift (batch, terms, dim): the change of the trend's coefficients from their estimates; None: no change.
        ValueError where the channels, covariates or error bars are not those the model was built for.
        """
        if batch.values.shape[-1] != self.scale.dim:
            raise ValueError(
                f"the batch has {batch.values.shape[-1]} channels, but the model has {self.scale.dim}: "
                f"{', '.join(self.scale.channels)}. Give values (batch, time, {self.scale.dim})."
            )
        self._check_covariates_and_error(batch)
        start = batch.window[:, :1]
        values = torch.where(
            batch.known, (self._on_log_scale(batch) - self._centre(batch.times, shift)) / self.data_std, 0
        )
        return replace(
            batch,
            times=(batch.times - start) / self.data_clock,
            window=(batch.window - self.data_start) / self.data_clock,
            values=values.to(self.dtype_of_weights),
            covariates=self._standard_covariates(batch),
            error=self._standard_error(batch),
            longest_gap=None if batch.longest_gap is None else batch.longest_gap / self.clock,
        )

    def _check_covariates_and_error(self, batch: TimeSeries) -> None:
        known = self.scale.given_covariates
        count = 0 if batch.covariates is None else batch.covariates.shape[-1]
        if count != len(known):
            raise ValueError(
                f"the batch has {count} covariates, but the model has {len(known)}: {', '.join(known) or 'none'}. "
                f"Give covariates (batch, time, {len(known)}), known at every point that is seen or queried."
            )
        if batch.error is not None and not (self.takes_error and self.head.takes_error):
            raise ValueError(
                f"the batch has error bars, which {type(self).__name__} with {type(self.head).__name__} cannot use; "
                "set error=None, or train a model that can, with data.error=[...]."
            )

    def _standard_covariates(self, batch: TimeSeries) -> Tensor | None:
        """Return standardised covariates, then the sine and cosine of each known period; zero at padding."""
        if not self.scale.covariates:
            return None
        parts = []
        if batch.covariates is not None and self.scale.given_covariates:
            parts.append((batch.covariates - self.data_covariate_mean) / self.data_covariate_std)
        for period in self.scale.periods:
            turns = 2 * torch.pi * (batch.times[..., None] / period)
            parts += [sqrt(2) * turns.sin(), sqrt(2) * turns.cos()]
        standard = torch.cat(parts, -1)
        return torch.where(batch.counts[..., None], standard, 0).to(self.dtype_of_weights)

    def _standard_error(self, batch: TimeSeries) -> Tensor | None:
        if batch.error is None:
            return None
        return torch.where(batch.counts[..., None], batch.error / self.data_std, 0).to(self.dtype_of_weights)

    @property
    def dtype_of_weights(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _log_det(self, batch: TimeSeries) -> Float[Tensor, " batch"]:
        """Return the log of the Jacobian of values with respect to the model units z: of x = s z, or x = e^(s z)."""
        each = self.data_std.log()
        if self.scale.support == COUNTS:  # probabilities of counts do not depend on their unit
            each = torch.zeros_like(each)
        if self.scale.log:
            each = each + torch.where(self.data_in_log, self._on_log_scale(batch), 0)
        return torch.where(batch.scored, each, 0).sum((1, 2))

    @contextmanager
    def only(self, *parts: str) -> Iterator[None]:
        """Restrict the nats within the context to some terms of the likelihood: values, events."""
        self.parts = parts
        try:
            yield
        finally:
            del self.parts

    @property
    def keep_start(self) -> bool:
        """Return whether a query beyond the longest training window keeps its series' history from the start."""
        return self.scale.whole_series and not self.causal
