"""Compute the length of a fit and the steps between its validations from sizes alone.

Measured time plays no part in them, unless the user sets trainer.max_time: the same seed gives the same result on
every machine, and a resumed fit reproduces an uninterrupted one.
"""

import sys
from collections.abc import Mapping
from math import ceil
from typing import Any

from vrnn_lab.config.duration import seconds_of

STEPS = 2400  # training steps of a fit whose config sets neither trainer.max_epochs nor trainer.max_steps
EPOCHS_BETWEEN = 2  # epochs between validations of a fit whose length is set in epochs
PARTS = (60, 30, 20, 15, 12, 10, 6, 5, 4, 3, 2, 1)  # numbers of equal parts into which validations may divide a fit
PER_VALIDATION = 10  # least training steps between validations, for the fixed cost of a validation and checkpoints
PER_BATCH = 5  # training steps between validations for each of their batches, which cost a third to a half of a step


def is_default(trainer: Mapping[str, Any]) -> bool:
    """Return whether a trainer's config leaves the length of the fit to the default."""
    return trainer.get("max_epochs") is None and trainer.get("max_steps") is None


def time_limit(trainer: Mapping[str, Any]) -> float | None:
    """Return the seconds after which a fit ends, None where its config sets no trainer.max_time."""
    given = trainer.get("max_time")
    return None if given is None else seconds_of(given)


def share_done(trainer: Any) -> float:
    """Return the fraction of a fit that a Lightning trainer has done, by its steps or by the time it may take.

    It is 0 for a fit without an end.
    """
    by_steps = trainer.global_step / trainer.estimated_stepping_batches
    return max(by_steps, getattr(trainer.lightning_module, "time_used", None) or 0.0)


def steps_of(trainer: Mapping[str, Any], usual: int = STEPS) -> int:
    """Return the number of training steps of a fit that is counted in steps, 0 for one counted in epochs or by time.

    usual: the number where the trainer's config sets none.
    """
    steps = trainer.get("max_steps")
    if trainer.get("max_epochs") not in (None, -1) or (steps is None and trainer.get("max_time") is not None):
        return 0
    return usual if steps is None else max(steps, 0)


def total(trainer: Mapping[str, Any], usual: int = STEPS) -> int:
    """Return the length of a fit in the unit its config counts in: percent of its time, training steps, or epochs."""
    if trainer.get("max_time") is not None:
        return 100
    return steps_of(trainer, usual) or max(trainer.get("max_epochs") or 0, 0)


def interval(steps: int, val_batches: int) -> int:
    """Return the number of training steps between validations so that they take at most a tenth of the time.

    Validations divide a fit into equal parts where its steps allow it: the last one comes at its end, and fits of
    different batch sizes are validated at the same steps, which a search compares.
    """
    least = max(PER_VALIDATION, PER_BATCH * val_batches)
    parts = next((parts for parts in PARTS if steps // parts >= least), 1)
    return ceil(steps / parts)


def settings(trainer: Mapping[str, Any], val_batches: int, usual: int = STEPS) -> dict[str, Any]:
    """Return Lightning's parameters for what a trainer's config leaves to the defaults.

    trainer: the config's node; None means that the default is wanted. val_batches: batches of one validation. usual:
    training steps where it sets no length.
    """
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps")
    total = steps_of(trainer, usual)
    parameters = {
        "max_epochs": -1 if epochs is None else epochs,
        "max_steps": total if total else -1 if steps is None else steps,
    }
    every_epochs, every_steps = trainer.get("check_val_every_n_epoch"), trainer.get("val_check_interval")
    if every_epochs is not None or isinstance(every_steps, int):
        return parameters
    if trainer.get("max_time") is not None and every_steps is None:  # the callback TimeLimit says when
        return parameters | {"check_val_every_n_epoch": None, "val_check_interval": sys.maxsize}
    if every_steps is not None or not total:
        return parameters | {"check_val_every_n_epoch": EPOCHS_BETWEEN}
    limit = trainer.get("limit_val_batches")
    batches = min(val_batches, limit) if isinstance(limit, int) else val_batches
    accumulated = trainer.get("accumulate_grad_batches") or 1
    return parameters | {
        "check_val_every_n_epoch": None,
        "val_check_interval": accumulated * interval(total, batches),
    }
