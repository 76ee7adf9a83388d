"""Run in a folder: fit the model of a config, score it, draw it; resume where it was interrupted."""

import gc
import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from omegaconf import DictConfig, OmegaConf

from vrnn_lab.cli.progress import only_bar
from vrnn_lab.config.compose import NEWER, is_volatile
from vrnn_lab.config.duration import duration
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import flatten, to_dict
from vrnn_lab.config.validate import instantiate
from vrnn_lab.core import run_files
from vrnn_lab.core.files import FULL, read_json, unwritable, write_json, write_yaml
from vrnn_lab.evaluation.calibration import parted
from vrnn_lab.evaluation.recalibration import Recalibration, possible
from vrnn_lab.figures import calibration_figures, model_figures
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.models.recipe import ConstantBeta
from vrnn_lab.models.training_steps import LOG_EVERY
from vrnn_lab.runs import checkpoints, provenance
from vrnn_lab.runs.build import Parts, assemble, check_channels, score
from vrnn_lab.runs.folder import (
    SCORE,
    config_of,
    finished,
    metrics_of,
    record_failure,
    record_start,
    run_lock,
    with_absolute_paths,
)
from vrnn_lab.runs.trust import refuse_links
from vrnn_lab.training import callbacks, ddp, length, out_of_time, stopping, threads
from vrnn_lab.training.ddp import launched
from vrnn_lab.training.devices import accelerator_of, check_accelerator, keep_memory, processes_of, strategy_of
from vrnn_lab.training.fit_recalibration import recalibrate
from vrnn_lab.training.loggers.base import RunLogger
from vrnn_lab.training.loggers.of_run import loggers_of
from vrnn_lab.training.loggers.tensorboard import forget_end
from vrnn_lab.training.time_limit import TimeLimit, limit_of, limits_of
from vrnn_lab.training.warm_start import take_weights

log = logging.getLogger("vrnn_lab")

FIGURES = 0.05  # largest fraction of a fit's time that figures take, where validations are at default intervals
OVERHEAD = 1.25  # ratio of the time of a fit to that of its steps' losses and gradients


class Pruned(Exception):
    """Signal that a run is given up because others are ahead of it; its text says why. The run could be resumed."""


def run(
    config: DictConfig,
    folder: Path,
    overrides: list[str] | None = None,
    choices: dict[str, Any] | None = None,
    in_sweep: bool = False,
    resuming: bool = False,
    watching: Sequence[Callback] = (),
    links: bool = False,
) -> dict[str, Any] | None:
    """Fit, score and draw the model of a config in a run folder; resume where an earlier attempt was interrupted.

    choices: the option chosen of each config group, such as model: vrnn, recorded with the config. links: follow
    links to files outside the folder; otherwise a folder that holds one is refused.

    Return the metrics (also in metrics.json). Errors are recorded as status=failed, or pruned, and raised; those of a
    single run that come before anything is trained leave no folder. Of several processes of one run (trainer=ddp)
    that torchrun or srun started, the first returns the metrics, the others None.
    """
    config = with_absolute_paths(config)
    if launched()[0]:
        check_accelerator(config)
        return take_part(config, folder)
    if not links:
        refuse_links(folder)
    with run_lock(folder, wait=in_sweep):
        _check_same_run(config, folder, resuming)
        if metrics := finished(folder):
            log.info("%s is finished already; its recorded result is kept.", folder)
            return metrics
        # Left by a failed attempt, whose error is in run.log too.
        (folder / run_files.METRICS).unlink(missing_ok=True)
        forget_end(folder)
        several = processes_of(config) > 1 and launched()[1] == 1
        parts, loggers = _begin(config, folder, overrides or [], choices or {}, in_sweep, several)
        if several and watching:
            raise ConfigError("a search trains each trial in one process; leave out trainer=ddp, or set workers=2.")
        with _failures_recorded(folder, loggers):
            quiet = in_sweep or bool(watching)  # a run of a sweep or a search logs less
            return _run_in_processes(parts, folder) if several else _run(parts, folder, loggers, watching, quiet)


def take_part(config: DictConfig, folder: Path) -> None:
    """Fit a run as one of several processes; another process owns the folder and waits for all of them."""
    parts = assemble(config)
    if not (folder / run_files.LAST).exists():
        _start_from(parts)
    with _failures_recorded(folder, []):
        loggers = [] if launched()[0] else _connected(config, folder)  # the first process records the run
    with _failures_recorded(folder, loggers):
        _run(parts, folder, loggers)


