"""Train and score a model with Lightning: steps, logging, optimizer and checkpoint."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.shard import ALL, Shard
from vrnn_lab.models.losses import Activity, LossTerms
from vrnn_lab.models.networks import Classifier
from vrnn_lab.models.recipe import Recipe

STEP_LOSSES = ("loss", "nll", "kl", "labels")  # logged for every training step; the last only with learned labels
TICKS = 10_000  # positions of a schedule that follows the time
LOG_EVERY = 50  # steps; each logged scalar costs about 0.25 ms


class TrainingSteps(pl.LightningModule):
    """Train any model that has `loss_terms`, by its recipe, on one process or several (DDP).

    `models.base.SequenceModel` adds what the model computes.
    """

    classifier: Classifier | None  # of labels that are learned with the series

    def __init__(self, scale: Scale, recipe: Recipe):
        super().__init__()
        self.scale, self.recipe = scale, recipe
        self.noise = Noise()
        self._held: list[Tensor] = []
        self._activity = Activity()
        self.latest: dict[str, float] = {}  # the training metrics logged last
        self.time_used: float | None = None  # fraction of a fit's time limit; None where it has none
        self.seed = 0  # seed of all noise; set by the run
        self.compiled: Callable[[TimeSeries], LossTerms] | None = None  # a compiled loss_terms

    @abstractmethod
    def loss_terms(self, batch: TimeSeries) -> LossTerms:
        """Return the objective (negative ELBO or NLL) of scored values: nll, kl, (batch,) each, nats per series."""

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
        beta = self.recipe.beta(*self._position)
        penalty = terms.kl if terms.penalty is None else terms.penalty
        nll, kl, penalty = (shard.weight * each.sum() / count for each in (terms.nll, terms.kl, penalty))
        loss = nll + beta * penalty
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

    def on_train_batch_end(self, outputs: Any, batch: TimeSeries, batch_idx: int) -> None:
        if (self.global_step % LOG_EVERY == 0 or self.trainer.is_last_batch) and self._held:
            self._log_held()

    def _log_held(self) -> None:
        means = self.losses().mean(0).tolist()
        self._held.clear()
        self.latest = {f"train/{name}": mean for name, mean in zip(STEP_LOSSES, means, strict=False)}
        # Not self.log: Lightning would write the same value again at every step until the epoch ends.
        self._log_numbers(self.latest, self.global_step)

    def _log_numbers(self, numbers: dict[str, float], step: int) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step)

    def on_before_optimizer_step(self, optimizer) -> None:
        if (self.global_step + 1) % LOG_EVERY == 0 and self.trainer.loggers:
            squares = [p.grad.square().sum() for p in self.parameters() if p.grad is not None]
            norm = torch.stack(squares).sum().sqrt().item()
            self._log_numbers({"train/gradient_norm": norm}, self.global_step + 1)

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
        if "active_units" in activity and not self.trainer.sanity_checking:
            self._log_numbers({"val/latent/active_units": activity["active_units"]}, self.global_step)

    @property
    def _position(self) -> tuple[int, int]:
        """Return how far a fit has come, and its length: in steps, or in ticks where its time is limited."""
        total = self.trainer.estimated_stepping_batches
        if self.time_used is None:
            return self.global_step, int(total)
        return int(TICKS * min(1.0, max(self.time_used, self.global_step / total))), TICKS

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule; where the time of a fit is limited, to the place that the time has reached."""
        if self.time_used is not None and not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.last_epoch = self._position[0] - 1  # its step adds one
        super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optim(self.parameters())
        # A fused optimizer unscales float16 gradients within its step, after clipping, which Lightning refuses.
        optimizer._step_supports_amp_scaling = False
        schedule = self.recipe.schedule(optimizer, self._position[1])
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
        checkpoint["log"] = list(self.scale.log)
