"""Draw figures of a run's interval calibration, from its scores."""

from collections.abc import Mapping
from math import sqrt

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vrnn_lab.evaluation.calibration import DISTANCE, PIT_BINS, bins, stretch
from vrnn_lab.figures import style

Scores = Mapping[str, float]
TARGET = {"color": style.INK, "linewidth": 0.9, "linestyle": (0, (4, 2)), "zorder": 1}
OURS = {"color": style.FORWARD, "linewidth": 1.8, "marker": "o", "markersize": 4, "zorder": 4}
CHANNEL = {"color": style.FORWARD, "linewidth": 0.8, "alpha": 0.45, "zorder": 3}
EXACT = {**style.TRUE, "marker": "s", "markersize": 3}
LINEAR = {"color": style.BACKWARD, "linewidth": 1.1, "marker": "^", "markersize": 3.5, "zorder": 2}
BASELINES = {"exact": EXACT, "linear": LINEAR}  # the baselines that are drawn


def figures(scores: Scores, split: str, data) -> dict[str, Figure]:
    """Draw `calibration`: PIT, coverage and error by distance to the observed points, one column per evaluation task.

    scores: the scores of a split, details included. Returns an empty dict where no value has an interval.
    """
    questions = [question for question in DISTANCE if f"{split}/{question}/pit/1" in scores]
    if not questions:
        return {}
    figure, axes = style.canvas(3 * len(questions), len(questions), (4.6, 2.5))
    channels = data.channels if 1 < len(data.channels) <= style.CHANNELS else ()
    for column, question in enumerate(questions):
        at = f"{split}/{question}"
        _pit(axes[column], scores, at, channels)
        axes[column].set_title(f"{question}, {scores[f'{at}/values']:.0f} values", fontsize=10)
        name = style.label(
            "gap to the nearest observed value" if question == "interpolation" else "horizon", data.time_unit
        )
        for place, (score, label) in enumerate(BY_DISTANCE.items(), 1):
            ax = axes[place * len(questions) + column]
            _by_distance(ax, scores, split, question, channels, score)
            ax.set_xlabel(name)
            ax.set_ylabel(label)
    style.legend(figure, _keys(scores, bool(channels)))
    figure.suptitle(f"Calibration of the predictive intervals on {split} series", fontsize=11)
    return {"calibration": figure}


BY_DISTANCE = {"coverage_90": "coverage of the 90 % interval", "nmse": "RMSE [training std]"}


def _keys(scores: Scores, channels: bool) -> list[Line2D | Patch]:
    drawn = [name for name in BASELINES if any(key.startswith(f"reference/{name}/") for key in scores)]
    return [
        Line2D([], [], label="model", **OURS),
        *([Line2D([], [], label="model, single channels", **CHANNEL)] if channels else []),
        *(Line2D([], [], label=name, **BASELINES[name]) for name in drawn),
        Line2D([], [], label="calibrated intervals", **TARGET),
        Patch(color="0.8", label="95 % range, independent values", linewidth=0),
    ]


def _noise(share: float, count: float) -> float:
    """Return half the width of the 95 % interval of a proportion of `count` independent values."""
    return 1.96 * sqrt(share * (1 - share) / max(count, 1))


def _pit(ax: Axes, scores: Scores, at: str, channels) -> None:
    """Draw the PIT histogram as a density, in which 1 is uniform."""
    half = PIT_BINS * _noise(1 / PIT_BINS, scores[f"{at}/values"])
    ax.axhspan(1 - half, 1 + half, color="0.8", linewidth=0, zorder=0.5)
    ax.axhline(1, **TARGET)
    parts = [i / PIT_BINS for i in range(PIT_BINS + 1)]
    density = lambda place: [PIT_BINS * scores[f"{place}/pit/{i + 1}"] for i in range(PIT_BINS)]
    for channel in channels:
        if f"{at}/channel/{channel}/pit/1" in scores:
            ax.stairs(density(f"{at}/channel/{channel}"), parts, **CHANNEL)
    height = density(at)
    ax.stairs(height, parts, fill=True, color=style.FORWARD, alpha=0.25, zorder=2)
    ax.stairs(height, parts, color=style.FORWARD, linewidth=1.8, zorder=4)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, max(2.0, 1.1 * max(height)))
    ax.set_xlabel("predictive CDF at the observed value (PIT)")
    ax.set_ylabel("density")


def _by_distance(ax: Axes, scores: Scores, split: str, question: str, channels, score: str) -> None:
    name = DISTANCE[question][0]
    at = f"{split}/{question}"
    places = bins(scores, f"{at}/{name}")
    of = lambda key: (scores[key] if score != "nmse" else sqrt(scores[key])) if key in scores else None
    if score == "coverage_90":
        for x, place in enumerate(places):
            half = _noise(0.9, scores[f"{place}/share"] * scores[f"{at}/values"])
            ax.fill_between(
                [x - 0.35, x + 0.35], 0.9 - half, min(1, 0.9 + half), color="0.8", linewidth=0, zorder=0.5
            )
        ax.axhline(0.9, **TARGET)
    for baseline, line_style in BASELINES.items():
        like = [place.replace(f"{split}/", f"reference/{baseline}/", 1) for place in places]
        _line(ax, [of(f"{place}/{score}") for place in like], line_style)
    for channel in channels:
        _line(ax, [of(f"{place}/channel/{channel}/{score}") for place in places], CHANNEL)
    _line(ax, [of(f"{place}/{score}") for place in places], OURS)
    ax.set_xticks(range(len(places)), [stretch(scores, place) for place in places], fontsize=7.5, rotation=20)
    ax.set_xlim(-0.5, len(places) - 0.5)
    low, high = ax.get_ylim()
    ax.set_ylim(*((min(low, 0.75), 1.0) if score == "coverage_90" else (0, high)))


def _line(ax: Axes, values: list[float | None], line_style: dict) -> None:
    known = [(x, y) for x, y in enumerate(values) if y is not None]
    if known:
        ax.plot(*zip(*known, strict=True), **line_style)
