"""Figures of a model: what it was shown, what it says of the rest, and the truth where that is known."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vrnn_lab.series import TimeSeries, pick
from vrnn_lab.tasks import Forecast, Interpolate, Task

TASKS = {"forecast": Forecast(0.5), "interpolation": Interpolate(0.5)}
# Okabe & Ito's palette: told apart by every kind of colour vision, and in grey.
INK, FORWARD, BACKWARD, TRUTH = "#1a1a1a", "#0072b2", "#d55e00", "#009e73"
CANDIDATES = 40  # series the shown ones are chosen from
SAMPLES, LINES, REPEATS = 100, 5, 10  # paths, of which so many are drawn as lines; noise draws a path
QUANTILES = (0.05, 0.25, 0.75, 0.95)
STYLE: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.55}


@dataclass(frozen=True)
class Fan:
    """What a model says of some rows, place by place."""

    times: Float64[Tensor, "batch place"]
    there: Bool[Tensor, "batch place"]  # the others are padding
    causal: bool  # each place from those before it
    lines: Float[Tensor, "samples batch place dim"]  # curves without observation noise
    mean: Float[Tensor, "batch place dim"]
    bands: Float[Tensor, "quantiles batch place dim"]  # of observations: the QUANTILES

    def row(self, row: int):
        """A row's times, lines, mean and bands, without padding.

        Of a step model also without the first place, where it has nothing to go by and answers with the
        spread of all data.
        """
        there = self.there[row].clone()
        if self.causal and there.sum() > 1:
            there[there.to(torch.uint8).argmax()] = False
        times, mean = self.times[row, there], self.mean[row, there]
        return times, self.lines[:, row, there], mean, self.bands[:, row, there]


def figures(model, data, seed: int, split: str = "test", tasks: dict[str, Task] | None = None) -> dict[str, Figure]:
    """Figures by name of any SequenceModel on a handful of series of a split of any SeriesData.

    `forecast` and `interpolation` (or the names of `tasks`): bands and draws over time. `phase_plane`, for
    data that has one: curves forward and backward from the window's start. A function of the model, the data
    and the seed alone: no other random state is read or moved.
    """
    drawn: dict[str, Figure] = {}
    if data.support == "events":  # an event has no value to draw
        return drawn
    if data.phase_plane:
        drawn["phase_plane"] = _phase_plane(model, data, seed, split)
    for name, task in (tasks or TASKS).items():
        drawn[name] = _over_time(model, data, seed, split, name, task)
    return drawn


def write(drawn: dict[str, Figure], folder: str | Path) -> list[Path]:
    """Each figure as <folder>/<name>.png, whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in drawn.items():
        path, beside = folder / f"{name}.png", folder / f".{name}.png.part"
        figure.savefig(beside, dpi=120, format="png")
        paths.append(beside.replace(path))
    return paths


# ---- what is shown ----------------------------------------------------------------------------------------


def _shown(data, split: str, task: Task, count: int) -> TimeSeries:
    """A few series of a split that differ, under the task's fixed pattern."""
    batch = next(iter(data.batches(split, task, CANDIDATES)))
    return batch.rows(_unlike(batch, count))


def _unlike(batch: TimeSeries, count: int) -> Int64[Tensor, " count"]:
    """The first row, then each time the one least like those chosen, by level, spread and place in time."""
    known = batch.known.to(batch.values)
    number = known.sum(1).clamp(min=1)
    level = (batch.values * known).sum(1) / number
    spread = ((batch.values - level[:, None]).square() * known).sum(1).div(number).sqrt()
    traits = torch.cat([level, spread, batch.window], 1)
    traits = (traits - traits.mean(0)) / traits.std(0, correction=0).clamp(min=1e-12)
    chosen = [0]
    while len(chosen) < min(count, len(traits)):
        apart = torch.cdist(traits, traits[chosen]).amin(1)
        apart[chosen] = -1  # equal series are shown too, once each
        chosen.append(int(apart.argmax()))
    return torch.tensor(chosen)


