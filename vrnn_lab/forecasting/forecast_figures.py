"""Draw figures of forecasts: the observed values of a series and the predictive bands of the queried ones."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from re import sub
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.figures import model_figures, style
from vrnn_lab.forecasting.forecast import Forecasts
from vrnn_lab.forecasting.queries import SeriesWindow
from vrnn_lab.forecasting.summary import PredictiveSummary
from vrnn_lab.runs.build import Parts

WIDE, NARROW = {"alpha": 0.16, "linewidth": 0}, {"alpha": 0.30, "linewidth": 0}
MIDDLE: dict[str, Any] = {"color": style.FORWARD, "linewidth": 1.8}
LINES = 10  # paths that are drawn at most


@dataclass(frozen=True)
class Part:
    """Hold a query over one window and its summary: times (rows,), channels (rows,), numbers (rows,) by column."""

    window: SeriesWindow
    times: NDArray[np.float64]
    channel: NDArray[np.int64]
    numbers: dict[str, NDArray[np.float64]]

    def of(self, channel: int) -> tuple[NDArray, dict[str, NDArray]]:
        """Return the times and the numbers of one channel's rows."""
        mine = self.channel == channel
        return self.times[mine], {name: column[mine] for name, column in self.numbers.items()}


@dataclass(frozen=True)
class PanelLabels:
    """Hold the names and units of the channels and the unit of time, for axis labels."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    time_unit: str

    @classmethod
    def of(cls, parts: Parts) -> "PanelLabels":
        return cls(parts.model.scale.channels, tuple(parts.data.units), parts.data.time_unit)


class ForecastFigures:
    """Draw the figures of the first `most` series, each as soon as the next series begins."""

    def __init__(self, folder: Path, most: float, labels: PanelLabels):
        self.folder, self.most, self.labels = folder, most, labels
        self.parts: list[Part] = []
        self.written: list[Path] = []

    def add(self, summary: PredictiveSummary, clock: Clock) -> None:
        """Keep the windows of a summary, and draw each series that another one follows."""
        for part in _parts_of(summary):
            if self.parts and self.parts[0].window.name != part.window.name:
                self.close(clock)
            if len(self.written) >= self.most:
                return
            self.parts.append(part)

    def close(self, clock: Clock) -> None:
        """Draw the last series and write its figure."""
        if self.parts:
            name = self.parts[0].window.name
            drawn = figure(name, self.parts, self.labels, clock)
            self.written += model_figures.write({_file(name): drawn}, self.folder)
        self.parts = []


def _parts_of(summary: PredictiveSummary) -> Iterator[Part]:
    """Yield the windows of a summary, each with its rows."""
    for number, window in enumerate(summary.windows):
        mine = summary.owner == number
        numbers = {name: column[mine] for name, column in summary.numbers.items()}
        yield Part(window, summary.times[mine], summary.channel[mine], numbers)


def figure_of_first(forecasts: Forecasts) -> Figure:
    """Draw the first series of a query that has a queried time; raise ValueError where none has."""
    of_all = itertools.chain.from_iterable(map(_parts_of, forecasts.summaries(whole=True)))
    _, parts = next(itertools.groupby(of_all, key=lambda part: part.window.name), (None, ()))
    if not (drawn := list(parts)):
        raise ValueError("there is nothing to draw: no series has a queried time.")
    return figure(drawn[0].window.name, drawn, PanelLabels.of(forecasts.parts), forecasts.clock)


def _file(name: str) -> str:
    """Return a valid and unique file name for a series; a name that must be changed gets a hash of the original."""
    plain = sub(r"[^\w. -]", "_", name).encode()[:80].decode(errors="ignore")
    same = plain == name and not plain.startswith(".")
    return plain if same else f"{plain.lstrip('.')}_{blake2b(name.encode(), digest_size=4).hexdigest()}"


def figure(name: str, parts: list[Part], labels: PanelLabels, clock: Clock) -> Figure:
    """Draw a panel for each queried channel: observed values, the median, and the 50 % and 90 % bands."""
    queried = sorted({int(c) for part in parts for c in part.channel})[: style.CHANNELS]
    columns = 1 if len(queried) < 4 else 2
    drawn, axes = style.canvas(len(queried), columns, (8.2 / columns**0.5, 2.9))
    times = np.concatenate([part.window.times for part in parts])
    first, last = times.min(), times.max()
    for ax, channel in zip(axes, queried, strict=True):
        for part in parts:
            _panel(ax, part, channel)
        ax.set_xlim(first - 0.01 * (last - first or 1), last + 0.01 * (last - first or 1))
        unit = labels.units[channel] if channel < len(labels.units) else ""
        ax.set_ylabel(style.label(labels.channels[channel], unit))
        style.time_axis(ax, clock.dates, labels.time_unit)
    lines = [Line2D([], [], color=style.FORWARD, label="paths", **style.LINE)] if "path_1" in parts[0].numbers else []
    bands = [
        Patch(color=style.FORWARD, label=label, **style_of) for label, style_of in (("50 %", NARROW), ("90 %", WIDE))
    ]
    style.legend(drawn, [style.seen_key(), Line2D([], [], label="median", **MIDDLE), *bands, *lines])
    drawn.suptitle(style.plain(f"Series {name}"), fontsize=11)
    return drawn


def _panel(ax: Axes, part: Part, channel: int) -> None:
    window = part.window
    seen = ~np.isnan(window.values[:, channel])
    times, numbers = part.of(channel)
    queried = ~np.isin(times, window.times[seen])  # the prediction of an observed value is the value itself
    times, numbers = times[queried], {name: column[queried] for name, column in numbers.items()}
    for stretch in _stretches(times, window.times[seen]):
        _bands(ax, times[stretch], {name: column[stretch] for name, column in numbers.items()})
    ax.plot(window.times[seen], window.values[seen, channel], **style.SEEN)


def _stretches(times: NDArray[np.float64], seen: NDArray[np.float64]) -> Iterator[slice]:
    """Yield slices of the queried times that have no observed time between them."""
    edges = [0, *np.flatnonzero(np.diff(np.searchsorted(seen, times))) + 1, len(times)]
    yield from (slice(a, b) for a, b in itertools.pairwise(edges) if b > a)


def _bands(ax: Axes, times, numbers: dict[str, NDArray[np.float64]]) -> None:
    levels = [numbers[name] for name in ("q05", "q25", "q50", "q75", "q95")]
    low, lower, middle, upper, high = levels
    if len(times) == 1:  # a single time has no area to fill
        for bottom, top, width, alpha in ((low, high, 4, 0.25), (lower, upper, 4, 0.5)):
            ax.vlines(times, bottom, top, color=style.FORWARD, linewidth=width, alpha=alpha)
        ax.plot(times, middle, color=style.FORWARD, marker="_", markersize=7, markeredgewidth=1.8, linestyle="")
        return
    ax.fill_between(times, low, high, color=style.FORWARD, **WIDE)
    ax.fill_between(times, lower, upper, color=style.FORWARD, **NARROW)
    for name in [name for name in numbers if name.startswith("path_")][:LINES]:
        ax.plot(times, numbers[name], color=style.FORWARD, **style.LINE)
    ax.plot(times, middle, **MIDDLE)
