"""Several fitted models asked as one: the mixture of their predictive distributions, with equal shares."""

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
from vrnn_lab.evaluation.recalibration import Recalibration
from vrnn_lab.forecasting.context_window import choose_window
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.recipe import Recipe
from vrnn_lab.runs.build import Parts, beside_of, load_parts
from vrnn_lab.runs.folder import config_of
from vrnn_lab.runs.trust import Trust

log = logging.getLogger("vrnn_lab")
APART = 2**32  # between the seeds of two members, whose draws must not share their noise
NO_SPLIT = ("batch_size", "period", "trend")  # keys of a data set that change neither its values nor its splits


@dataclass(frozen=True)
class PooledPrediction(Prediction):
    """The prediction of a pool, and those it was made of."""

    members: tuple[Prediction, ...]
    batches: tuple[TimeSeries, ...]  # as each member was asked

    @classmethod
    def of(
        cls, members: Sequence[Prediction], batches: Sequence[TimeSeries], batch: TimeSeries, samples: int
    ) -> "PooledPrediction":
        """Pool predictions of equally many draws each: draw s is one of member s modulo their number."""
        paths = torch.stack([each.paths for each in members], 1).flatten(0, 1)[:samples]
        paths = torch.where(batch.seen, batch.values.to(paths), paths)
        return cls(paths, _joined([each.density for each in members]), tuple(members), tuple(batches))


def _joined(densities: list[Density]) -> Density:
    if isinstance(densities[0], Bernoulli):  # whose quantiles are those of a probability: it stays what it is
        return Bernoulli.stack(densities, torch.cat)
    return Stacked(tuple(densities))


