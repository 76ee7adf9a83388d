"""Simulate the nonlinear spiral on which neural ODEs are usually demonstrated, in short windows."""

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor
from torchdiffeq import odeint

from vrnn_lab.core.types import Count, Natural, NonNegative
from vrnn_lab.data.base import Ragged, SeriesData, generator

START, LENGTH = (2.0, 0.0), 25.0
A = ((-0.1, 2.0), (-2.0, -0.1))


class OdeDemo(SeriesData):
    """Simulate y' = (y^3) A, A = [[-0.1, 2], [-2, -0.1]], row vector times A, at `points` even times in [0, 25].

    The demo curve starts at (2, 0) (torchdiffeq's examples/ode_demo.py; Chen et al. 2018, arXiv 1806.07366).
    * train: every window of `batch_time` consecutive points of that curve that the demo may draw, with its time
      stamps. The demo draws batch_size of them anew at each step; here an epoch visits each once (1000 points, 10 a
      window: 990 windows, 50 steps an epoch, the demo's 2000 iterations in 40 epochs).
    * val: the whole demo curve as one series. It contains the training points, so it tests whether short windows
      suffice to learn the long curve, not whether the vector field was learned elsewhere.
    * test: curves from `starts` other points, radius ~ U[1.5, 2.5] and angle uniform, over the same times.

    Without noise (as in the demo) train and val are the same for every seed. With noise each split is a separate
    observation; the training windows are cut from one noisy curve. Raise ValueError unless batch_time < points.
    """

    phase_plane = True

    def __init__(
        self,
        points: Count = 1000,
        batch_time: Count = 10,
        starts: Count = 16,
        noise: NonNegative = 0.0,
        batch_size: Count = 20,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        if batch_time >= points:
            raise ValueError(
                f"data.batch_time={batch_time} leaves no window of a curve of data.points={points}; "
                f"expected less than {points}."
            )
        self.points, self.batch_time, self.starts, self.noise = points, batch_time, starts, noise
        self.noise_std = noise or None

    @property
    def channels(self):
        return ("x", "y")

    def make(self):
        rng = generator(self.seed, 7)
        radius, angle = rng.uniform(1.5, 2.5, self.starts), rng.uniform(0, 2 * np.pi, self.starts)
        others = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        clean = self.curves(np.concatenate([[START, START], others]))  # the demo curve is observed twice
        values = clean + self.noise * rng.standard_normal(clean.shape)
        times = np.tile(np.linspace(0, LENGTH, self.points), (len(clean), 1))
        place = np.arange(self.points - self.batch_time)[:, None] + np.arange(self.batch_time)
        count = len(place)
        return {
            "train": Ragged.of(times[0][place], values[0][place], clean=clean[0][place]),
            "val": Ragged.of(times[1:2], values[1:2], clean=clean[1:2], first_id=count),
            "test": Ragged.of(times[2:], values[2:], clean=clean[2:], first_id=count + 1),
        }

    def field(self, state: Tensor) -> Tensor:
        """Return the true derivative y' (..., 2) at states (..., 2)."""
        return state**3 @ state.new_tensor(A)

    def curves(self, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Solve for the curves (series, points, 2) from starting points (series, 2), accurate to 1e-6."""
        times = torch.linspace(0, LENGTH, self.points, dtype=torch.float64)
        solved: Float64[Tensor, "points series 2"] = odeint(  # pyright: ignore
            lambda time, state: self.field(state),
            torch.from_numpy(start),
            times,
            method="dopri8",
            rtol=1e-11,
            atol=1e-12,
        )
        return solved.transpose(0, 1).numpy()
