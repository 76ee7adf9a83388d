"""Split long or many series into train, val and test: runs of consecutive points, cut into windows."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.data.base import CELLS, SPLITS, Ragged, chosen, generator, pieces, places

log = logging.getLogger("vrnn_lab")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Hold runs of consecutive points: run i is points first[i] to end[i] - 1 of series owner[i].

    Each field is (runs,); `first` and `end` are indices into the points of a Ragged.
    """

    owner: Integers
    first: Integers
    end: Integers

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def lengths(self) -> Integers:
        return self.end - self.first

    def rows(self, index) -> "Runs":
        return Runs(self.owner[index], self.first[index], self.end[index])


@dataclass(frozen=True)
class Contents:
    """Hold the contents of a file: its channels and every series, sorted by name and time."""

    channels: tuple[str, ...]
    series: Ragged
    marked: tuple[Runs, NDArray[np.int64]] | None  # runs, and the index in SPLITS that the file assigns to each
    dates: bool  # times are days since 1970


def whole_series(series: Ragged) -> Runs:
    """Return every series as one run."""
    return Runs(np.arange(len(series)), series.first, series.end)


def check_cut(shares, window: int | None, stride: int | None) -> None:
    """Check shares, window length and stride; raise ValueError that names an invalid one."""
    if len(shares) != len(SPLITS) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"data.shares={list(shares)} has {len(shares)} parts that add up to {sum(shares):g}; expected three, "
            "for train, val and test, that add up to 1, such as [0.7,0.15,0.15]."
        )
    if window is not None and window < 2:
        raise ValueError(f"data.window={window}; expected at least 2 points per window.")
    if window is None and stride is not None:
        raise ValueError(
            f"data.stride={stride} needs a window; set data.window=<points> too, or leave data.stride out."
        )


def sizes(count: int, shares, what: str) -> list[int]:
    """Return the numbers of items in train, val and test: the shares of `count`, but at least one each.

    Raise ValueError for fewer than three items, which `what` names in the plural.
    """
    if count < len(SPLITS):
        raise ValueError(
            f"{count} {what} are too few for three splits; expected at least {len(SPLITS)}. Give the data set more."
        )
    val, test = (max(1, round(share * count)) for share in shares[1:])
    while val + test >= count:
        val, test = (val - 1, test) if val >= test else (val, test - 1)
    return [count - val - test, val, test]


def by_name(series: Ragged, shares, seed: int) -> dict[str, Runs]:
    """Assign whole series to splits by the rank of a hash of (seed, name), independently of their order."""
    rank = np.argsort(np.argsort(hashed(f"{seed}\n{name}" for name in names_of(series)), kind="stable"))
    split = np.searchsorted(np.cumsum(sizes(len(series), shares, "series")), rank, side="right")
    return {name: whole_series(series).rows(np.flatnonzero(split == i)) for i, name in enumerate(SPLITS)}


def by_time(series: Ragged, shares) -> dict[str, Runs]:
    """Split each series in time: its earliest points go to train, its last ones to test."""
    parts = np.array([np.cumsum([0, *sizes(int(length), shares, "points")]) for length in series.lengths])
    ends, owner = series.first[:, None] + parts, np.arange(len(series))
    return {name: Runs(owner, ends[:, i], ends[:, i + 1]) for i, name in enumerate(SPLITS)}


def by_blocks(series: Ragged, shares, window: int, seed: int) -> dict[str, Runs]:
    """Assign blocks of `window` points of one series to splits at random; join adjacent blocks of one split."""
    length = int(series.lengths[0])
    count = length // window
    labels = np.repeat(np.arange(len(SPLITS)), sizes(count, shares, f"blocks of {window} points"))
    label = generator(seed, 6).permutation(labels)
    start = np.flatnonzero(np.diff(label, prepend=-1))
    first, end = start * window, np.append(start[1:] * window, length)
    runs = Runs(np.zeros_like(first), series.first[0] + first, series.first[0] + end)
    return {name: runs.rows(label[start] == i) for i, name in enumerate(SPLITS)}


def stretches(owner: Integers, label: Integers) -> tuple[Runs, Integers]:
    """Return the runs of points over which owner and label, each (points,), are constant, and each run's label."""
    new = (np.diff(owner, prepend=-1) != 0) | (np.diff(label, prepend=-1) != 0)
    first = np.flatnonzero(new)
    return Runs(owner[first], first, np.append(first[1:], len(owner))), label[first]


def by_label(series: Ragged, runs: Runs, label: Integers) -> dict[str, Runs]:
    """Assign runs to splits by the user's label (runs,), an index into SPLITS.

    A series may change its split over time; raise ValueError if it returns to an earlier one.
    """
    key = runs.owner * len(SPLITS) + label
    _, position, again = np.unique(key, return_index=True, return_counts=True)
    if (again > 1).any():
        place = position[again > 1].min()
        name, split = names_of(series)[int(runs.owner[place])], SPLITS[label[place]]
        raise ValueError(
            f"series '{name}' returns to the {split} split after it left it for another; expected the points of a "
            "series in one split to be consecutive in time."
        )
    return {name: runs.rows(label == i) for i, name in enumerate(SPLITS)}


