"""When a channel first crosses a level: probabilities and quantiles from joint draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from re import DOTALL, fullmatch

import numpy as np
from numpy.typing import NDArray

from vrnn_lab.config.errors import ConfigError, did_you_mean
from vrnn_lab.evaluation.scores import LEVELS
from vrnn_lab.forecasting.summary import Answer, path_names

DRAWS = 999  # joint draws behind a probability, unless others are asked for: its steps are a thousandth
ROUNDING = 1e-9  # of a number of draws
FORM = "expected >=<number> or <=<number>, behind the channel's name where there are several: when='temperature>=5'"


@dataclass(frozen=True)
class Level:
    """A level in the data's units, and from which side it counts as crossed: at or above it, or at or below it."""

    value: float
    above: bool
    channel: str | None = None  # None: the only one

    def __post_init__(self):
        if not isfinite(self.value):
            raise ValueError(f"a level of {self.value} is never crossed; expected a finite number.")

    @classmethod
    def of(cls, text: str) -> "Level":
        """Read >=5, <=5 or temperature>=5; ValueError for anything else."""
        found = fullmatch(r"(.*)([<>]=)([^<>=]+)", text, DOTALL)
        try:
            if found:
                return cls(float(found[3]), found[2] == ">=", found[1].strip() or None)
        except ValueError:  # no number, or not a finite one
            pass
        raise ValueError(f"when={text}: {FORM}.")

    def index(self, channels: Sequence[str]) -> int:
        """The place of its channel among those of a model; ConfigError where there is none, or more than one."""
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
        """Which values lie at the level or past it; NaN do not."""
        return values >= self.value if self.above else values <= self.value


def crossings(found: Answer, level: Level, channel: int, draws: int) -> Answer:
    """Turn joint draws ahead of what is seen into what is known of the first time at which a channel is past a level.

    found: an answer with all its draws as paths, every question one series. The rows are those of the channel; its
    columns, the last seven the same in all rows of a series: crossed, the share of draws that are past the level at
    this time or at an asked time before it; already, 1 where the last seen value of the channel is past it, which
    then counts as crossed from the time of that value on; never, the share of draws that are past it at no asked
    time; q05 to q95, the earliest asked time by which so large a share of draws has crossed, NaN where none has.

    What crosses are the values that would be observed at the asked times, noise included, as the draws hold them;
    what lies between two asked times is not seen.
    """
    mine = np.flatnonzero(found.channel == channel)
    numbers = {name: np.full(len(mine), np.nan) for name in ("crossed", "already", "never", *LEVELS)}
    columns = [found.numbers[name] for name in path_names(draws)]
    for number, question in enumerate(found.questions):
        rows = np.flatnonzero(found.owner[mine] == number)
        times = found.times[mine[rows]]
        past = level.past(np.stack([column[mine[rows]] for column in columns]))
        count = np.logical_or.accumulate(past, 1).sum(0)
        last = np.flatnonzero(~np.isnan(question.values[:, channel]))[-1:]  # none, or one
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
