"""Implement a latent ODE as in the papers' public code (Rubanova et al. 2019, arXiv 1907.03907; Chen et al. 2018).

All series share their times. The encoder steps over the seen times one by one, from the last to the first: an Euler
step of its ODE, then its GRU. The path is solved by torchdiffeq's dopri5 at all times. Sizes, activations and
likelihood are those of our model: an encoder state of `encoder`, fields of two layers of `width`, a linear decoder,
one learned std.
"""

from itertools import pairwise
from math import log, pi

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchdiffeq import odeint


def layers(*sizes: int) -> nn.Sequential:
    modules = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*modules[:-1])


class PlainLatentODE(nn.Module):
    def __init__(self, latent: int, encoder: int, width: int, rtol: float = 1e-3, atol: float = 1e-4):
        super().__init__()
        self.flow = layers(encoder, width, encoder)
        self.cell = nn.GRUCell(2, encoder)  # a value and whether it is seen
        self.posterior = layers(encoder, width, 2 * latent)
        self.field = layers(latent, width, width, latent)
        self.decoder = nn.Linear(latent, 1)
        self.log_std = nn.Parameter(torch.tensor(log(0.05)))
        self.tolerances = {"rtol": rtol, "atol": atol}

    def encode(self, times: Tensor, values: Tensor, seen: Tensor) -> Normal:
        """Return q(z_0 | seen) from times (time,), values and seen (batch, time) of the seen points."""
        state = values.new_zeros(len(values), self.cell.hidden_size)
        later = times[-1]
        for i in reversed(range(len(times))):
            state = state + (times[i] - later) * self.flow(state)
            state = self.cell(torch.stack([values[:, i], seen[:, i]], 1), state)
            later = times[i]
        mean, log_std = self.posterior(state).chunk(2, -1)
        return Normal(mean, log_std.exp())

    def loss(self, times: Tensor, values: Tensor, seen: Tensor, samples: int) -> Tensor:
        """Return the negative ELBO per value of all (batch, time) values, which share (time,) times from 0 on."""
        observed = seen.any(0)
        q = self.encode(times[observed], (values * seen)[:, observed], seen[:, observed].to(values))
        z = q.rsample((samples,))
        path = odeint(lambda t, state: self.field(state), z, times, method="dopri5", **self.tolerances)
        assert isinstance(path, Tensor)
        mean = self.decoder(path)[..., 0].permute(1, 2, 0)
        nll = 0.5 * ((values - mean) / self.log_std.exp()) ** 2 + self.log_std + 0.5 * log(2 * pi)
        kl = kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).sum()
        return (nll.mean(0).sum() + kl) / values.numel()
