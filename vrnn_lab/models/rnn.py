"""The RNN whose only randomness is its output."""

from torch import Tensor

from vrnn_lab.checks import Count, Natural
from vrnn_lab.losses import LossTerms
from vrnn_lab.models.steps import StepModel
from vrnn_lab.networks import GAP_FEATURES, Activation, Memory, mlp
from vrnn_lab.recipe import Recipe
from vrnn_lab.series import Scale, TimeSeries, compact


class RNN(StepModel):
    """An RNN with a random output (the RNN-Gauss of Chung et al. 2015, arXiv 1506.02216).

    s_i = GRU([x_{i-1}, known_{i-1}, gap_i], s_{i-1}),    x_i ~ head(s_i),

    with gap_i the time since the last point that counts, so log p(x) = sum_i log p(x_i | x_<i) is exact.
    """

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        width: Count = 64,
        depth: Natural = 1,
        activation: Activation = "tanh",
    ):
        super().__init__(scale, recipe, head(scale))
        self.width = width
        self.memory = Memory(2 * scale.dim + GAP_FEATURES, width)
        self.output = mlp(width, width, self.head.width, depth, activation)

    def _log_prob(self, series: TimeSeries) -> Tensor:
        series, _ = compact(series, series.counts)
        inputs = self._inputs(series.values, series.known, self._gap(series))
        density = self.head(self.output(self.memory.over(inputs)))
        return density.log_prob(series.values, series.scored).sum(1)

    def _loss_terms(self, series):
        log_prob = self._log_prob(series)
        return LossTerms(-log_prob, log_prob.new_zeros(len(log_prob)))

    def _log_weights(self, series, samples):
        return self._log_prob(series).expand(samples, -1)

    def _remember(self, inputs, latent, state):
        return self.memory(self.memory.gates(inputs), state)

    def _emit(self, state, values, seen, noise):
        return self.head(self.output(state)), noise
