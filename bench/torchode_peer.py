"""Solve with torchode: each row's own steps and times in one batch; eager: torch.jit.script fails with torch 2.13."""

from collections.abc import Callable
from typing import Any

import torch
import torchode
from torch import Tensor


def solver_of(field: torch.nn.Module, rtol: float, atol: float) -> Callable[[Any], Tensor]:
    """Return a function that solves a problem at its rows' own times."""
    term = torchode.ODETerm(field, with_stats=False)  # pyright: ignore[reportArgumentType]
    controller = torchode.IntegralController(atol, rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)  # pyright: ignore[reportArgumentType]
    solver = solver.to(next(field.parameters()).device)

    def solve(problem: Any) -> Tensor:
        times = problem.times.to(problem.z0.dtype)
        start = torch.zeros_like(times[:, 0])
        initial_value = torchode.InitialValueProblem(problem.z0, start, times[:, -1], times)  # pyright: ignore[reportArgumentType]
        return solver.solve(initial_value).ys

    return solve
