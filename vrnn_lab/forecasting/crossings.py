"""Compute when a channel first crosses a level: probabilities and quantiles from joint draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from re import DOTALL, fullmatch

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.evaluation.scores import LEVELS
from vrnn_lab.forecasting.summary import PredictiveSummary, path_names

DRAWS = 999  # default number of joint draws, which resolves probabilities to about a thousandth
ROUNDING = 1e-9  # tolerance as a fraction of the number of draws
FORM = (
    "expected >=<number> or <=<number>, after the channel's name if there are several channels: when='temperature>=5'"
)


@dataclass(frozen=True)
class Level:
    """Hold a level in the data's units and the side that counts as crossed: at or above it, or at or below it.

    Raise ValueError where the level is not finite.
    """

    value: float
    above: bool
    channel: str | None = None  # None: the model's only channel
    signal: bool = False  # whether the signal crosses it, at any time, instead of observed values at the queried ones

    def __post_init__(self):
        if not isfinite(self.value):
            raise ValueError(f"a level of {self.value} is never crossed; expected a finite number.")

    @classmethod
    def of(cls, text: str) -> "Level":
        """Parse >=5, <=5 or temperature>=5; raise ValueError for anything else."""
        match = fullmatch(r"(.*)([<>]=)([^<>=]+)", text, DOTALL)
        try:
            if match:
                return cls(float(match[3]), match[2] == ">=", match[1].strip() or None)
        except ValueError:  # not a finite number
            pass
        raise ValueError(f"when={text}: {FORM}.")

    def index(self, channels: Sequence[str]) -> int:
        """Return the index of the level's channel in `channels`; raise ConfigError where none or several match."""
        if self.channel is not None and self.channel in channels:
            return list(channels).index(self.channel)
        if self.channel is None and len(channels) == 1:
            return 0
        if self.channel is None:
            raise ConfigError(
                f"the level {self.value:g} names no channel, and the model has several: {', '.join(channels)}; name "
                f"one: when='{channels[0]}{'>=' if self.above else '<='}{self.value:g}' (in Forecaster.when: "
                "channel=)."
            )
        raise ConfigError(
            f"the model has no channel '{self.channel}' that could cross {self.value:g}; it has "
            f"{', '.join(channels)}.{did_you_mean(self.channel, channels)}"
        )

    def past(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which values lie at or past the level, in the shape of `values`; False for NaN."""
        return values >= self.value if self.above else values <= self.value


def crossings(forecast: PredictiveSummary, level: Level, channel: int, draws: int) -> PredictiveSummary:
    """Turn joint draws of a forecast into the distribution of the first time at which a channel is past a level.

    forecast: a summary that keeps all `draws` as paths, one query window per series. Its rows of `channel` are kept,
    with the columns crossed, already, never and q05 to q95; all but crossed are the same in all rows of a series:

    crossed: fraction of draws past the level at this or an earlier queried time.
    already: 1 where the channel's last observed value is past the level; it then counts as crossed from that time on.
    never: fraction of draws past the level at no queried time.
    q05 to q95: the earliest queried time by which that fraction of draws has crossed, NaN where none is.

    Crossings are of values as they would be observed, noise included; nothing is known between two queried times.
    With level.signal the paths hold the extremes of the signal since the previous point; already is then 0, since the
    signal is never observed.
    """
    mine = np.flatnonzero(forecast.channel == channel)
    numbers = {name: np.full(len(mine), np.nan) for name in ("crossed", "already", "never", *LEVELS)}
    columns = [forecast.numbers[name] for name in path_names(draws)]
    for number, window in enumerate(forecast.windows):
        rows = np.flatnonzero(forecast.owner[mine] == number)
        times = forecast.times[mine[rows]]
        past = level.past(np.stack([column[mine[rows]] for column in columns]))
        count = np.logical_or.accumulate(past, 1).sum(0)
        last = np.flatnonzero(~np.isnan(window.values[:, channel]))[-1:]  # empty where nothing was observed
        already = not level.signal and bool(level.past(window.values[last, channel]).any())
        if already:
            count, times = np.full_like(count, draws), np.full_like(times, window.times[last[0]])
        numbers["crossed"][rows] = count / draws
        numbers["already"][rows] = already
        numbers["never"][rows] = 1 - count[-1] / draws
        for name, share in LEVELS.items():
            place = np.searchsorted(count, share * draws - ROUNDING * draws)
            numbers[name][rows] = times[place] if place < len(times) else np.nan
    return replace(
        forecast,
        owner=forecast.owner[mine],
        times=forecast.times[mine],
        channel=forecast.channel[mine],
        numbers=numbers,
    )
