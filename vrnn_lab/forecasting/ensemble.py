"""Combine several fitted models into one: the equally weighted mixture of their predictive distributions."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from omegaconf import DictConfig
from torch import Tensor, nn

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import to_dict
from vrnn_lab.core.densities import Bernoulli, Density, Stacked, log_mean_exp
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.evaluation.recalibration import Recalibration, ahead, observed
from vrnn_lab.forecasting.context_window import choose_window
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.recipe import Recipe
from vrnn_lab.runs.baseline_folder import is_baseline, run_of
from vrnn_lab.runs.build import Parts, load_parts, roles_of
from vrnn_lab.runs.folder import config_of
from vrnn_lab.runs.trust import Trust

log = logging.getLogger("vrnn_lab")
APART = 2**32  # distance between the seeds of two members, whose draws must not share their noise
# Keys of a dataset that change neither its values nor its splits.
NO_SPLIT = ("batch_size", "period", "trend", "log", "support")


@dataclass(frozen=True)
class PooledPrediction(Prediction):
    """Hold the prediction of an ensemble and the predictions of its members."""

    members: tuple[Prediction, ...]
    batches: tuple[TimeSeries, ...]  # the batch that each member predicted
    numbers: tuple[int, ...]  # the place of each member in the ensemble, in which some may have no weight

    @classmethod
    def of(
        cls,
        members: Sequence[Prediction],
        batches: Sequence[TimeSeries],
        numbers: Sequence[int],
        batch: TimeSeries,
        samples: int,
    ) -> "PooledPrediction":
        """Pool predictions, and keep `samples` paths, in which the members' draws alternate by their numbers.

        Of equally many draws, draw s comes from member s modulo the number of members.
        """
        places = [(draw / len(member.paths), number) for number, member in enumerate(members)
                  for draw in range(len(member.paths))]  # fmt: skip
        order = sorted(range(len(places)), key=places.__getitem__)[:samples]
        paths = torch.cat([member.paths for member in members])[order]
        paths = torch.where(batch.seen, batch.values.to(paths), paths)
        density = _joined([member.density for member in members])
        return cls(paths, density, tuple(members), tuple(batches), tuple(numbers))


def _joined(densities: list[Density]) -> Density:
    if isinstance(densities[0], Bernoulli):  # its type decides how quantiles are computed (`summary`), so keep it
        return Bernoulli.stack(densities, torch.cat)
    return Stacked(tuple(densities))


@dataclass(frozen=True)
class Weights:
    """Hold the weights of an ensemble's members, which sum to 1, for gaps and for forecasts."""

    gaps: tuple[float, ...]
    ahead: tuple[float, ...]

    def __str__(self) -> str:
        words = [", ".join(f"{weight:.3g}" for weight in weights) for weights in (self.gaps, self.ahead)]
        return words[0] if self.gaps == self.ahead else f"{words[0]} for gaps and {words[1]} for forecasts"


def draws_of(weights: Sequence[float], samples: int) -> list[int]:
    """Return how many of `samples` draws each member gives: its share, rounded, and at least one for any weight."""
    shares = [weight * samples for weight in weights]
    draws = [max(1, int(share)) if share else 0 for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda number: draws[number] - shares[number])  # the largest rest first
    for number in by_rest[: max(0, samples - sum(draws))]:
        draws[number] += 1
    while sum(draws) > samples:
        draws[draws.index(max(draws))] -= 1
    return draws


