"""Work on a search: run trial after trial, each a run for every seed that reports its validations."""

import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch.callbacks import Callback
from optuna.trial import TrialState

from vrnn_lab.cli.arguments import configure_logging
from vrnn_lab.config.compose import choices, compose
from vrnn_lab.runs.folder import SCORE
from vrnn_lab.sweeps.search_space import overrides, suggest
from vrnn_lab.sweeps.study import SearchPlan, claimed, failures_in_a_row, open_study, planned_trials
from vrnn_lab.training import fit, length

log = logging.getLogger("vrnn_lab")

PLACE = 5  # percent of a limited time between two reports, which are compared with those of other trials there

# Test metrics that are shown for the best trials, and never used to choose.
TEST_METRICS = ("test/nll", "test/interpolation/mse", "test/forecast/mse")


class Watch(Callback):
    """Report the mean of val/loss over the seeds so far, and raise Pruned where the pruner gives the trial up.

    before: final scores of the seeds trained before. config: of the trainer. Reports are placed at epochs, at steps
    where the length of a fit is counted in steps, and at every twentieth of the time where that is limited.
    """

    def __init__(self, trial: Any, before: list[float], config: Any, bar: bool = True):
        self.trial, self.before, self.total, self.bar = trial, before, length.total(config), bar
        self.by_time = length.time_limit(config) is not None
        self.unit = "% of the time" if self.by_time else "step" if length.steps_of(config) else "epoch"

    def on_fit_start(self, trainer, pl_module) -> None:
        if not self.bar and trainer.progress_bar_callback:
            trainer.progress_bar_callback.disable()

    def on_validation_end(self, trainer, pl_module) -> None:
        value = float(trainer.callback_metrics[SCORE])
        mean = (sum(self.before) + value) / (len(self.before) + 1)
        now = trainer.global_step if self.unit == "step" else trainer.current_epoch + 1
        if self.by_time:
            now = PLACE * int(length.share_done(trainer) * 100 / PLACE)
        step = len(self.before) * self.total + now
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a resumed fit reports a step a second time
            self.trial.report(mean, step)
        if math.isfinite(mean) and self.trial.should_prune():
            place = f"{step} {self.unit}" if self.by_time else f"{self.unit} {step}"
            raise fit.Pruned(f"val/loss {mean:.4g} at {place} is behind the median of the other trials")


def run(trial: Any, plan: SearchPlan, folder: Path) -> float:
    """Train a trial and return the mean of val/loss over the seeds; finished seeds are not trained again."""
    values = suggest(trial, plan.space)
    trial.set_user_attr("values", values)
    chosen = [*plan.fixed, *overrides(values)]
    scores: list[float] = []
    results: list[dict[str, Any]] = []
    try:
        for seed in range(plan.seed, plan.seed + plan.seeds):
            config = compose([*chosen, f"seed={seed}"] if plan.seeds > 1 else chosen, plan.dirs)
            run_folder = folder / f"seed={seed}" if plan.seeds > 1 else folder
            watch = Watch(trial, list(scores), config.trainer, plan.bar)
            metrics = fit.run(config, run_folder, chosen, choices(chosen, plan.dirs), watching=[watch])
            assert metrics is not None
            results.append(metrics)
            scores.append(metrics[SCORE])
    finally:
        fit.release()
    for key in TEST_METRICS:
        if all(key in metrics for metrics in results):
            trial.set_user_attr(key, sum(metrics[key] for metrics in results) / len(results))
    return sum(scores) / len(scores)


def work(plan: SearchPlan) -> None:
    """Run one trial after the other until all have ended, or too many failed in a row."""
    configure_logging()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(plan)
    while not all(slot.end for slot in planned_trials(study, plan)):
        if len(failures_in_a_row(study, plan)) >= plan.failures:
            return
        with claimed(study, plan) as claim:
            if claim:
                _end(study, plan, *claim)
        if not claim:
            time.sleep(1)  # other workers hold all trials; if one dies, its trial becomes free


def _end(study: optuna.Study, plan: SearchPlan, number: int, trial: optuna.Trial) -> None:
    """Run a trial and record its result; an interrupted trial is left for another worker to resume."""
    tell = lambda *a, **k: study.tell(trial, *a, **k, skip_if_finished=True)
    started = time.monotonic()
    try:
        score = run(trial, plan, plan.folder / str(number))
        if not math.isfinite(score):
            raise ValueError(f"its val/loss is {score}")
        tell(score)
        what = f"val/loss {score:.4g}"
    except fit.Pruned as why:
        tell(state=TrialState.PRUNED)
        what = f"pruned: {why}"
    except optuna.exceptions.StorageInternalError:  # the database is unreachable, which is no failure of the trial:
        raise  # it stays recorded as running, and another worker, or the same command again, resumes it
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:500]  # the run folder has the full message
        trial.set_user_attr("reason", why)
        tell(state=TrialState.FAIL)
        what = f"failed: {why}"
    except BaseException:
        tell(state=TrialState.FAIL)
        raise
    chosen = " ".join(f"{k}={trial.user_attrs['values'][k]}" for k in trial.user_attrs.get("values", {}))
    log.info("trial %d of %d  %s  (%s, %.0f s)", number, plan.trials, what, chosen, time.monotonic() - started)
