"""The contract of every data set: ragged splits in memory, batches on demand, the training scale."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.checks import Count, Natural
from vrnn_lab.densities import Gaussian
from vrnn_lab.series import Scale, TimeSeries
from vrnn_lab.tasks import Density, Task

SPLITS = ("train", "val", "test")
SHUFFLE, TASKS, PATTERN = 101, 102, 103  # what a generator is for: no two purposes share a stream


@dataclass(frozen=True)
class Ragged:
    """Series of any lengths, end to end. NaN = not observed."""

    times: NDArray[np.float64]  # (points,)
    values: NDArray[np.float64]  # (points, dim)
    offsets: NDArray[np.int64]  # (series + 1,): series i is points offsets[i] to offsets[i + 1]
    windows: NDArray[np.float64]  # (series, 2)
    ids: NDArray[np.int64]  # (series,)
    clean: NDArray[np.float64] | None = None  # (points, dim)
    names: tuple[str, ...] | None = None  # what the user calls the series
    labels: NDArray[np.int64] | None = None  # (series,): a class each, -1 = none; or (points,), a class a point

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels_of_points(self) -> bool:
        """Whether each point has a class of its own, not each series."""
        return self.labels is not None and len(self.labels) == len(self.times) != len(self.ids)

    @classmethod
    def of(cls, times, values, window=None, first_id: int = 0, clean=None, labels=None) -> "Ragged":
        """From equal-length series: times (series, time), values (series, time, dim)."""
        count, length = times.shape
        flat = lambda x: np.ascontiguousarray(x).reshape(count * length, -1)
        windows = times[:, [0, -1]] if window is None else np.tile(np.asarray(window, float), (count, 1))
        return cls(
            times=np.ascontiguousarray(times, dtype=np.float64).ravel(),
            values=flat(values),
            offsets=np.arange(count + 1) * length,
            windows=windows.astype(np.float64),
            ids=np.arange(first_id, first_id + count),
            clean=None if clean is None else flat(clean),
            labels=labels,
        )

    def part(self, index) -> "Ragged":
        """Some of the series, in the order of the indices."""
        index = np.asarray(index, dtype=np.int64)
        lengths = np.diff(self.offsets)[index]
        points = np.concatenate([np.arange(*self.offsets[i : i + 2]) for i in index] or [np.arange(0)])
        return replace(
            self,
            times=self.times[points],
            values=self.values[points],
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            windows=self.windows[index],
            ids=self.ids[index],
            clean=None if self.clean is None else self.clean[points],
            names=None if self.names is None else tuple(self.names[i] for i in index),
            labels=None if self.labels is None else self.labels[points if self.labels_of_points else index],
        )

    def batch(self, index: NDArray[np.int64], task: Task, rngs, in_training: bool = False) -> TimeSeries:
        """The series of these indices under a task, padded to the longest; rngs yields a generator a row."""
        if not len(self.times):  # a point to stand in for none at all
            dim = self.values.shape[1]
            self = replace(self, times=np.zeros(1), values=np.full((1, dim), np.nan), clean=None)
        lengths = np.diff(self.offsets)[index]
        longest = max(1, lengths.max(initial=0))
        real = np.arange(longest) < lengths[:, None]
        last = np.maximum(lengths - 1, 0)[:, None]
        place = self.offsets[index][:, None] + np.minimum(np.arange(longest), last)
        place = np.minimum(place, max(len(self.times) - 1, 0))
        times, values = self.times[place], self.values[place]
        times = np.where(lengths[:, None] > 0, times, self.windows[index][:, :1])
        known = real[..., None] & ~np.isnan(values)
        seen, scored = np.zeros_like(known), np.zeros_like(known)
        gap = 0.0
        for row, (length, rng) in enumerate(zip(lengths, rngs, strict=False)):
            seen[row, :length], scored[row, :length] = task(
                times[row, :length], known[row, :length], self.windows[index[row]], rng
            )
            gap = np.diff(times[row, (seen[row] | scored[row]).any(1)]).max(initial=gap)
        clean = None if self.clean is None else torch.from_numpy(self.clean[place])
        labels = self.labels
        if labels is not None:
            labels = np.where(real, labels[place], -1) if self.labels_of_points else labels[index]
        return TimeSeries(
            times=torch.from_numpy(times),
            values=torch.from_numpy(np.where(seen | scored, values, 0.0)),
            seen=torch.from_numpy(seen),
            scored=torch.from_numpy(scored),
            window=torch.from_numpy(self.windows[index]),
            ids=torch.from_numpy(self.ids[index]),
            clean=clean,
            labels=None if labels is None else torch.from_numpy(labels),
            most_seen=int(seen.any(-1).sum(1).max(initial=0)),
            longest_gap=float(gap),
            opens_seen=bool(seen[np.arange(len(seen)), (seen | scored).any(-1).argmax(1)].any(-1).all()),
            in_training=in_training,
        )

    def scale(self, channels: tuple[str, ...], support: str, classes: tuple[str, ...] = ()) -> Scale:
        """The spread and the clock of these series, which must be the training ones."""
        observed = (~np.isnan(self.values)).sum(0)
        for name, count in zip(channels, observed, strict=True):
            if not count:
                raise ValueError(
                    f"channel '{name}' has no observed value in the training split; leave it out, or choose "
                    "a split that trains on some of it."
                )
        mean = np.nanmean(self.values, 0) if support == "real" else np.zeros(len(channels))
        std = np.nanstd(self.values, 0) if support == "real" else np.ones(len(channels))
        # A channel that never changes in training has no spread to divide by; rounding is no spread either.
        std = np.where(std > 1e-12 * np.nanmax(np.abs(self.values), 0), std, 1.0)
        spans = np.diff(self.windows, axis=1)[:, 0]
        steps = np.diff(self.times)
        inner = np.ones(len(steps), bool)
        inner[self.offsets[1:-1][(self.offsets[1:-1] > 0) & (self.offsets[1:-1] < len(self.times))] - 1] = False
        clock = np.median(spans[spans > 0]) if (spans > 0).any() else 1.0
        gap = np.median(steps[inner & (steps > 0)]) if (inner & (steps > 0)).any() else clock
        start = self.windows[:, 0].min()
        number = lambda x: torch.tensor(float(x), dtype=torch.float64)
        return Scale(
            channels=channels,
            support=support,
            mean=torch.from_numpy(mean),
            std=torch.from_numpy(std),
            clock=number(clock),
            gap=number(gap),
            longest=number(spans.max()),
            start=number(start),
            reach=number(self.windows[:, 1].max() - start),
            classes=classes,
            labels_of_points=self.labels_of_points,
        )


def generator(*numbers: int) -> np.random.Generator:
    """A generator that is a function of some numbers alone."""
    return np.random.default_rng([len(numbers), *(n % 2**64 for n in numbers)])


class Batches:
    """The batches of a split, epoch after epoch, each a function of (seed, epoch).

    Training shuffles and draws the task anew each epoch; evaluation keeps the order, and what is seen of a
    series is a function of (seed, id).
    """

    def __init__(self, data: Ragged, task: Task, batch_size: int, seed: int, training: bool = False):
        self.data, self.task, self.batch_size = data, task, batch_size
        self.seed, self.training = seed, training
        self.epoch = 0
        self.now: Callable[[], tuple[int, int]] | None = None  # a trainer's (epoch, batch): it may have resumed

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[TimeSeries]:
        self.epoch, first = self.now() if self.now else (self.epoch, 0)
        order = np.arange(len(self.data))
        if self.training:
            order = generator(SHUFFLE, self.seed, self.epoch).permutation(order)
        for place in range(first % len(self), len(self)):
            index = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield self.data.batch(index, self.task, self._generators(index, place), in_training=self.training)
        self.epoch += 1

    # Its place is the trainer's; by these two Lightning knows that it can go on in the middle of an epoch.
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass

    def _generators(self, index, place: int):
        if self.training:
            return [generator(TASKS, self.seed, self.epoch, place)] * len(index)
        return (generator(PATTERN, self.seed, int(self.data.ids[i])) for i in index)


class SeriesData(pl.LightningDataModule, ABC):
    """A data set: a leaf names its channels and makes its three splits."""

    support: str = "real"  # real, binary or events: what values are
    time_unit: str = ""
    units: tuple[str, ...] = ()  # of each channel, where they are known
    classes: tuple[str, ...] = ()  # names of the classes that labels count from 0
    phase_plane: ClassVar[bool] = False  # two channels that are coordinates of one plane
    image: tuple[int, int] | None = None  # (rows, columns), where a point's channels are the pixels of one
    noise_std: float | None = None  # of the observations, where it is known

    def __init__(self, batch_size: Count = 50, seed: Natural = 0):
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.order = seed  # seeds the order of training and what its task draws; a run sets its own
        self.task: Task = Density()
        self._splits: dict[str, Ragged] | None = None

    @property
    @abstractmethod
    def channels(self) -> tuple[str, ...]: ...

    @abstractmethod
    def make(self) -> dict[str, Ragged]:
        """The splits train, val and test: a function of the configuration alone."""

    def exact(self, batch: TimeSeries) -> tuple[Tensor, Gaussian | None] | None:
        """Where the process is known: (log p(known), Gaussian of every value given what is seen), in data units.

        log p: (batch,) of all known values; the Gaussian's tensors: (batch, time, dim), or None where the answer
        is no Gaussian. None elsewhere.
        """
        return None

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
        return self.splits["train"].scale(self.channels, self.support, self.classes)

    def batches(self, split: str, task: Task, batch_size: int | None = None) -> Batches:
        """A split under a task, with evaluation's fixed patterns."""
        return Batches(self.splits[split], task, batch_size or self.batch_size, self.seed)

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
        return self.batches("val", self.task)

    def test_dataloader(self) -> Batches:
        return self.batches("test", self.task)