def _grid(model, batch: TimeSeries, first: float, last: float, count: int) -> Float64[Tensor, "batch grid"]:
    """Even times a row, from `first` to `last` window lengths after its window's start."""
    start, length = batch.window[:, :1], batch.window.diff(dim=1)
    length = torch.where(length > 0, length, model.data_clock.cpu())
    return start + length * torch.linspace(first, last, count, dtype=torch.float64)


def _times(model, batch: TimeSeries, last: float) -> Float64[Tensor, "batch grid"]:
    """What to ask from the window's start to `last` window lengths after it.

    A step model is asked at the row's own points, as it is scored: what is asked is fed back to it. So of it
    only what lies beyond the window is asked on a grid, about as dense as the points within.
    """
    if not model.causal:
        return _grid(model, batch, 0.0, last, 120)
    points = batch.counts.sum(1).double().mean().clamp(4, 100).item()
    count = round((last - 1) * points)
    return _grid(model, batch, 1 + 1 / points, last, count)


def _ask(batch: TimeSeries, grid: Float64[Tensor, "batch grid"], own: bool) -> tuple[TimeSeries, Tensor]:
    """The batch with its seen points and a query at each time of the grid, and where those queries stand.

    own: a query at each held-out point of the batch too.
    """
    nothing = torch.zeros_like(batch.seen[:, :1]).expand(-1, grid.shape[1], -1)
    times, order = torch.sort(torch.cat([batch.times, grid], 1), dim=1, stable=True)
    merge = lambda points, queries: pick(torch.cat([points, queries], 1), order)
    asked = replace(
        batch,
        times=times,
        values=merge(torch.where(batch.seen, batch.values, 0), nothing.to(batch.values)),
        seen=merge(batch.seen, nothing),
        scored=merge(batch.scored & own, ~nothing),
        clean=None,
        labels=None,
        in_training=False,
    )
    return asked, torch.argsort(order, dim=1)[:, batch.times.shape[1] :]


def _fan(model, batch: TimeSeries, grid: Float64[Tensor, "batch grid"], seed: int) -> Fan:
    asked, place = _ask(batch, grid, own=model.causal)
    if model.causal:
        place = torch.arange(asked.times.shape[1]).expand_as(asked.times)
    with model.fixed_noise(seed):
        density = model.predict(asked.to(model.device), SAMPLES).density
        means = values = pick(density.mean.cpu(), place, 2)
        if model.head.support == "real":  # quantiles of zeros and ones would say nothing
            draws = [density.draw(noise) for noise in _noises(model, density.mean, seed)]
            values = pick(torch.cat(draws).cpu(), place, 2)
    bands = torch.quantile(values, values.new_tensor(QUANTILES), dim=0)
    there = pick(asked.counts, place)
    return Fan(pick(asked.times, place), there, model.causal, means[:LINES], means.mean(0), bands)


