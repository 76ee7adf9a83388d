"""From long or many series to splits: runs of neighbouring points, cut into windows that share none."""

import logging
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.base import SPLITS, Ragged, generator

log = logging.getLogger("vrnn_lab")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Stretches of neighbouring points, each (runs,): of series `owner`, point `first` up to before `end`.

    Points are counted along a Ragged's arrays, over all its series.
    """

    owner: Integers
    first: Integers
    end: Integers

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def lengths(self) -> Integers:
        return self.end - self.first

    @property
    def points(self) -> Integers:
        """(sum of lengths,): where every point of every run stands, run after run."""
        before = np.cumsum(self.lengths) - self.lengths
        return np.arange(self.lengths.sum()) + np.repeat(self.first - before, self.lengths)

    def rows(self, index) -> "Runs":
        return Runs(self.owner[index], self.first[index], self.end[index])


def whole_series(series: Ragged) -> Runs:
    """Every series as one run."""
    return Runs(np.arange(len(series)), series.offsets[:-1], series.offsets[1:])


def check_cut(shares, window: int | None, stride: int | None) -> None:
    """ValueError for shares, a window length or a stride that cannot work, by name."""
    if len(shares) != len(SPLITS) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"data.shares={list(shares)} has {len(shares)} parts that add up to {sum(shares):g}; expected three, "
            "for train, val and test, that add up to 1, such as [0.7,0.15,0.15]."
        )
    if window is not None and window < 2:
        raise ValueError(f"data.window={window}; expected at least 2 points a window.")
    if window is None and stride is not None:
        raise ValueError(f"data.stride={stride} without a window; set data.window=<points> too, or drop it.")


def sizes(count: int, shares, what: str) -> list[int]:
    """How many of `count` go to train, val and test: the shares, but at least one each; else ValueError."""
    if count < len(SPLITS):
        raise ValueError(
            f"{count} {what} cannot make three splits; expected at least {len(SPLITS)}. Give the data set more."
        )
    val, test = (max(1, round(share * count)) for share in shares[1:])
    while val + test >= count:
        val, test = (val - 1, test) if val >= test else (val, test - 1)
    return [count - val - test, val, test]


def by_name(series: Ragged, shares, seed: int) -> dict[str, Runs]:
    """Whole series to splits by the rank of a hash of (seed, name): the order of the series plays no part."""
    rank = np.argsort(np.argsort(hashed([f"{seed}\n{name}" for name in names_of(series)]), kind="stable"))
    split = np.searchsorted(np.cumsum(sizes(len(series), shares, "series")), rank, side="right")
    return {name: whole_series(series).rows(np.flatnonzero(split == i)) for i, name in enumerate(SPLITS)}


def by_time(series: Ragged, shares) -> dict[str, Runs]:
    """One series to splits: the earliest points train, the last ones test."""
    ends = np.cumsum([0, *sizes(len(series.times), shares, "points")])
    return {name: _run(*ends[i : i + 2]) for i, name in enumerate(SPLITS)}


def by_blocks(series: Ragged, shares, window: int, seed: int) -> dict[str, Runs]:
    """One series to splits: blocks of `window` points are dealt at random; neighbours of one split are joined."""
    count = len(series.times) // window
    labels = np.repeat(np.arange(len(SPLITS)), sizes(count, shares, f"blocks of {window} points"))
    label = generator(seed, 6).permutation(labels)
    start = np.flatnonzero(np.diff(label, prepend=-1))
    first, end = start * window, np.append(start[1:] * window, len(series.times))
    runs = Runs(np.zeros_like(first), first, end)
    return {name: runs.rows(label[start] == i) for i, name in enumerate(SPLITS)}


def by_label(series: Ragged, label: Integers) -> dict[str, Runs]:
    """Splits as the user marked each point: label (points,), an index into SPLITS.

    A series may pass from one split to the next in time; ValueError if it comes back to an earlier one.
    """
    owner = np.repeat(np.arange(len(series)), np.diff(series.offsets))
    key = owner * len(SPLITS) + label
    first = np.flatnonzero(np.diff(key, prepend=-1))
    _found, position, again = np.unique(key[first], return_index=True, return_counts=True)
    if (again > 1).any():
        place = first[position[again > 1][0]]
        raise ValueError(
            f"series '{names_of(series)[owner[place]]}' goes into the {SPLITS[label[place]]} split, out of it and "
            "into it again in time; expected a series to lie in one split, or in one stretch of time each."
        )
    runs = Runs(owner[first], first, np.append(first[1:], len(label)))
    return {name: runs.rows(label[first] == i) for i, name in enumerate(SPLITS)}


def cut(runs: Runs, window: int, stride: int) -> Runs:
    """Windows of `window` points, `stride` apart, inside each run.

    A run shorter than that is one shorter window, or none if it has fewer than two points. Points at the end
    of a run that fill no window are left out.
    """
    full = (runs.lengths - window) // stride + 1
    count = np.where(runs.lengths >= window, full, (runs.lengths >= 2).astype(int))
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first = np.repeat(runs.first, count) + stride * number
    return Runs(np.repeat(runs.owner, count), first, np.minimum(first + window, np.repeat(runs.end, count)))


def gather(series: Ragged, runs: Runs, ids: Integers) -> Ragged:
    """The runs as series of their own, each watched from its first point to its last."""
    points, names = runs.points, names_of(series)
    return Ragged(
        times=series.times[points],
        values=series.values[points],
        offsets=np.concatenate([[0], np.cumsum(runs.lengths)]),
        windows=np.stack([series.times[runs.first], series.times[runs.end - 1]], 1),
        ids=ids,
        names=tuple(names[i] for i in runs.owner),
    )


def make_splits(series: Ragged, runs: dict[str, Runs], window: int | None, stride: int | None):
    """{split: Ragged} out of runs that share no point: cut into windows, where a window length is given.

    Training windows start `stride` points apart (`window` by default). Those of val and test never overlap,
    so that no point counts twice in a result. ValueError for a split that is empty.
    """
    made = {}
    for split in SPLITS:
        part = runs[split]
        if window is not None:
            step = stride or window
            part = cut(part, window, step if split == "train" else max(step, window))
        if not len(part):
            raise ValueError(
                f"the {split} split is empty: {runs[split].lengths.sum()} points in {len(runs[split])} stretches "
                "are no series, or no window of two points. Give it a larger share (data.shares) or rows of its "
                "own (column split), or the data set more points."
            )
        ids = series.ids[part.owner] if window is None else window_ids(series, part, split)
        made[split] = gather(series, part, ids)
    return made


def window_ids(series: Ragged, runs: Runs, split: str) -> Integers:
    """An id a window: a function of its series' name, the split and its number among that series' windows."""
    names = names_of(series)
    start = np.flatnonzero(np.diff(runs.owner, prepend=-1))
    number = np.arange(len(runs)) - np.repeat(start, np.diff(np.append(start, len(runs))))
    return hashed([f"{names[i]}\n{split}\n{n}" for i, n in zip(runs.owner, number, strict=True)])


def hashed(texts) -> Integers:
    """A stable int64 for each text."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def dequantised(series: Ragged, train: Runs, channels: tuple[str, ...], seed: int) -> Ragged:
    """The series with uniform noise of one rounding step added to channels that are visibly rounded.

    The density of rounded values has no bound: a model could put a spike on each. The step is found on the
    training values alone. The noise is a function of (seed, series, channel, time): the same however the
    series are split, cut or ordered.
    """
    values, points, found = series.values, train.points, []
    for place, channel in enumerate(channels):
        step = rounding_step(values[points, place])
        if step:
            values = values.copy() if values is series.values else values
            values[:, place] += step * (_uniform(series, place, seed) - 0.5)
            found.append(f"'{channel}' (to {step:g})")
    if found:
        log.warning(
            "rounded values of %s: uniform noise of that width is added, since the density of rounded values "
            "has no bound. data.dequantise=false keeps them as they are.",
            ", ".join(found),
        )
    return replace(series, values=values)


