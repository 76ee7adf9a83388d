"""Define recurrent models whose only randomness is their output."""

import torch
from torch import Tensor

from vrnn_lab.core.series import Scale, TimeSeries, compact, put_back
from vrnn_lab.core.types import Count, Dropout, Natural
from vrnn_lab.models.cells import GRU
from vrnn_lab.models.last_value import StepLevel
from vrnn_lab.models.layers import Activation, mlp
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.models.networks import with_covariates
from vrnn_lab.models.recipe import Recipe
from vrnn_lab.models.steps import StepModel


class RNN(StepModel):
    """Model a series by an RNN with a random output (RNN-Gauss and RNN-GMM of Chung et al. 2015, arXiv 1506.02216).

    s_i = cell(x_{i-1}, known_{i-1}, gap_i, u_i, s_{i-1}),    x_i ~ head(output(s_i, u_i)).

    gap_i is the time since the last point that counts, and u_i are the covariates, where there are any. log p(x | u)
    = sum_i log p(x_i | x_<i, u) is exact. The cell (`vrnn_lab.models.cells`) determines how the state evolves between
    points: GRU, decay, GRU-D, ODE-RNN.

    dropout: the share of the values x_{i-1} and of the state's numbers before the output that training sets to zero
        at random.
    """

    takes_covariates = takes_error = True
    has_kl = False

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        width: Count = 64,
        depth: Natural = 1,
        activation: Activation = "tanh",
        level: StepLevel = "none",
        cell=GRU,
        dropout: Dropout = 0.0,
    ):
        super().__init__(scale, recipe, head, width, level, dropout)
        self.covariate_count = len(scale.covariates)
        self.width, self.cell = width, cell(self._read_scale(), width)
        self.output = self.head.begin(
            mlp(self.cell.output + self.covariate_count, width, self.head.width, depth, activation)
        )

    def _density(self, state: Tensor):
        """Return the density of a point; state: the cell's state, with the covariates appended undecayed."""
        read = state[..., : self.cell.output]
        return self.head(
            self.output(with_covariates(read, state[..., self.cell.size :] if self.covariate_count else None))
        )

    def _log_prob(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """Return log p of each series' scored values, in nats, and the states after each of its points."""
        series, index = compact(series, series.counts)
        values, known, gap, covariates = self._before(series)
        states = self.cell.over(values, known, gap, covariates, self._longest(series))
        read = self._dropped("dropout before the output", series, states[:, :-1])
        density = self._density(with_covariates(read, None if covariates is None else covariates[:, :-1]))
        density = self._moved(density, series).with_measurement_error(series.error)
        log_prob = density.log_prob(series.values, series.scored).sum(1)
        return log_prob, put_back(states[:, 1:, : self.cell.output], index)

    def _loss_terms(self, series, samples):
        log_prob, states = self._log_prob(series)
        return LossTerms(-log_prob, log_prob.new_zeros(len(log_prob)), states=states[None])

    def _log_weights(self, series, samples):
        return self._log_prob(series)[0].expand(samples, -1)

    def _start(self, like, *rows):
        return torch.cat([self.cell.start(like, *rows), like.new_zeros(*rows, self.covariate_count)], -1)

    def _remember(self, values, known, gap, covariates, latent, state):
        return with_covariates(self.cell(values, known, gap, covariates, state[..., : self.cell.size]), covariates)

    def _emit(self, state, values, seen, noise, ahead):
        return self._density(state), noise