class Ensemble(SequenceModel):
    """The mixture of several fitted models with equal shares: p(x) = 1/M sum_m p_m(x) of a whole series, and
    p(x | seen) = 1/M sum_m p_m(x | seen) of what is asked (a linear opinion pool, Stone 1961).

    Predictions: every member gives ceil(samples / M) draws, all of which stand in the density, so that shares are
    equal; of the paths the first `samples` are kept, draw s from member s modulo M, so that the numbers of draws of
    two members differ by one at most. Members draw with noise of their own: member m with the seed plus m 2^32.
    Since the numbers are fixed and not drawn, pairs of draws come from different members a little more often than in
    independent draws: the spread term of CRPS and energy score is too large by 1 / (samples - 1) of the difference
    between the mean distance of draws of two members and of one, at most.

    Likelihoods: logmeanexp of `log_weights` bounds log p(x) from below where those of members do, an ELBO (one
    sample) or IWAE: the mean of unbiased estimates of all p_m(x) is one of p(x), and by Jensen its expected logarithm
    is at most log p(x). Exact where all members are. There is no loss: a member's loss is a noisy estimate of its
    bound that mixes KLs in closed form with draws; logmeanexp is convex, and that of such estimates may exceed log p.

    Its scale is that of the first member, with the shortest of the members' longest training windows, so that none is
    asked over a longer window than it was trained on. In a question beyond the longest window, members that do not
    keep the start of a series (`SequenceModel.keep_start`) are asked over the latest stretch of it, as alone.
    """

    takes_covariates = takes_error = True
    has_loss = False
    members: nn.ModuleList

    def __init__(self, members: Sequence[SequenceModel], names: Sequence[str]):
        """names: of the members, for messages."""
        first = members[0]
        longest = torch.stack([each.scale.longest for each in members]).min()
        recipe = Recipe(first.recipe.optim, first.recipe.schedule)
        super().__init__(replace(first.scale, longest=longest), recipe, first.head)
        self.members, self.names, self.seed = nn.ModuleList(members), tuple(names), first.seed
        self.causal = all(each.causal for each in members)
        self.classifier = first.classifier if self._same_labels() else None

    def _same_labels(self) -> bool:
        """Return whether all members learned the same labels; warn where only some of them did."""
        labels = [each.classifier is not None and (each.scale.classes, each.scale.labels_of_points) for each in self]
        same = all(each == labels[0] for each in labels)
        if not same:
            log.warning("labels are not scored: the runs differ in whether they learned labels, or in the classes.")
        return same and bool(labels[0])

    def __iter__(self) -> Iterator[SequenceModel]:
        for each in self.members:
            assert isinstance(each, SequenceModel)
            yield each

    @property
    def keep_start(self) -> bool:
        """Whether some member is to be asked from the start of a series on; the others are then asked over less."""
        return any(each.keep_start for each in self)

    def _loss_terms(self, series, samples):
        raise NotImplementedError  # a pool is asked in the data's units, and never fitted

    _log_weights = _predict = _loss_terms

    def log_weights(self, batch: TimeSeries, samples: int) -> Float[Tensor, "samples batch"]:
        """Log of the mean over members of their weights, in nats; logmeanexp over samples bounds log p(x) from below.

        `samples` of each member. ValueError outside of the density task, as `SequenceModel.log_weights`.
        """
        return log_mean_exp(torch.stack([member.log_weights(batch, samples).double() for member in self]))

    def predict(self, batch: TimeSeries, samples: int) -> PooledPrediction:
        """Joint draws (samples, batch, time, dim) given only what is seen, in the data's units, and their densities.

        The density has ceil(samples / M) M points on its first axis. ValueError with fewer samples than members.
        """
        count = len(self.members)
        if samples < count:
            raise ConfigError(
                f"{samples} draws of {count} runs together: expected at least one of each; set draws={count} or more "
                f"(of evaluate: evaluate.draws)."
            )
        batches = [batch if each.keep_start == self.keep_start else self._latest(batch) for each in self]
        predictions = [member.predict(own, -(-samples // count)) for member, own in zip(self, batches, strict=True)]
        return PooledPrediction.of(predictions, batches, batch, samples)

    def _latest(self, batch: TimeSeries) -> TimeSeries:
        """The batch over the windows in which members are asked that do not keep the start of a series."""
        seen, asked = batch.seen.any(-1), (batch.scored & ~batch.seen).any(-1)
        window, longest = batch.window.clone(), self.scale.longest.item()
        for row in (seen.any(1) & asked.any(1)).nonzero()[:, 0].tolist():
            known, questions = batch.times[row, seen[row]], batch.times[row, asked[row]]
            before, after = known[known <= questions[0]], known[known > questions[-1]]
            low, high = torch.cat([questions[:1], before])[-1].item(), torch.cat([after, questions[-1:]])[0].item()
            start, stop = choose_window(low, high, known[0].item(), known[-1].item(), longest)
            window[row] = window.new_tensor([min(start, low), max(stop, high)])
        inside = (batch.times >= window[:, :1]) & (batch.times <= window[:, 1:])
        left = {"seen": batch.seen & inside[..., None], "scored": batch.scored & inside[..., None]}
        return replace(batch, **left, window=window, most_seen=None, longest_gap=None, opens_seen=False)

    def classify(self, batch: TimeSeries, samples: int = 10) -> Float[Tensor, "batch *time classes"]:
        """The mean over members of the probability of each class, from what is seen."""
        return torch.stack([member.classify(batch, samples) for member in self]).mean(0)

    @contextmanager
    def fixed_noise(self, seed: int) -> Iterator[None]:
        """Within, the members evaluate, each with noise of its own; as `SequenceModel.fixed_noise`."""
        with ExitStack() as held:
            for number, member in enumerate(self):
                held.enter_context(member.fixed_noise(seed + APART * number))
            held.enter_context(super().fixed_noise(seed))
            yield


@dataclass(frozen=True)
class Recalibrations:
    """The recalibration of each member of a pool, None for one that has none; the pool is made of the results."""

    names: tuple[str, ...]
    each: tuple[Recalibration | None, ...]

    def apply(self, prediction: Prediction, batch: TimeSeries) -> PooledPrediction:
        """The pool of the members' predictions, each wider or narrower about its own mean; what is seen stays."""
        assert isinstance(prediction, PooledPrediction)
        members = [
            each.apply(member, own) if each else member
            for each, member, own in zip(self.each, prediction.members, prediction.batches, strict=True)
        ]
        return PooledPrediction.of(members, prediction.batches, batch, len(prediction.paths))

    def changed(self, batch: TimeSeries) -> Bool[Tensor, "batch time dim"]:
        """Which values some member's factor changes."""
        return torch.stack([each.changed(batch) for each in self.each if each]).any(0)

    def lines(self) -> list[str]:
        """The factors as text, the lines of each run under its name."""
        return [
            line
            for name, each in zip(self.names, self.each, strict=True)
            for line in [f"run {name}{'' if each else ': not recalibrated'}", *(each.lines() if each else [])]
        ]


def load_runs(folders: Sequence[str | Path], changes: DictConfig | None = None, trust: Trust = ()) -> Parts:
    """Load the fitted parts of a run folder; of several, one model that pools theirs, beside the first one's data.

    changes: of the config of the first, whose questions and data count. trust: as in `load_parts`. ConfigError where
    the runs do not fit together.
    """
    first, *others = (Path(folder) for folder in folders)
    parts = load_parts(first, changes, trust)
    if not others:
        return parts
    every = [parts, *(load_parts(folder, trust=trust) for folder in others)]
    for folder, other in zip(others, every[1:], strict=True):
        _check_alike(str(first), parts, str(folder), other)
    return replace(
        parts, model=Ensemble([each.model for each in every], [str(folder) for folder in (first, *others)])
    )


CURES = {
    "channels": "train both on the same columns in one order: data.values=[...]",
    "covariates": "train both with the same data.known, data.static and data.error",
    "error bars": "train both with the same data.error, or without",
    "unit of time": "train both on times of one kind",
}


def _check_alike(first: str, one: Parts, second: str, other: Parts) -> None:
    """ConfigError that names what two runs do not share, and must, to be asked as one."""
    for folder, parts in ((first, one), (second, other)):
        if parts.model.point_process:
            raise ConfigError(
                f"{folder} is a model of event times, whose rate cannot be pooled; ask it alone: run={folder}"
            )
    ours, theirs = _shared(one), _shared(other)
    for what, mine in ours.items():
        if mine != theirs[what] and None not in (mine, theirs[what]):  # None: a run of before this was kept
            cure = f", or {CURES[what]}" if what in CURES else ""
            raise ConfigError(
                f"{second} was trained with {what} {_said(theirs[what])}, {first} with {_said(mine)}: models that "
                f"are asked as one must share them. Leave one of the two out of run={cure}."
            )


def _shared(parts: Parts) -> dict[str, Any]:
    """What runs that are asked as one must share, by its name in messages."""
    scale, data = parts.model.scale, parts.data
    beside = beside_of(parts.config, scale)
    clock = {True: "days (dates)", False: data.time_unit or "numbers", None: None}
    return {
        "channels": scale.channels,
        "values": scale.support,
        "covariates": (*(f"known {name}" for name in beside.known), *(f"static {name}" for name in beside.static)),
        "error bars": beside.error if beside.error else scale.errors,
        "unit of time": clock[scale.dates],
        "a time zone of dates": scale.zoned,
        "units": tuple(data.units),
    }


def _said(fact: Any) -> str:
    if isinstance(fact, tuple):
        return ", ".join(map(str, fact)) or "none"
    return ("no", "yes")[fact] if isinstance(fact, bool) else str(fact)


def check_splits(folders: Sequence[str | Path]) -> None:
    """ConfigError unless all runs divide the same data alike: else a series that is test data of one may have been
    training data of another, and no score would say how the pool does on series it never saw."""
    first, *others = (to_dict(config_of(Path(folder)).data) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        for key in sorted(first.keys() | other.keys()):
            ours, theirs = first.get(key), other.get(key)
            if key in NO_SPLIT or ours == theirs or (key == "path" and _same_file(ours, theirs)):
                continue
            raise ConfigError(
                f"{folder} was trained with data.{key}={theirs}, {folders[0]} with data.{key}={ours}: their test "
                "series may differ, and some may have been training series of the other run. Scores need runs whose "
                "data keys are the same; predict needs no splits, and may pool these."
            )


def _same_file(one: Any, two: Any) -> bool:
    """Whether two paths are of files with the same content, as those that a Forecaster keeps of one frame."""
    files = [Path(str(each)).expanduser() for each in (one, two)]
    return all(file.is_file() for file in files) and cmp(*files, shallow=False)
