"""Define parts of models that have a latent at every step: a backward recurrent network, and a Markov transition."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vrnn_lab.core.compile_loops import loop
from vrnn_lab.core.series import pick
from vrnn_lab.core.types import Count
from vrnn_lab.models.layers import Activation, GRUCell, mlp
from vrnn_lab.models.networks import GAP_FEATURES, gap_features, with_covariates


class BackwardNetwork(nn.Module):
    """Summarise each point and those after it, for a posterior that reads the whole series (SRNN: Fraccaro et al.
    2016, arXiv 1605.07571, eq. 11).

    a_i = GRU([features_i, gap_{i+1}, u_i], a_{i+1}) over the points of compacted rows, with a = 0 after the last one.
    """

    def __init__(self, features: int, covariates: int, width: Count):
        super().__init__()
        self.memory = GRUCell(features + GAP_FEATURES + covariates, width)

    def _inputs(self, features: Tensor, gap: Tensor, covariates: Tensor | None) -> Tensor:
        following = torch.cat([gap[:, 1:], torch.zeros_like(gap[:, :1])], 1)
        return with_covariates(torch.cat([features, gap_features(following)], -1), covariates)

    def over(
        self,
        features: Float[Tensor, "batch time feature"],
        gap: Float[Tensor, "batch time"],
        covariates: Float[Tensor, "batch time covariate"] | None,
        counts: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time width"]:
        """Return a_i at every point; gap is the time since the previous point, in usual gaps."""
        place = torch.arange(counts.shape[1], device=counts.device).expand_as(counts)
        last = counts.sum(1, keepdim=True) - 1
        index = torch.where(counts, last - place, place)  # reverses the points, and leaves the padding behind them
        inputs = pick(self._inputs(features, gap, covariates), index)
        return pick(self.memory.over(inputs), index)

    @loop
    def within_stretches(
        self,
        features: Float[Tensor, "batch time feature"],
        gap: Float[Tensor, "batch time"],
        covariates: Float[Tensor, "batch time covariate"] | None,
        counts: Bool[Tensor, "batch time"],
        asked: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time width"]:
        """Return a_i computed from point i on and up to the next point with a query, that point included.

        So what a causal model predicts at a query depends on no value after it.
        """
        gates = self.memory.gates(self._inputs(features, gap, covariates))
        state, states = gates.new_zeros(len(gates), self.memory.size), []
        reads = (counts & ~asked)[..., None]  # whether the state after point i may be read at point i
        for i in reversed(range(gates.shape[1])):
            after = torch.where(reads[:, i], state, 0)
            state = torch.where(counts[:, i, None], self.memory(gates[:, i], after), 0)
            states.append(state)
        return torch.stack(states[::-1], 1)


class GatedTransition(nn.Module):
    """Give the next latent by the gated transition of deep Markov models (Krishnan et al. 2017, arXiv 1609.09869).

    From the state [z, further inputs]: mean = (1 - g) (A z + a) + g h, raw log-std = B relu(h) + b, with h a network
    of the state and g the sigmoid of another one; A begins as the identity, and a as zero.
    """

    def __init__(self, latent: Count, more: int, width: Count, depth: int, activation: Activation):
        super().__init__()
        self.latent = latent
        self.gate = mlp(latent + more, width, latent, depth, activation)
        self.proposal = mlp(latent + more, width, latent, depth, activation)
        self.kept = nn.Linear(latent, latent)
        self.log_std = nn.Linear(latent, latent)
        with torch.no_grad():
            self.kept.weight.copy_(torch.eye(latent))
            self.kept.bias.zero_()

    def forward(self, state: Float[Tensor, "*rows state"]) -> Float[Tensor, "*rows double"]:
        """Return the mean and the raw log-std, as `Normal.of` reads them."""
        proposal = self.proposal(state)
        mean = torch.lerp(self.kept(state[..., : self.latent]), proposal, torch.sigmoid(self.gate(state)))
        return torch.cat([mean, self.log_std(torch.relu(proposal))], -1)