def _connected(config: DictConfig, folder: Path) -> Sequence[RunLogger]:
    """Return the loggers of a run, connected to their services; raise ConfigError where one cannot be used."""
    loggers = loggers_of(config, folder)
    for logger in loggers:
        logger.connect()
    return loggers


def _start_from(parts: Parts) -> None:
    """Give the model the weights of the run that the config names; runs of earlier versions have no such key."""
    if start := parts.config.get("start"):
        take_weights(parts.model, Path(start))


def release() -> None:
    """Free the memory of an ended run, which the next one in this process may need."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _failures_recorded(folder: Path, loggers: Sequence[RunLogger]):
    """Record a failure in metrics.json; of several processes, that of the first to fail, which caused the others."""
    with _log_to(folder / run_files.LOG), _without_tracebacks_of_threads(folder):
        try:
            yield
        except Exception as error:
            log.debug("failed", exc_info=True)  # to the file; the caller reports it on the terminal
            checkpoints.check_there(folder)
            if isinstance(error, OSError) and error.errno in FULL:  # TensorBoard's writer does not name its file
                error = unwritable(folder, error)
            with suppress(OSError):  # a full disk may have no room for the reason either
                if not (folder / run_files.METRICS).exists():
                    record_failure(folder, error, status="pruned" if isinstance(error, Pruned) else "failed")
                    for logger in loggers:
                        logger.end(metrics_of(folder))
            raise error


def _run_in_processes(parts: Parts, folder: Path) -> dict[str, Any] | None:
    """Fit a run by processes of their own, one a device."""
    try:
        ddp.run(to_dict(parts.config), folder, processes_of(parts.config))
    except ddp.KilledError:
        (folder / run_files.METRICS).unlink(missing_ok=True)  # the others failed only because one was killed
        forget_end(folder)
        raise
    except ddp.ProcessError as error:
        raise ddp.ProcessError(metrics_of(folder).get("error", error)) from None
    return finished(folder)


def _check_same_run(config: DictConfig, folder: Path, resuming: bool) -> None:
    """Raise ConfigError where a folder holds another config's run; its trainer may change until the fit is done."""
    if not (folder / run_files.CONFIG).exists():
        return
    before, now = (flatten(to_dict(c)) for c in (config_of(folder), config))
    value = lambda keys, key: keys.get(key, NEWER.get(key))  # a run of an earlier version lacks some keys
    changed = [k for k in sorted({*before, *now}) if value(before, k) != value(now, k)]
    differ = [k for k in changed if not is_volatile(k)]
    done = (folder / run_files.FIT).exists()
    for key in differ:
        if not (resuming and key.startswith("trainer.") and not done):
            raise ConfigError(
                f"{folder} holds another run, in which {key} is {before.get(key)} instead of {now.get(key)}"
                + (", and its training is finished" if resuming and done else "")
                + ". Choose another folder (hydra.run.dir=...), or resume that run as it is: resume=<folder>."
            )
    if differ or (resuming and changed and not finished(folder)):  # such as another logger
        write_yaml(folder / run_files.CONFIG, OmegaConf.to_yaml(config, resolve=True))


def _begin(
    config: DictConfig, folder: Path, overrides: list[str], choices: dict[str, Any], in_sweep: bool, several: bool
) -> tuple[Parts, Sequence[RunLogger]]:
    """Return the parts of a run and its loggers, and write its config to disk.

    A job of a sweep is recorded first, so that its failure is known in any case; a single run that cannot work leaves
    no folder that looks like one.
    """
    known = (folder / run_files.CONFIG).exists()
    begun = (folder / run_files.LAST).exists()
    if in_sweep and not begun:  # without a checkpoint nothing of an earlier attempt enters this one
        _record(folder, config, overrides, choices)
    try:
        check_accelerator(config)
        parts = assemble(config)
        if not begun:
            _start_from(parts)
        loggers = loggers_of(config, folder) if several else _connected(config, folder)
    except Exception as error:
        if in_sweep:
            record_failure(folder, error)
        elif not known:
            _discard(folder)
        raise
    if not in_sweep and not known:
        _record(folder, config, overrides, choices)
    elif known and not begun:
        provenance.write(folder, config)
    if known:
        for what in provenance.changes(folder, config):
            log.warning("%s since this run began; its result will be a mix of both versions.", what)
    return parts, [] if several else loggers  # of several processes the first records the run