def _noises(model, like: Tensor, seed: int):
    """Observation noise that is the same at all times: quantiles over it are exact, and smooth in time."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(REPEATS):
        noise = torch.randn(SAMPLES, 1, 1, model.head.draws, generator=generator, dtype=torch.float64)
        yield noise.expand(-1, *like.shape[1:3], -1).to(like)


# ---- over time --------------------------------------------------------------------------------------------


def _over_time(model, data, seed: int, split: str, name: str, task: Task) -> Figure:
    ahead = isinstance(task, Forecast)
    channels = data.channels[:8]
    batch = _shown(data, split, task, {1: 4, 2: 3, 3: 2, 4: 2}.get(len(channels), 1))
    fan = _fan(model, batch, _times(model, batch, 1.3 if ahead else 1.0), seed)
    rows = len(batch.ids)
    columns = rows if rows > 1 and len(channels) > 1 else 2
    figure, axes = _canvas(rows * len(channels), columns, (4.1, 2.6))
    for place, ax in enumerate(axes):
        channel, row = divmod(place, rows)
        _panel(ax, fan, batch, row, channel)
        if ahead:
            _mark_start(ax, batch, row)
        ax.set_ylabel(_label(channels[channel], _unit(data, channel)))
        ax.set_xlabel(_label("time", data.time_unit))
        if channel == 0:
            ax.set_title(_name(data, split, batch, row), fontsize=10)
    truth = [_truth_key()] if batch.clean is not None else []
    _legend(figure, [*_time_keys(), *truth, *([_start_key()] if ahead else [])])
    share = f"{100 * batch.seen.any(-1).sum() / batch.counts.sum().clamp(min=1):.0f} % of the points seen"
    figure.suptitle(f"{name.capitalize()} of {split} series, {share}{_reads(model)}", fontsize=11)
    return figure


def _reads(model) -> str:
    return ", each point from those before it" if model.causal else ""


def _panel(ax: Axes, fan: Fan, batch: TimeSeries, row: int, channel: int) -> None:
    times, lines, mean, bands = fan.row(row)
    low, lower, upper, high = bands[..., channel]
    ax.fill_between(times, low, high, color=FORWARD, alpha=0.16, linewidth=0)
    ax.fill_between(times, lower, upper, color=FORWARD, alpha=0.30, linewidth=0)
    ax.plot(times, lines[..., channel].T, color=FORWARD, **STYLE)
    ax.plot(times, mean[:, channel], color=FORWARD, linewidth=1.8)
    if batch.clean is not None:
        inside = batch.counts[row]
        ax.plot(batch.times[row, inside], batch.clean[row, inside, channel], **_TRUTH)
    seen = batch.seen[row, :, channel]
    held_out = batch.scored[row, :, channel] & ~seen
    ax.plot(batch.times[row, held_out], batch.values[row, held_out, channel], **_HELD_OUT)
    ax.plot(batch.times[row, seen], batch.values[row, seen, channel], **_SEEN)
    ax.margins(x=0.01)
    ax.set_ylim(*_limits(batch, bands[..., channel], row, channel))


def _limits(batch: TimeSeries, bands: Tensor, row: int, channel: int) -> tuple[float, float]:
    """Around all values and bands; but bands that run away do not flatten the values."""
    known = batch.known[row, :, channel]
    values = batch.values[row, known, channel] if known.any() else bands.flatten()
    low, high = values.min(), values.max()
    room = 0.4 * (high - low).clamp(min=1e-6 * high.abs() + 1e-12)
    if bands.numel():
        low, high = (
            torch.maximum(torch.minimum(low, bands.min()), low - room),
            torch.minimum(torch.maximum(high, bands.max()), high + room),
        )
    margin = 0.05 * (high - low)
    return (low - margin).item(), (high + margin).item()


def _mark_start(ax: Axes, batch: TimeSeries, row: int) -> None:
    seen = batch.seen[row].any(-1)
    start = batch.times[row, seen].max() if seen.any() else batch.window[row, 0]
    ax.axvline(start.item(), **_START)


# ---- the phase plane --------------------------------------------------------------------------------------


def _phase_plane(model, data, seed: int, split: str) -> Figure:
    batch = _shown(data, split, Interpolate(0.5), 6)
    after = _fan(model, batch, _times(model, batch, 2.0), seed)
    before = None if model.causal else _fan(model, batch, _grid(model, batch, -1.0, 0.0, 80), seed)
    figure, axes = _canvas(len(batch.ids), min(3, len(batch.ids)), (3.4, 3.4))
    for row, ax in enumerate(axes):
        _plane(ax, batch, before, after, row)
        ax.set_xlabel(_label(data.channels[0], _unit(data, 0)))
        ax.set_ylabel(_label(data.channels[1], _unit(data, 1)))
        ax.set_title(_name(data, split, batch, row), fontsize=10)
    truth = [_truth_key()] if batch.clean is not None else []
    backward = [Line2D([], [], color=BACKWARD, linewidth=1.5, label="draws, t < 0")] if before else []
    forward = Line2D([], [], color=FORWARD, linewidth=1.5, label="draws, t > 0")
    _legend(figure, [_seen_key(), *truth, forward, *backward])
    span = "to one window after" if model.causal else "from one window before to one after"
    figure.suptitle(f"{split.capitalize()} series, t = 0 at the window's start; draws {span}", fontsize=11)
    return figure


def _plane(ax: Axes, batch: TimeSeries, before: Fan | None, after: Fan, row: int) -> None:
    for fan, color in ((before, BACKWARD), (after, FORWARD)):
        if fan:
            x, y = _curves(fan, batch, row).unbind(-1)
            ax.plot(x.T, y.T, color=color, **STYLE)
    if batch.clean is not None:
        ax.plot(*batch.clean[row, batch.counts[row]].T, **_TRUTH)
    ax.plot(*batch.values[row, batch.seen[row].all(-1)].T, **_SEEN)
    middle, half = _square(batch, row)
    ax.set_xlim(middle[0] - half, middle[0] + half)
    ax.set_ylim(middle[1] - half, middle[1] + half)
    ax.set_aspect("equal")


def _curves(fan: Fan, batch: TimeSeries, row: int) -> Float[Tensor, "samples place dim"]:
    """A row's lines; those of a step model from the first seen point on: before it, they start anywhere."""
    times, lines, _, _ = fan.row(row)
    seen = batch.times[row, batch.seen[row].any(-1)]
    first = seen[0] if fan.causal and len(seen) else times[0] - 1
    return lines[:, times > first]


