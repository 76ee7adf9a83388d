"""Define the contract of every model, and what all models share: units, training steps, logging, optimizer."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from math import sqrt
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vrnn_lab.core.densities import Density, log_mean_exp
from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import Scale, TimeSeries, Trend
from vrnn_lab.core.shard import ALL, Shard
from vrnn_lab.models.heads import Head
from vrnn_lab.models.losses import Activity, LossTerms
from vrnn_lab.models.networks import Classifier
from vrnn_lab.models.recipe import FIVO, Recipe

STEP_LOSSES = ("loss", "nll", "kl", "labels")  # logged for every training step; the last only with learned labels
HEADS = {"real": "model/head=gaussian", "binary": "model/head=bernoulli", "events": "model/head=events"}
NUMBERS = ("mean", "std", "clock", "gap", "longest", "start", "reach")  # attributes of the scale that become buffers
TREND_DRAWS = 11  # draws of a trend's coefficients per prediction
LOG_EVERY = 50  # steps; each logged scalar costs about 0.25 ms


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


class SequenceModel(pl.LightningModule, ABC):
    """Model p(known values of a series); the base class of all models.

    A subclass provides its constructor, `_loss_terms`, `_log_weights` and `_predict`. These work in standardised
    units: values with the training data's mean 0 and std 1 per channel, times in typical training windows. The public
    methods use the data's own units and add the log-determinant of that change of variables to the nats. The
    constructor raises ValueError where the data have a property that the model or its head cannot use.

    causal: predictions at a query cannot use points after it (a step model).
    has_loss: it has an objective to be trained on, as all have except a mixture of trained models
        (`vrnn_lab.forecasting.ensemble`).
    takes_covariates: it reads `series.covariates`; any other model refuses data with covariates.
    has_signal: it knows its signal's extremes between two points (`predict_extremes`).
    takes_error: every density of a scored or predicted value includes `with_measurement_error(series.error)`.
    states: the size of the states in its loss terms, from which labels can be classified; 0 = none.
    usual_steps: the default number of training steps; None: length.STEPS.
    point_process: times are modelled too: nats are those of p(x, t), and its points are all events of the window.
    """

    causal = False
    has_loss = True
    takes_covariates = False
    takes_error = False
    has_signal = False
    usual_steps: int | None = None
    parts: tuple[str, ...] = ("values", "events")  # the terms of the likelihood
    data_mean: Tensor
    data_std: Tensor
    data_covariate_mean: Tensor
    data_covariate_std: Tensor
    data_clock: Tensor
    data_start: Tensor
    data_reach: Tensor
    trend_coefficients: Tensor
    trend_covariance: Tensor
    trend_noise: Tensor

    def __init__(self, scale: Scale, recipe: Recipe, head: Head, states: int = 0, point_process: bool = False):
        super().__init__()
        if head.support != scale.support:
            raise ValueError(
                f"the output head models {head.support} values, but the values of the data set are {scale.support}; "
                f"choose {HEADS.get(scale.support, 'another head')}, or other data."
            )
        self._refuse(scale, head, point_process)
        if scale.support == "events" and not point_process:
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
        self.scale, self.recipe, self.head, self.point_process = scale, recipe, head, point_process
        self.noise = Noise()
        self.classifier = self._classifier(states) if recipe.labels.weight else None
        for name in NUMBERS:
            self.register_buffer(f"data_{name}", getattr(scale, name).double())
        for name in ("covariate_mean", "covariate_std"):  # not saved in checkpoints of runs without covariates
            numbers = getattr(scale, name).double()
            self.register_buffer(f"data_{name}", numbers, persistent=bool(scale.given_covariates))
        self._keep_trend(scale)
        # Python numbers, so that no step has to synchronise with the device; all in the model's time unit.
        self.usual_gap, self.clock = (scale.gap / scale.clock).item(), scale.clock.item()
        self._held: list[Tensor] = []
        self._activity = Activity()
        self.latest: dict[str, float] = {}  # the training metrics logged last
        self.seed = 0  # seed of all noise; set by the run
        self.compiled: Callable[[TimeSeries], LossTerms] | None = None  # a compiled loss_terms

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

    # ---- methods of a subclass, in standardised units -----------------------------------------------

    @abstractmethod
    def _loss_terms(self, series: TimeSeries, samples: int) -> LossTerms:
        """Return the model's negative ELBO or NLL of the scored values, each part (batch,), in nats."""

    @abstractmethod
    def _log_weights(self, series: TimeSeries, samples: int) -> Float[Tensor, "samples batch"]:
        """Return log p(x, z_s) - log q(z_s | x) of all known values; without latents log p(x), repeated."""

    @abstractmethod
    def _predict(self, series: TimeSeries, samples: int) -> Prediction:
        """Return draws at every point given the observed values alone; padding holds arbitrary finite values."""

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
        return replace(terms, nll=terms.nll + self._log_det(batch).to(terms.nll))

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

        Points to be predicted are marked `scored`. Where a value is observed, its path equals that value; at padding
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
        return Prediction(torch.where(given.seen, given.values.to(paths), paths), density)

    def _centre(self, times: Tensor, shift: Tensor | None) -> Float64[Tensor, "*points dim"]:
        """Return what is subtracted from values before scaling: the training mean, plus any trend."""
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
        rest = torch.where(given.seen, given.values.double() - self._centre(given.times, None), 0)
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
        values = torch.where(batch.known, (batch.values - self._centre(batch.times, shift)) / self.data_std, 0)
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

    def _label_loss(self, terms: LossTerms, batch: TimeSeries, shard: Shard = ALL) -> Tensor:
        """Return the cross-entropy in nats per label; over DDP shards, its mean is that of the whole batch."""
        assert self.classifier is not None
        part = shard.part(batch)
        all_labels, labels = batch.labels_that_count, part.labels_that_count
        if terms.states is None or all_labels is None or labels is None:
            raise ValueError("labels are to be learned, but this batch has none; set labels=none.")
        logits = self.classifier(terms.states, part.counts)
        labels = labels.expand(logits.shape[:-1])
        total = cross_entropy(logits.movedim(-1, 1), labels, ignore_index=-1, reduction="sum")
        return shard.weight * total / (len(logits) * (all_labels >= 0).sum()).clamp(min=1)

    @property
    def dtype_of_weights(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _log_det(self, batch: TimeSeries) -> Float[Tensor, " batch"]:
        return torch.where(batch.scored, self.data_std.log(), 0).sum((1, 2))

    @contextmanager
    def fixed_noise(self, seed: int) -> Iterator[None]:
        """Evaluate within the context: noise is a function of (seed, series id), and no gradients flow."""
        before, training = self.noise.fixed, self.training
        self.noise.fixed = seed
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.noise.fixed = before
            self.train(training)

    @contextmanager
    def only(self, *parts: str) -> Iterator[None]:
        """Restrict the nats within the context to some terms of the likelihood: values, events."""
        self.parts = parts
        try:
            yield
        finally:
            del self.parts

    # ---- training ---------------------------------------------------------------------------------------

    def _shard(self, batch: TimeSeries) -> Shard:
        return Shard.of(len(batch.ids), self.global_rank, self.trainer.world_size, batch.ids.device)

    def _mean(self, value: Tensor) -> Tensor:
        """Average a value over the DDP processes."""
        return value if self.trainer.world_size == 1 else self.trainer.strategy.reduce(value, reduce_op="mean")

    def losses(self) -> Tensor:
        """Return the losses (step, STEP_LOSSES) of steps not logged yet, over whole batches; collective in DDP."""
        return self._mean(torch.stack(self._held))

    def training_step(self, batch: TimeSeries, batch_idx: int) -> Tensor:
        """Return the loss of the batch, or of this process's shard, scaled so that the mean over shards is the loss.

        DDP averages the gradients, which therefore equal those of one process, whatever the number of processes.
        """
        shard = self._shard(batch)
        batch = self.vary(batch)
        self.noise.seed(self.seed, self.global_step, 0, device=self.device, shard=shard)
        terms = (self.compiled or self.loss_terms)(shard.part(batch))
        count = batch.scored.sum().clamp(min=1)
        beta = self.recipe.beta(self.global_step, self._total_steps)
        nll, kl = (shard.weight * each.sum() / count for each in (terms.nll, terms.kl))
        loss = nll + beta * kl
        step_losses = [loss, nll, kl]
        if self.classifier is not None:
            label_loss = self._label_loss(terms, batch, shard)
            loss = loss + self.recipe.labels.weight * label_loss
            step_losses.append(label_loss)
        self._held.append(torch.stack(step_losses).detach())
        return loss

    def vary(self, batch: TimeSeries) -> TimeSeries:
        """Return what a training step learns from a batch: the batch itself, unless a subclass augments it."""
        return batch

    @property
    def keep_start(self) -> bool:
        """Return whether a query beyond the longest training window keeps its series' history from the start."""
        return self.scale.whole_series and not self.causal

    def on_train_batch_end(self, outputs: Any, batch: TimeSeries, batch_idx: int) -> None:
        if (self.global_step % LOG_EVERY == 0 or self.trainer.is_last_batch) and self._held:
            self._log_held()

    def _log_held(self) -> None:
        means = self.losses().mean(0).tolist()
        self._held.clear()
        self.latest = {f"train/{name}": mean for name, mean in zip(STEP_LOSSES, means, strict=False)}
        # Not self.log: Lightning would write the same value again at every step until the epoch ends.
        if self.logger:
            self.logger.log_metrics(self.latest, self.global_step)

    def on_before_optimizer_step(self, optimizer) -> None:
        if (self.global_step + 1) % LOG_EVERY == 0 and self.trainer.logger:
            squares = [p.grad.square().sum() for p in self.parameters() if p.grad is not None]
            norm = torch.stack(squares).sum().sqrt().item()
            self.trainer.logger.log_metrics({"train/gradient_norm": norm}, self.global_step + 1)

    def validation_step(self, batch: TimeSeries, batch_idx: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: TimeSeries, batch_idx: int) -> None:
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: TimeSeries, split: str) -> None:
        shard = self._shard(batch)
        with self.fixed_noise(self.seed):
            terms = self.loss_terms(shard.part(batch))
        count = batch.scored.sum().clamp(min=1)
        nll, kl = (self._mean(shard.weight * each.sum()) / count for each in (terms.nll, terms.kl))
        # Weighting each batch's mean by its count makes the epoch's number a mean over all scored values.
        named = {f"{split}/loss": nll + kl, f"{split}/nll": nll, f"{split}/kl": kl}
        if split == "val":  # a test's latents would be counted in the next validation
            self._activity.add(terms.latents, shard.weight)
        # The numbers are equal in all processes already, but without sync_dist Lightning warns.
        several = self.trainer.world_size > 1
        self.log_dict(named, batch_size=int(count), sync_dist=several)
        if self.classifier is not None and (labels := batch.labels_that_count) is not None:
            with torch.no_grad():
                label_loss = self._mean(self._label_loss(terms, batch, shard))
            self.log(f"{split}/labels", label_loss, batch_size=max(1, int((labels >= 0).sum())), sync_dist=several)

    def on_validation_epoch_end(self) -> None:
        activity, self._activity = self._activity.result(self._mean), Activity()
        if "active_units" in activity and self.logger and not self.trainer.sanity_checking:
            self.logger.log_metrics({"val/latent/active_units": activity["active_units"]}, self.global_step)

    @property
    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optim(self.parameters())
        # A fused optimizer unscales float16 gradients within its step, after clipping, which Lightning refuses.
        optimizer._step_supports_amp_scaling = False
        schedule = self.recipe.schedule(optimizer, self._total_steps)
        # Without a name the rate would be logged under the optimizer's class.
        scheduler = {"scheduler": schedule, "interval": "step", "name": "train/lr"}
        if isinstance(schedule, ReduceLROnPlateau):
            # Where validations are counted in steps, Lightning cannot step it: callbacks.Plateau lowers the rate.
            every = self.trainer.check_val_every_n_epoch
            scheduler |= {"monitor": "val/loss"} | (
                {"interval": "epoch", "frequency": every} if every else {"frequency": sys.maxsize}
            )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._held = list(checkpoint.get("losses", []))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = list(self._held)  # losses of the steps not logged yet
        checkpoint["channels"] = list(self.scale.channels)
        checkpoint["support"] = self.scale.support
        checkpoint["classes"] = list(self.scale.classes)
        checkpoint["labels_of_points"] = self.scale.labels_of_points
        checkpoint["dates"] = self.scale.dates
        checkpoint["zoned"] = self.scale.zoned
        checkpoint["covariates"] = list(self.scale.covariates)
        checkpoint["periods"] = list(self.scale.periods)
        checkpoint["own_levels"] = self.scale.own_levels
        variation = self.scale.variation
        checkpoint["variation"] = variation and {f.name: getattr(variation, f.name) for f in fields(variation)}
        checkpoint["whole_series"] = self.scale.whole_series
        checkpoint["errors"] = self.scale.errors
        checkpoint["common_time"] = self.scale.common_time
