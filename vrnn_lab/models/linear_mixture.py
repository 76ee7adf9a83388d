"""Define the components of a mixture of linear SDEs, which suits series that differ in how they move."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from vrnn_lab.core.noise import Noise
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.linear_state import SPEED

START = (-1.5, 0.75)  # log of the initial factors of the first and the last component
MOST = 8.0  # log of the largest factor, and its negative that of the smallest
GOLDEN = 0.5 * (5**0.5 - 1)  # multiples of it, modulo 1, fill the interval evenly however many there are


@dataclass(frozen=True)
class Factors:
    """Hold the factors by which each row's SDE differs from the base."""

    signal: Float64[Tensor, "rows 1 dim"]  # of the stds of the moving parts
    noise: Float64[Tensor, "rows 1 dim"]  # of the std of the observations' noise
    speed: Float64[Tensor, "rows 1"]  # of all decay rates and frequencies


class Components(nn.Module):
    """Define the mixture p(x) = sum_k weight_k p_k(x), where k is drawn once for every `group` of a series.

    Component k is the base SDE with its moving parts' stds times signal_k, its noise times noise_k (but not the error
    bars that the data give), and its clock running speed_k times as fast; levels, slopes and the mean are common to
    all. The components are initialised evenly from quiet to lively series. A mixture of this kind is known as a
    latent class mixed model (Proust-Lima et al. 2017, Journal of Statistical Software 78(2)).
    """

    def __init__(self, count: int, dim: int, groups: int, paced: bool):
        """Initialise `count` components; groups: 1, or one for every channel; paced: whether their speeds differ."""
        super().__init__()
        self.count, self.groups = count, groups
        start = torch.linspace(*START, count) / SPEED
        self.log_signal, self.log_noise = (nn.Parameter(start[:, None].repeat(1, dim)) for _ in range(2))
        self.log_speed = nn.Parameter(torch.zeros(count)) if paced else None
        self.logits = nn.Parameter(torch.zeros(count, groups))

    def factors(self, rows: int) -> Factors:
        """Return the factors of `rows` rows of each component, those of the first component first."""
        grown = lambda x: (SPEED * x.double()).clamp(-MOST, MOST).exp().repeat_interleave(rows, 0)[:, None]
        speed = torch.zeros_like(self.log_signal[:, 0]) if self.log_speed is None else self.log_speed
        return Factors(grown(self.log_signal), grown(self.log_noise), grown(speed))

    def joint(self, log_probs: Float64[Tensor, "count *shape groups"]) -> Float64[Tensor, "count *shape groups"]:
        """Return log weight_k + log p_k."""
        weights = (SPEED * self.logits.double()).log_softmax(0)
        return log_probs + weights.view(self.count, *[1] * (log_probs.ndim - 2), self.groups)

    def draw(
        self, log_probs: Float64[Tensor, "count batch groups"], noise: Noise, series: TimeSeries, samples: int
    ) -> Int64[Tensor, "samples batch groups"]:
        """Return draws of k from its posterior, which are spread evenly over the samples of a series.

        log_probs: log p_k of the observed values. A sample's uniform number is that of its series plus a multiple of
        the golden ratio, modulo 1, so that any first few samples hold the components in about their proportions.
        """
        reached = self.joint(log_probs).softmax(0).cumsum(0)[:-1]
        normal = noise.of_series("component", series, 1, self.groups, log_probs)
        steps = GOLDEN * torch.arange(samples, dtype=torch.float64, device=normal.device)
        uniform = (torch.special.ndtr(normal) + steps[:, None, None]) % 1
        return (uniform[:, None] > reached).sum(1)


def chosen(
    x: Float64[Tensor, "samples rows time dim"], component: Int64[Tensor, "samples batch groups"] | None
) -> Float64[Tensor, "samples batch time dim"]:
    """Return for each sample, series and channel the values of its component; rows: those of the first come first."""
    if component is None:
        return x
    samples, batch, groups = component.shape
    x = x.view(samples, -1, batch, *x.shape[2:])
    return x.gather(1, component[:, None, :, None].expand(-1, 1, -1, x.shape[3], x.shape[4] if groups == 1 else -1))[
        :, 0
    ]