def rounding_step(values: NDArray[np.float64]) -> float:
    """The largest power of ten all values (points,) are multiples of, if over 1 % of their std; else 0."""
    values = values[~np.isnan(values)]
    spread = values.std() if len(values) else 0.0
    if not spread > 1e-12 * max(1.0, np.abs(values).max(initial=0)):
        return 0.0
    highest = int(np.floor(np.log10(np.abs(values).max())))
    lowest = int(np.floor(np.log10(0.01 * spread))) + 1
    for power in range(highest, lowest - 1, -1):
        if _multiples(values[:1000], power) and _multiples(values, power):
            return 10.0**power
    return 0.0


def _multiples(values, power: int) -> bool:
    """Whether all values are multiples of 10^power, as far as single precision can tell."""
    parts = values / 10.0**power if power >= 0 else values * 10.0**-power
    return bool((np.abs(parts - np.rint(parts)) <= np.clip(2e-7 * np.abs(parts), 1e-6, 4e-3)).all())


def _uniform(series: Ragged, channel: int, seed: int) -> NDArray[np.float64]:
    """(points,) in [0, 1): a hash of (seed, id, channel, time) and nothing else."""
    start = _mixed(
        _mixed(_mixed(np.array([seed % 2**64], np.uint64)) + np.uint64(channel)) + series.ids.view(np.uint64)
    )
    times = (series.times + 0.0).view(np.uint64)  # -0.0 and 0.0 are one time
    bits = _mixed(np.repeat(start, np.diff(series.offsets)) + times) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele et al. 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def names_of(series: Ragged) -> tuple[str, ...]:
    return series.names if series.names is not None else tuple(map(str, series.ids))


def _run(first, end) -> Runs:
    return Runs(np.zeros(1, np.int64), np.array([first]), np.array([end]))
