"""Define the style of all figures: colours, panels, labels, legend entries."""

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from vrnn_lab.core.series import TimeSeries

# Okabe & Ito's palette, distinguishable with every kind of colour vision and in greyscale.
INK, FORWARD, BACKWARD, TRUTH = "#1a1a1a", "#0072b2", "#d55e00", "#009e73"
OFFSETS = ["", "%Y", "%Y", "%Y-%b-%d", "%Y-%b-%d", "%Y-%b-%d %H:%M"]  # offsets for ticks of years, months, days, ...
CHANNELS = 8  # most channels shown over time
LINE: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.55}
SEEN: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markersize": 3.2,
    "markeredgewidth": 0,
    "zorder": 5,
}
HELD_OUT: dict[str, Any] = {**SEEN, "markerfacecolor": "white", "markeredgewidth": 0.7, "alpha": 0.8, "zorder": 4}
TRUE: dict[str, Any] = {"color": TRUTH, "linewidth": 1.4, "linestyle": (0, (4, 1.5)), "zorder": 3}
BEYOND: dict[str, Any] = {"color": "0.35", "linewidth": 1.1, "linestyle": (0, (1, 1.4)), "zorder": 2.5}
START: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": ":"}


def seen_key() -> Line2D:
    return Line2D([], [], label="observed", **SEEN)


def truth_key() -> Line2D:
    return Line2D([], [], label="noise-free truth", **TRUE)


def beyond_key() -> Line2D:
    return Line2D([], [], label="truth beyond the window", **BEYOND)


def start_key() -> Line2D:
    return Line2D([], [], label="start of the forecast", **START)


def time_keys() -> list[Line2D | Patch]:
    return [
        seen_key(),
        Line2D([], [], label="held out", **HELD_OUT),
        Line2D([], [], color=FORWARD, linewidth=1.8, label="mean"),
        Line2D([], [], color=FORWARD, label="draws", **LINE),
        Patch(color=FORWARD, alpha=0.42, linewidth=0, label="25-75 %"),
        Patch(color=FORWARD, alpha=0.16, linewidth=0, label="5-95 %"),
    ]


def mark_start(ax: Axes, batch: TimeSeries, row: int) -> None:
    """Mark the start of a row's forecast, at its last observed point."""
    seen = batch.seen[row].any(-1)
    start = batch.times[row, seen].max() if seen.any() else batch.window[row, 0]
    ax.axvline(start.item(), **START)


class ShownFigure(Figure):
    """Show a figure in a notebook as a picture, also where matplotlib.pyplot was not imported."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def canvas(panels: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure independent of pyplot's global state, and its panels in row-major order."""
    rows = -(-panels // columns)
    figure = ShownFigure(
        figsize=(size[0] * columns, size[1] * rows + 0.9), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    )
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, color="0.5")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def legend(figure: Figure, keys: list) -> None:
    """Place the legend below all panels, in as few even lines as the figure's width allows."""
    lines = -(-len(keys) // int(figure.get_figwidth() / 1.6))
    columns = -(-len(keys) // lines)
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def plain(name: str) -> str:
    """Escape dollar signs in a user's name, which matplotlib would read as a formula."""
    return name.replace("$", r"\$")


def label(name: str, unit: str) -> str:
    return plain(f"{name} [{unit}]" if unit else name)


def time_axis(ax: Axes, dates: bool, time_unit: str) -> None:
    """Label the time axis; dates: times are days since 1970, which is matplotlib's unit too."""
    ax.set_xlabel("time" if dates else label("time", time_unit))
    if dates:
        locator = AutoDateLocator(minticks=3, maxticks=8)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, offset_formats=OFFSETS))


def unit(data, channel: int) -> str:
    """Return a channel's unit, or an empty string where the dataset does not state it."""
    units = getattr(data, "units", ())
    return units[channel] if channel < len(units) else ""


def name(data, split: str, batch: TimeSeries, row: int) -> str:
    series = data.splits[split]
    place = int(np.flatnonzero(series.ids == batch.ids[row].item())[0])
    return plain(f"series {series.names[place] if series.names else batch.ids[row].item()}")
