"""Compute when a channel first crosses a level: probabilities and quantiles from joint draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from re import DOTALL, fullmatch

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.config.errors import ConfigError, did_you_mean
from vrnn_lab.evaluation.scores import LEVELS
from vrnn_lab.forecasting.summary import Answer, path_names

DRAWS = 999  # default number of joint draws, which resolves probabilities to about a thousandth
ROUNDING = 1e-9  # tolerance as a fraction of the number of draws
FORM = "expected >=<number> or <=<number>, behind the channel's name where there are several: when='temperature>=5'"


@dataclass(frozen=True)
class Level:
    """Hold a level in the data's units and the side that counts as crossed: at or above it, or at or below it.

    Raise ValueError where the level is not finite.
    """

    value: float
    above: bool
    channel: str | None = None  # None: the model's only channel

    def __post_init__(self):
        if not isfinite(self.value):
            raise ValueError(f"a level of {self.value} is never crossed; expected a finite number.")

    @classmethod
    def of(cls, text: str) -> "Level":
        """Parse >=5, <=5 or temperature>=5; raise ValueError for anything else."""
        found = fullmatch(r"(.*)([<>]=)([^<>=]+)", text, DOTALL)
        try:
            if found:
                return cls(float(found[3]), found[2] == ">=", found[1].strip() or None)
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
                f"which channel is to cross {self.value:g}? The model has {', '.join(channels)}; name one: "
                f"when='{channels[0]}{'>=' if self.above else '<='}{self.value:g}' (of Forecaster.when: channel=)."
            )
        raise ConfigError(
            f"the model has no channel '{self.channel}' that could cross {self.value:g}; it has "
            f"{', '.join(channels)}.{did_you_mean(self.channel, channels)}"
        )

    def past(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which values lie at or past the level, in the shape of `values`; False for NaN."""
        return values >= self.value if self.above else values <= self.value


def crossings(found: Answer, level: Level, channel: int, draws: int) -> Answer:
    """Turn joint draws of a forecast into the distribution of the first time at which a channel is past a level.

    found: a summary that keeps all `draws` as paths, one query window a series. Its rows of `channel` are kept, with
    the columns crossed, already, never and q05 to q95; all but crossed are the same in all rows of a series:

    crossed: fraction of draws past the level at this or an earlier queried time.
    already: 1 where the channel's last observed value is past the level; it then counts as crossed from that time on.
    never: fraction of draws past the level at no queried time.
    q05 to q95: the earliest queried time by which that fraction of draws has crossed, NaN where none is.

    Crossings are of values as they would be observed, noise included; nothing is known between two queried times.
    """
    mine = np.flatnonzero(found.channel == channel)
    numbers = {name: np.full(len(mine), np.nan) for name in ("crossed", "already", "never", *LEVELS)}
    columns = [found.numbers[name] for name in path_names(draws)]
    for number, question in enumerate(found.questions):
        rows = np.flatnonzero(found.owner[mine] == number)
        times = found.times[mine[rows]]
        past = level.past(np.stack([column[mine[rows]] for column in columns]))
        count = np.logical_or.accumulate(past, 1).sum(0)
        last = np.flatnonzero(~np.isnan(question.values[:, channel]))[-1:]  # empty where nothing was observed
        already = bool(level.past(question.values[last, channel]).any())
        if already:
            count, times = np.full_like(count, draws), np.full_like(times, question.times[last[0]])
        numbers["crossed"][rows] = count / draws
        numbers["already"][rows] = already
        numbers["never"][rows] = 1 - count[-1] / draws
        for name, share in LEVELS.items():
            place = np.searchsorted(count, share * draws - ROUNDING * draws)
            numbers[name][rows] = times[place] if place < len(times) else np.nan
    return replace(
        found, owner=found.owner[mine], times=found.times[mine], channel=found.channel[mine], numbers=numbers
    )
