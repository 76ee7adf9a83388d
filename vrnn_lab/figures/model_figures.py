"""Draw figures of a model: observed values, predictions of the others, and the truth where it is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from vrnn_lab.cli.progress import tracked
from vrnn_lab.core.densities import Density
from vrnn_lab.core.files import replacing
from vrnn_lab.core.series import TimeSeries, pick
from vrnn_lab.core.supports import NUMBERS
from vrnn_lab.core.tasks import DensityTask, Forecast, Interpolate, Task
from vrnn_lab.figures import images, style
from vrnn_lab.models import prior_samples
from vrnn_lab.models.prior_samples import PriorSamples

TASKS = {"forecast": Forecast(0.5), "interpolation": Interpolate(0.5)}
CANDIDATES = 40  # series from which the shown ones are chosen
MOST_LINES = 16  # series from the prior per figure
SAMPLES, LINES, REPEATS = 100, 5, 10  # paths, paths drawn as lines, noise draws per path
MOST_VALUES = 20_000_000  # limit of draws for one figure's bands: long series have fewer per path
PLANE = (0, 1)  # the channels of the phase plane
QUANTILES = (0.05, 0.25, 0.75, 0.95)


@dataclass(frozen=True)
class PredictiveBands:
    """Hold a model's predictions for some rows at each place: curves, mean, and quantiles."""

    times: Float64[Tensor, "batch place"]
    there: Bool[Tensor, "batch place"]  # the others are padding
    causal: bool  # each place is predicted from those before it
    lines: Float[Tensor, "samples batch place dim"]  # curves without observation noise
    mean: Float[Tensor, "batch place dim"]
    bands: Float[Tensor, "quantiles batch place dim"]  # the QUANTILES of observations

    def row(self, row: int):
        """Return a row's times, lines, mean and bands, without padding.

        For a step model it also omits the first place, which has no past, so that its prediction is the spread of all
        data.
        """
        there = self.there[row].clone()
        if self.causal and there.sum() > 1:
            there[there.to(torch.uint8).argmax()] = False
        times, mean = self.times[row, there], self.mean[row, there]
        return times, self.lines[:, row, there], mean, self.bands[:, row, there]


def figures(model, data, seed: int, split: str = "test", tasks: dict[str, Task] | None = None) -> dict[str, Figure]:
    """Draw figures, by name, of any SequenceModel on a few series of a split of any SeriesData.

    * `forecast` and `interpolation` (or the names of `tasks`): bands and draws over time of the 8 channels with most
      values, but a roll for more than 8 binary channels.
    * `phase_plane`, for data that have one: curves forward and backward from the window's start.
    * `vector_field`, for data and models that both provide dy/dt over that plane (`field`, `vector_field`).
    * `samples` and `reconstructions` instead of all these, for data whose points are images (`image`).

    The figures are a function of the model, the data and the seed alone; no global random state is read or changed.
    """
    if image := getattr(data, "image", None):
        batch = _shown(data, split, DensityTask(), 10)
        return {
            "samples": images.images(model, image, prior_samples.draw(model, 25, seed)),
            "reconstructions": images.reconstructions(model, image, batch, seed, split, SAMPLES),
        }
    drawn: dict[str, Figure] = {}
    if data.support == "events":  # events have no values
        return drawn
    if data.phase_plane:
        drawn["phase_plane"] = _phase_plane(model, data, seed, split)
        if hasattr(data, "field") and hasattr(model, "vector_field"):
            drawn["vector_field"] = images.vector_field(model, data, _shown(data, split, DensityTask(), 6))
    questions = tasks or TASKS
    for name, task in tracked(questions.items(), "drawing figures", len(questions)):
        drawn[name] = _predictions(model, data, seed, split, name, task)
    return drawn


