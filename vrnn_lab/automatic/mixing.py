"""Choose among the candidates of a study and simple baselines on validation: one of them, or a mixture."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from vrnn_lab.automatic import stacking
from vrnn_lab.automatic.questions import QUESTIONS, baseline_scores, validation_patterns, validation_scores
from vrnn_lab.automatic.stacking import Choice
from vrnn_lab.automatic.study import Study
from vrnn_lab.core.run_files import OUT_OF_TIME_VALUES
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.baseline_model import Spread, best_baseline
from vrnn_lab.evaluation.value_scores import ValueScores, common
from vrnn_lab.forecasting.ensemble import Weights
from vrnn_lab.forecasting.mixture_folder import Mixture
from vrnn_lab.runs import baseline_folder
from vrnn_lab.runs.build import Parts, load_parts


def mix(study: Study, models: Sequence[str], data: SeriesData) -> tuple[dict[str, Choice], list[str]]:
    """Choose on validation, for each question, between the best member and a mixture; return also the members' names.

    The members are the models, and for each question the simple baseline that is best on validation. The weights are
    written to the study's folder; where only one question was asked, they hold for the other too. data: of the study,
    which is not read again.
    """
    questions = QUESTIONS[study.question]
    scores: dict[str, dict[str, ValueScores]] = {question: {} for question in questions}
    # A second fit may have failed, or have too few values beyond its times; models are compared on the same values.
    beyond = all((study.folder / model / OUT_OF_TIME_VALUES).is_file() for model in models)
    fitted = {model: replace(load_parts(study.folder / model), data=data) for model in models}
    for model, parts in fitted.items():
        for question in questions:
            found = validation_scores(parts, study.folder / model, question, study.horizon, beyond)
            scores[question][model] = found
    members = [*models, *_baselines(study, fitted, beyond, scores)]
    found = {question: _of_members(stacking.choose(list(each.values())), list(each), members)
             for question, each in scores.items()}  # fmt: skip
    gaps, ahead = (found.get(question, found[questions[0]]).weights for question in ("interpolation", "forecast"))
    kept = [place for place in range(len(members)) if gaps[place] or ahead[place]]
    if kept[0] >= len(models):  # config and data of a mixture are those of its first member, which must be a run
        kept.insert(0, 0)
    pick = lambda weights: tuple(weights[place] for place in kept)
    folders = tuple(study.folder / members[place] for place in kept)
    Mixture(folders, Weights(pick(gaps), pick(ahead))).save(study.folder)
    return found, members


def _baselines(
    study: Study, fitted: dict[str, Parts], beyond: bool, scores: dict[str, dict[str, ValueScores]]
) -> list[str]:
    """Add the scores of each question's best baseline, write the baselines' folders, and return their names."""
    run, parts = next(iter(fitted.items()))
    spreads: dict[str, dict[str, Spread]] = {}
    for question, of_members in scores.items():
        if question == "forecast" and beyond and not _better_within(study, fitted):
            continue
        best = baseline_scores(parts, question, study.horizon, beyond)
        if best is not None:
            name, spread, found = best
            spreads.setdefault(name, {})[question] = spread
            of_members[folder_name(name)] = found
    for name, each in spreads.items():
        for question in {*QUESTIONS["both"]} - {*each}:  # so that the folder answers what was not asked, too
            batches = chain.from_iterable(validation_patterns(parts, question, study.horizon))
            found = best_baseline(batches, parts.model.scale, question, name)
            each[question] = found[1] if found else next(iter(each.values()))
        pair = (each[question] for question in QUESTIONS["both"])
        baseline_folder.save(study.folder / folder_name(name), name, study.folder / run, *pair)
    return [folder_name(name) for name in spreads]


def _better_within(study: Study, fitted: dict[str, Parts]) -> bool:
    """Return whether a simple baseline forecasts better than every candidate within the times of training, too.

    Beyond these times, candidates are judged by a second fit on half of their data, and a baseline, which is not
    fitted, would be at an advantage. Within them it must be better by more than a standard error over series, since
    its choice and its spread are fitted to these very values.
    """
    best = baseline_scores(next(iter(fitted.values())), "forecast", study.horizon, beyond=False)
    if best is None:
        return False
    scores = [validation_scores(each, study.folder / model, "forecast", study.horizon, beyond=False)
              for model, each in fitted.items()]  # fmt: skip
    *models, baseline = common([*scores, best[2]])
    least = min(models, key=lambda each: each.nll.mean())
    better, error = stacking.mean_and_error(least.nll - baseline.nll, baseline.series)
    return better > error


def folder_name(baseline: str) -> str:
    """Return the folder of a baseline within that of a study."""
    return f"baseline_{baseline.replace(' + ', '_').replace(' ', '_')}"


def _of_members(choice: Choice, names: Sequence[str], members: Sequence[str]) -> Choice:
    """Return a choice among some members with a weight for each member."""
    weights = dict(zip(names, choice.weights, strict=True))
    return replace(choice, weights=tuple(weights.get(name, 0.0) for name in members))
