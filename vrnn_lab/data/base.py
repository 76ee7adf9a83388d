"""The contract of every data set: ragged splits in memory, batches on demand, the training scale."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.series import Scale, TimeSeries, Variation
from vrnn_lab.core.tasks import Beyond, DensityTask, Draws, Own, Shared, Task
from vrnn_lab.core.types import Count, Natural
from vrnn_lab.data.packed_strings import PackedStrings
from vrnn_lab.data.variation import variation_of

SPLITS = ("train", "val", "test")
SHUFFLE, TASKS, PATTERN, PLAIN = 101, 102, 103, 104  # what a generator is for: no two purposes share a stream
CELLS = 2**22  # values that a pass over the data holds at once
VARIED = 400_000  # points from which the variation of values is estimated
GAPS = 10_000_000  # points whose gaps are sorted for their median
MOSTLY_FULL = 0.9  # where the mean length is this share of the longest, batches need no series of like length
POOL, JITTER = 40, 0.25  # batches whose series are sorted by length, each stretched by a share up to this


@dataclass(frozen=True)
class Points:
    """What was observed, point by point, in memory or on disk. NaN = not observed."""

    times: NDArray[np.float64]  # (points,)
    values: NDArray[np.float64]  # (points, dim)
    clean: NDArray[np.float64] | None = None  # (points, dim)
    covariates: NDArray[np.float64] | None = None  # (points, covariates), without NaN
    error: NDArray[np.float64] | None = None  # (points, dim), std of the observation noise where there is a value


@dataclass(frozen=True)
class Ragged:
    """Series of any lengths, each a stretch of neighbouring points. A part shares them: no copy."""

    points: Points
    first: NDArray[np.int64]  # (series,): series i is points first[i] to before end[i]
    end: NDArray[np.int64]  # (series,)
    windows: NDArray[np.float64]  # (series, 2)
    ids: NDArray[np.int64]  # (series,)
    names: Sequence[str] | None = None  # what the user calls the series
    labels: NDArray[np.int64] | None = None  # (series,): a class each, -1 = none; or (points,), a class a point

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(
        cls,
        times,
        values,
        offsets,
        windows,
        ids,
        clean=None,
        names=None,
        labels=None,
        covariates=None,
        error=None,
    ) -> "Ragged":
        """Series that stand end to end: series i is points offsets[i] to before offsets[i + 1]."""
        points = Points(times, values, clean, covariates, error)
        return cls(points, offsets[:-1], offsets[1:], windows, ids, names, labels)

    @classmethod
    def of(
        cls, times, values, window=None, first_id: int = 0, clean=None, labels=None, covariates=None, error=None
    ) -> "Ragged":
        """From equal-length series: times (series, time), values (series, time, dim)."""
        count, length = times.shape
        flat = lambda x: x if x is None else np.ascontiguousarray(x).reshape(count * length, -1)
        windows = times[:, [0, -1]] if window is None else np.tile(np.asarray(window, float), (count, 1))
        return cls.joined(
            times=np.ascontiguousarray(times, dtype=np.float64).ravel(),
            values=flat(values),
            offsets=np.arange(count + 1) * length,
            windows=windows.astype(np.float64),
            ids=np.arange(first_id, first_id + count),
            clean=flat(clean),
            labels=labels,
            covariates=flat(covariates),
            error=flat(error),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.end - self.first

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(series + 1,): where each series begins in `times`, `values` and `clean`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def times(self) -> NDArray[np.float64]:
        """(sum of lengths,): those of its own points, series after series; a copy where they lie apart."""
        return self.points.times[places(self.first, self.end)]

    @property
    def values(self) -> NDArray[np.float64]:
        return self.points.values[places(self.first, self.end)]

    @property
    def clean(self) -> NDArray[np.float64] | None:
        return None if self.points.clean is None else self.points.clean[places(self.first, self.end)]

    @property
    def labels_of_points(self) -> bool:
        """Whether each point has a class of its own, not each series."""
        return self.labels is not None and len(self.labels) == len(self.points.times) != len(self.ids)

    def part(self, index) -> "Ragged":
        """Some of the series, in the order of the indices."""
        index = np.asarray(index, dtype=np.int64)
        return replace(
            self,
            first=self.first[index],
            end=self.end[index],
            windows=self.windows[index],
            ids=self.ids[index],
            names=chosen(self.names, index),
            labels=self.labels if self.labels is None or self.labels_of_points else self.labels[index],
        )

    def batch(self, index: NDArray[np.int64], task: Task, draws: Draws, in_training: bool = False) -> TimeSeries:
        """The series of these indices under a task, padded to the longest."""
        points = self.points
        if not len(points.times):  # a point to stand in for none at all
            none = lambda x: x if x is None else np.zeros((1, x.shape[1]))
            nothing = np.full((1, points.values.shape[1]), np.nan)
            points = Points(np.zeros(1), nothing, None, none(points.covariates), none(points.error))
        lengths = self.end[index] - self.first[index]
        longest = max(1, lengths.max(initial=0))
        real = np.arange(longest) < lengths[:, None]
        last = np.maximum(lengths - 1, 0)[:, None]
        place = self.first[index][:, None] + np.minimum(np.arange(longest), last)
        place = np.minimum(place, len(points.times) - 1)
        times, values, windows = points.times[place], points.values[place], self.windows[index]
        times = np.where(lengths[:, None] > 0, times, windows[:, :1])
        seen, scored = task.together(times, real[..., None] & ~np.isnan(values), windows, lengths, draws)
        scored = scored.copy() if np.shares_memory(seen, scored) else scored  # whoever changes one keeps the other
        known = seen | scored
        shown, counts = np.asarray(seen.any(-1)), np.asarray(known.any(-1))
        labels = self.labels
        if labels is not None:
            labels = np.where(real, labels[place], -1) if self.labels_of_points else labels[index]
        return TimeSeries(
            times=torch.from_numpy(times),
            values=torch.from_numpy(np.where(known, values, 0.0)),
            seen=torch.from_numpy(seen),
            scored=torch.from_numpy(scored),
            window=torch.from_numpy(windows),
            ids=torch.from_numpy(self.ids[index]),
            clean=None if points.clean is None else torch.from_numpy(points.clean[place]),
            covariates=None if points.covariates is None else torch.from_numpy(points.covariates[place]),
            error=None if points.error is None else torch.from_numpy(np.where(known, points.error[place], 0.0)),
            labels=None if labels is None else torch.from_numpy(labels),
            most_seen=int(shown.sum(1).max(initial=0)),
            longest_gap=_longest_gap(times, counts),
            opens_seen=bool(shown[np.arange(len(shown)), counts.argmax(1)].all()),
            in_training=in_training,
        )

    def scale(
        self,
        channels: tuple[str, ...],
        support: str,
        classes: tuple[str, ...] = (),
        covariates: tuple[str, ...] = (),
    ) -> Scale:
        """The spread and the clock of these series, which must be the training ones."""
        observed = self._total(lambda values: (~np.isnan(values)).sum(0))
        for name, count in zip(channels, observed, strict=True):
            if not count:
                raise ValueError(
                    f"channel '{name}' has no observed value in the training split; leave it out, or choose "
                    "a split that trains on some of it."
                )
        mean, std = np.zeros(len(channels)), np.ones(len(channels))
        if support == "real":
            mean, std = self._spread("values", observed)
        spans = np.diff(self.windows, axis=1)[:, 0]
        clock = np.median(spans[spans > 0]) if (spans > 0).any() else 1.0
        start = self.windows[:, 0].min()
        number = lambda x: torch.tensor(float(x), dtype=torch.float64)
        return Scale(
            channels=channels,
            support=support,
            mean=torch.from_numpy(mean),
            std=torch.from_numpy(std),
            clock=number(clock),
            gap=number(self._gap(float(clock))),
            longest=number(spans.max()),
            start=number(start),
            reach=number(self.windows[:, 1].max() - start),
            classes=classes,
            labels_of_points=self.labels_of_points,
            errors=self.points.error is not None,
            variation=self._variation(mean, std, float(clock)) if support == "real" else None,
            **self._scale_of_covariates(covariates),
        )

    def _variation(self, mean: NDArray[np.float64], std: NDArray[np.float64], clock: float) -> Variation:
        """How far values move, of at most about VARIED points of evenly chosen series."""
        count = int(self.lengths.sum())
        some = self.part(np.arange(0, len(self), 1 + count // VARIED))
        owner = np.repeat(np.arange(len(some)), some.lengths)
        return variation_of(owner, some.times, some.values, mean, std, clock)

    def _scale_of_covariates(self, names: tuple[str, ...]) -> dict[str, Any]:
        if not names:
            return {}
        count = max(1, int(self.lengths.sum()))
        mean, std = map(torch.from_numpy, self._spread("covariates", np.full(len(names), count)))
        return {"covariates": names, "covariate_mean": mean, "covariate_std": std}

    def _spread(self, name: str, count: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and std of each column; one that never changes has none to divide by: 1. Rounding is none either."""
        mean = self._total(lambda x: np.nansum(x, 0), name=name) / count
        std = np.sqrt(self._total(lambda x: np.nansum((x - mean) ** 2, 0), name=name) / count)
        highest = self._total(lambda x: np.nanmax(np.abs(x), 0, initial=0), np.maximum, name)
        return mean, np.where(std > 1e-12 * highest, std, 1.0)

    def _total(self, of, add=np.add, name: str = "values"):
        """A number a column, from all values (points, dim), which are never in memory together."""
        column = getattr(self.points, name)
        parts = pieces(self.first, self.end, max(1, CELLS // column.shape[1]))
        return reduce(add, (of(column[places(*part)]) for _, *part in parts))

    def _gap(self, default: float) -> float:
        """The median positive time between neighbours; of more than GAPS points that of evenly chosen series."""
        count = int(self.lengths.sum())
        some = self.part(np.arange(0, len(self), 1 if count <= GAPS else 1 + 4 * count // GAPS))
        steps, borders = np.diff(some.times), some.offsets[1:-1]
        steps[borders[(borders > 0) & (borders <= len(steps))] - 1] = 0.0
        steps = steps[steps > 0]
        return float(np.median(steps, overwrite_input=True)) if len(steps) else default


def _longest_gap(times: NDArray[np.float64], counts: NDArray[np.bool_]) -> float:
    """The longest time between neighbours, in a row, of the points that count; times do not decrease."""
    latest = np.maximum.accumulate(np.where(counts, times, -np.inf), 1)
    gaps = (times[:, 1:] - latest[:, :-1])[counts[:, 1:]]
    return float(gaps[np.isfinite(gaps)].max(initial=0.0))


Place = slice | NDArray[np.int64]


def places(first: NDArray[np.int64], end: NDArray[np.int64]) -> Place:
    """(sum of lengths,): where every point of every stretch stands; a slice where they stand end to end."""
    if not len(first):
        return slice(0, 0)
    if (first[1:] == end[:-1]).all():
        return slice(int(first[0]), int(end[-1]))
    lengths = end - first
    return np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)


Stretches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def pieces(first: NDArray[np.int64], end: NDArray[np.int64], size: int) -> Iterator[Stretches]:
    """(owner, first, end) of the same stretches, cut so that a piece has at most `size` points."""
    offsets = np.concatenate([[0], np.cumsum(end - first)])
    for begin in range(0, max(1, offsets[-1]), size):
        stop = min(begin + size, offsets[-1])
        a, b = np.searchsorted(offsets, begin, "right") - 1, np.searchsorted(offsets, stop)
        shift = first[a:b] - offsets[a:b]
        own = np.maximum(offsets[a:b], begin) + shift, np.minimum(offsets[a + 1 : b + 1], stop) + shift
        yield np.arange(a, b), *own


def chosen(names: Sequence[str] | None, index: NDArray[np.int64]) -> Sequence[str] | None:
    if names is None or isinstance(names, PackedStrings):
        return names and names.part(index)
    return tuple([names[int(i)] for i in index])


def wave_names(periods: tuple[float, ...]) -> tuple[str, ...]:
    """The names of the covariates that known periods add."""
    return tuple(f"{wave} {period:g}" for period in periods for wave in ("sin", "cos"))


def generator(*numbers: int) -> np.random.Generator:
    """A generator that is a function of some numbers alone."""
    return np.random.default_rng([len(numbers), *(n % 2**64 for n in numbers)])


class Batches:
    """The batches of a split, epoch after epoch, each a function of (seed, epoch).

    Training shuffles and draws the task anew each epoch; evaluation keeps the order, or, where series are to be
    `alike` in length, another that is always the same. What is seen of a series there is a function of (seed, id).
    """

    def __init__(
        self, data: Ragged, task: Task, batch_size: int, seed: int, training: bool = False, alike: bool = False
    ):
        self.data, self.task, self.batch_size = data, task, batch_size
        self.seed, self.training, self.alike = seed, training, training or alike
        self.epoch = 0
        self.now: Callable[[], tuple[int, int]] | None = None  # a trainer's (epoch, batch): it may have resumed

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[TimeSeries]:
        self.epoch, first = self.now() if self.now else (self.epoch, 0)
        order = self._order()
        for place in range(first % len(self), len(self)):
            index = order[place]
            yield self.data.batch(index, self.task, self._draws(index, place), in_training=self.training)
        self.epoch += 1

    def _order(self) -> list[NDArray[np.int64]]:
        """The series of every batch."""
        order = np.arange(len(self.data))
        rng = generator(SHUFFLE, self.seed, self.epoch if self.training else 0)
        if self.training:
            order = rng.permutation(order)
        lengths = self.data.lengths
        if self.alike and lengths.mean() < MOSTLY_FULL * lengths.max():
            return alike(order, lengths, self.batch_size, rng)
        return cut(order, self.batch_size)

    # Its place is the trainer's; by these two Lightning knows that it can go on in the middle of an epoch.
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass

    def _draws(self, index, place: int) -> Draws:
        if self.training:
            return Shared(generator(TASKS, self.seed, self.epoch, place), len(index))
        return Own(lambda row: generator(PATTERN, self.seed, int(self.data.ids[index[row]])), range(len(index)))


def cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def alike(order, lengths: NDArray[np.int64], size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Batches of series of like length, in a random order.

    Of POOL batches of the order at a time those next in length make a batch, after each length was stretched at
    random by up to JITTER, so that others meet when a pool is the same again.
    """
    stretched = (lengths + 1) * rng.uniform(1, 1 + JITTER, len(lengths))
    pools = cut(order, POOL * size)
    made = [batch for pool in pools for batch in cut(pool[np.argsort(stretched[pool], kind="stable")], size)]
    return [made[i] for i in rng.permutation(len(made))]


class SeriesData(pl.LightningDataModule, ABC):
    """A data set: a leaf names its channels and makes its three splits."""

    support: str = "real"  # real, binary or events: what values are
    time_unit: str = ""
    periods: tuple[float, ...] = ()  # known periods, in the unit of time
    own_levels: bool = False  # series may lie at levels of their own, outside the training range
    dates: bool = False  # times are days since 1970
    zoned: bool = False  # and of UTC, since the dates have a zone
    units: tuple[str, ...] = ()  # of each channel, where they are known
    classes: tuple[str, ...] = ()  # names of the classes that labels count from 0
    phase_plane: ClassVar[bool] = False  # two channels that are coordinates of one plane
    image: tuple[int, int] | None = None  # (rows, columns), where a point's channels are the pixels of one
    noise_std: float | None = None  # of the observations, where it is known
    common_time: bool = False  # series are stretches of curves over one time axis, on its time stamps
    keep: bool = True  # on disk, for the next process, where it took long to make

    def __init__(self, batch_size: Count = 50, seed: Natural = 0):
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.order = seed  # seeds the order of training and what its task draws; a run sets its own
        self.task: Task = DensityTask()
        self._splits: dict[str, Ragged] | None = None

    @property
    @abstractmethod
    def channels(self) -> tuple[str, ...]: ...

    @abstractmethod
    def make(self) -> dict[str, Ragged]:
        """The splits train, val and test: a function of the configuration alone."""

    @property
    def covariates(self) -> tuple[str, ...]:
        """What is known at every point, of a query too, and never scored; the columns of `Points.covariates`."""
        return ()

    def exact(self, batch: TimeSeries) -> tuple[Tensor, Gaussian | None] | None:
        """Where the process is known: (log p(known), Gaussian of every value given what is seen), in data units.

        log p: (batch,) of all known values; the Gaussian's tensors: (batch, time, dim), or None where the answer
        is no Gaussian. None elsewhere.
        """
        return None

    def beyond(self, split: str) -> Ragged | None:
        """The series of a split with points outside their windows added, observed as those inside, where the truth
        is known there. Ids, windows and the values inside stay as they are. None: the data set knows of none."""
        return None

    @property
    def whole_series(self) -> bool:
        """Return whether every training window begins at the first point of its series."""
        return False

    def describe(self) -> tuple[str, list[str]]:
        """Return a text that summarises the data, by default empty, and a sentence for each oddity in its values."""
        return "", []

    @property
    def questions(self) -> dict[str, Task]:
        """What is asked of every model of this data set, besides what is asked of all data, by name."""
        if type(self).beyond is SeriesData.beyond:
            return {}
        return {"before": Beyond("before"), "after": Beyond("after")}

    def series_for(self, split: str, task: Task) -> Ragged:
        """The series of a split that a task is about."""
        found = self.beyond(split) if isinstance(task, Beyond) else self.splits[split]
        assert found is not None
        return found

    def reaching_back(self, split: str) -> tuple[Ragged, NDArray[np.float64]]:
        """The series of a split with all that was observed of them before, and when the split's own part begins.

        (series, (series,)): here a series is a split's own from its first point on.
        """
        series = self.splits[split]
        return series, series.windows[:, 0]

    @property
    def split_in_time(self) -> bool:
        """Return whether some validation series goes on from points of another split."""
        series, starts = self.reaching_back("val")
        return bool((series.points.times[series.first] < starts).any()) if len(series) else False

    @property
    def splits(self) -> dict[str, Ragged]:
        if self._splits is None:
            made = self.make()
            for split in SPLITS:
                if not len(made[split]):
                    raise ValueError(
                        f"the {split} split has no series; give the data set more series or other shares."
                    )
            self._splits = made
        return self._splits

    @cached_property
    def scale(self) -> Scale:
        """Spread and clock of the training split."""
        found = self.splits["train"].scale(self.channels, self.support, self.classes, self.covariates)
        if self.periods:
            found = replace(found, covariates=found.covariates + wave_names(self.periods), periods=self.periods)
        return replace(
            found,
            dates=self.dates,
            zoned=self.zoned,
            common_time=self.common_time,
            own_levels=self.own_levels,
            whole_series=self.whole_series,
        )

    def batches(self, split: str, task: Task, batch_size: int | None = None, alike: bool = False) -> Batches:
        """A split under a task, with evaluation's fixed patterns; `alike`: not in order, but of like lengths."""
        return Batches(self.series_for(split, task), task, batch_size or self.batch_size, self.seed, alike=alike)

    def train_dataloader(self) -> Batches:
        loader = Batches(self.splits["train"], self.task, self.batch_size, self.order, training=True)
        if self.trainer is not None:
            trainer = self.trainer
            # Lightning's own way, a loader with a state, loses the state when a schedule asks for the total steps.
            loader.now = lambda: (
                trainer.current_epoch,
                trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            )
        return loader

    def val_dataloader(self) -> Batches:
        return self.batches("val", self.task, alike=True)

    def test_dataloader(self) -> Batches:
        return self.batches("test", self.task, alike=True)
