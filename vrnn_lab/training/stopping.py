"""Handle stop signals: a fit ends with a checkpoint of the step that it has reached, and resumes from there."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch.callbacks import Callback

from vrnn_lab.cli.signals import SIGNALS, is_usual
from vrnn_lab.core import run_files

log = logging.getLogger("vrnn_lab")
TEXT = b"\nstopping: a checkpoint is written after the current step; a second signal ends the run at once\n"


class SaveOnSignal(Callback):
    """Write last.ckpt after a stop signal, at the next place where a fit can be interrupted, and end the run.

    Such a place is the end of a training step (of accumulated batches the last) or of a batch of validation, which is
    then begun anew. KeyboardInterrupt for SIGINT, else SystemExit(128 + number), is raised there. Of several
    processes of a run the first does so; the others wait to be ended.

    Make it before the fit: it replaces only signal handlers that are the usual ones at that time.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._ours = [n for n in SIGNALS if is_usual(signal.getsignal(n))]
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler: Callable[..., None] = self._note if trainer.is_global_zero else lambda *_: None
        for number in self._ours:
            self._before[number] = signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()  # a second signal ends the run at once
        os.write(2, TEXT)  # not print, which the signal may have interrupted

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._restore()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.received is not None and batch_idx % trainer.accumulate_grad_batches == 0:
            self._end(trainer, pl_module, _between_steps)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.received is not None and trainer.state.fn == "fit":
            self._end(trainer, pl_module, _before_validation)

    def _end(self, trainer: Any, pl_module: Any, settle: Callable[[dict[str, Any]], None]) -> None:
        """Write the checkpoint and end the run; save_checkpoint is not used, since it waits for all processes."""
        if trainer.world_size > 1:
            pl_module._held.clear()  # reading these losses would need communication with all processes
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        settle(checkpoint["loops"]["fit_loop"])
        file = Path(trainer.default_root_dir) / run_files.LAST
        trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, file)
        for logger in trainer.loggers:
            logger.save()
        number = self.received
        assert number is not None
        log.info("%s: stopped after step %d, checkpoint %s", signal.Signals(number).name, trainer.global_step, file)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _between_steps(loops: dict[str, Any]) -> None:
    """Mark the next batch as not begun in a checkpoint that was made at the start of a batch."""
    progress = loops["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count.update(ready=count["completed"], started=count["completed"], processed=count["completed"])
    progress["is_last_batch"] = False


def _before_validation(loops: dict[str, Any]) -> None:
    """Mark the first batch as begun and none as done in a checkpoint that was made during validation."""
    progress = loops["epoch_loop.val_loop.batch_progress"]
    total, current = progress["total"], progress["current"]
    done = total["completed"] - current["completed"]
    total.update(ready=done + 1, started=done + 1, processed=done, completed=done)
    current.update(ready=1, started=1, processed=0, completed=0)
    progress["is_last_batch"] = False
