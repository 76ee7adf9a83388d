"""Measure the exact likelihood of one record and its gradient: linear_sde, celerite2, a dense Gaussian process."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import log, pi, sqrt
from typing import Any

import numpy as np
import torch

from bench import ours
from bench.harness import OPTIONS, Row, against, installed, missing, row, timed, within
from bench.vrnn import scale_of
from vrnn_lab.core.series import series_of
from vrnn_lab.models.linear_readout import Loadings
from vrnn_lab.models.linear_sde import LinearSDE
from vrnn_lab.models.linear_state import SLOWEST, SPEED, Independent

DECAY, SECOND, FREQUENCY = 2.0, 5.0, 10.0  # rates of the two parts, in 1 / windows
VARIANCES, NOISE = (0.7, 0.4), 0.3  # of the two parts, and the std of the noise
GAP = 0.02  # mean time between points, in windows
POINTS = (1_000, 10_000, 100_000)
DENSE = 10_000  # most points for a dense matrix: 4 GB with its gradients
SERIES, LENGTH = 1000, 50
STEPS: int = LinearSDE.usual_steps or 0  # of a default fit

LogLikelihood = Callable[[], float]  # returns log p; its gradient is computed too


@dataclass(frozen=True)
class Record:
    """Hold random times and values of one record."""

    times: np.ndarray  # (points,)
    values: np.ndarray  # (points,)

    @classmethod
    def of(cls, points: int) -> "Record":
        rng = np.random.default_rng(0)
        return cls(rng.exponential(GAP, points).cumsum(), rng.standard_normal(points))


def by_model(record: Record, oscillator: bool) -> LogLikelihood:
    """Compute by linear_sde: Ornstein-Uhlenbeck plus Matern-3/2 or a damped oscillation, without levels."""
    second = ["model.matern=0", "model.oscillators=1"] if oscillator else ["model.matern=1", "model.oscillators=0"]
    keys = ["model=linear_sde", "trainer=cpu", "model.level=none", "model.mean=constant", *second]
    model = ours.parts_of(*keys, scale=scale_of(2, 1, "real")).model
    assert isinstance(model, LinearSDE) and isinstance(model.dynamics, Independent)
    with torch.no_grad():
        model.dynamics.log_decay.copy_(torch.tensor([[DECAY - SLOWEST, SECOND - SLOWEST]]).log() / SPEED)
        if model.dynamics.log_frequency is not None:
            model.dynamics.log_frequency.fill_(log(FREQUENCY) / SPEED)
        for part, variance in zip(model.readout.parts, VARIANCES, strict=True):
            assert isinstance(part, Loadings)
            part.log_std.fill_(0.5 * log(variance) / SPEED)
        model.head.log_std.fill_(0.5 * log(NOISE**2 - 1e-6) / model.head.speed)
    batch = series_of(record.times[None], record.values[None, :, None]).to(OPTIONS.device)
    batch = replace(batch, scored=batch.seen, seen=torch.zeros_like(batch.seen))

    def log_likelihood() -> float:
        model.zero_grad()
        loss = model.loss_terms(batch).nll.sum()
        loss.backward()
        return -loss.item()

    return log_likelihood


def by_process(record: Record) -> LogLikelihood:
    """Compute by scikit-learn's Gaussian process with the same kernel."""
    process_of: Any = importlib.import_module("sklearn.gaussian_process").GaussianProcessRegressor
    kernels: Any = importlib.import_module("sklearn.gaussian_process.kernels")
    one, other = VARIANCES
    first = kernels.ConstantKernel(one) * kernels.Matern(1 / DECAY, nu=0.5)
    second = kernels.ConstantKernel(other) * kernels.Matern(sqrt(3) / SECOND, nu=1.5)
    process = process_of(first + second + kernels.WhiteKernel(NOISE**2), alpha=0.0, optimizer=None)
    few = slice(0, 2)  # a fit of all points would solve once more
    process.fit(record.times[few, None], record.values[few])
    process.X_train_, process.y_train_ = record.times[:, None], record.values
    return lambda: float(process.log_marginal_likelihood(process.kernel_.theta, eval_gradient=True)[0])


