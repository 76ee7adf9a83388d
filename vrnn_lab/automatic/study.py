"""Train candidates one after the other within a budget of time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from vrnn_lab.automatic.budget import Budget
from vrnn_lab.automatic.budget_display import BudgetDisplay
from vrnn_lab.automatic.questions import QUESTIONS
from vrnn_lab.config.compose import choices, compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.data.base import SeriesData
from vrnn_lab.runs import provenance
from vrnn_lab.runs.build import Parts, assemble
from vrnn_lab.runs.folder import SCORE, config_of, finished
from vrnn_lab.training import fit as fitting
from vrnn_lab.training import length, out_of_time

WEIGHTS = {"linear_sde": 1.0, "rnn": 1.5, "latent_ode": 2.5, "vrnn": 2.5}  # shares of the time, cheapest first
SCORING = 0.15  # of the budget: how long a candidate is scored after its fit, before one was
LAST = 0.1  # of the budget, kept for the scores of the mixture and the figures
MOST_FITS, MARGIN = 4, 1.3  # fits of the best candidate; how much longer another one of them may take
LIMITED = 0.9  # fraction of its limit from which a fit was ended by it
SHORTEST = 3.0  # seconds of a fit that is worth beginning
LATE, BEHIND = 2 / 3, 2.0  # from this fraction of a fit on, its lowest val/loss may be so far above the best one
DENSE = 0.9  # share of values that are observed, from which vrnn is a candidate
MANY = 5000  # points from which it is
LARGE = 300_000  # training values above which latent_ode is left out by default


class Watch(Callback):
    """Show how much of the budget is used, record it, and give up a candidate that is clearly behind."""

    def __init__(self, budget: Budget, best: float, show: Callable[[float], None]):
        self.budget, self.best, self.show = budget, best, show
        self.least = float("inf")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.progress_bar_callback:
            trainer.progress_bar_callback.disable()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.budget.due:
            self.budget.save()
            self.show(self.budget.used)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.least = min(self.least, float(trainer.callback_metrics[SCORE]))
        if length.share_done(trainer) >= LATE and self.least > self.best + BEHIND:
            raise fitting.Pruned(
                f"after {LATE:.0%} of its fit its lowest val/loss is {self.least:.3g} nats a value, more than "
                f"{BEHIND:g} above the best candidate's, {self.best:.3g}"
            )


@dataclass(frozen=True)
class Study:
    """Hold what a budget is spent on: the data, the question and the candidates."""

    folder: Path
    data: tuple[str, ...]  # overrides of data=table
    question: str  # fill, ahead or both
    horizon: float | None  # how far ahead, in the data's unit of time
    candidates: tuple[str, ...]  # models, in the order in which they are trained; empty: chosen from the data
    seed: int
    more: tuple[str, ...] = ()  # further overrides of every candidate

    def overrides(self, model: str, limit: float | None, beyond: bool) -> list[str]:
        """Return the overrides of a candidate's run; <model>-2 is a second fit of a model, with the next seed.

        limit: the seconds of its fit. beyond: whether a second fit measures forecasts beyond the times of training.
        """
        model, _, number = model.partition("-")
        fixed = [
            f"model={model}",
            f"seed={self.seed + int(number or 1) - 1}",
            f"out_of_time={str(beyond).lower()}",
            "evaluate.samples=20",
        ]
        given = {word.partition("=")[0].lstrip("+~") for word in self.more}
        if limit is not None:
            fixed.append(f"trainer.max_time={limit:.1f}")
        kept = [word for word in fixed if word.partition("=")[0] not in given]
        return ["data=table", *self.data, *kept, *self.more]

    def parts(self) -> Parts:
        """Build the parts of the first candidate; raise ConfigError where the table cannot be used."""
        model = self.candidates[0] if self.candidates else "linear_sde"
        return assemble(compose(self.overrides(model, None, False)))


def default_candidates(data: SeriesData) -> tuple[str, ...]:
    """Return the models that suit a data set, the cheapest first."""
    train = data.splits["train"]
    points, dim = int(train.lengths.sum()), len(data.channels)
    models = ["linear_sde", "rnn"]
    if points * dim <= LARGE:
        models.append("latent_ode")
        missing = np.isnan(np.asarray(train.values)).mean()
        if dim > 1 and points >= MANY and missing <= 1 - DENSE:
            models.append("vrnn")
    return tuple(models)


def beyond_wanted(study: Study, parts: Parts) -> bool:
    """Return whether candidates are judged by a second fit without the ends of the series."""
    return study.question != "fill" and not out_of_time.impossible(parts)


@dataclass
class Progress:
    """Hold what the candidates so far have come to."""

    done: list[str] = field(default_factory=list)  # the names of those that ended well
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # of these

    @property
    def best(self) -> float:
        """Return the lowest val/loss of any candidate, infinite before there is one."""
        return min((each[SCORE] for each in self.metrics.values()), default=float("inf"))

    @property
    def scoring(self) -> list[float]:
        """Return how many seconds the scores of each candidate took."""
        return [each["score/seconds"] for each in self.metrics.values()]


def train(study: Study, models: Sequence[str], beyond: bool, budget: Budget, say: BudgetDisplay) -> list[str]:
    """Train and score each candidate, and return the names of those that ended well.

    A candidate that is finished already is kept; one that was interrupted is resumed with what its limit leaves. What
    is left of the budget then goes to further fits of the candidate with the lowest CRPS on validation, with other
    seeds, as long as it is enough for a whole one: a mixture of fits that differ by their seeds is better than one.
    """
    progress = Progress()
    for place, model in enumerate(models):
        limit = _limit(budget, models[place:], progress.scoring)
        if limit < SHORTEST and budget.left > 3 * SHORTEST and not progress.done:
            limit = SHORTEST  # a first answer, however small the budget
        _attempt(study, model, limit, beyond, budget, progress, say)
    if not progress.done:
        raise ConfigError(
            f"no candidate was trained within the budget of {budget.seconds:.0f} s"
            + "".join(f"; {model}: {why}" for model, why in budget.failed.items())
            + ". Give it more time: budget=5m"
        )
    questions = [f"val/{question}/ncrps" for question in QUESTIONS[study.question]]
    error = lambda model: sum(progress.metrics[model].get(key, float("inf")) for key in questions)
    best = min(progress.done, key=error)
    for number in range(2, MOST_FITS + 1):
        again = f"{best}-{number}"
        if not _attempt(study, again, _enough(budget, best, progress.metrics[best]), beyond, budget, progress, say):
            break
    budget.save()
    return progress.done


def _enough(budget: Budget, name: str, metrics: dict[str, Any]) -> float:
    """Return the seconds for another fit of a candidate, 0 where the budget leaves too few for one like the first.

    A fit that its limit ended may take all that is left, another one somewhat longer than it took.
    """
    room = budget.left - LAST * budget.seconds - MARGIN * metrics["score/seconds"]
    needed = MARGIN * metrics["fit/seconds"]
    limited = metrics["fit/seconds"] > LIMITED * budget.limits[name]
    return 0.0 if room < needed else room if limited else needed


def _attempt(
    study: Study, name: str, limit: float, beyond: bool, budget: Budget, progress: Progress, say: BudgetDisplay
) -> bool:
    """Train and score a candidate within a limit, in seconds; return whether it ended well.

    The limit of one that began in an earlier attempt holds.
    """
    folder = study.folder / name
    if name in budget.failed:
        say(f"{name}: given up: {budget.failed[name]}")
        return False
    metrics = finished(folder)
    if metrics is not None and provenance.data_changed(folder, config_of(folder)):
        raise ConfigError(
            f"the table has changed since {folder} was trained on it; name another folder for the new content "
            f"(output=<folder>), or remove {study.folder} to train again there."
        )
    if metrics is None:
        limit = budget.limits.get(name) or limit
        if limit < SHORTEST:
            if "-" not in name:
                say(f"{name}: left out, since the budget leaves it {max(0.0, limit):.0f} s")
            return False
        budget.limits[name] = round(limit, 1)
        budget.save()
        say(f"{name}: training for at most {limit:.0f} s ({budget.used:.0f} of {budget.seconds:.0f} s used)")
        metrics = _run(study, name, budget, beyond, progress.best, say)
    if metrics is None:
        return False
    progress.done.append(name)
    progress.metrics[name] = metrics
    say(
        f"{name}: {metrics['fit/steps']:.0f} steps in {metrics['fit/seconds']:.0f} s, val/loss "
        f"{metrics[SCORE]:.4g} nats a value"
    )
    return True


def _limit(budget: Budget, models: Sequence[str], scoring: Sequence[float]) -> float:
    """Return the seconds that the first of the models may train, so that all and the scores fit into the budget."""
    each = sum(scoring) / len(scoring) if scoring else SCORING * budget.seconds / max(1, len(models))
    left = budget.left - LAST * budget.seconds - each * len(models)
    shares = [WEIGHTS.get(model, 2.0) for model in models]
    return left * shares[0] / sum(shares)


def _run(
    study: Study, model: str, budget: Budget, beyond: bool, best: float, say: BudgetDisplay
) -> dict[str, Any] | None:
    """Run a candidate in its folder; return its metrics, None where it failed or was given up."""
    overrides = study.overrides(model, budget.limits[model], beyond)
    watch = Watch(budget, best, say.progress)
    try:
        config = compose(overrides)
        return fitting.run(config, study.folder / model, overrides, choices(overrides), watching=[watch])
    except fitting.Pruned as why:
        reason = f"{why}"
    except ConfigError as error:
        reason = f"{error}"
    except (RuntimeError, ArithmeticError) as error:  # such as a loss that is not finite; the others may do better
        reason = f"{type(error).__name__}: {error}"
    finally:
        fitting.release()
    budget.failed[model] = reason.splitlines()[0][:300]
    say(f"{model}: given up: {budget.failed[model]}")
    return None
