"""A gap in the ice-core CO2 record, filled by a trained model with its band, beside a Gaussian process.

python docs/co2_gap.py run=<run folder of experiment=co2> [output=docs/co2_gap.png]

Every test window loses the middle third of its points. The model reads the others and is asked there; a Gaussian
process (Matern 3/2 and white noise, its parameters fitted to the window's own seen points by maximum likelihood)
and straight lines between neighbours answer the same question.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import vrnn_lab
from vrnn_lab.command import arguments, folder_of, guarded, quiet
from vrnn_lab.densities import Gaussian
from vrnn_lab.references import linear
from vrnn_lab.scores import plain_scores, sample_scores
from vrnn_lab.series import TimeSeries
from vrnn_lab.tasks import Task

SCORES = {"mse": 8, "crps": 9, "nll": 9, "coverage_90": 13}  # and the width of their columns


class Gap(Task):
    """The middle third of the points is hidden."""

    def __call__(self, times, known, window, rng):
        count = len(times)
        hidden = np.zeros_like(known)
        hidden[count // 3 : count - count // 3] = True
        return known & ~hidden, known & hidden


def gaussian_process(times, values, at) -> Gaussian:
    """Mean and std of a new observation at some times, given one series."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    span = np.ptp(times)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(span / 5, (span / 100, span * 5), nu=1.5)
    kernel = kernel + WhiteKernel(0.05, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bound reached by a hyperparameter
        process.fit(times[:, None], values)
        mean, std = process.predict(at[:, None], return_std=True)
    return Gaussian(torch.as_tensor(mean)[None, :, None], torch.as_tensor(std)[None, :, None])


def row_scores(row: TimeSeries, model, run_seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Of one window: scores of model and Gaussian process at the hidden points."""
    hidden, seen = row.scored[0, :, 0], row.seen[0, :, 0]
    with model.fixed_noise(run_seed):
        prediction = model.predict(row, 99)
    ours = {k: v[0, hidden, 0] for k, v in sample_scores(prediction, row.values).items()}
    times, values = row.times[0], row.values[0, :, 0]
    process = gaussian_process(times[seen].numpy(), values[seen].numpy(), times[hidden].numpy())
    theirs = plain_scores(process, row.values[:, hidden])
    lines = linear(row, model.data_mean)
    return {
        "latent ODE": ours,
        "Gaussian process": {k: v[0, :, 0] for k, v in theirs.items()},
        "straight lines": {"mse": ((lines - row.values) ** 2)[0, hidden, 0]},
    }


def draw(row: TimeSeries, model, file: Path, unit: str) -> None:
    """One window: the seen points, the hidden ones, and both bands (5 to 95 %)."""
    seen, hidden = row.seen[0, :, 0], row.scored[0, :, 0]
    times, values = row.times[0], row.values[0, :, 0]
    grid = torch.linspace(times[0].item(), times[-1].item(), 200, dtype=torch.float64)
    joined = torch.cat([times[seen], grid])
    order = joined.argsort(stable=True)
    is_grid = (torch.arange(len(joined)) >= int(seen.sum()))[order]
    known = torch.cat([values[seen], torch.zeros(200, dtype=torch.float64)])[order]
    asked = replace(
        row, times=joined[order][None], values=known[None, :, None], seen=~is_grid[None, :, None],
        scored=is_grid[None, :, None], clean=None, most_seen=None,
    )  # fmt: skip
    with model.fixed_noise(0):
        prediction = model.predict(asked, 4000)
    paths, middle = prediction.paths[:, 0, is_grid, 0].numpy(), prediction.mean[0, is_grid, 0]
    process = gaussian_process(times[seen].numpy(), values[seen].numpy(), grid.numpy())
    mean, std = process.mean[0, :, 0], process.std[0, :, 0]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    low, high = np.quantile(paths, [0.05, 0.95], 0)
    for ax, name, curve, bottom, top in (
        (left, "latent ODE", middle, low, high),
        (right, "Gaussian process", mean, mean - 1.645 * std, mean + 1.645 * std),
    ):
        ax.fill_between(grid, bottom, top, color="#56b4e9", alpha=0.35, lw=0, label="5-95 %")
        ax.plot(grid, curve, color="#0072b2", label="mean")
        ax.plot(times[seen], values[seen], "ko", ms=4, label="seen")
        ax.plot(times[hidden], values[hidden], "o", mfc="white", mec="#444444", ms=4, label="hidden")
        ax.set_title(name)
        ax.set_xlabel("time [kyr before 1950]")
        ax.grid(alpha=0.25)
    left.set_ylabel(f"CO2 [{unit}]")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=120)


def main() -> int:
    found = arguments(__doc__ or "", ("run", "output"), sys.argv[1:])
    quiet()
    model, data = vrnn_lab.load(folder_of(found))
    totals: dict[str, dict[str, list[torch.Tensor]]] = {}
    rows = [row for batch in data.batches("test", Gap(), 1) for row in [batch]]
    for row in rows:
        for name, scores in row_scores(row, model, 0).items():
            for key, each in scores.items():
                totals.setdefault(name, {}).setdefault(key, []).append(each)
    print(
        f"{len(rows)} test windows, middle third hidden".ljust(36) + "".join(f"{k:>{w}}" for k, w in SCORES.items())
    )
    for name, scores in totals.items():
        means = {k: torch.cat(each).mean().item() for k, each in scores.items()}
        cells = [f"{means[k]:{w}.4g}" if k in means else "" for k, w in SCORES.items()]
        print(f"  {name}".ljust(36) + "".join(cells))
    output = Path(found.get("output", "docs/co2_gap.png"))
    draw(rows[len(rows) // 2], model, output, data.units[0] if data.units else "")
    print(f"figure   {output}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
