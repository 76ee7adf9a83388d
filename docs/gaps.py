"""Gaps in real irregular series, filled by trained models, a Gaussian process and straight lines.

python docs/gaps.py runs=<run folder>[,<run folder>...] [picture=docs/gap.png]

Every test window of a run's data set (co2, deuterium, light_curves, ...) loses the middle third of its points. The
model sees the others and predicts these. So do a Gaussian process for each channel (Matern 3/2 and white noise,
fitted by maximum likelihood to the window's own seen values; error bars, where the data has them, are noise it knows)
and straight lines between neighbours, with a spread per channel fitted to the same gaps of the validation windows.
Runs on the same windows are listed in one block.
`picture` draws a window of the first run, its first channel.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import vrnn_lab
from vrnn_lab.cli.arguments import arguments, configure_logging, run_command
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.tasks import Task
from vrnn_lab.data.base import SeriesData
from vrnn_lab.evaluation.baselines import linear
from vrnn_lab.evaluation.scores import ScoreAccumulator, Scores, plain_scores, sample_scores
from vrnn_lab.models.base import SequenceModel

SCORES = {"nll": 9, "mse": 9, "crps": 9, "coverage_90": 13}  # and the width of their columns
FEWEST = 3  # seen values that a process is fitted to; with fewer it predicts the training mean and spread


class Gap(Task):
    """The middle third of the points is hidden."""

    def __call__(self, times, known, window, rng):
        count = len(times)
        hidden = np.zeros_like(known)
        hidden[count // 3 : count - count // 3] = True
        return known & ~hidden, known & hidden


def gaussian_process(times, values, error, at, error_at) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of new observations at some times, given one series; `error`: known stds of their noise."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    level, unit, span = values.mean(), values.std() or 1.0, np.ptp(times)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(span / 5, (span / 100, span * 5), nu=1.5)
    kernel = kernel + WhiteKernel(0.05, (1e-4, 1.0))
    known = (error / unit) ** 2 + 1e-10
    process = GaussianProcessRegressor(kernel, alpha=known, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bound reached by a hyperparameter
        process.fit(times[:, None], (values - level) / unit)
        predicted: Any = process.predict(at[:, None], return_std=True)
    mean, std = predicted
    return level + unit * mean, np.sqrt((unit * std) ** 2 + error_at**2)


def by_process(row: TimeSeries, model) -> Gaussian:
    """A process for each channel of one window, at its scored values; elsewhere the training spread."""
    mean, std = (x.expand(row.values.shape).clone() for x in (model.data_mean, model.data_std))
    error = torch.zeros_like(row.values) if row.error is None else row.error
    for channel in range(row.values.shape[2]):
        seen, queried = row.seen[0, :, channel], row.scored[0, :, channel]
        if seen.sum() < FEWEST or not queried.any():
            continue
        values, noise = (x[0, :, channel].numpy() for x in (row.values, error))
        times, i, j = row.times[0].numpy(), seen.numpy(), queried.numpy()
        moments = gaussian_process(times[i], values[i], noise[i], times[j], noise[j])
        mean[0, queried, channel], std[0, queried, channel] = map(torch.as_tensor, moments)
    return Gaussian(mean, std)


def spread_of_lines(model, data: SeriesData) -> torch.Tensor:
    """(dim,): how far straight lines are off at the gaps of the validation windows."""
    tally = ScoreAccumulator(data.channels, model.data_std)
    for row in data.batches("val", Gap(), 1):
        tally.add({"mse": (linear(row.given(), model.data_mean) - row.values) ** 2}, row.scored)
    return torch.where(tally.count > 0, (tally.sums["mse"] / tally.count).sqrt(), model.data_std)


def scores_of(models: dict[str, SequenceModel], data: SeriesData) -> dict[str, dict[str, float]]:
    """For each way to fill a gap its scores at the hidden values of the test windows."""
    first = next(iter(models.values()))
    spread = spread_of_lines(first, data)
    names = (*models, "Gaussian process", "straight lines")
    tallies = {name: ScoreAccumulator(data.channels, first.data_std) for name in names}
    for row in data.batches("test", Gap(), 1):
        lines = Gaussian(linear(row.given(), first.data_mean), spread.expand(row.values.shape))
        predictions = [filled(model, row) for model in models.values()]
        predictions += [plain_scores(by_process(row, first), row.values), plain_scores(lines, row.values)]
        for tally, scores in zip(tallies.values(), predictions, strict=True):
            tally.add(scores, row.scored)
    return {name: tally.result("") for name, tally in tallies.items()}


def filled(model: SequenceModel, row: TimeSeries) -> Scores:
    with model.fixed_noise(model.seed):
        return sample_scores(model.predict(row, 99), row.values)


def hidden_of(data: SeriesData) -> bytes:
    """The hidden values, which identify a data set and its split."""
    return b"".join(x.values[x.scored].numpy().tobytes() for x in data.batches("test", Gap(), 1))


def grid_row(row: TimeSeries, count: int = 200) -> tuple[TimeSeries, torch.Tensor]:
    """The seen points of a window and a grid of query times between them; and which points are of the grid."""
    seen = row.seen[0].any(-1)
    grid = torch.linspace(row.times[0, 0].item(), row.times[0, -1].item(), count, dtype=torch.float64)
    order = torch.cat([row.times[0, seen], grid]).argsort(stable=True)
    put = lambda own, new: torch.cat([own[0, seen], new.expand(count, *own.shape[2:])])[order][None]
    zero = torch.zeros(1, row.values.shape[2])
    is_grid = put(torch.zeros_like(row.times), torch.ones(1))[0].bool()
    queries = replace(
        row,
        times=torch.cat([row.times[0, seen], grid])[order][None],
        values=put(row.values, zero),
        seen=put(row.seen, zero.bool()),
        scored=put(torch.zeros_like(row.seen), ~zero.bool()),
        error=None if row.error is None else put(row.error, zero),
        clean=None,
        most_seen=None,
        in_training=False,
    )
    return queries, is_grid


def draw(row: TimeSeries, model, data: SeriesData, file: Path) -> None:
    """One window: the seen points, the hidden ones, and both bands (5 to 95 %)."""
    queries, is_grid = grid_row(row)
    with model.fixed_noise(0):
        prediction = model.predict(queries, 4000)
    process = by_process(queries, model)
    grid = queries.times[0, is_grid]
    low, high = np.quantile(prediction.paths[:, 0, is_grid, 0].numpy(), [0.05, 0.95], 0)
    mean, std = process.mean[0, is_grid, 0], process.std[0, is_grid, 0]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, name, curve, bottom, top in (
        (left, type(model).__name__, prediction.mean[0, is_grid, 0], low, high),
        (right, "Gaussian process", mean, mean - 1.645 * std, mean + 1.645 * std),
    ):
        ax.fill_between(grid, bottom, top, color="#56b4e9", alpha=0.35, lw=0, label="5-95 %")
        ax.plot(grid, curve, color="#0072b2", label="mean")
        for mask, face, label in ((row.seen, "black", "seen"), (row.scored, "white", "hidden")):
            there = mask[0, :, 0]
            ax.plot(row.times[0, there], row.values[0, there, 0], "o", mfc=face, mec="#222222", ms=4, label=label)
        ax.set_title(name)
        ax.set_xlabel(f"time [{data.time_unit}]")
        ax.grid(alpha=0.25)
    left.set_ylabel(f"{data.channels[0]} [{data.units[0]}]" if data.units else data.channels[0])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=120)


def main() -> int:
    given = arguments(__doc__ or "", ("runs", "picture"), sys.argv[1:])
    configure_logging()
    if "runs" not in given:
        raise ValueError("runs=<run folder>,... is missing.")
    fitted = [(Path(run).name, *vrnn_lab.load(run)) for run in given["runs"].split(",")]
    alike: dict[bytes, list[tuple[str, SequenceModel, SeriesData]]] = {}
    for run in fitted:
        alike.setdefault(hidden_of(run[2]), []).append(run)
    print("middle third of each test window hidden".ljust(44) + "".join(f"{k:>{w}}" for k, w in SCORES.items()))
    for runs in alike.values():
        data = runs[0][2]
        unit = f", {data.units[0]}" if data.units else ""
        print(f"{', '.join(data.channels)}{unit}, {len(data.splits['test'])} windows")
        models = {f"{type(model).__name__} ({folder})": model for folder, model, _ in runs}
        for name, scores in scores_of(models, data).items():
            print(f"  {name}".ljust(44) + "".join(f"{scores[f'/{k}']:{w}.4g}" for k, w in SCORES.items()))
    if "picture" in given:
        _, model, data = fitted[0]
        rows = list(data.batches("test", Gap(), 1))
        draw(rows[len(rows) // 2], model, data, Path(given["picture"]))
        print(f"figure   {given['picture']}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
