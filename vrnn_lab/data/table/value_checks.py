"""Check that the values of a table are of the kind that its channels are declared to hold."""

from pathlib import Path

import numpy as np

from vrnn_lab.core.supports import WORDS, first_outside
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