def by_celerite(record: Record) -> LogLikelihood:
    """Compute by celerite2 (Foreman-Mackey et al. 2017), in C++, with the same kernel.

    The gradients are with respect to its matrices; those of the parameters follow from them at little cost.
    """
    backprop: Any = importlib.import_module("celerite2.backprop")
    terms: Any = importlib.import_module("celerite2.terms")
    one, other = VARIANCES
    kernel = terms.RealTerm(a=one, c=DECAY) + terms.ComplexTerm(a=other, b=0.0, c=SECOND, d=FREQUENCY)
    times, values, count = record.times, record.values[:, None].copy(), len(record.times)
    like = lambda *others: [np.empty_like(each) for each in others]

    def log_likelihood() -> float:
        c, a, u, v = kernel.get_celerite_matrices(times, np.full(count, NOISE**2))
        room = np.empty((count, len(c), len(c))), np.empty((count, len(c), 1))
        d, w, s = backprop.factor_fwd(times, c, a, u, v, *like(a, v), room[0])
        z, f = backprop.solve_lower_fwd(times, c, u, w, values, *like(values), room[1])
        square = np.square(z[:, 0]) / d
        solved = like(times, c, u, w, values)
        to_w = backprop.solve_lower_rev(times, c, u, w, values, z, f, -z / d[:, None], *solved)[3]
        backprop.factor_rev(times, c, a, u, v, d, w, s, 0.5 * (square - 1) / d, to_w, *like(times, c, a, u, v))
        return float(-0.5 * (square + np.log(2 * pi * d)).sum())

    return log_likelihood


def apart(one: float, other: float) -> dict[str, Any]:
    """Return the difference of two log likelihoods relative to their size, for a row of the table."""
    return {"apart": float(f"{abs(one - other) / abs(other):.1e}")}


def rows(quick: bool) -> Iterator[Row]:
    for points in POINTS[:1] if quick else POINTS:
        record = Record.of(points)
        yield from _against_celerite(record)
        if points <= DENSE:
            yield _against_process(record)
    yield fit(quick)


def _against_celerite(record: Record) -> Iterator[Row]:
    points = len(record.times)
    name = f"one record of {points} points, OU + oscillation: log p and gradient"
    own, target = by_model(record, oscillator=True), 20.0 if points == POINTS[-1] else None
    if installed("celerite2"):
        peer = by_celerite(record)
        yield against(name, own, peer, "celerite2 (C++)", target, "<=", **apart(own(), peer()))
    else:
        yield missing(name, "celerite2", target, "<=")
    if points == POINTS[-1]:
        taken = min(timed(own).wall for _ in range(3))
        yield within(f"one record of {points} points: log p and gradient", 1e3 * taken, 1000.0, "ms")


def _against_process(record: Record) -> Row:
    points = len(record.times)
    name = f"one record of {points} points, OU + Matern-3/2: log p and gradient"
    target = 1000.0 if points == DENSE else None
    if not installed("sklearn"):
        return missing(name, "scikit-learn", target)
    own, peer = by_model(record, oscillator=False), by_process(record)
    own()
    values: list[float] = []
    once = timed(lambda: values.append(peer())).wall  # with 10 000 points it takes minutes, so it is measured once
    taken = min(timed(own).wall for _ in range(5))
    return row(name, 1e3 * taken, 1e3 * once, "scikit-learn's GP", "ms", target, **apart(own(), values[0]))


def fit(quick: bool) -> Row:
    """Measure all steps of a default fit, without validation, on series of the `ou` process."""
    series, steps = (100, 5) if quick else (SERIES, STEPS)
    keys = [f"data.train={series}", f"data.points=[{LENGTH},{LENGTH}]"]
    parts = ours.parts_of("model=linear_sde", "data=ou", "trainer=cpu", *keys)
    loader, model, done = parts.data.train_dataloader(), parts.model, 0
    optimizer = model.recipe.optim(model.parameters())

    def train() -> None:
        nonlocal done
        while done < steps:
            for batch in loader:
                batch = batch.to(OPTIONS.device)
                optimizer.zero_grad()
                ours.loss_of(model.loss_terms(batch), batch).backward()
                optimizer.step()
                done += 1
                if done == steps:
                    return

    name = f"{steps} steps on {series} series of {LENGTH} points: a default fit"
    return within(name, timed(train).wall, 30.0, "s")