def _square(batch: TimeSeries, row: int) -> tuple[list[float], float]:
    """The middle of a row's values, and a half width that leaves room for curves beyond the window."""
    known = batch.known[row].all(-1)
    values = batch.values[row, known] if known.any() else batch.values[row]
    low, high = values.amin(0), values.amax(0)
    return ((low + high) / 2).tolist(), max(0.8 * (high - low).max().item(), 1e-9)


# ---- the look ---------------------------------------------------------------------------------------------

_SEEN: dict[str, Any] = {
    "color": INK,
    "linestyle": "",
    "marker": "o",
    "markersize": 3.2,
    "markeredgewidth": 0,
    "zorder": 5,
}
_HELD_OUT: dict[str, Any] = {**_SEEN, "markerfacecolor": "white", "markeredgewidth": 0.7, "alpha": 0.8, "zorder": 4}
_TRUTH: dict[str, Any] = {"color": TRUTH, "linewidth": 1.4, "linestyle": (0, (4, 1.5)), "zorder": 3}
_START: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": ":"}


def _seen_key() -> Line2D:
    return Line2D([], [], label="seen", **_SEEN)


def _truth_key() -> Line2D:
    return Line2D([], [], label="truth without noise", **_TRUTH)


def _start_key() -> Line2D:
    return Line2D([], [], label="forecast starts", **_START)


def _time_keys() -> list[Line2D | Patch]:
    return [
        _seen_key(),
        Line2D([], [], label="held out", **_HELD_OUT),
        Line2D([], [], color=FORWARD, linewidth=1.8, label="mean"),
        Line2D([], [], color=FORWARD, label="draws", **STYLE),
        Patch(color=FORWARD, alpha=0.42, linewidth=0, label="25-75 %"),
        Patch(color=FORWARD, alpha=0.16, linewidth=0, label="5-95 %"),
    ]


def _canvas(panels: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no global state, and its panels row by row."""
    rows = -(-panels // columns)
    figure = Figure(
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


def _legend(figure: Figure, keys: list) -> None:
    """Below all panels, in as few even lines as the figure is wide."""
    lines = -(-len(keys) // int(figure.get_figwidth() / 1.6))
    columns = -(-len(keys) // lines)
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _label(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def _unit(data, channel: int) -> str:
    """A channel's unit, for data sets that say it."""
    units = getattr(data, "units", ())
    return units[channel] if channel < len(units) else ""


def _name(data, split: str, batch: TimeSeries, row: int) -> str:
    series = data.splits[split]
    place = int(np.flatnonzero(series.ids == batch.ids[row].item())[0])
    return f"series {series.names[place] if series.names else batch.ids[row].item()}"
