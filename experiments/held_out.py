"""Hold values out of a table, query a program for them, and score its predictions.

`hold_out` holds values out of a table by a fixed rule. The same rule, used on what is left, gives the practice
queries on which the spreads of the baselines are measured: no held-out value takes part in them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from real_sets import RealSet
from scipy.stats import norm

QUESTIONS = ("forecast", "gaps")
HIDDEN = 0.3  # of the points of a panel, for its gaps
GAPS = 11  # of a record, fewer where they would take more than HIDDEN of it
PRACTICE_ORIGINS = 12
DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Query:
    """Rows that are seen, and rows whose values are queried; of a series without queries nothing need be seen."""

    seen: pd.DataFrame
    queried: pd.DataFrame


@dataclass(frozen=True)
class HeldOut:
    """The table that the program is given to train on, and the queries that it gets afterwards."""

    given: pd.DataFrame
    queries: tuple[Query, ...]


def hold_out(real: RealSet, table: pd.DataFrame, kind: str, seed: int = 0, origins: int | None = None) -> HeldOut:
    """Hold values out of a table (see the protocol at the top of first_answers.py)."""
    rng = np.random.default_rng([seed, crc32(f"{real.name}/{kind}".encode())])
    series = [rows for _, rows in table.groupby("id", sort=True)] if real.id else [table]
    if kind == "gaps":
        hide = (lambda n: hidden_points(n, rng)) if real.panel else (lambda n: hidden_stretches(n, real.gap, rng))
        kept = [~hide(len(rows)) for rows in series]
        given = pd.concat([rows[keep] for rows, keep in zip(series, kept, strict=True)])
        queried = pd.concat([rows[~keep] for rows, keep in zip(series, kept, strict=True)])
        return HeldOut(given, (Query(given, queried),))
    if real.panel:
        ends = [last_third(len(rows)) for rows in series]
        given = pd.concat([rows[:end] for rows, end in zip(series, ends, strict=True)])
        queried = pd.concat([rows[end:] for rows, end in zip(series, ends, strict=True)])
        return HeldOut(given, (Query(given, queried),))
    return _from_origins(series, real.ahead, origins or real.origins)


def practice(real: RealSet, given: pd.DataFrame, kind: str) -> HeldOut:
    """Hold values out of the training table by the same rule."""
    return hold_out(real, given, kind, seed=1, origins=PRACTICE_ORIGINS)


def last_third(count: int) -> int:
    """Return how many of a series' points come before its last third: at least two of them, or all."""
    return min(count, max(2, -(-2 * count // 3)))


def hidden_points(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(points,): HIDDEN of them, at random, neither the first nor the last."""
    hidden = np.zeros(count, bool)
    inner = max(0, count - 2)
    hidden[1 + rng.permutation(inner)[: min(inner, round(HIDDEN * count))]] = True
    return hidden


def hidden_stretches(count: int, length: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(points,): up to GAPS stretches of so many points, one at a random place in each equal part of the series."""
    hidden = np.zeros(count, bool)
    number = min(GAPS, int(HIDDEN * count / length))
    bounds = np.linspace(1, count - 1, number + 1).astype(int)
    for low, high in pairwise(bounds):
        start = int(rng.integers(low, max(low, high - length - 1) + 1))
        hidden[start : start + length] = True
    return hidden


def origins_of(count: int, ahead: int, number: int) -> NDArray[np.int64]:
    """Return how many points come before each origin, evenly over the last fifth, the last `ahead` from the end."""
    last = count - ahead
    first = min(int(0.8 * count), last)
    return np.unique(np.linspace(first, last, number).astype(int))


def _from_origins(series: list[pd.DataFrame], ahead: int, number: int) -> HeldOut:
    starts = [origins_of(len(rows), ahead, number) for rows in series]
    given = pd.concat([rows[: start[0]] for rows, start in zip(series, starts, strict=True)])
    queries = []
    for place in range(max(map(len, starts))):
        there = [(rows, start[place]) for rows, start in zip(series, starts, strict=True) if place < len(start)]
        seen = pd.concat([rows[:origin] for rows, origin in there])
        queries.append(Query(seen, pd.concat([rows[origin : origin + ahead] for rows, origin in there])))
    return HeldOut(given, tuple(queries))


# ---------------------------------------------------------------------------------------------- as numbers


def numbers(times: pd.Series) -> NDArray[np.float64]:
    """Times as numbers: days since 1970 where they are dates."""
    if pd.api.types.is_numeric_dtype(times):
        return times.to_numpy(np.float64)
    stamps = pd.to_datetime(times, utc=True, format="ISO8601").dt.tz_localize(None).to_numpy("datetime64[ns]")
    return (stamps - np.datetime64("1970-01-01")) / DAY


def channels_of(real: RealSet, table: pd.DataFrame) -> list[str]:
    return [name for name in table if name not in ("id", "time", *real.static)]


@dataclass(frozen=True)
class Cell:
    """One channel of one series: what is seen of it, and what is queried."""

    id: str
    channel: str
    times: NDArray[np.float64]  # (seen,)
    values: NDArray[np.float64]  # (seen,)
    at: NDArray[np.float64]  # (queries,)
    truth: NDArray[np.float64]  # (queries,)
    blocks: NDArray[np.str_]  # (queries,)


def blocks_of(real: RealSet, query: Query, place: int) -> NDArray[np.str_]:
    """(queried rows,): what counts as independent of other rows: a series of a panel, an origin or a gap of a record.

    place: of the query among all of them.
    """
    if real.panel:
        return query.queried["id"].astype(str).to_numpy(np.str_)
    name = query.queried["id"].astype(str) if real.id else pd.Series("", index=query.queried.index)
    gap = np.zeros(len(query.queried), np.int64)
    for series in name.unique():
        seen = query.seen[query.seen["id"].astype(str) == series] if real.id else query.seen
        mine = (name == series).to_numpy()
        before = np.searchsorted(numbers(seen["time"]), numbers(query.queried["time"])[mine])
        if (before == len(seen)).all():  # all stations have the same weather: one origin, one block
            return np.full(len(gap), f"origin {place}")
        gap[mine] = before
    return np.array([f"{one} gap {other}" for one, other in zip(name, gap, strict=True)])


def cells(real: RealSet, query: Query, place: int = 0) -> list[Cell]:
    """Every channel of every series of which a known value is queried. place: of the query, as in `blocks_of`."""
    made, blocks = [], blocks_of(real, query, place)
    seen = dict(list(query.seen.groupby("id"))) if real.id else {"": query.seen}
    queried = query.queried.groupby("id").indices if real.id else {"": np.arange(len(query.queried))}
    for name, index in queried.items():
        rows = query.queried.iloc[index]
        before, at = numbers(seen[name]["time"]), numbers(rows["time"])
        for channel in channels_of(real, rows):
            x, truth = seen[name][channel].to_numpy(np.float64), rows[channel].to_numpy(np.float64)
            known, wanted = ~np.isnan(x), ~np.isnan(truth)
            if wanted.any():
                own = blocks[index][wanted]
                made.append(Cell(str(name), channel, before[known], x[known], at[wanted], truth[wanted], own))
    return made


# ---------------------------------------------------------------------------------------------- scores


@dataclass
class Sums:
    """Sums of the scores of a channel's values."""

    count: int = 0
    crps: float = 0.0
    mse: float = 0.0
    inside: int = 0
    blocks: dict[str, list[int]] = field(default_factory=dict)  # values inside, and values, of each block

    def add(
        self,
        crps: NDArray[np.float64],
        error: NDArray[np.float64],
        inside: NDArray[np.bool_],
        blocks: NDArray[np.str_],
    ) -> None:
        self.count += len(error)
        self.crps += float(crps.sum())
        self.mse += float((error**2).sum())
        self.inside += int(inside.sum())
        for block, each in zip(blocks.tolist(), inside.tolist(), strict=True):
            counts = self.blocks.setdefault(block, [0, 0])
            counts[0] += each
            counts[1] += 1

    def means(self) -> dict[str, Any]:
        n = self.count
        scores = {"values": n, "crps": self.crps / n, "mse": self.mse / n, "coverage": self.inside / n}
        return scores | {"blocks": self.blocks}


def coverage_error(blocks: Iterable[Mapping[str, list[int]]]) -> float:
    """The standard error of the share of values inside, blocks being independent: that of a ratio of sums (Cochran
    1977, eq. 2.39). blocks: of each channel, the numbers of values inside and of values; NaN of a single block."""
    total: dict[str, NDArray[np.int64]] = {}
    for channel in blocks:
        for block, counts in channel.items():
            total[block] = total.get(block, np.zeros(2, np.int64)) + np.array(counts)
    inside, values = np.array(list(total.values())).T
    if len(values) < 2:
        return float("nan")
    rest = inside - values * inside.sum() / values.sum()
    return float(np.sqrt(len(values) / (len(values) - 1) * (rest**2).sum()) / values.sum())


def gaussian_crps(mean, std, truth) -> NDArray[np.float64]:
    """The CRPS of normal densities (Gneiting & Raftery 2007, eq. 21)."""
    z = (truth - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


def path_crps(paths: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fair estimator of the CRPS from draws (values, paths): E |X - x| - E |X - X'| / 2 over different draws."""
    paths = np.sort(paths, axis=1)
    count = paths.shape[1]
    weights = (2 * np.arange(1, count + 1) - count - 1) / (count * (count - 1))
    return np.abs(paths - truth[:, None]).mean(1) - paths @ weights


Gaussians = Callable[[Cell], tuple[NDArray[np.float64], NDArray[np.float64]]]  # mean and std, each (queries,)


def score_gaussians(real: RealSet, queries: tuple[Query, ...], predict: Gaussians) -> dict[str, dict[str, Any]]:
    """The scores by channel of predictions with normal densities."""
    sums: dict[str, Sums] = {}
    for place, query in enumerate(queries):
        for cell in cells(real, query, place):
            mean, std = predict(cell)
            error = cell.truth - mean
            inside = np.abs(error) <= norm.ppf(0.95) * std
            crps = gaussian_crps(mean, std, cell.truth)
            sums.setdefault(cell.channel, Sums()).add(crps, error, inside, cell.blocks)
    return {channel: each.means() for channel, each in sums.items()}


def score_tables(
    real: RealSet, queries: tuple[Query, ...], predict: Callable[[Query], pd.DataFrame]
) -> dict[str, dict[str, Any]]:
    """The scores by channel of tables as `Forecaster.predict` gives them, with the columns path_1, path_2, ...

    ValueError if a prediction is missing or not finite.
    """
    sums: dict[str, Sums] = {}
    for place, query in enumerate(queries):
        table, blocks = predict(query), blocks_of(real, query, place)
        keys = pd.MultiIndex.from_arrays(_keys(real, table, table["channel"]))
        table = table.set_axis(keys)
        table = table[~table.index.duplicated()]
        paths = [name for name in table if str(name).startswith("path_")]
        for channel in channels_of(real, query.queried):
            known = query.queried[channel].notna().to_numpy()
            rows = query.queried[known]
            if rows.empty:
                continue
            wanted = pd.MultiIndex.from_arrays(_keys(real, rows, pd.Series(channel, index=rows.index)))
            predicted = table.reindex(wanted)[["mean", "q05", "q95", *paths]].to_numpy(np.float64)
            if not np.isfinite(predicted).all():
                lacking = rows[~np.isfinite(predicted).all(1)].iloc[0]
                raise ValueError(
                    f"no finite prediction for {channel} of {lacking.get('id', 'the series')} at {lacking.time}"
                )
            truth = rows[channel].to_numpy(np.float64)
            inside = (predicted[:, 1] <= truth) & (truth <= predicted[:, 2])
            crps = path_crps(predicted[:, 3:], truth)
            sums.setdefault(channel, Sums()).add(crps, truth - predicted[:, 0], inside, blocks[known])
    return {channel: each.means() for channel, each in sums.items()}


def _keys(real: RealSet, rows: pd.DataFrame, channel: pd.Series) -> list:
    """Series, time to a hundred-thousandth (a second of a date), and channel of each row."""
    name = rows["id"].astype(str).to_numpy() if real.id else np.full(len(rows), "")
    return [name, np.round(numbers(rows["time"]) * 1e5).astype(np.int64), channel.to_numpy()]
