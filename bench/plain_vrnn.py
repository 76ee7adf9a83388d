"""Implement a VRNN by the usual loop (Chung et al. 2015, arXiv 1506.02216): all of a step is inside the loop.

A step computes the features of x, prior, posterior, draw, features of z, output, likelihood and KL, then the GRU
cell. With the weights of our VRNN (`copied`) and its noise it is the same function.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from vrnn_lab.models.layers import mlp
from vrnn_lab.models.vrnn import VRNN


class PlainVRNN(nn.Module):
    """Model zeros and ones, all known, at equal gaps of the usual length."""

    def __init__(self, dim: int, width: int, latent: int, features: int):
        super().__init__()
        self.dim, self.width, self.latent = dim, width, latent
        self.phi_x = mlp(2 * dim, features, features, 1, "tanh")
        self.phi_z = mlp(latent, features, features, 1, "tanh")
        self.prior = mlp(width, width, 2 * latent, 1, "tanh")
        self.posterior = mlp(features + width, width, 2 * latent, 1, "tanh")
        self.output = mlp(features + width, width, dim, 1, "tanh")
        self.cell = nn.GRUCell(2 * features + 2, width)

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-std, bounded as in our VRNN."""
        mean, log_std = raw.chunk(2, -1)
        return mean, 5 * torch.tanh((log_std + 2) / 5) - 2

    def loss(self, values: Tensor, noise: Tensor) -> Tensor:
        """Return the negative ELBO per value; values (batch, time, dim), noise (batch, time, latent)."""
        batch, time, _ = values.shape
        state = values.new_zeros(batch, self.width)
        nothing = values.new_zeros(batch, 2 * self.dim)
        before, z_before = (
            torch.tanh(self.phi_x(nothing)),
            torch.tanh(self.phi_z(values.new_zeros(batch, self.latent))),
        )
        gap = values.new_tensor([0.0, 1.0])  # log(1 + gap) and exp(-gap) of a gap of zero
        usual = torch.stack([gap.new_tensor(1.0).log1p(), gap.new_tensor(-1.0).exp()])
        total = values.new_zeros(())
        for i in range(time):
            state = self.cell(torch.cat([before, gap.expand(batch, 2), z_before], 1), state)
            x = torch.tanh(self.phi_x(torch.cat([values[:, i], torch.ones_like(values[:, i])], 1)))
            mean, log_std = self._parts(self.prior(state))
            own_mean, own_log_std = self._parts(self.posterior(torch.cat([x, state], 1)))
            z_before = torch.tanh(self.phi_z(own_mean + own_log_std.exp() * noise[:, i]))
            logits = self.output(torch.cat([z_before, state], 1))
            ratio, shift = own_log_std - log_std, (own_mean - mean) * (-log_std).exp()
            kl = (0.5 * (torch.exp(2 * ratio) + shift * shift - 1) - ratio).sum()
            total = total + binary_cross_entropy_with_logits(logits, values[:, i], reduction="sum") + kl
            before, gap = x, usual
        return total / values.numel()


def copied(model: VRNN, dim: int) -> PlainVRNN:
    """Return a plain VRNN with the weights of ours."""
    features = model.posterior_of_x.in_features
    plain = PlainVRNN(dim, model.width, model.latent, features).to(model.posterior_of_x.weight.device)
    assert model.prior is not None
    for name in ("phi_x", "phi_z", "prior", "output"):
        getattr(plain, name).load_state_dict(getattr(model, name).state_dict())
    gates, recur = model.memory.gates, model.memory.recur
    weights = {
        plain.cell.weight_ih: torch.cat([gates.weight, model.gates_of_z.weight], 1),
        plain.cell.bias_ih: gates.bias,
        plain.cell.weight_hh: recur.weight,
        plain.cell.bias_hh: recur.bias,
        plain.posterior[0].weight: torch.cat([model.posterior_of_x.weight, model.posterior_of_state.weight], 1),
        plain.posterior[0].bias: model.posterior_of_x.bias,
        plain.posterior[2].weight: model.posterior_out.weight,
        plain.posterior[2].bias: model.posterior_out.bias,
    }
    with torch.no_grad():
        for mine, theirs in weights.items():
            mine.copy_(theirs)
    return plain
