"""Draw figures that are not curves over time: images, rolls of many channels, a vector field over the plane."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from vrnn_lab.core.series import TimeSeries, pick
from vrnn_lab.core.tasks import Forecast, Task
from vrnn_lab.figures import style
from vrnn_lab.models.prior_samples import PriorSamples

SIDE = 25  # grid points of the plane per axis


# ---- images -----------------------------------------------------------------------------------------------


def images(model, shape: tuple[int, int], draws: PriorSamples) -> Figure:
    """Draw the means of prior samples, each as an image of a shape (rows, columns)."""
    columns = -(-len(draws.times) // max(1, round(len(draws.times) ** 0.5)))
    limits = (0.0, 1.0) if model.scale.support == "binary" else _limits(draws.curve[:, 0])
    figure, (ax,) = style.canvas(1, 1, (5.0, 5.0))
    _show(ax, tiled(draws.curve[:, 0], shape, columns), limits)
    ax.set_yticks([])
    figure.suptitle("Samples from the prior: the mean of each sample", fontsize=11)
    return figure


def reconstructions(model, shape: tuple[int, int], batch: TimeSeries, seed: int, split: str, samples: int) -> Figure:
    """Draw images of a split above their predictive means, with all pixels observed."""
    with model.fixed_noise(seed):
        mean = model.predict(batch.to(model.device), samples).mean.cpu()
    first = batch.counts.to(torch.uint8).argmax(1, keepdim=True)
    data = pick(torch.where(batch.known, batch.values, torch.nan), first)[:, 0]
    limits = (0.0, 1.0) if model.scale.support == "binary" else _limits(data)
    figure, (ax,) = style.canvas(1, 1, (0.9 * len(data) + 0.8, 1.5))
    _show(ax, tiled(torch.cat([data, pick(mean, first)[:, 0]]), shape, len(data)), limits)
    ax.set_yticks([shape[0] / 2, 1.5 * shape[0] + 1], ["data", "mean"])
    figure.suptitle(f"{split.capitalize()} images, and their predictive means given all pixels", fontsize=11)
    return figure


def _limits(values: Tensor) -> tuple[float, float]:
    known = values[values.isfinite()]
    return (known.min().item(), known.max().item()) if len(known) else (0.0, 1.0)


def tiled(
    flat: Float[Tensor, "images pixels"], shape: tuple[int, int], columns: int
) -> Float[Tensor, "height width"]:
    """Tile images row by row, with NaN between them and in empty tiles."""
    height, width = shape
    rows = -(-len(flat) // columns)
    tiles = flat.new_full((rows * columns, height + 1, width + 1), torch.nan)
    tiles[: len(flat), :height, :width] = flat.view(-1, height, width)
    grid = tiles.view(rows, columns, height + 1, width + 1).transpose(1, 2).flatten(2).flatten(0, 1)
    return grid[:-1, :-1]


def _show(ax: Axes, image: Tensor, limits: tuple[float, float]) -> None:
    ax.imshow(image.numpy(), cmap="Greys", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    ax.set_facecolor("#dbe9f6")  # visible where the image is NaN
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.grid(False)
    ax.tick_params(length=0, labelsize=10)


# ---- rolls ------------------------------------------------------------------------------------------------


def rolls(model, data, batch: TimeSeries, seed: int, split: str, title: str, task: Task, samples: int) -> Figure:
    """Draw one series of many binary channels, with the data above and the predictive mean below."""
    queries = replace(batch, scored=batch.known & ~batch.seen)
    with model.fixed_noise(seed):
        mean = model.predict(queries.to(model.device), samples).mean.cpu()
    there = batch.counts[0]
    times, seen = batch.times[0, there], batch.seen[0, there].any(-1)
    figure, axes = style.canvas(2, 1, (8.2, 3.2))
    for ax, values, heading in zip(axes, (batch.values, mean), ("data", "predictive mean"), strict=True):
        roll(ax, times, values[0, there], model.scale.channels)
        ax.plot(
            times[seen], torch.full_like(times[seen], len(model.scale.channels) + 0.5), **style.SEEN, clip_on=False
        )
        if isinstance(task, Forecast):
            style.mark_start(ax, batch, 0)
        style.time_axis(ax, data.dates, data.time_unit)
        ax.set_title(f"{heading}, {style.name(data, split, batch, 0)}", fontsize=10)
    style.legend(figure, [style.seen_key(), *([style.start_key()] if isinstance(task, Forecast) else [])])
    figure.suptitle(title, fontsize=11)
    return figure


def roll(
    ax: Axes, times: Float64[Tensor, " place"], values: Float[Tensor, "place dim"], channels: tuple[str, ...]
) -> None:
    """Draw channels upwards and time to the right; each point's column reaches half way to its neighbours."""
    dim = values.shape[1]
    rows = np.arange(dim + 1) - 0.5
    ax.pcolormesh(edges(times).numpy(), rows, values.T.numpy(), cmap="Greys", vmin=0, vmax=1)
    name = lambda place, _: style.plain(channels[int(place)]) if 0 <= place < dim else ""
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(name))
    ax.set_ylabel("channel")
    ax.set_ylim(-0.5, dim + 1.5)
    ax.grid(False)


