"""Recurrent models whose only randomness is their output."""

from torch import Tensor

from vrnn_lab.cells import GRU
from vrnn_lab.checks import Count, Natural
from vrnn_lab.layers import Activation, mlp
from vrnn_lab.losses import LossTerms
from vrnn_lab.models.steps import StepModel
from vrnn_lab.recipe import Recipe
from vrnn_lab.series import Scale, TimeSeries, compact, put_back


class RNN(StepModel):
    """An RNN with a random output (the RNN-Gauss and RNN-GMM of Chung et al. 2015, arXiv 1506.02216).

    s_i = cell(x_{i-1}, known_{i-1}, gap_i, s_{i-1}),    x_i ~ head(output(s_i)),

    with gap_i the time since the last point that counts, so log p(x) = sum_i log p(x_i | x_<i) is exact.
    The cell (`vrnn_lab.cells`) says what happens between points: GRU, decay, GRU-D, ODE-RNN.
    """

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        width: Count = 64,
        depth: Natural = 1,
        activation: Activation = "tanh",
        cell=GRU,
    ):
        super().__init__(scale, recipe, head(scale), states=width)
        self.width, self.cell = width, cell(scale, width)
        self.output = mlp(self.cell.output, width, self.head.width, depth, activation)

    def _density(self, state: Tensor):
        return self.head(self.output(state[..., : self.cell.output]))

    def _log_prob(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """log p of each series' scored values, and the states after each of its points."""
        series, index = compact(series, series.counts)
        states = self.cell.over(*self._before(series), self._longest(series))
        log_prob = self._density(states[:, :-1]).log_prob(series.values, series.scored).sum(1)
        return log_prob, put_back(states[:, 1:, : self.cell.output], index)

    def _loss_terms(self, series, samples):
        log_prob, states = self._log_prob(series)
        return LossTerms(-log_prob, log_prob.new_zeros(len(log_prob)), states=states[None])

    def _log_weights(self, series, samples):
        return self._log_prob(series)[0].expand(samples, -1)

    def _start(self, like, *rows):
        return self.cell.start(like, *rows)

    def _remember(self, values, known, gap, latent, state):
        return self.cell(values, known, gap, state)

    def _emit(self, state, values, seen, noise):
        return self._density(state), noise
