"""Define the rate of a Poisson process along a latent path, and its integral."""

from dataclasses import dataclass
from math import log

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from vrnn_lab.models.layers import Activation, mlp
from vrnn_lab.models.ode import Path

LEGENDRE = 4  # quadrature points per panel: exact for polynomials up to degree 7
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(LEGENDRE)


class Intensity(nn.Module):
    """Compute log lambda(z), in events per time unit of the model; initially it predicts the usual rate."""

    def __init__(self, latent: int, width: int, activation: Activation, usual_gap: float):
        super().__init__()
        self.layers = mlp(latent, width, 1, 1, activation)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, -log(usual_gap))
        self.places: Tensor
        self.weights: Tensor
        # Buffers: creating tensors at every step would synchronise with the device.
        self.register_buffer("places", torch.from_numpy(1 + POINTS), persistent=False)
        self.register_buffer("weights", torch.from_numpy(WEIGHTS), persistent=False)

    def forward(self, states: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows"]:
        return self.layers(states).squeeze(-1)


@dataclass(frozen=True)
class Rate:
    """Integrate lambda(z(t)) over each row's own window, by Gauss-Legendre quadrature between the nodes of the path.

    The rate is smooth within a step of the path but not across its nodes, so no panel crosses a node.
    """

    intensity: Intensity
    path: Path
    edges: Float64[Tensor, "batch edges"]  # panel boundaries: window start, nodes within, window end (repeated)

    @classmethod
    def over(cls, intensity: Intensity, path: Path, window: Float64[Tensor, "batch 2"], panels: int) -> "Rate":
        """Build the panels of a window (batch, 2) relative to z_0; panels: enough for the longest window."""
        first = (window[:, :1] / path.step).floor()
        edges = (first + torch.arange(panels + 1, device=window.device)) * path.step
        return cls(intensity, path, torch.maximum(edges, window[:, :1]).minimum(window[:, 1:]))

    def log_at(self, times: Float64[Tensor, "batch time"]) -> Float[Tensor, "samples batch time"]:
        """Return log lambda at each row's own times."""
        return self.intensity(self.path.at(times))

    def between(
        self, start: Float64[Tensor, "batch panel"], end: Float64[Tensor, "batch panel"]
    ) -> Float[Tensor, "samples batch panel"]:
        """Return the integral from `start` to `end`, which lie within one step of the path."""
        half = (end - start)[..., None] / 2
        times = start[..., None] + half * self.intensity.places
        rate = self.log_at(times.flatten(1)).exp().unflatten(2, (-1, LEGENDRE))
        return (rate * (half * self.intensity.weights).to(rate)).sum(-1)

    def total(self) -> Float[Tensor, "samples batch"]:
        """Return the expected number of events in the window."""
        return self.between(self.edges[:, :-1], self.edges[:, 1:]).sum(2)

    def until(self, times: Float64[Tensor, "batch time"]) -> Float[Tensor, "samples batch time"]:
        """Return the expected number of events from the window's start to each time within it."""
        cumulative = self.between(self.edges[:, :-1], self.edges[:, 1:]).cumsum(2)
        place = (torch.searchsorted(self.edges, times, right=True) - 1).clamp(0, self.edges.shape[1] - 2)
        before = torch.cat([torch.zeros_like(cumulative[:, :, :1]), cumulative], 2).gather(
            2, place.expand(len(cumulative), -1, -1)
        )
        return before + self.between(self.edges.gather(1, place), times)
