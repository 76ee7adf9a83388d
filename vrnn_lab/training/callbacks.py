"""Watch a fit with callbacks: figures, the stop on NaN, the progress bar and the timer."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import accumulate
from math import ceil, inf, isfinite, isnan, nan
from time import monotonic
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vrnn_lab.cli.progress import only_bar
from vrnn_lab.core.types import NonNegative, Share
from vrnn_lab.evaluation.evaluate import EvaluationProtocol, held_out_scores
from vrnn_lab.figures import calibration_figures, model_figures
from vrnn_lab.models.training_steps import LOG_EVERY
from vrnn_lab.runs.folder import SCORE
from vrnn_lab.training.length import share_done
from vrnn_lab.training.loggers.base import RunLogger

log = logging.getLogger("vrnn_lab")
FIGURES_STEPS = 200  # the first figures of a fit are expected to take as long as so many training steps
WATCHED = 100  # validation series whose intervals are scored during a fit


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt again for Ctrl-C in a fit, which Lightning turns into an exit with code 1."""
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt if stop.code == 1 else stop from None


class Figures(Callback):
    """Give figures of the validation split to the loggers, at the first validation after every few epochs.

    every: epochs between figures; None takes a fifth of the fit's steps. protocol: also draws the calibration of the
    intervals of some series and logs, for each question, val/<question>/crps and /coverage_90.

    share: the largest fraction of the fit's time that figures may take; None sets no limit. Figures that do not fit
    into it are left out; nothing else of a fit depends on them. Raise ValueError where `every` is below 1.
    """

    def __init__(
        self, every: int | None = None, protocol: EvaluationProtocol | None = None, share: float | None = None
    ):
        if every is not None and every < 1:
            raise ValueError(f"every={every} epochs between figures; expected 1 or more.")
        self.every, self.protocol, self.drawn = every, protocol, 0
        self.share, self.spent = share, 0.0
        self.cost: float | None = None  # seconds of the last figures

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started, self.first = monotonic(), trainer.global_step

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        due = self._due(trainer)
        if trainer.sanity_checking or due <= self.drawn or not trainer.is_global_zero:
            return
        started = monotonic()
        if self.share is not None and not self._affordable(trainer.global_step - self.first, started - self.started):
            return
        self.drawn = due
        loggers = [each for each in trainer.loggers if isinstance(each, RunLogger)]
        scores = self._scores(pl_module, trainer) if loggers else {}
        if drawing := [each for each in loggers if each.takes_figures]:
            drawn = model_figures.figures(pl_module, trainer.datamodule, pl_module.seed, "val")
            drawn |= calibration_figures.figures(scores, "val", trainer.datamodule) if scores else {}
            for logger in drawing:
                for name, figure in drawn.items():
                    logger.add_figure(name, figure, trainer.global_step)
        self.cost = monotonic() - started
        self.spent += self.cost

    def _scores(self, model: Any, trainer: Any) -> dict[str, float]:
        """Score the intervals of some validation series, log the scores, and return them."""
        if self.protocol is None:
            return {}
        data = trainer.datamodule
        scores = held_out_scores(model, data, "val", self.protocol, model.seed, most=WATCHED)
        shown = [
            f"val/{question}/{score}" for question in self.protocol.questions for score in ("crps", "coverage_90")
        ]
        for logger in trainer.loggers:
            logger.log_metrics({key: scores[key] for key in shown if key in scores}, trainer.global_step)
        return scores

    def _affordable(self, steps: int, seconds: float) -> bool:
        """Return whether the next figures fit into their fraction of the time."""
        assert self.share is not None
        next_cost = self.cost if self.cost is not None else FIGURES_STEPS * seconds / max(steps, 1)
        return self.spent + next_cost <= self.share * seconds

    def _due(self, trainer: Any) -> int:
        if self.every:
            return (trainer.current_epoch + 1) // self.every
        return int(5 * share_done(trainer) + 1e-9)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.drawn = state_dict["drawn"]


class LastStep(Callback):
    """Validate at the last step of a fit that is counted in steps, whatever the interval."""

    def on_train_start(self, trainer, pl_module) -> None:
        """Validate also where the fit was stopped within that validation, and resumes with it."""
        if trainer.global_step == trainer.max_steps:
            trainer.val_check_batch = 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.val_check_batch = 1


