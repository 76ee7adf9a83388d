"""Check that the values and options of a table suit the kind of values that its channels are declared to hold."""

from pathlib import Path

import numpy as np

from vrnn_lab.core.supports import POSITIVE, REAL, WORDS, first_outside
from vrnn_lab.data.base import CELLS, pieces, places
from vrnn_lab.data.splits import Contents, names_of
from vrnn_lab.data.table.time_format import Clock


def refuse_other_values(path: Path, contents: Contents, channels: tuple[str, ...], kind: str, key: str) -> None:
    """Raise ValueError that names the first value of some channels that `kind` does not allow.

    key: the setting that declares the kind, such as data.log=[a].
    """
    index = [contents.channels.index(name) for name in channels]
    series = contents.series
    for owner, first, end in pieces(series.first, series.end, max(1, CELLS // len(contents.channels))):
        place = places(first, end)
        found = first_outside(series.points.values[place][:, index], kind)
        if found is None:
            continue
        point, channel = found
        number = series.points.values[place][point, index[channel]]
        name = names_of(series)[int(np.repeat(owner, end - first)[point])]
        time = Clock(contents.dates).write(series.points.times[place][point : point + 1], text=True)[0]
        raise ValueError(
            f"{path}: channel '{channels[channel]}' is {number:g} in series '{name}' at "
            f"{time if contents.dates else format(time, 'g')}; {key} needs {WORDS[kind]}. Correct the value or empty "
            "its cell, or leave the channel out."
        )


def refuse_for_support(support: str, **options: object) -> None:
    """Raise ValueError for an option, by its name in data.<name>, that only real values have."""
    for name, chosen in options.items():
        if support != REAL and chosen:
            raise ValueError(
                f"data.support={support} and data.{name} exclude each other: data.{name} is for real values; set "
                f"data.support=real, or leave data.{name} out."
            )


def refuse_wrong_logs(path: Path, contents: Contents, log: tuple[str, ...], with_error: tuple[str, ...]) -> None:
    """Raise ValueError where a channel of data.log is none of the table, has error bars, or is not above zero.

    with_error: the channels with error bars.
    """
    for name in log:
        if name not in contents.channels:
            raise ValueError(
                f"data.log={list(log)}: '{name}' is no channel of {path}; expected some of "
                f"{', '.join(contents.channels)}."
            )
        if name in with_error:
            raise ValueError(
                f"data.log and data.error both name the channel '{name}': the density of a value whose logarithm "
                "is modelled has no closed form once Gaussian noise is added. Leave one of the two out."
            )
    refuse_other_values(path, contents, log, POSITIVE, f"data.log=[{','.join(log)}]")