def _discard(folder: Path) -> None:
    """Remove the folder of a run that never began, and outputs/<date> around it where nothing else is in them.

    Folders of other names are the user's, and stay.
    """
    (folder / run_files.LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # a folder that holds anything stays
        folder.rmdir()
        if re.fullmatch(r"\d{4}-\d\d-\d\d", folder.parent.name) and folder.parents[1].name == "outputs":
            folder.parent.rmdir()
            folder.parents[1].rmdir()


def _record(folder: Path, config: DictConfig, overrides: list[str], choices: dict[str, Any]) -> None:
    provenance.write(folder, config)
    record_start(folder, config, overrides, choices)


@contextmanager
def _without_tracebacks_of_threads(folder: Path):
    """Keep threads, such as TensorBoard's writer, from printing errors that the fit raises too: those of a full disk,
    and of a run folder that was removed."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        error = ended.exc_value
        if not (isinstance(error, OSError) and (error.errno in FULL or not folder.is_dir())):
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class RunLog(logging.FileHandler):
    """Write run.log; a line that a full disk does not take is lost, since the terminal shows it too."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass over an error of the disk, which logging would print with a traceback for every line."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def _log_to(file: Path):
    if launched()[0]:  # only the first process writes the log
        file = Path(os.devnull)
    handler = RunLog(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [log, logging.getLogger("lightning.pytorch")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take of it is lost
            handler.close()


def trainer_of(
    parts: Parts,
    folder: Path,
    loggers: Sequence[RunLogger] = (),
    watching: Sequence[Callback] = (),
    limit: float | None = None,
) -> pl.Trainer:
    """Return the Trainer of a run, whose checkpoints go to the folder.

    watching: further callbacks. limit: the seconds after which the fit ends.
    """
    # Every validation writes last.ckpt; best.ckpt is the best by val/loss.
    saver = checkpoints.Checkpoints(
        dirpath=folder / run_files.CHECKPOINTS,
        filename="best",
        monitor=SCORE,
        save_last=True,
        enable_version_counter=False,
    )
    config, devices = parts.config, parts.config.trainer.devices
    usual = parts.model.usual_steps or length.STEPS
    planned = length.settings(config.trainer, len(parts.data.val_dataloader()), usual)
    stop = instantiate(config.stop, "stop")
    if isinstance(stop, callbacks.StopWhenWorse):
        stop.active = length.is_default(config.trainer)
    parts_of_run = [
        stop,
        callbacks.StopOnNaN(),
        callbacks.Figures(protocol=parts.protocol, share=FIGURES if planned.get("val_check_interval") else None),
        callbacks.Plateau(),
        callbacks.Timer(),
        callbacks.LossHistory(),
        callbacks.Log(),
        callbacks.Progress(),
        stopping.SaveOnSignal(),
        *([LearningRateMonitor("step")] if loggers else []),
        *watching,
        saver,
    ]
    if limit is not None:
        by_time = planned.get("val_check_interval") == sys.maxsize
        level = logging.DEBUG if watching else logging.INFO
        parts_of_run.insert(0, TimeLimit(limit, usual, by_time, level))
    if planned.get("val_check_interval"):
        parts_of_run.append(callbacks.LastStep())
    return instantiate(
        config.trainer,
        "trainer",
        accelerator=accelerator_of(config),
        strategy=strategy_of(config) if launched()[1] > 1 else "auto",
        devices=list(devices) if OmegaConf.is_list(devices) else processes_of(config),
        logger=list(loggers),
        callbacks=parts_of_run,
        plugins=[checkpoints.CheckpointFiles()],
        profiler=config.trainer.get("profiler") or callbacks.Unprofiled(),
        **planned,
        max_time=None,  # the callback TimeLimit ends such a fit
        default_root_dir=str(folder),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
    )


def _run(
    parts: Parts,
    folder: Path,
    loggers: Sequence[RunLogger],
    watching: Sequence[Callback] = (),
    quiet: bool = False,
) -> dict[str, Any] | None:
    keep_memory()
    with threads.restored(), only_bar("a run of a sweep") if quiet else nullcontext():
        return _fit_and_score(parts, folder, loggers, watching, quiet)


def _fit_and_score(
    parts: Parts, folder: Path, loggers: Sequence[RunLogger], watching: Sequence[Callback], quiet: bool
) -> dict[str, Any] | None:
    limit = limit_of(parts.config, out_of_time.wanted(parts, quiet))
    trainer = trainer_of(parts, folder, loggers, watching, limit)
    seconds = _set_threads(parts, trainer, folder)
    log.debug("torch %s, %d threads, %s", torch.__version__, torch.get_num_threads(), trainer.strategy.root_device)
    if trainer.is_global_zero and not (folder / run_files.FIT).exists():
        level = logging.DEBUG if quiet else logging.INFO
        out_of_time.check(parts)
        if not (folder / run_files.LAST).exists():
            _log_summary(parts, level)
            if sentence := _idle_weight(parts):
                log.log(level if quiet else logging.WARNING, "warning: %s", sentence)
        log.log(level, "%s", _fit_summary(parts, trainer, seconds, limit))
    fit = _fit(parts, trainer, folder)
    if not trainer.is_global_zero:
        return None
    best = folder / run_files.BEST
    _read_weights(parts.model, best)
    parts.model.to(trainer.strategy.root_device)
    started = monotonic()
    factors, ends = _recalibrate(parts, folder, quiet)
    scores, details = parted(score(parts, factors and factors.apply))
    scores |= (factors.metrics() if factors else {}) | (ends.scores if ends else {})
    metrics = {"status": "completed", **scores, **fit, "score/seconds": monotonic() - started}
    drawn = model_figures.figures(parts.model, parts.data, parts.config.seed, tasks=parts.protocol.questions)
    checkpoints.check_there(folder)
    model_figures.write(
        drawn | calibration_figures.figures(scores | details, "test", parts.data), folder / run_files.FIGURES
    )
    write_json(folder / run_files.CALIBRATION, details)
    for logger in loggers:
        logger.end(metrics)
    write_json(folder / run_files.METRICS, metrics)
    log.debug("completed: %s", metrics)
    return metrics


def _set_threads(parts: Parts, trainer: pl.Trainer, folder: Path) -> float | None:
    """Set torch's number of threads for a fit and its scoring; return the seconds of a training step, where measured.

    A fit that has begun keeps its number, since another would change its results. Otherwise the number is chosen by
    timing, on a CPU where nobody has set it.
    """
    seconds, kept = None, threads.recorded(folder)
    if kept is None and (folder / run_files.LAST).exists():
        kept = torch.get_num_threads()  # a version that recorded none began this fit
    alone = trainer.world_size == 1 and parts.config.trainer.get("compile") in ("off", False, None)
    chosen = kept or torch.get_num_threads()
    if alone and not (folder / run_files.FIT).exists():
        device = trainer.strategy.root_device
        batch = next(iter(parts.data.train_dataloader()))
        step = threads.training_step(parts.model, batch, device)
        try:
            if kept is None and device.type == "cpu" and threads.free_to_choose():
                chosen, seconds = threads.fastest(step, torch.get_num_threads())
            else:
                seconds = threads.typical(step, chosen)
        except (
            Exception
        ) as error:  # a user's model may need the trainer in its step; real errors appear in the fit itself
            log.debug("no training step was timed before the fit: %s: %s", type(error).__name__, error)
    if trainer.is_global_zero and kept is None:
        threads.record(folder, chosen)
    torch.set_num_threads(chosen)
    return seconds


def _log_summary(parts: Parts, level: int) -> None:
    """Log a summary of the dataset, and warn of what looks odd in it."""
    text, odd = parts.data.describe()
    if text:
        log.log(level, "%s", text)
    for sentence in odd:
        log.log(max(level, logging.WARNING) if level > logging.DEBUG else level, "warning: %s", sentence)


def _idle_weight(parts: Parts) -> str:
    """Return a sentence where the weight of the KL (beta) has nothing to weigh; an empty text where it has."""
    if parts.model.has_kl or parts.model.recipe.beta == ConstantBeta():
        return ""
    return (
        f"beta has no effect: {type(parts.model).__name__} has no latents, so its loss has no KL. Leave beta out, or "
        "choose a model with latents, such as model=vrnn."
    )


def _fit_summary(parts: Parts, trainer: pl.Trainer, seconds: float | None, limit: float | None) -> str:
    """Return a line on a fit: its length in steps and epochs, the model's size, and a rough time.

    seconds: those of a training step, where it was timed. limit: the seconds after which the fit ends.
    """
    batches = max(1, len(parts.data.train_dataloader()))
    accumulated = trainer.accumulate_grad_batches
    steps_of_epoch = -(-batches // accumulated)
    if isinstance(trainer.limit_train_batches, int):
        steps_of_epoch = max(1, min(steps_of_epoch, trainer.limit_train_batches // accumulated))
    each = None if seconds is None else OVERHEAD * accumulated * seconds
    by_epochs = (trainer.max_epochs or -1) * steps_of_epoch
    by_time = max(1, int(limit / each)) if limit and each else -1
    steps = min((each for each in (by_epochs, trainer.max_steps, by_time) if each > 0), default=None)
    number, size = torch.get_num_threads(), sum(p.numel() for p in parts.model.parameters())
    shape = f"{size:,} parameters, {number} thread{'s' * (number > 1)}"
    count = "" if steps is None else f"{steps} steps ({steps / steps_of_epoch:.3g} epochs of {steps_of_epoch}), "
    if limit is None or (steps is not None and steps != by_time and each and steps * each < limit):
        return f"training: {count}{shape}" + (f", about {duration(steps * each)}" if each and steps else "")
    return f"training: for {duration(limit)} (trainer.max_time), {'at about ' * bool(count)}{count}{shape}"


def _recalibrate(
    parts: Parts, folder: Path, among_others: bool
) -> tuple[Recalibration | None, out_of_time.OutOfTime | None]:
    """Fit the recalibration on validation and save its factors for predict.

    Return (None, None) where values have no spread.
    """
    if not possible(parts.model, parts.protocol):
        return None, None
    ends = out_of_time.measured(parts, folder, among_others)
    factors = recalibrate(parts, ends)
    factors.save(folder)
    for line in factors.lines():
        log.debug(line)
    return factors, ends


def _fit(parts: Parts, trainer: pl.Trainer, folder: Path) -> dict[str, Any]:
    """Train, or resume from last.ckpt; return what the fit cost.

    The cost is recorded when the fit ends, so that a run interrupted later need not train again.
    """
    done = folder / run_files.FIT
    if done.exists():
        cost = read_json(done, "Remove it: the fit then resumes from its last checkpoint, at which it ends.")
        _begin_records(trainer, cost["fit/steps"])
        return cost
    cost = _train(parts, trainer, folder)
    if trainer.is_global_zero:
        write_json(done, cost)
    if torch.distributed.is_initialized():  # the first process scores alone, and the others need not wait
        torch.distributed.destroy_process_group()
    return cost


def _train(parts: Parts, trainer: pl.Trainer, folder: Path) -> dict[str, Any]:
    start, step = None, 0
    if resumed := checkpoints.latest(folder):
        last, checkpoint = resumed
        log.log(logging.INFO if trainer.is_global_zero else logging.DEBUG, "resuming from %s", last)
        check_channels(checkpoint["channels"], parts)
        limits = limits_of(trainer)
        if _stopped_early(checkpoint, limits):  # interrupted after the decision to stop, which is kept
            known = checkpoint["callbacks"]
            cost = _cost(parts, checkpoint["epoch"] + 1, checkpoint["global_step"], known["Timer"]["seconds"])
            return cost | callbacks.course(known["Course"]["losses"])
        start, step = str(last), checkpoint["global_step"]
    _begin_records(trainer, step)
    with callbacks.interruptible():
        trainer.fit(parts.model, datamodule=parts.data, ckpt_path=start, weights_only=True)
    seconds = callbacks.timer_of(trainer).metrics["fit/seconds"]
    course = callbacks.course(callbacks.losses_of(trainer))
    return _cost(parts, trainer.current_epoch, trainer.global_step, seconds) | course


def _begin_records(trainer: pl.Trainer, step: int) -> None:
    for logger in trainer.loggers:
        assert isinstance(logger, RunLogger)
        logger.begin(step)


def _stopped_early(checkpoint: dict[str, Any], limits: Sequence[float] = ()) -> bool:
    """Return whether the fit of a checkpoint was stopped; limits: of its time, in seconds, where it has one."""
    known = checkpoint["callbacks"]
    if known.get("TimeLimit", {}).get("ended") in limits:
        return True
    states = [v for k, v in known.items() if k.startswith("EarlyStopping")]
    clearly_worse = known.get("StopWhenWorse", {}).get("stopped", False)
    return clearly_worse or any(state["wait_count"] >= state["patience"] for state in states)


def _cost(parts: Parts, epochs: int, steps: int, seconds: float) -> dict[str, Any]:
    return {
        "fit/epochs": epochs,
        "fit/steps": steps,
        "fit/seconds": seconds,
        "fit/steps_per_second": steps / seconds if seconds else 0.0,
        "fit/threads": torch.get_num_threads(),
        "model/parameters": sum(p.numel() for p in parts.model.parameters()),
        "model/causal": parts.model.causal,
    }


def _read_weights(model: SequenceModel, file: Path) -> None:
    model.load_state_dict(checkpoints.read(file)["state_dict"])
