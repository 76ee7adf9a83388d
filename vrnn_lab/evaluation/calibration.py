"""Measure calibration: PIT histograms, interval coverage, and scores by the distance to the nearest observation."""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.tasks import Task
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.scores import Plain, ScoreAccumulator, Scores, standardised

PIT_BINS, DISTANCE_BINS = 10, 5
ROUNDING = 1e-8  # relative tolerance within which distances are equal
DISTANCES = 1_000_000  # most distances whose quantiles define the bins
BY_DISTANCE = ("mse", "crps", "coverage_90", "brier")
# Details of every channel and baseline, for figures; not among the metrics by which runs are compared.
DETAIL = re.compile(r"/pit/|^(reference|recalibrated)/.*/(gap|horizon)/|/(gap|horizon)/(\d+|none)/channel/")


def pit(
    paths: Float[Tensor, "samples batch time dim"],
    values: Float[Tensor, "batch time dim"],
    uniform: Float[Tensor, "batch time dim"],
) -> Scores:
    """Return histograms of the probability integral transform, the rank of a value among draws, with random ties.

    If the prediction is the true distribution, the transform is exactly uniform for any number of draws.
    """
    below, ties = (paths < values).sum(0), (paths == values).sum(0)
    return histogram((below + uniform * (ties + 1)) / (len(paths) + 1))


def plain_pit(density: Plain, values: Float[Tensor, "batch time dim"]) -> Scores:
    """Return histograms of the probability integral transform under a Gaussian, or a Gaussian of logarithms."""
    return histogram(torch.special.ndtr(standardised(density, values)))


def histogram(level: Float[Tensor, "batch time dim"]) -> Scores:
    """Return which of PIT_BINS even bins from 0 to 1 a level falls in: pit/1, pit/2, ..., each 0 or 1."""
    place = (level * PIT_BINS).long().clamp(max=PIT_BINS - 1)
    return {f"pit/{i + 1}": (place == i).to(level) for i in range(PIT_BINS)}


def gap(batch: TimeSeries) -> Float64[Tensor, "batch time dim"]:
    """Return the time to the nearest observed value of the same channel; infinite where there is none."""
    times = batch.times[..., None].expand(batch.seen.shape)
    before = torch.where(batch.seen, times, -torch.inf).cummax(1).values
    after = torch.where(batch.seen, times, torch.inf).flip(1).cummin(1).values.flip(1)
    return torch.minimum(times - before, after - times)


def horizon(batch: TimeSeries) -> Float64[Tensor, "batch time dim"]:
    """Return the time since the last point with an observed value, infinite where there is none before."""
    last = torch.where(batch.seen.any(-1), batch.times, -torch.inf).cummax(1).values
    return (batch.times - last)[..., None].expand(batch.seen.shape).contiguous()


DISTANCE = {"interpolation": ("gap", gap), "forecast": ("horizon", horizon)}
DEFAULT_DISTANCE = ("gap", gap)  # for a dataset's own evaluation tasks


def edges(data: SeriesData, question: str, task: Task) -> Float64[Tensor, " edge"]:
    """Return the boundaries of the distance bins: even quantiles over validation, used for every split."""
    parts, count = [torch.zeros(0, dtype=torch.float64)], 0
    for batch in data.batches("val", task, 256):
        distances = DISTANCE.get(question, DEFAULT_DISTANCE)[1](batch)[batch.scored]
        parts.append(distances[distances.isfinite()])
        count += len(parts[-1])
        if count > DISTANCES:
            break
    distance = torch.cat(parts)[:DISTANCES]
    levels = torch.arange(1, DISTANCE_BINS, dtype=torch.float64) / DISTANCE_BINS
    if not len(distance):
        return distance
    boundaries = torch.quantile(distance, levels, interpolation="higher").unique()
    # Distances that are equal up to the rounding of times share a bin.
    apart = torch.cat([boundaries.diff() > ROUNDING * boundaries[1:], boundaries.new_ones(1, dtype=torch.bool)])
    return boundaries[apart & (boundaries < distance.max() * (1 - ROUNDING))]


class CalibrationAccumulator:
    """Accumulate the scores of one evaluation task: over all values, by distance, and of whole series.

    The keys under `<gap or horizon>/<bin>` are from (the start of the bin; it ends at the next one's start), share
    (of all values), and the scores of the bin's values. The bin `none` holds values without a distance, since nothing
    was observed.
    """

    def __init__(self, data: SeriesData, question: str, task: Task, std: Float[Tensor, " dim"]):
        self.name, self.distance = DISTANCE.get(question, DEFAULT_DISTANCE)
        self.edges = edges(data, question, task).to(std.device)
        self.all = ScoreAccumulator(data.channels, std)
        self.bins = [ScoreAccumulator(data.channels, std) for _ in range(len(self.edges) + 2)]
        self.energy, self.series = 0.0, 0

    def add(self, scores: Scores, batch: TimeSeries) -> None:
        """Add a batch's scores to those of all values and of each value's distance bin."""
        self.all.add(scores, batch.scored)
        distance = self.distance(batch)
        place = torch.bucketize(distance * (1 - ROUNDING), self.edges)
        place = torch.where(distance.isfinite(), place, len(self.bins) - 1)
        some = {name: each for name, each in scores.items() if name in BY_DISTANCE}
        for i, tally in enumerate(self.bins):
            tally.add(some, batch.scored & (place == i))

    def add_energy(self, scores: Float[Tensor, " series"]) -> None:
        """Add the energy scores of some series."""
        self.energy += scores.sum().item()
        self.series += len(scores)

    def result(self, prefix: str) -> dict[str, float]:
        """Return the mean scores under `<prefix>/...`; an empty dict where no value was scored."""
        scores = self.all.result(prefix)
        if self.series:
            scores[f"{prefix}/energy"] = self.energy / self.series
        if not scores:
            return {}
        total = self.all.count.sum()
        scores[f"{prefix}/values"] = total.item()
        starts = [0.0, *self.edges.tolist(), None]
        for i, (start, tally) in enumerate(zip(starts, self.bins, strict=True)):
            place = f"{prefix}/{self.name}/{'none' if start is None else i + 1}"
            if start is not None:  # also of an empty bin, since the bin before it ends there
                scores[f"{place}/from"] = start
            if share := (tally.count.sum() / total).item():
                scores |= {f"{place}/share": share} | tally.result(place)
        return scores


def bins(scores: Mapping[str, float], prefix: str) -> list[str]:
    """Return the keys of the bins under <...>/<gap or horizon>, in order."""
    return [
        key.removesuffix("/share") for key in scores if re.fullmatch(rf"{re.escape(prefix)}/(\d+|none)/share", key)
    ]


def stretch(scores: Mapping[str, float], place: str) -> str:
    """Return the range of distances of a bin as text, such as `0.5 to 1`."""
    before, _, number = place.rpartition("/")
    if number == "none":
        return "nothing seen"
    start, end = (scores.get(f"{before}/{int(number) + i}/from") for i in (0, 1))
    return f"over {start:.3g}" if end is None else f"{start:.3g} to {end:.3g}"


def parted(scores: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Split scores into the metrics, and the details that are stored separately."""
    details = {key: value for key, value in scores.items() if DETAIL.search(key)}
    return {key: value for key, value in scores.items() if key not in details}, details