def cut(runs: Runs, window: int, stride: int) -> Runs:
    """Cut each run into windows of `window` points that start `stride` points apart.

    A shorter run becomes one shorter window, or none if it has fewer than two points. Points at the end of a run
    that do not fill a window are left out.
    """
    full = (runs.lengths - window) // stride + 1
    count = np.where(runs.lengths >= window, full, (runs.lengths >= 2).astype(int))
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first = np.repeat(runs.first, count) + stride * number
    return Runs(np.repeat(runs.owner, count), first, np.minimum(first + window, np.repeat(runs.end, count)))


def gather(series: Ragged, runs: Runs, ids: Integers) -> Ragged:
    """Return the runs as separate series whose windows reach from their first point to their last."""
    times = series.points.times
    return Ragged(
        points=replace(series.points, clean=None),
        first=runs.first,
        end=runs.end,
        windows=np.stack([times[runs.first], times[runs.end - 1]], 1),
        ids=ids,
        names=chosen(names_of(series), runs.owner),
    )


def make_splits(series: Ragged, runs: dict[str, Runs], window: int | None, stride: int | None):
    """Return {split: Ragged} from disjoint runs, cut into windows where a window length is given.

    Training windows start `stride` points apart (`window` by default). Windows of val and test never overlap, so
    that no point counts twice in a result. Raise ValueError for an empty split.
    """
    splits = {}
    for split in SPLITS:
        part = runs[split]
        if window is not None:
            step = stride or window
            part = cut(part, window, step if split == "train" else max(step, window))
        if not len(part):
            raise ValueError(
                f"the {split} split is empty: it got {runs[split].lengths.sum()} points in "
                f"{len(runs[split])} stretches, from which no series or window of two points can be cut. Give it a "
                "larger share (data.shares) or rows of its own (column split), or the data set more points."
            )
        ids = series.ids[part.owner] if window is None else window_ids(series, part, split)
        splits[split] = gather(series, part, ids)
    return splits


def reaching_back(series: Ragged, runs: Runs) -> tuple[Ragged, NDArray[np.float64]]:
    """Return each run extended back to the start of its series, and the time (runs,) at which the run begins."""
    start = series.points.times[runs.first]
    back = replace(runs, first=series.first[runs.owner])
    return gather(series, back, series.ids[runs.owner]), start


def window_ids(series: Ragged, runs: Runs, split: str) -> Integers:
    """Return the id (runs,) of each window, a hash of its series' name, the split and its number in that series."""
    names = names_of(series)
    start = np.flatnonzero(np.diff(runs.owner, prepend=-1))
    number = np.arange(len(runs)) - np.repeat(start, np.diff(np.append(start, len(runs))))
    return hashed(f"{names[i]}\n{split}\n{n}" for i, n in zip(runs.owner, number, strict=True))


def hashed(texts) -> Integers:
    """Return a stable int64 hash (texts,) of each text."""
    number = lambda text: int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
    return np.fromiter(map(number, texts), np.int64)


Fill = Callable[[NDArray[np.float64]], None]


def in_memory(values: NDArray[np.float64], name: str, fill: Fill) -> NDArray[np.float64]:
    """Return a new array of the shape of `values`, filled by `fill`; the name is not used in memory."""
    new = np.empty_like(values)
    fill(new)
    return new