class Ensemble(SequenceModel):
    """Mix several fitted models with fixed weights, by default equal ones (a linear opinion pool, Stone 1961).

    p(x) = sum_m w_m p_m(x) for a whole series, p(x | observed) = sum_m w_m p_m(x | observed) for queried values.

    Predictions with equal weights: every member gives ceil(samples / M) draws, all of which enter the density, so
    that weights are equal; of the paths the first `samples` are kept, draw s from member s modulo M, so that the
    numbers of draws of two members differ by one at most. With other weights member m gives about w_m samples draws,
    at least one, so that weights are rounded to multiples of 1 / samples; there may be others for forecasts. Each
    member has its own noise: member m is seeded with the seed plus m 2^32. Since the numbers of draws are fixed and
    not random, pairs of draws come from different members a little more often than for independent draws: the spread
    term of CRPS and energy score is too large by at most 1 / (samples - 1) of the difference between the mean
    distance of draws of two members and that of draws of one.

    Likelihoods: the weighted logmeanexp of `log_weights` bounds log p(x) from below where those of members do, as an
    ELBO (one sample) or IWAE: the weighted mean of unbiased estimates of all p_m(x) is unbiased for p(x), and by
    Jensen its expected logarithm is at most log p(x). It is exact where all members are. There is no loss: a member's
    loss is a noisy estimate of its bound that mixes closed-form KLs with draws; logmeanexp is convex, and that of
    such estimates may exceed log p(x).

    The scale is that of the first member, with the shortest of the members' longest training windows, so that none
    predicts over a longer window than it was trained on. For a query beyond the longest window, members that do not
    keep the start of a series (`SequenceModel.keep_start`) predict over its latest part, as they would alone.
    """

    takes_covariates = takes_error = True
    has_loss = False
    mixed = False  # whether a batch may hold queries of both kinds (`one_question`)
    members: nn.ModuleList

    def __init__(self, members: Sequence[SequenceModel], names: Sequence[str], weights: Weights | None = None):
        """Build the mixture of `members`; `names` are their run folders, by which messages call them.

        weights: None: equal ones. A batch of which only points after the last observed ones are queried is predicted
        with those for forecasts, any other, and the density of a whole series, with those for gaps.
        """
        first = members[0]
        longest = torch.stack([member.scale.longest for member in members]).min()
        recipe = Recipe(first.recipe.optim, first.recipe.schedule)
        super().__init__(replace(first.scale, longest=longest), recipe, first.head)
        self.members, self.names, self.seed = nn.ModuleList(members), tuple(names), first.seed
        self.weights = weights
        self.causal = all(member.causal for member in members)
        self.has_density = all(member.has_density for member in members)
        self.classifier = first.classifier if self._same_labels() else None

    def _same_labels(self) -> bool:
        """Return whether all members learned the same labels; warn where only some of them did."""
        labels = [
            member.classifier is not None and (member.scale.classes, member.scale.labels_of_points) for member in self
        ]
        same = all(label == labels[0] for label in labels)
        if not same:
            log.warning("labels are not scored: the runs differ in whether they learned labels, or in the classes.")
        return same and bool(labels[0])

    def __iter__(self) -> Iterator[SequenceModel]:
        for member in self.members:
            assert isinstance(member, SequenceModel)
            yield member

    @property
    def keep_start(self) -> bool:
        """Return whether some member predicts from the start of a series; the others then take shorter windows."""
        return any(member.keep_start for member in self)

    def _loss_terms(self, series, samples):
        raise NotImplementedError  # an ensemble is never fitted, and predicts in the data's units

    _log_weights = _predict = _loss_terms

    def log_weights(self, batch: TimeSeries, samples: int) -> Float[Tensor, "samples batch"]:
        """Return the log of the members' mean importance weight, in nats.

        Its logmeanexp over samples bounds log p(x) from below. samples: the number of each member. Raise ValueError
        outside of the density task, as `SequenceModel.log_weights`.
        """
        each = torch.stack([member.log_weights(batch, samples).double() for member in self])
        if self.weights is None:
            return log_mean_exp(each)
        return torch.logsumexp(each + each.new_tensor(self.weights.gaps).log()[:, None, None], 0)

    def _draws(self, batch: TimeSeries, samples: int) -> list[int]:
        """Return the number of draws of each member for the question of a batch."""
        count = len(self.members)
        if self.weights is None:
            return [-(-samples // count)] * count
        queried = batch.scored & ~batch.seen & observed(batch)  # a row without observations is of either kind
        later = bool(queried.any()) and not bool((queried & ~ahead(batch)[..., None]).any())
        return draws_of(self.weights.ahead if later and not self.mixed else self.weights.gaps, samples)

    @contextmanager
    def one_question(self) -> Iterator[None]:
        """Predict all batches within the block with the weights for gaps, so that none depends on other queries."""
        self.mixed = True
        try:
            yield
        finally:
            self.mixed = False

    def predict(self, batch: TimeSeries, samples: int) -> PooledPrediction:
        """Return joint draws given the observed values, in the data's units, and their densities.

        The draws have shape (samples, batch, time, dim). The density has one component for each draw of a member on
        its first axis: with equal weights ceil(samples / M) M, else `samples`. Raise ConfigError for fewer samples
        than members.
        """
        least = self.weights and max(sum(w > 0 for w in each) for each in (self.weights.gaps, self.weights.ahead))
        if samples < (count := least or len(self.members)):
            raise ConfigError(
                f"{samples} draws are too few for an ensemble of {count} runs: expected at least one draw per run; "
                f"set draws={count} or more (for evaluate: evaluate.draws)."
            )
        predictions, batches, numbers = [], [], []
        for number, (member, draws) in enumerate(zip(self, self._draws(batch, samples), strict=True)):
            if draws:
                batches.append(batch if member.keep_start == self.keep_start else self._latest(batch))
                predictions.append(member.predict(batches[-1], draws))
                numbers.append(number)
        return PooledPrediction.of(predictions, batches, numbers, batch, samples)

    def _latest(self, batch: TimeSeries) -> TimeSeries:
        """Return the batch over the windows of members that do not keep the start of a series."""
        seen, queried = batch.seen.any(-1), (batch.scored & ~batch.seen).any(-1)
        window, longest = batch.window.clone(), self.scale.longest.item()
        for row in (seen.any(1) & queried.any(1)).nonzero()[:, 0].tolist():
            known, queries = batch.times[row, seen[row]], batch.times[row, queried[row]]
            before, after = known[known <= queries[0]], known[known > queries[-1]]
            low, high = torch.cat([queries[:1], before])[-1].item(), torch.cat([after, queries[-1:]])[0].item()
            start, stop = choose_window(low, high, known[0].item(), known[-1].item(), longest)
            window[row] = window.new_tensor([min(start, low), max(stop, high)])
        inside = (batch.times >= window[:, :1]) & (batch.times <= window[:, 1:])
        masks = {"seen": batch.seen & inside[..., None], "scored": batch.scored & inside[..., None]}
        return replace(batch, **masks, window=window, most_seen=None, longest_gap=None, opens_seen=False)

    def classify(self, batch: TimeSeries, samples: int = 10) -> Float[Tensor, "batch *time classes"]:
        """Return the members' weighted mean probability of each class, given the observed values."""
        weights = self.weights.gaps if self.weights else [1 / len(self.members)] * len(self.members)
        each = [weight * member.classify(batch, samples) for member, weight in zip(self, weights, strict=True)]
        return torch.stack(each).sum(0)

    @contextmanager
    def fixed_noise(self, seed: int) -> Iterator[None]:
        """Evaluate all members within the block, each with its own noise, as `SequenceModel.fixed_noise` does."""
        with ExitStack() as contexts:
            for number, member in enumerate(self):
                contexts.enter_context(member.fixed_noise(seed + APART * number))
            contexts.enter_context(super().fixed_noise(seed))
            yield


@dataclass(frozen=True)
class Recalibrations:
    """Hold the recalibration of each member of an ensemble, None for a member without one."""

    names: tuple[str, ...]
    factors: tuple[Recalibration | None, ...]

    def apply(self, prediction: Prediction, batch: TimeSeries) -> PooledPrediction:
        """Return the pool of the members' predictions, each rescaled about its own mean; observed values stay."""
        assert isinstance(prediction, PooledPrediction)
        members = [
            factors.apply(member, own) if (factors := self.factors[number]) else member
            for number, member, own in zip(prediction.numbers, prediction.members, prediction.batches, strict=True)
        ]
        return PooledPrediction.of(members, prediction.batches, prediction.numbers, batch, len(prediction.paths))

    def changed(self, batch: TimeSeries) -> Bool[Tensor, "batch time dim"]:
        """Return the mask of values that some member's factor changes."""
        return torch.stack([factors.changed(batch) for factors in self.factors if factors]).any(0)

    def lines(self) -> list[str]:
        """Return the factors as lines of text, those of each run under its name."""
        return [
            line
            for name, factors in zip(self.names, self.factors, strict=True)
            for line in [
                f"run {name}{'' if factors else _without_factors(Path(name))}",
                *(factors.lines() if factors else []),
            ]
        ]


def _without_factors(folder: Path) -> str:
    return ": a baseline, whose spread was fitted on validation" if is_baseline(folder) else ": not recalibrated"


def load_runs(
    folders: Sequence[str | Path],
    changes: DictConfig | None = None,
    trust: Trust = (),
    weights: Weights | None = None,
) -> Parts:
    """Load the fitted parts of a run folder; for several folders, their ensemble with the first one's data.

    weights: of the runs; None: equal ones. changes: merged into the config of the first run, whose
    tasks and data count. trust: as in `load_parts`. Raise ConfigError where the runs cannot be combined.
    """
    first, *others = (Path(folder) for folder in folders)
    parts = load_parts(first, changes, trust)
    if not others:
        return parts
    runs = [parts, *(load_parts(folder, trust=trust) for folder in others)]
    for folder, other in zip(others, runs[1:], strict=True):
        _check_alike(str(first), parts, str(folder), other)
    names = [str(folder) for folder in (first, *others)]
    return replace(parts, model=Ensemble([run.model for run in runs], names, weights))


CURES = {
    "channels": "train both on the same columns in the same order: data.values=[...]",
    "covariates": "train both with the same data.known, data.static and data.error",
    "error bars": "train both with the same data.error, or without",
    "unit of time": "train both on times of one kind",
}


def _check_alike(first: str, one: Parts, second: str, other: Parts) -> None:
    """Raise ConfigError that names the first property in which two runs differ and that an ensemble must share."""
    for folder, parts in ((first, one), (second, other)):
        if parts.model.point_process:
            raise ConfigError(
                f"{folder} is a model of event times, whose rate cannot be pooled; query it alone: run={folder}"
            )
    ours, theirs = _shared(one), _shared(other)
    for what, mine in ours.items():
        if mine != theirs[what] and None not in (mine, theirs[what]):  # None: an older run that did not record it
            cure = f", or {CURES[what]}" if what in CURES else ""
            raise ConfigError(
                f"{second} was trained with {what} {_text(theirs[what])}, {first} with {_text(mine)}: the runs of "
                f"an ensemble must agree in this. Leave one of the two out of run={cure}."
            )


def _shared(parts: Parts) -> dict[str, Any]:
    """Return what the runs of an ensemble must share, by its name in messages."""
    scale, data = parts.model.scale, parts.data
    roles = roles_of(parts.config, scale)
    clock = {True: "days (dates)", False: data.time_unit or "numbers", None: None}
    return {
        "channels": scale.channels,
        "values": scale.support,
        "covariates": (*(f"known {name}" for name in roles.known), *(f"static {name}" for name in roles.static)),
        "error bars": roles.error if roles.error else scale.errors,
        "unit of time": clock[scale.dates],
        "a time zone of dates": scale.zoned,
        "units": tuple(data.units),
    }


def _text(fact: Any) -> str:
    if isinstance(fact, tuple):
        return ", ".join(map(str, fact)) or "none"
    return ("no", "yes")[fact] if isinstance(fact, bool) else str(fact)


def check_splits(folders: Sequence[str | Path]) -> None:
    """Raise ConfigError unless all runs split the same data in the same way.

    Otherwise a test series of one run may have been a training series of another, and scores would not measure how
    the ensemble does on new series.
    """
    first, *others = (to_dict(config_of(run_of(Path(folder))).data) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        for key in sorted(first.keys() | other.keys()):
            ours, theirs = first.get(key), other.get(key)
            if key in NO_SPLIT or ours == theirs or (key == "path" and _same_file(ours, theirs)):
                continue
            raise ConfigError(
                f"{folder} was trained with data.{key}={theirs}, {folders[0]} with data.{key}={ours}: their test "
                "series may differ, and some may have been training series of the other run. Scores need runs whose "
                "data keys are the same; predict uses no splits, and can pool these runs."
            )


def _same_file(one: Any, two: Any) -> bool:
    """Return whether two paths name files of equal content, as the copies that a Forecaster keeps of one frame."""
    files = [Path(str(path)).expanduser() for path in (one, two)]
    return all(file.is_file() for file in files) and cmp(*files, shallow=False)