def edges(times: Float64[Tensor, " place"]) -> Float64[Tensor, " edge"]:
    """Return the boundaries between the columns of points."""
    if not len(times):
        return times.new_tensor([0.0])
    middle = (times[1:] + times[:-1]) / 2
    first, last = (times.diff()[[0, -1]] / 2).tolist() if len(times) > 1 else (0.5, 0.5)
    return torch.cat([times[:1] - first, middle, times[-1:] + last])


# ---- vector fields ----------------------------------------------------------------------------------------


def vector_field(model, data, batch: TimeSeries) -> Figure:
    """Draw the learned vector field next to the true one, over the part of the plane that contains the data."""
    shown = batch.values if batch.clean is None else batch.clean
    inside = [shown[row, batch.known[row].all(-1)] for row in range(len(batch.ids))]
    axis, states = plane(torch.cat(inside))
    with torch.no_grad():
        learned = model.vector_field(states.to(model.device)).double().cpu().nan_to_num()
    true = data.field(states)
    figure, axes = style.canvas(2, 2, (4.6, 4.4))
    speed = true.norm(dim=-1)
    norm = LogNorm(*speed.quantile(speed.new_tensor([0.02, 1.0])).clamp(min=1e-12).tolist(), clip=True)
    for ax, slopes, heading in zip(axes, (learned, true), ("learned", "true"), strict=True):
        _streams(ax, axis, slopes, norm)
        for curve in inside:
            ax.plot(*curve.T, color=style.BACKWARD, linewidth=0.7, alpha=0.5)
        ax.set_xlabel(style.label(data.channels[0], style.unit(data, 0)))
        ax.set_ylabel(style.label(data.channels[1], style.unit(data, 1)))
        ax.set_title(heading, fontsize=10)
        ax.set_aspect("equal")
    figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label="speed", shrink=0.8)
    style.legend(figure, [Line2D([], [], color=style.BACKWARD, linewidth=1.0, label="data")])
    error = ((learned - true).norm(dim=-1).mean() / speed.mean().clamp(min=1e-12)).item()
    figure.suptitle(f"Vector field; mean error {100 * error:.3g} % of the mean speed", fontsize=11)
    return figure


def plane(values: Float[Tensor, "points 2"]) -> tuple[tuple[Tensor, Tensor], Float[Tensor, "states 2"]]:
    """Return the axes of a grid slightly larger than the range of some values, and its states, x varying fastest."""
    low, high = values.amin(0), values.amax(0)
    room = 0.1 * (high - low).clamp(min=1e-9)
    x, y = (torch.linspace(a, b, SIDE, dtype=torch.float64) for a, b in zip(low - room, high + room, strict=True))
    return (x, y), torch.cartesian_prod(y, x).flip(1)


def _streams(ax: Axes, axis: tuple[Tensor, Tensor], slopes: Float[Tensor, "states 2"], norm: LogNorm) -> None:
    along = slopes.view(SIDE, SIDE, 2).numpy()
    speed = np.linalg.norm(along, axis=-1)
    x, y = (each.numpy() for each in axis)
    stream_style = {"cmap": "viridis", "norm": norm, "linewidth": 0.9, "density": 1.1}
    ax.streamplot(x, y, along[..., 0], along[..., 1], color=speed, **stream_style)