def dequantised(
    series: Ragged,
    train: Runs,
    channels: tuple[str, ...],
    seed: int,
    allocate=in_memory,
    shown: Ragged | None = None,
    positive: tuple[str, ...] = (),
) -> Ragged:
    """Return the series with uniform noise of one rounding step added to channels whose values are rounded.

    The likelihood of rounded values is unbounded: a model could put a spike on each. The step is estimated from the
    training values alone. The noise is a function of (seed, series, channel, time), so it does not depend on how the
    series are split, cut or ordered. allocate: makes the new values, which may be stored on disk under a name.
    shown: the same series with only the values that show the rounding. positive: channels of values above zero, in
    which a value that the noise would take to zero or below is kept as it is.
    """
    size = max(1, CELLS // len(channels))
    steps = [rounding_step(partial(_channel, shown or series, train, place, size)) for place in range(len(channels))]
    rounded = [f"'{channel}' (to {step:g})" for channel, step in zip(channels, steps, strict=True) if step]
    if not rounded:
        return series
    log.warning(
        "the values of %s are rounded: uniform noise of the width of a rounding step is added, because the "
        "likelihood of rounded values is unbounded. data.dequantise=false keeps them as they are.",
        ", ".join(rounded),
    )
    name = "_".join(map(repr, (seed, *steps)))
    above_zero = np.array([channel in positive for channel in channels])
    name += "".join(f"_above_zero_{place}" for place in np.flatnonzero(above_zero))
    values = allocate(series.points.values, name, partial(_add_noise, series, steps, seed, size, above_zero))
    return replace(series, points=replace(series.points, values=values))


def _add_noise(
    series: Ragged,
    steps: list[float],
    seed: int,
    size: int,
    above_zero: NDArray[np.bool_],
    out: NDArray[np.float64],
) -> None:
    for owner, first, end in pieces(series.first, series.end, size):
        place = places(first, end)
        values = series.points.values[place].copy()
        for channel in np.flatnonzero(steps):
            start = np.repeat(_start(series.ids[owner], int(channel), seed), end - first)
            noisy = values[:, channel] + steps[channel] * (_uniform(start, series.points.times[place]) - 0.5)
            values[:, channel] = np.where(above_zero[channel] & (noisy <= 0), values[:, channel], noisy)
        out[place] = values


def _channel(series: Ragged, runs: Runs, channel: int, size: int) -> Iterator[NDArray[np.float64]]:
    """Yield the observed values of a channel in the runs, at most `size` points at a time."""
    for _, *part in pieces(runs.first, runs.end, size):
        values = series.points.values[places(*part), channel]
        yield values[~np.isnan(values)]


SAMPLED = 200_000  # values from which the spread of a channel is estimated
DOUBLE, SINGLE = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)


def rounding_step(pieces_of_values: Callable[[], Iterable[NDArray[np.float64]]]) -> float:
    """Return the largest power of ten that divides all differences of values, if over 1 % of their spread; else 0.

    The spread is the std of values clipped to a range of quantiles, and differences are tested instead of values, so
    that neither outliers nor an offset that is large compared with the spread matter: 1e7 +- 0.1 is not rounded to
    1e7.
    """
    sample = _sample(pieces_of_values())
    if len(sample) < 2:
        return 0.0
    low, high = np.quantile(sample, [0.01, 0.99])
    spread = np.clip(sample, 2 * low - high, 2 * high - low).std()  # clipped, to limit the effect of outliers
    if not 0 < high - low < np.inf:
        return 0.0
    reference = float(np.partition(sample, len(sample) // 2)[len(sample) // 2])
    highest = int(np.floor(np.log10(high - low))) + 1  # no larger step can divide a difference within the range
    lowest = int(np.floor(np.log10(0.01 * spread))) + 1
    with np.errstate(over="ignore"):  # values beyond the range of single precision become infinite
        precisions = [DOUBLE, SINGLE] if (sample == sample.astype(np.float32)).all() else [DOUBLE]
    for power in range(highest, lowest - 1, -1):
        for precision in precisions:
            if all(_multiples(values, reference, power, precision) for values in pieces_of_values()):
                return 10.0**power
    return 0.0


def _sample(parts: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return some values (values,) of every piece, at most SAMPLED in all."""
    samples, room = [], SAMPLED
    for values in parts:
        samples.append(values[:: max(1, len(values) // 1000)][:room])
        room -= len(samples[-1])
        if room <= 0:
            break
    return np.concatenate(samples) if samples else np.zeros(0)


def _multiples(values: NDArray[np.float64], reference: float, power: int, precision: float) -> bool:
    """Return whether differences of values from a reference are multiples of 10^power, up to float precision.

    Numbers so large that their own precision is coarser than the step are ignored; most must be smaller.
    """
    if not len(values):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        parts = (values - reference) / 10.0**power if power >= 0 else (values - reference) * 10.0**-power
        error = 4 * precision * np.maximum(np.abs(values), abs(reference)) / 10.0**power
    telling = (error < 0.05) & np.isfinite(parts)
    apart = np.abs(parts[telling] - np.rint(parts[telling]))
    return bool(telling.mean() > 0.5 and (apart <= np.maximum(error[telling], 1e-6)).all())


def _start(ids: Integers, channel: int, seed: int) -> NDArray[np.uint64]:
    return _mixed(_mixed(_mixed(np.array([seed % 2**64], np.uint64)) + np.uint64(channel)) + ids.view(np.uint64))


def _uniform(start: NDArray[np.uint64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return uniform numbers (points,) in [0, 1), as a hash of the start state (seed, id, channel) and the time."""
    moment = (times + 0.0).view(np.uint64)  # -0.0 and 0.0 are one time
    return (_mixed(start + moment) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the output function of SplitMix64 (Steele et al. 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def names_of(series: Ragged) -> Sequence[str]:
    return series.names if series.names is not None else tuple(map(str, series.ids))


def in_order(all_series: Ragged, sizes: tuple[int, ...]) -> dict[str, Ragged]:
    """Return train, val and test of the given sizes in the order of the series, which must be independent draws."""
    ends = np.cumsum((0, *sizes))
    names = ("train", "val", "test")
    return {n: all_series.part(np.arange(*ends[i : i + 2])) for i, n in enumerate(names)}