class Plateau(Callback):
    """Step schedule=plateau after each validation of a fit whose validations are counted in steps.

    Lightning steps a schedule at multiples of steps within an epoch, while such a validation may come at any step.
    """

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking or trainer.check_val_every_n_epoch is not None:
            return
        for known in trainer.lr_scheduler_configs:
            if isinstance(known.scheduler, ReduceLROnPlateau):
                known.scheduler.step(trainer.callback_metrics[SCORE].item())


class StopWhenWorse(Callback):
    """Stop a fit of default length when val/loss has stayed clearly above its best for long.

    share: the fraction of all training steps for which it must stay there.

    worse: the distance above the best that is clear, in nats a value. So neither the noise of a small validation set
    nor a loss that stands still stops a fit: a falling learning rate may still improve it.

    A fit whose length is set (trainer.max_epochs, trainer.max_steps) is left alone: `active` is false.
    """

    def __init__(self, share: Share = 0.333, worse: NonNegative = 0.05):
        self.share, self.worse, self.active = share, worse, True
        self.best, self.last_good, self.stopped = inf, 0, False
        self.good_until = 0.0  # fraction of the fit at last_good; NaN: not in the checkpoint of an earlier version

    def on_validation_end(self, trainer, pl_module) -> None:
        if not self.active or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        loss, done = trainer.callback_metrics[SCORE].item(), share_done(trainer)
        if isnan(self.good_until):
            self.good_until = self.last_good / trainer.estimated_stepping_batches
        if loss <= self.best + self.worse:
            self.last_good, self.good_until = trainer.global_step, done
        self.best = min(self.best, loss)
        if done - self.good_until >= self.share:
            self.stopped = trainer.should_stop = True
            log.log(
                logging.INFO if trainer.is_global_zero else logging.DEBUG,
                "stopped at step %d: val/loss has been more than %g above its best, %.4g, since step %d (stop=off "
                "trains to the end).", trainer.global_step, self.worse, self.best, self.last_good,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "last_good", "good_until", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.last_good = state_dict["best"], state_dict["last_good"]
        self.stopped, self.good_until = state_dict["stopped"], state_dict.get("good_until", nan)


class Unprofiled(PassThroughProfiler):
    """Profile nothing, at no cost: Lightning's own pass-through profiler enters a generator some 80 times a step."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.NOTHING


def _known(trainer: Any) -> dict[str, Any]:
    """Return the numbers logged last, of training and of validation."""
    return {**trainer.callback_metrics, **getattr(trainer.lightning_module, "latest", {})}


def _epochs(trainer: Any) -> int:
    """Return the number of epochs of a fit, the last of which max_steps may cut; 0 for a fit without end."""
    batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    return ceil(batches / trainer.num_training_batches) if isfinite(batches) else 0


def _in_steps(trainer: Any) -> bool:
    """Return whether the length of a fit is set in steps alone."""
    return trainer.max_epochs == -1 and trainer.max_steps > 0


def _by_time(trainer: Any) -> bool:
    """Return whether the time of a fit is limited, which its progress then follows."""
    return trainer.lightning_module.time_used is not None


class Log(Callback):
    """Write a line to run.log for every validation."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        losses = {k: f"{v:.6g}" for k, v in _known(trainer).items() if k.endswith("/loss")}
        log.debug("epoch %d, step %d: %s", trainer.current_epoch + 1, trainer.global_step, losses)


class NotFiniteError(RuntimeError):
    """Signal that a loss or a weight became NaN or infinite."""


class StopOnNaN(Callback):
    """Stop the fit when a training loss is not finite, before a validation or a checkpoint can follow on it.

    Losses are checked only when they are logged, so that no step waits for the device, and before every validation
    and checkpoint; the error names the step all the same.
    """

    def __init__(self):
        self.last = nan  # the last finite loss checked so far

    # Callbacks run before the model's own hook, which discards the losses that it has logged.
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % LOG_EVERY == 0 or trainer.is_last_batch:
            self._check_losses(trainer, pl_module)

    def on_validation_start(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self._check_losses(trainer, pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self._check_losses(trainer, pl_module)
        for name, weight in checkpoint["state_dict"].items():
            if weight.is_floating_point() and not weight.isfinite().all():
                raise NotFiniteError(
                    f"the weights {name} are not finite after step {trainer.global_step}, though the last loss was "
                    f"{self.last:.6g}: the last gradient was not finite. {CURE}"
                )

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        """Prevent a checkpoint of the failed state: ModelCheckpoint(save_on_exception=True) comes after this."""
        if isinstance(exception, NotFiniteError):
            for checkpoint in trainer.checkpoint_callbacks:
                if isinstance(checkpoint, ModelCheckpoint):
                    checkpoint.save_on_exception = False

    def _check_losses(self, trainer, pl_module) -> None:
        if not pl_module._held:
            return
        held = pl_module.losses().cpu()
        if held.isfinite().all():
            self.last = held[-1, 0].item()
            return
        bad = int((~held.isfinite().all(1)).nonzero()[0])
        after = (len(held) - 1 - bad) // trainer.accumulate_grad_batches
        if bad:
            self.last = held[bad - 1, 0].item()
        raise NotFiniteError(_not_finite(trainer.global_step - after, held[bad], self.last))


CURE = (
    "Try a smaller learning rate (optim.lr), a limit on the gradient (trick=clip), a warm-up (schedule=cosine), or "
    "an output whose noise cannot vanish (model.head.noise=global); look for extreme values in the data. "
    "trainer=debug names the operation that it came from."
)


def _not_finite(step: int, terms: Tensor, last: float) -> str:
    loss, nll, kl = terms[:3].tolist()
    before = f"the last finite one was {last:.6g}" if isfinite(last) else "and it was the first"
    return f"the training loss at step {step} is {loss} (nll {nll:.6g}, kl {kl:.6g}); {before}. {CURE}"


class Timer(Callback):
    """Measure seconds and steps of a fit over all its segments: the time before a resume is in the checkpoint."""

    def __init__(self):
        self.seconds, self.steps, self.started = 0.0, 0, None

    @property
    def metrics(self) -> dict[str, float]:
        """Return fit/seconds, fit/steps and fit/steps_per_second so far."""
        seconds = self._elapsed()
        rate = self.steps / seconds if seconds else 0.0
        return {"fit/seconds": seconds, "fit/steps": self.steps, "fit/steps_per_second": rate}

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self.started is None else monotonic() - self.started)

    def on_train_start(self, trainer, pl_module) -> None:
        self.started, self.steps = monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps = trainer.global_step

    def _stop(self) -> None:
        self.seconds, self.started = self._elapsed(), None

    def on_train_end(self, trainer, pl_module) -> None:
        self._stop()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._stop()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._elapsed()}

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        # Not load_state_dict: `trainer.test(ckpt_path=...)` calls that too, and would reset the time.
        if trainer.state.fn == "fit":
            self.seconds = checkpoint["callbacks"].get(self.state_key, {}).get("seconds", 0.0)


def timer_of(trainer: Any) -> Timer:
    return next(c for c in trainer.callbacks if isinstance(c, Timer))


def course(losses: list[float]) -> dict[str, float]:
    """Return measures of how steady and how fast a fit was, from val/loss at each of its validations.

    fit/last_loss   the last val/loss; best.ckpt has the least
    fit/mean_best   the least so far, averaged over the validations: low where it falls early
    """
    best = list(accumulate(losses, min))
    return {"fit/last_loss": losses[-1], "fit/mean_best": sum(best) / len(best)} if best else {}


class LossHistory(Callback):
    """Keep val/loss of every validation, over all segments of a fit."""

    def __init__(self):
        self.losses: list[float] = []

    @property
    def state_key(self) -> str:
        """Return the name of its state in a checkpoint, which is that of version 0.1.0."""
        return "Course"

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking and SCORE in trainer.callback_metrics:
            self.losses.append(trainer.callback_metrics[SCORE].item())

    def state_dict(self) -> dict[str, list[float]]:
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        self.losses = list(state_dict["losses"])


def losses_of(trainer: Any) -> list[float]:
    return next(c for c in trainer.callbacks if isinstance(c, LossHistory)).losses


class Progress(ProgressBar):
    """Show one bar for the whole fit: epoch, losses, steps per second; in a file, a line every tenth of the fit."""

    def __init__(self, console: Console | None = None):
        super().__init__()
        self.console, self.enabled = console or Console(), True
        self.bar: Bar | None = None
        self.alone = ExitStack()  # hides other bars, such as that of a validation's scores
        self.shown = self.measured = (0.0, 0)  # (time, step) of the last display and of the last measurement

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.console.print(*args, **kwargs)

    def on_train_start(self, trainer, pl_module) -> None:
        self.shown = self.measured = (monotonic(), trainer.global_step)
        self.rate, self.tenth = nan, int(10 * share_done(trainer))
        if self.enabled and self.console.is_terminal:
            self.alone.enter_context(only_bar("training"))
            self.bar = Bar(*COLUMNS, console=self.console, refresh_per_second=4)
            total = 1.0 if _by_time(trainer) else trainer.estimated_stepping_batches
            task = self.bar.add_task("", total=total if isfinite(total) else None, text="")
            self.bar.update(task, completed=self._done(trainer))
            self.bar.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.bar and monotonic() - self.shown[0] > 0.25:  # reading the losses at every step would be slow
            self._show(trainer)
        fresh = trainer.global_step != self.measured[1]  # only the last of accumulated batches ends a step
        if _by_time(trainer):
            tenth = int(10 * share_done(trainer))
            if tenth > self.tenth:
                self._print(trainer)
            self.tenth = tenth
        elif _in_steps(trainer) and fresh and self._tenth(trainer.global_step, trainer.max_steps):
            self._print(trainer)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        counted = not _in_steps(trainer) and not _by_time(trainer)
        if counted and self._tenth(trainer.current_epoch + 1, _epochs(trainer) or 100):
            self._print(trainer)

    def _done(self, trainer) -> float | int:
        """Return how far the bar has come: the fraction of a limited time, else training steps."""
        return share_done(trainer) if _by_time(trainer) else trainer.global_step

    def _print(self, trainer) -> None:
        if self.enabled and not self.bar:
            self._measure(trainer)
            self.console.print(self._text(trainer), soft_wrap=True, highlight=False)

    def on_train_end(self, trainer, pl_module) -> None:
        if self.bar:
            self._show(trainer)
        self._close()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar:
            self.bar.stop()
        self.alone.close()
        self.bar = None

    def _tenth(self, done: int, total: int) -> bool:
        """Return whether the last epoch, or step, completed another tenth of all."""
        return 10 * done // total > 10 * (done - 1) // total

    def _measure(self, trainer) -> None:
        now, steps = monotonic(), trainer.global_step
        self.rate = (steps - self.measured[1]) / max(now - self.measured[0], 1e-9)
        self.measured = (now, steps)

    def _show(self, trainer) -> None:
        assert self.bar is not None
        self.shown = (monotonic(), trainer.global_step)
        if self.shown[0] - self.measured[0] > 2:
            self._measure(trainer)
        self.bar.update(self.bar.task_ids[0], completed=self._done(trainer), text=self._text(trainer))

    def _text(self, trainer) -> str:
        in_steps = _in_steps(trainer)
        done = f"step {trainer.global_step}/{trainer.max_steps}" if in_steps else self._epochs_done(trainer)
        if _by_time(trainer):
            done = f"step {trainer.global_step}, {share_done(trainer):.0%} of the time"
        known = _known(trainer)
        losses = "".join(f"  {name} {known[name]:.4g}" for name in ("train/loss", "val/loss") if name in known)
        speed = f"  {self.rate:.3g} steps/s" if isfinite(self.rate) else ""
        return f"{done}{losses}{speed}"

    def _epochs_done(self, trainer) -> str:
        all_epochs = _epochs(trainer)
        epochs = f"/{all_epochs}" if all_epochs else ""
        epoch = min(trainer.current_epoch + 1, all_epochs or sys.maxsize)
        return f"epoch {epoch}{epochs}"


COLUMNS = (
    BarColumn(24),
    TaskProgressColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[text]}"),
)