def write(drawn: dict[str, Figure], folder: str | Path) -> list[Path]:
    """Write each figure to <folder>/<name>.png atomically, and return the paths."""
    paths = [Path(folder) / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
    return paths


# ---- series and queries -----------------------------------------------------------------------------------


def _shown(data, split: str, task: Task, count: int) -> TimeSeries:
    """Return a few dissimilar series of a split, under the task's fixed pattern."""
    batch = next(iter(data.batches(split, task, CANDIDATES)))
    return batch.rows(_dissimilar(batch, count))


def _dissimilar(batch: TimeSeries, count: int) -> Int64[Tensor, " count"]:
    """Choose the first row, then repeatedly the row least similar to those chosen, by level, spread and window."""
    known = batch.known.to(batch.values)
    number = known.sum(1).clamp(min=1)
    level = (batch.values * known).sum(1) / number
    spread = ((batch.values - level[:, None]).square() * known).sum(1).div(number).sqrt()
    traits = torch.cat([level, spread, batch.window], 1)
    traits = (traits - traits.mean(0)) / traits.std(0, correction=0).clamp(min=1e-12)
    chosen = [0]
    while len(chosen) < min(count, len(traits)):
        apart = torch.cdist(traits, traits[chosen]).amin(1)
        apart[chosen] = -1  # a chosen series is not chosen again, even among equal ones
        chosen.append(int(apart.argmax()))
    return torch.tensor(chosen)


def _grid(model, batch: TimeSeries, first: float, last: float, count: int) -> Float64[Tensor, "batch grid"]:
    """Return even times per row, from `first` to `last` window lengths after its window's start."""
    start, length = batch.window[:, :1], batch.window.diff(dim=1)
    length = torch.where(length > 0, length, model.data_clock.cpu())
    return start + length * torch.linspace(first, last, count, dtype=torch.float64)


def _times(model, batch: TimeSeries, last: float) -> Float64[Tensor, "batch grid"]:
    """Return query times from the window's start to `last` window lengths after it.

    A step model feeds its draws at queries back, so within the window it is queried at the row's own points, as in
    evaluation. For it the grid covers only the time beyond the window, about as densely as the points within.
    """
    if not model.causal:
        return _grid(model, batch, 0.0, last, 120)
    points = batch.counts.sum(1).double().mean().clamp(4, 100).item()
    count = round((last - 1) * points)
    return _grid(model, batch, 1 + 1 / points, last, count)


def _with_queries(batch: TimeSeries, grid: Float64[Tensor, "batch grid"], own: bool) -> tuple[TimeSeries, Tensor]:
    """Return the batch with its observed points and a query at each grid time, and the positions of those queries.

    A query's covariates are those of the point before it. own: also query each held-out point of the batch.
    """
    nothing = torch.zeros_like(batch.seen[:, :1]).expand(-1, grid.shape[1], -1)
    before = (torch.searchsorted(batch.times.contiguous(), grid.contiguous(), right=True) - 1).clamp(min=0)
    covariates, error = batch.covariates, batch.error
    times, order = torch.sort(torch.cat([batch.times, grid], 1), dim=1, stable=True)
    merge = lambda points, queries: pick(torch.cat([points, queries], 1), order)
    queries = replace(
        batch,
        times=times,
        values=merge(torch.where(batch.seen, batch.values, 0), nothing.to(batch.values)),
        seen=merge(batch.seen, nothing),
        scored=merge(batch.scored & own, ~nothing),
        covariates=None if covariates is None else merge(covariates, pick(covariates, before)),
        error=None if error is None else merge(error, torch.zeros_like(nothing).to(error)),
        clean=None,
        labels=None,
        in_training=False,
    )
    return queries, torch.argsort(order, dim=1)[:, batch.times.shape[1] :]


def _predict_bands(
    model,
    batch: TimeSeries,
    grid: Float64[Tensor, "batch grid"],
    seed: int,
    channels: Sequence[int] | slice = slice(None),
) -> PredictiveBands:
    """Predict the channels that are shown, by default all, at the times of a grid."""
    queries, place = _with_queries(batch, grid, own=model.causal)
    if model.causal:
        place = torch.arange(queries.times.shape[1]).expand_as(queries.times)
    shown = lambda values: pick(values[..., channels].cpu(), place, 2)
    with model.fixed_noise(seed):
        density = model.predict(queries.to(model.device), SAMPLES).density
        means = values = shown(density.mean)
        if model.head.support in NUMBERS:  # binary values have no useful quantiles
            values = torch.cat([shown(density.draw(noise)) for noise in _noises(density, seed)])
    there = pick(queries.counts, place)
    lines = means[:: max(1, len(means) // LINES)][:LINES]  # evenly, as a mixture's draws stand by member
    return PredictiveBands(pick(queries.times, place), there, model.causal, lines, means.mean(0), _quantiles(values))


def _quantiles(values: Float[Tensor, "draws batch place dim"]) -> Float[Tensor, "quantiles batch place dim"]:
    """Return the QUANTILES over draws, in parts, since torch.quantile takes at most 16 million numbers at once."""
    levels = values.new_tensor(QUANTILES)
    parts = [torch.quantile(part, levels, dim=0) for part in values.flatten(1).split(10_000, 1)]
    return torch.cat(parts, 1).unflatten(1, values.shape[1:])


def _noises(density: Density, seed: int):
    """Yield observation noise that is equal at all times, so that quantiles over it are exact and smooth in time."""
    generator, like = torch.Generator().manual_seed(seed), density.mean
    values = like[..., : style.CHANNELS].numel()
    for _ in range(max(1, min(REPEATS, MOST_VALUES // max(1, values)))):
        noise = torch.randn(len(like), 1, 1, density.draws, generator=generator, dtype=torch.float64)
        yield noise.expand(-1, *like.shape[1:3], -1).to(like)


# ---- over time --------------------------------------------------------------------------------------------


def _predictions(model, data, seed: int, split: str, name: str, task: Task) -> Figure:
    """Draw a model's predictions under a task."""
    if _is_roll(model):
        batch = _shown(data, split, task, 1)
        return images.rolls(model, data, batch, seed, split, _title(model, batch, name, split), task, SAMPLES)
    return _over_time(model, data, seed, split, name, task)


def _is_roll(model) -> bool:
    return model.scale.support == "binary" and model.scale.dim > style.CHANNELS


def _title(model, batch: TimeSeries, name: str, split: str) -> str:
    share = 100 * batch.seen.any(-1).sum() / batch.counts.sum().clamp(min=1)
    conditioning = ", each point predicted from those before it" if model.causal else ""
    return f"{name.capitalize()} of {split} series, {share:.0f} % of the points observed{conditioning}"


def _over_time(model, data, seed: int, split: str, name: str, task: Task) -> Figure:
    ahead = isinstance(task, Forecast)
    batch = _shown(data, split, task, {1: 4, 2: 3, 3: 2, 4: 2}.get(len(data.channels), 1))
    channels = _most_observed(batch)
    further = ahead and not _covariates_change(batch)  # beyond the last point covariates are unknown
    predicted = _predict_bands(model, batch, _times(model, batch, 1.3 if further else 1.0), seed, channels)
    rows = len(batch.ids)
    columns = rows if rows > 1 and len(channels) > 1 else 2
    figure, axes = style.canvas(rows * len(channels), columns, (4.1, 2.6))
    for place, ax in enumerate(axes):
        panel, row = divmod(place, rows)
        channel = channels[panel]
        _panel(ax, predicted, batch, row, channel, panel)
        if ahead:
            style.mark_start(ax, batch, row)
        ax.set_ylabel(style.label(data.channels[channel], style.unit(data, channel)))
        style.time_axis(ax, data.dates, data.time_unit)
        if panel == 0:
            ax.set_title(style.name(data, split, batch, row), fontsize=10)
    truth = [style.truth_key()] if batch.clean is not None else []
    style.legend(figure, [*style.time_keys(), *truth, *([style.start_key()] if ahead else [])])
    figure.suptitle(_title(model, batch, name, split), fontsize=11)
    return figure


def _most_observed(batch: TimeSeries) -> list[int]:
    """Return the indices of the channels to show: those that the batch holds most values of, in their own order."""
    count = batch.known.sum((0, 1))
    return sorted(count.argsort(descending=True, stable=True)[: style.CHANNELS].tolist())


def _covariates_change(batch: TimeSeries) -> bool:
    """Return whether the batch has a series with covariates that differ from point to point."""
    if batch.covariates is None:
        return False
    first = batch.covariates[:, :1]
    return bool(((batch.covariates != first) & batch.counts[..., None]).any())


def _panel(ax: Axes, predicted: PredictiveBands, batch: TimeSeries, row: int, channel: int, panel: int) -> None:
    """Draw a channel of a row; panel: the index of the channel among those that were predicted."""
    times, lines, mean, bands = predicted.row(row)
    low, lower, upper, high = bands[..., panel]
    ax.fill_between(times, low, high, color=style.FORWARD, alpha=0.16, linewidth=0)
    ax.fill_between(times, lower, upper, color=style.FORWARD, alpha=0.30, linewidth=0)
    ax.plot(times, lines[..., panel].T, color=style.FORWARD, **style.LINE)
    ax.plot(times, mean[:, panel], color=style.FORWARD, linewidth=1.8)
    if batch.clean is not None:
        inside = batch.counts[row]
        ax.plot(batch.times[row, inside], batch.clean[row, inside, channel], **style.TRUE)
    seen = batch.seen[row, :, channel]
    held_out = batch.scored[row, :, channel] & ~seen
    ax.plot(batch.times[row, held_out], batch.values[row, held_out, channel], **style.HELD_OUT)
    ax.plot(batch.times[row, seen], batch.values[row, seen, channel], **style.SEEN)
    ax.margins(x=0.01)
    ax.set_ylim(*_limits(batch, bands[..., panel], row, channel))


def _limits(batch: TimeSeries, bands: Tensor, row: int, channel: int) -> tuple[float, float]:
    """Return axis limits around all values and bands; bands that diverge do not flatten the values.

    bands (quantiles, place): the lowest quantile first. The typical width of a band always fits, so that a channel
    with a single value has an axis of the band's size.
    """
    known = batch.known[row, :, channel]
    values = batch.values[row, known, channel] if known.any() else bands.flatten()
    low, high = values.min(), values.max()
    usual = (bands[-1] - bands[0]).median() if bands.numel() else 0.0 * high
    room = torch.maximum(0.4 * (high - low), 1.5 * usual).clamp(min=1e-6 * high.abs() + 1e-12)
    if bands.numel():
        low, high = (
            torch.maximum(torch.minimum(low, bands.min()), low - room),
            torch.minimum(torch.maximum(high, bands.max()), high + room),
        )
    margin = 0.05 * (high - low)
    return (low - margin).item(), (high + margin).item()


# ---- the phase plane --------------------------------------------------------------------------------------


def _phase_plane(model, data, seed: int, split: str) -> Figure:
    batch = _shown(data, split, Interpolate(0.5), 6)
    after = _predict_bands(model, batch, _times(model, batch, 2.0), seed, PLANE)
    before = None if model.causal else _predict_bands(model, batch, _grid(model, batch, -1.0, 0.0, 80), seed, PLANE)
    beyond = _beyond(data, split, batch)
    figure, axes = style.canvas(len(batch.ids), min(3, len(batch.ids)), (3.4, 3.4))
    for row, ax in enumerate(axes):
        _plane(ax, batch, before, after, row, beyond[row] if beyond else None)
        ax.set_xlabel(style.label(data.channels[0], style.unit(data, 0)))
        ax.set_ylabel(style.label(data.channels[1], style.unit(data, 1)))
        ax.set_title(style.name(data, split, batch, row), fontsize=10)
    truth = [style.truth_key()] if batch.clean is not None else []
    truth += [style.beyond_key()] if beyond else []
    backward = [Line2D([], [], color=style.BACKWARD, linewidth=1.5, label="draws, t < 0")] if before else []
    forward = Line2D([], [], color=style.FORWARD, linewidth=1.5, label="draws, t > 0")
    style.legend(figure, [style.seen_key(), *truth, forward, *backward])
    span = "to one window after" if model.causal else "from one window before to one after"
    span += ", as far as the truth is known" if beyond else ""
    figure.suptitle(f"{split.capitalize()} series, t = 0 at the window's start; draws {span}", fontsize=11)
    return figure


@dataclass(frozen=True)
class Curve:
    """Hold the noise-free curve of one series, inside its window and beyond it."""

    times: Float64[Tensor, " place"]
    values: Float[Tensor, "place dim"]

    def beyond(self, window: Float64[Tensor, " 2"]) -> list[Float[Tensor, "place dim"]]:
        """Return the curve up to the window's start, and from the window's end on."""
        return [self.values[self.times <= window[0]], self.values[self.times >= window[1]]]


def _beyond(data, split: str, batch: TimeSeries) -> list[Curve] | None:
    """Return the curve of every row, where the dataset provides it beyond the windows; None elsewhere."""
    series = data.beyond(split)
    if series is None or series.points.clean is None:
        return None
    rows = [int(np.flatnonzero(series.ids == each)[0]) for each in batch.ids.tolist()]
    parts = [slice(int(series.first[row]), int(series.end[row])) for row in rows]
    points = series.points
    return [Curve(torch.from_numpy(points.times[part]), torch.from_numpy(points.clean[part])) for part in parts]


def _plane(
    ax: Axes,
    batch: TimeSeries,
    before: PredictiveBands | None,
    after: PredictiveBands,
    row: int,
    beyond: Curve | None = None,
) -> None:
    for predicted, color in ((before, style.BACKWARD), (after, style.FORWARD)):
        if predicted:
            x, y = _curves(predicted, batch, row, beyond).unbind(-1)
            ax.plot(x.T, y.T, color=color, **style.LINE)
    for part in beyond.beyond(batch.window[row]) if beyond else []:
        ax.plot(*part.T, **style.BEYOND)
    if batch.clean is not None:
        ax.plot(*batch.clean[row, batch.counts[row]].T, **style.TRUE)
    ax.plot(*batch.values[row, batch.seen[row].all(-1)].T, **style.SEEN)
    middle, half = _square(batch, row, beyond)
    ax.set_xlim(middle[0] - half, middle[0] + half)
    ax.set_ylim(middle[1] - half, middle[1] + half)
    ax.set_aspect("equal")


def _curves(
    predicted: PredictiveBands, batch: TimeSeries, row: int, beyond: Curve | None = None
) -> Float[Tensor, "samples place dim"]:
    """Return a row's lines over the range of its true curve, where that is known.

    The lines of a step model begin at the first observed point, before which their values are arbitrary.
    """
    times, lines, _, _ = predicted.row(row)
    seen = batch.times[row, batch.seen[row].any(-1)]
    first = seen[0] if predicted.causal and len(seen) else times[0] - 1
    there = times > first
    return lines[:, there & (times >= beyond.times[0]) & (times <= beyond.times[-1]) if beyond else there]


def _square(batch: TimeSeries, row: int, beyond: Curve | None = None) -> tuple[list[float], float]:
    """Return the centre and half width of the view: a row's values and its true curve, however far draws stray.

    Where the curve beyond the window is unknown the view is larger, to leave room for draws of it.
    """
    known = batch.known[row].all(-1)
    values = batch.values[row, known] if known.any() else batch.values[row]
    values = torch.cat([values, beyond.values.to(values)]) if beyond else values
    low, high = values.amin(0), values.amax(0)
    return ((low + high) / 2).tolist(), max((0.55 if beyond else 0.8) * (high - low).max().item(), 1e-9)


# ---- from the prior ----------------------------------------------------------------------------------------


def samples(model, data, draws: PriorSamples) -> Figure:
    """Draw series from the prior as images, rolls, event marks or lines, and in any phase plane of the data."""
    if image := getattr(data, "image", None):
        return images.images(model, image, draws)
    if _is_roll(model):
        figure = _drawn_rolls(model, data, draws)
    elif model.scale.support == "events":
        figure = _drawn_events(data, draws)
    else:
        figure = _drawn_lines(model, data, draws)
    figure.suptitle("Samples from the prior, given no observed value", fontsize=11)
    return figure


def _drawn_rolls(model, data, draws: PriorSamples) -> Figure:
    figure, axes = style.canvas(min(4, len(draws.times)), 1, (8.2, 2.4))
    for row, ax in enumerate(axes):
        there = draws.there[row]
        images.roll(ax, draws.times[row, there], draws.values[row, there], model.scale.channels)
        style.time_axis(ax, data.dates, data.time_unit)
    return figure


def _drawn_events(data, draws: PriorSamples) -> Figure:
    figure, (ax,) = style.canvas(1, 1, (8.2, 4.0))
    rows = [times[there].numpy() for times, there in zip(draws.times, draws.there, strict=True)]
    ax.eventplot(rows[:MOST_LINES], colors=style.FORWARD, linelengths=0.7)
    style.time_axis(ax, data.dates, data.time_unit)
    ax.set_ylabel("series")
    return figure


def _drawn_lines(model, data, draws: PriorSamples) -> Figure:
    channels = model.scale.channels[: style.CHANNELS]
    labels = [style.label(name, style.unit(data, place)) for place, name in enumerate(channels)]
    panels = len(channels) + data.phase_plane
    figure, axes = style.canvas(panels, min(3 if data.phase_plane else 2, panels), (4.6, 3.2))
    for place, ax in enumerate(axes):
        plane = place == len(channels)
        _drawn(ax, model, draws, (0, 1) if plane else (place,))
        ax.set_xlabel(labels[0] if plane else style.label("time", data.time_unit))
        ax.set_ylabel(labels[1] if plane else labels[place])
        if plane:
            ax.set_aspect("equal", adjustable="datalim")
    return figure


def _drawn(ax: Axes, model, draws: PriorSamples, channels: tuple[int, ...]) -> None:
    """Draw one channel over time, or two in their plane; a path model's curves as lines, its noisy values as dots."""
    rows = min(len(draws.times), MOST_LINES)
    for row, color in enumerate(colormaps["viridis"](np.linspace(0, 0.9, rows))):
        there = draws.there[row]
        at = lambda values: [values[row, there, c] for c in channels]  # noqa: B023 - used at once
        before = [draws.times[row, there]] if len(channels) == 1 else []
        if model.causal or there.sum() == 1:
            ax.plot(*before, *at(draws.values), color=color, linewidth=0.9, marker="." if there.sum() == 1 else "")
        else:
            ax.plot(*before, *at(draws.curve), color=color, linewidth=1.1)
            ax.plot(*before, *at(draws.values), color=color, linestyle="", marker=".", markersize=1.5, alpha=0.5)
