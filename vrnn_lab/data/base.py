"""Define the interface of all data sets: ragged splits, padded batches, and the scale of the training data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.log_density import log_array
from vrnn_lab.core.series import Scale, TimeSeries, Variation
from vrnn_lab.core.supports import BINARY, COUNTS, POSITIVE, REAL
from vrnn_lab.core.tasks import Beyond, DensityTask, Draws, Own, Shared, Task
from vrnn_lab.core.types import Count, Natural
from vrnn_lab.data.packed_strings import PackedStrings
from vrnn_lab.data.variation import variation_of

SPLITS = ("train", "val", "test")
SHUFFLE, TASKS, PATTERN, PLAIN = 101, 102, 103, 104  # purposes of generators, so that no two share a stream
CELLS = 2**22  # values that a pass over the data holds at once
VARIED = 400_000  # points from which the variation of values is estimated
GAPS = 10_000_000  # points whose gaps are sorted for their median
MOSTLY_FULL = 0.9  # if the mean length exceeds this fraction of the longest, series are not grouped by length
POOL, JITTER = 40, 0.25  # batches in a pool that is sorted by length; largest random stretch of a length


@dataclass(frozen=True)
class Points:
    """Hold the observed values of all points, in memory or on disk; NaN = not observed."""

    times: NDArray[np.float64]  # (points,)
    values: NDArray[np.float64]  # (points, dim)
    clean: NDArray[np.float64] | None = None  # (points, dim)
    covariates: NDArray[np.float64] | None = None  # (points, covariates), without NaN
    error: NDArray[np.float64] | None = None  # (points, dim), std of the observation noise where there is a value


@dataclass(frozen=True)
class Ragged:
    """Hold series of any lengths, each a range of consecutive points; subsets share the points without a copy."""

    points: Points
    first: NDArray[np.int64]  # (series,): series i is points first[i] to end[i] - 1
    end: NDArray[np.int64]  # (series,)
    windows: NDArray[np.float64]  # (series, 2)
    ids: NDArray[np.int64]  # (series,)
    names: Sequence[str] | None = None  # the user's names of the series
    labels: NDArray[np.int64] | None = None  # a class per series (series,) or per point (points,); -1 = none

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
        """Build series that are stored one after the other: series i is points offsets[i] to offsets[i + 1] - 1."""
        points = Points(times, values, clean, covariates, error)
        return cls(points, offsets[:-1], offsets[1:], windows, ids, names, labels)

    @classmethod
    def of(
        cls, times, values, window=None, first_id: int = 0, clean=None, labels=None, covariates=None, error=None
    ) -> "Ragged":
        """Build series of equal length from times (series, time) and values (series, time, dim).

        window: (start, end) of all series, by default each one's first and last time.
        """
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
        """Return the index (series + 1,) at which each series begins in `times`, `values` and `clean`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def times(self) -> NDArray[np.float64]:
        """Return the times (sum of lengths,) of all series in order; a copy if they are not contiguous."""
        return self.points.times[places(self.first, self.end)]

    @property
    def values(self) -> NDArray[np.float64]:
        return self.points.values[places(self.first, self.end)]

    @property
    def clean(self) -> NDArray[np.float64] | None:
        return None if self.points.clean is None else self.points.clean[places(self.first, self.end)]

    @property
    def labels_of_points(self) -> bool:
        """Return whether labels are given per point, not per series."""
        return self.labels is not None and len(self.labels) == len(self.points.times) != len(self.ids)

    def part(self, index) -> "Ragged":
        """Return some of the series, in the order of the indices."""
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
        """Return the batch of the series of these indices under a task, padded to the longest series."""
        points = self.points
        if not len(points.times):  # indexing below needs at least one point; it becomes padding
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
        scored = scored.copy() if np.shares_memory(seen, scored) else scored  # so that changing one leaves the other
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
        log: tuple[str, ...] = (),
    ) -> Scale:
        """Compute the scale of these series, which must be the training split.

        log: channels whose mean, std and variation are those of the logarithms. Raise ValueError for a channel
        without an observed value.
        """
        observed = self._total(lambda values: (~np.isnan(values)).sum(0))
        for name, count in zip(channels, observed, strict=True):
            if not count:
                raise ValueError(
                    f"channel '{name}' has no observed value in the training split; leave it out, or choose "
                    "a split whose training part has observed values of it."
                )
        mean, std, value_std = np.zeros(len(channels)), np.ones(len(channels)), None
        in_log = np.array([name in log for name in channels])
        if support == REAL:
            mean, std = self._spread("values", observed, in_log)
        if support in (POSITIVE, COUNTS):  # the unit of a model is the mean, and zero stays zero
            level, spread = self._spread("values", observed)
            std, value_std = np.where(level > 0, level, 1.0), torch.from_numpy(spread)
        if log:
            value_std = torch.from_numpy(self._spread("values", observed)[1])
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
            variation=self._variation(mean, std, float(clock), in_log) if support == REAL else None,
            log=log,
            value_std=value_std,
            share_of_ones=torch.from_numpy(self._spread("values", observed)[0]) if support == BINARY else None,
            **self._scale_of_covariates(covariates),
        )

    def _variation(
        self, mean: NDArray[np.float64], std: NDArray[np.float64], clock: float, in_log: NDArray[np.bool_]
    ) -> Variation:
        """Measure how far values move, on about VARIED points at most, from evenly spaced series."""
        count = int(self.lengths.sum())
        some = self.part(np.arange(0, len(self), 1 + count // VARIED))
        owner = np.repeat(np.arange(len(some)), some.lengths)
        return variation_of(owner, some.times, log_array(some.values, in_log), mean, std, clock)

    def _scale_of_covariates(self, names: tuple[str, ...]) -> dict[str, Any]:
        if not names:
            return {}
        count = max(1, int(self.lengths.sum()))
        mean, std = map(torch.from_numpy, self._spread("covariates", np.full(len(names), count)))
        return {"covariates": names, "covariate_mean": mean, "covariate_std": std}

    def _spread(
        self, name: str, count: NDArray[np.int64], in_log: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and std (columns,) of an array of `Points`; count: numbers per column.

        in_log: the columns whose logarithms are taken first. The std of a column that is constant up to rounding is
        set to 1, so that one can divide by it.
        """
        read = (lambda x: x) if in_log is None else partial(log_array, channels=in_log)
        mean = self._total(lambda x: np.nansum(read(x), 0), name=name) / count
        std = np.sqrt(self._total(lambda x: np.nansum((read(x) - mean) ** 2, 0), name=name) / count)
        highest = self._total(lambda x: np.nanmax(np.abs(read(x)), 0, initial=0), np.maximum, name)
        return mean, np.where(std > 1e-12 * highest, std, 1.0)

    def _total(self, of, add=np.add, name: str = "values"):
        """Reduce an array of `Points` to one number per column, reading at most about CELLS values at a time."""
        column = getattr(self.points, name)
        parts = pieces(self.first, self.end, max(1, CELLS // column.shape[1]))
        return reduce(add, (of(column[places(*part)]) for _, *part in parts))

    def _gap(self, default: float) -> float:
        """Return the median positive time between neighbouring points, `default` without any.

        Above GAPS points, only evenly spaced series are read.
        """
        count = int(self.lengths.sum())
        some = self.part(np.arange(0, len(self), 1 if count <= GAPS else 1 + 4 * count // GAPS))
        steps, borders = np.diff(some.times), some.offsets[1:-1]
        steps[borders[(borders > 0) & (borders <= len(steps))] - 1] = 0.0
        steps = steps[steps > 0]
        return float(np.median(steps, overwrite_input=True)) if len(steps) else default


def _longest_gap(times: NDArray[np.float64], counts: NDArray[np.bool_]) -> float:
    """Return the longest time between neighbouring unpadded points of a row; times must not decrease."""
    latest = np.maximum.accumulate(np.where(counts, times, -np.inf), 1)
    gaps = (times[:, 1:] - latest[:, :-1])[counts[:, 1:]]
    return float(gaps[np.isfinite(gaps)].max(initial=0.0))


Place = slice | NDArray[np.int64]


def places(first: NDArray[np.int64], end: NDArray[np.int64]) -> Place:
    """Return the indices (sum of lengths,) of all points of all ranges; a slice if the ranges are contiguous."""
    if not len(first):
        return slice(0, 0)
    if (first[1:] == end[:-1]).all():
        return slice(int(first[0]), int(end[-1]))
    lengths = end - first
    return np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)


Stretches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def pieces(first: NDArray[np.int64], end: NDArray[np.int64], size: int) -> Iterator[Stretches]:
    """Split ranges of points into pieces of at most `size` points in total; yield (owner, first, end) of each piece.

    Each is (ranges,); owner is the index of the original range.
    """
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
    """Return the names of the covariates that known periods add."""
    return tuple(f"{wave} {period:g}" for period in periods for wave in ("sin", "cos"))


def generator(*numbers: int) -> np.random.Generator:
    """Return a random generator that is a function of the given numbers alone."""
    return np.random.default_rng([len(numbers), *(n % 2**64 for n in numbers)])


class Batches:
    """Iterate over the batches of a split, each a function of (seed, epoch).

    Training shuffles and draws the task anew each epoch. Evaluation keeps the order of the series, or, with `alike`,
    groups series of similar length in an order that is always the same; there the values that are seen of a series
    are a function of (seed, id).
    """

    def __init__(
        self, data: Ragged, task: Task, batch_size: int, seed: int, training: bool = False, alike: bool = False
    ):
        self.data, self.task, self.batch_size = data, task, batch_size
        self.seed, self.training, self.alike = seed, training, training or alike
        self.epoch = 0
        self.now: Callable[[], tuple[int, int]] | None = None  # the trainer's (epoch, batch), after a resume too

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
        """Return the indices of the series in every batch."""
        order = np.arange(len(self.data))
        rng = generator(SHUFFLE, self.seed, self.epoch if self.training else 0)
        if self.training:
            order = rng.permutation(order)
        lengths = self.data.lengths
        if self.alike and lengths.mean() < MOSTLY_FULL * lengths.max():
            return alike(order, lengths, self.batch_size, rng)
        return cut(order, self.batch_size)

    # The trainer keeps the position; these two methods tell Lightning that the loader can resume within an epoch.
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
    """Group series into batches of similar length, in a random order.

    Within each pool of POOL batches, series are sorted by length and cut into batches. Each length is first stretched
    at random by up to JITTER, so that batches vary even when a pool holds the same series again.
    """
    stretched = (lengths + 1) * rng.uniform(1, 1 + JITTER, len(lengths))
    pools = cut(order, POOL * size)
    groups = [batch for pool in pools for batch in cut(pool[np.argsort(stretched[pool], kind="stable")], size)]
    return [groups[i] for i in rng.permutation(len(groups))]


class SeriesData(pl.LightningDataModule, ABC):
    """Define the interface of a data set; a subclass names its channels and makes its three splits."""

    support: str = REAL  # kind of values, of `vrnn_lab.core.supports`
    time_unit: str = ""
    periods: tuple[float, ...] = ()  # known periods, in the unit of time
    log: tuple[str, ...] = ()  # channels of positive values that are modelled by their logarithms
    own_levels: bool = False  # series may lie at levels of their own, outside the training range
    dates: bool = False  # times are days since 1970
    zoned: bool = False  # the dates have a time zone, so the days are of UTC
    units: tuple[str, ...] = ()  # of each channel, where they are known
    classes: tuple[str, ...] = ()  # class names; labels are indices into them
    phase_plane: ClassVar[bool] = False  # the two channels are coordinates in a plane
    image: tuple[int, int] | None = None  # (rows, columns), where a point's channels are the pixels of an image
    noise_std: float | None = None  # of the observations, where it is known
    common_time: bool = False  # series are parts of curves over one time axis, with its time stamps
    keep: bool = True  # cache the splits on disk for later processes if they took long to make

    def __init__(self, batch_size: Count = 50, seed: Natural = 0):
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.order = seed  # seed of the training order and of the task's draws in training; a run sets its own
        self.task: Task = DensityTask()
        self._splits: dict[str, Ragged] | None = None

    @property
    @abstractmethod
    def channels(self) -> tuple[str, ...]: ...

    @abstractmethod
    def make(self) -> dict[str, Ragged]:
        """Return the splits train, val and test, which must be a function of the configuration alone."""

    @property
    def covariates(self) -> tuple[str, ...]:
        """Name the columns of `Points.covariates`: inputs known at every point, queries too, and never scored."""
        return ()

    def exact(self, batch: TimeSeries) -> tuple[Tensor, Gaussian | None] | None:
        """Return the exact log p of the known values, and the density of every value given the seen ones.

        log p is (batch,), in nats; the tensors of the Gaussian are (batch, time, dim), in data units. The second is
        None where the density is not Gaussian. By default return None: the generating process is not known.
        """
        return None

    def beyond(self, split: str) -> Ragged | None:
        """Return the series of a split with observed points outside their windows added, where those are known.

        Ids, windows and the points inside stay the same. By default return None: no such points are known.
        """
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
        """Return extra evaluation tasks of this data set by name, besides those that apply to all data sets."""
        if type(self).beyond is SeriesData.beyond:
            return {}
        return {"before": Beyond("before"), "after": Beyond("after")}

    def series_for(self, split: str, task: Task) -> Ragged:
        """Return the series of a split for a task: for `Beyond`, those with points outside the windows."""
        series = self.beyond(split) if isinstance(task, Beyond) else self.splits[split]
        assert series is not None
        return series

    def reaching_back(self, split: str) -> tuple[Ragged, NDArray[np.float64]]:
        """Return the series of a split with their earlier observations, and the start (series,) of the split's part.

        By default there are no earlier observations: the whole series belongs to the split.
        """
        series = self.splits[split]
        return series, series.windows[:, 0]

    @property
    def split_in_time(self) -> bool:
        """Return whether some validation series continues a series of another split."""
        series, starts = self.reaching_back("val")
        return bool((series.points.times[series.first] < starts).any()) if len(series) else False

    @property
    def splits(self) -> dict[str, Ragged]:
        if self._splits is None:
            splits = self.make()
            for split in SPLITS:
                if not len(splits[split]):
                    raise ValueError(
                        f"the {split} split has no series; give the data set more series, or change its shares."
                    )
            self._splits = splits
        return self._splits

    @cached_property
    def scale(self) -> Scale:
        """Return the scale of the training split."""
        scale = self.splits["train"].scale(self.channels, self.support, self.classes, self.covariates, self.log)
        if self.periods:
            scale = replace(scale, covariates=scale.covariates + wave_names(self.periods), periods=self.periods)
        return replace(
            scale,
            dates=self.dates,
            zoned=self.zoned,
            common_time=self.common_time,
            own_levels=self.own_levels,
            whole_series=self.whole_series,
        )

    def batches(self, split: str, task: Task, batch_size: int | None = None, alike: bool = False) -> Batches:
        """Return the batches of a split under a task, with the fixed masks of evaluation.

        alike: group series of similar length instead of keeping their order.
        """
        return Batches(self.series_for(split, task), task, batch_size or self.batch_size, self.seed, alike=alike)

    def train_dataloader(self) -> Batches:
        loader = Batches(self.splits["train"], self.task, self.batch_size, self.order, training=True)
        if self.trainer is not None:
            trainer = self.trainer
            # Lightning's own mechanism, a stateful loader, loses the state when a schedule reads the total steps.
            loader.now = lambda: (
                trainer.current_epoch,
                trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            )
        return loader

    def val_dataloader(self) -> Batches:
        return self.batches("val", self.task, alike=True)

    def test_dataloader(self) -> Batches:
        return self.batches("test", self.task, alike=True)
