"""End a fit after a length of time: its validations and its learning rate follow the time that is used."""

import logging
import sys
from math import isfinite
from time import monotonic
from typing import Any

from lightning.pytorch.callbacks import Callback

from vrnn_lab.config.duration import duration
from vrnn_lab.training import length
from vrnn_lab.training.callbacks import losses_of, timer_of

log = logging.getLogger("vrnn_lab")
VALIDATIONS = 60  # of a fit, at most
LARGEST_SHARE = 0.1  # of the time, taken by validations
TOGETHER = 10  # steps after which several processes agree on the time


class TimeLimit(Callback):
    """End a fit when it has trained for `seconds`, validations included; the time before a resume counts too.

    The model's `time_used`, a fraction from 0 to 1, drives its schedule of the learning rate and its weight of the
    KL. In a fit of several processes the first one measures the time, and the others take its measure, since all must
    take equal steps.

    usual: the number of training steps of a fit without a limit, for the message at the end, which is logged at
    `level`. paced: whether validations come by time: at most VALIDATIONS of them, with at most a tenth of the time.
    """

    def __init__(self, seconds: float, usual: int, paced: bool, level: int = logging.INFO):
        self.seconds, self.usual, self.paced, self.level = seconds, usual, paced, level
        self.validated = self.cost = 0.0  # the time used at the end of the last validation, and its seconds
        self.ended: float | None = None  # the limit that ended the fit

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.time_used = 0.0  # the schedule is made before training starts

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.validated = timer_of(trainer).metrics["fit/seconds"]
        self._measure(trainer, pl_module)
        done = trainer.fit_loop.epoch_loop.val_loop.batch_progress.current
        if self.paced and done.ready > done.completed:  # interrupted within a validation, which is begun anew
            trainer.val_check_batch = 1

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = monotonic()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self.cost = monotonic() - self.started
            self.validated = timer_of(trainer).metrics["fit/seconds"]
            if self.paced:
                trainer.val_check_batch = sys.maxsize  # until the next is due, also where no measure is taken before

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        used = self._measure(trainer, pl_module)
        if used is None:
            return
        last = trainer.max_epochs == trainer.current_epoch + 1 and trainer.is_last_batch
        if used + self.cost >= self.seconds:  # the last validation belongs to the time
            self.ended, trainer.should_stop = self.seconds, True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1
        elif last:
            trainer.val_check_batch = 1
        elif self.paced:
            pause = max(self.seconds / VALIDATIONS, self.cost / LARGEST_SHARE)
            trainer.val_check_batch = 1 if used - self.validated >= pause else sys.maxsize

    def _measure(self, trainer: Any, pl_module: Any) -> float | None:
        """Set the model's `time_used` and return the seconds that it stands for; None between common measures."""
        several = trainer.world_size > 1
        if several and trainer.global_step % TOGETHER:
            return None
        seconds = (timer_of(trainer).metrics["fit/seconds"], self.cost)
        used, self.cost = trainer.strategy.broadcast(seconds) if several else seconds
        pl_module.time_used = min(1.0, used / self.seconds)
        return used

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.ended is not None and trainer.is_global_zero:
            log.log(self.level, "%s", self.report(trainer.global_step, losses_of(trainer), timer_of(trainer).metrics))

    def report(self, steps: int, losses: list[float], metrics: dict[str, float]) -> str:
        """Return what ended the fit, and what a longer one may do: losses are val/loss at its validations."""
        best = min(range(len(losses)), key=losses.__getitem__, default=0) + 1
        text = f"the time limit of {duration(self.seconds)} (trainer.max_time) ended training after {steps} steps; "
        if best > 0.9 * len(losses):
            text += f"val/loss fell until the end ({len(losses)} validations), so a longer limit may lower it further"
        else:
            text += (
                f"val/loss was least at validation {best} of {len(losses)}, so a longer limit would hardly lower it"
            )
        rate = metrics["fit/steps_per_second"]
        if steps < self.usual and rate > 0 and isfinite(rate):
            text += f". Without a limit the fit takes {self.usual} steps, about {duration(self.usual / rate)}"
        return f"{text}."

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended}


def limits_of(trainer: Any) -> list[float]:
    """Return the time limits of a trainer, in seconds: one or none."""
    return [each.seconds for each in trainer.callbacks if isinstance(each, TimeLimit)]


def limit_of(config: Any, second_fit: bool) -> float | None:
    """Return the seconds that a fit may take, None where it has no limit.

    second_fit: a second fit follows, which takes as long as the first (`out_of_time`), so that both share the time.
    """
    seconds = length.time_limit(config.trainer)
    return seconds if seconds is None else seconds / (1 + second_fit)
