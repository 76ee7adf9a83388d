"""What models that go from point to point have in common."""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vrnn_lab.likelihoods import Gaussian
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.networks import gap_features, rnn_inputs
from vrnn_lab.series import TimeSeries, compact, gaps, put_back


class StepModel(SequenceModel):
    """A model by the chain rule: the term at a point may read every value known before it.

    A leaf says how its state moves on (`_remember`) and what it says of the next point (`_emit`); at queries
    prediction feeds the model's own draws back. RNN-like leaves have latent size 0.
    """

    causal = True
    width: int  # of the state
    latent: int = 0  # dimensions a step

    @abstractmethod
    def _remember(self, inputs: Tensor, latent: Tensor, state: Tensor) -> Tensor:
        """s_i from the point before ([x, known, features of the gap to point i], z) and s_{i-1}."""

    @abstractmethod
    def _emit(
        self, state: Tensor, values: Tensor, seen: Tensor, noise: Tensor
    ) -> tuple[Gaussian, Float[Tensor, "... latent"]]:
        """p(x_i | s_i, z_i) and z_i, drawn with standard normal noise given what is seen of point i."""

    def _state(self, like: Float[Tensor, "samples batch dim"]) -> Tensor:
        return like.new_zeros(*like.shape[:2], self.width)

    def _inputs(
        self, values: Float[Tensor, "batch time dim"], known: Bool[Tensor, "batch time dim"], gap: Tensor
    ) -> Float[Tensor, "batch time inputs"]:
        """Inputs of every step: the point before it (nothing before the first) and the gap up to it."""
        before = torch.zeros_like(values[:, :1])
        values = torch.cat([before, values[:, :-1]], 1)
        known = torch.cat([before.bool(), known[:, :-1]], 1)
        return rnn_inputs(values, known, gap)

    def _gap(self, series: TimeSeries) -> Tensor:
        """Gaps of compacted rows, in usual gaps."""
        return (gaps(series.times, series.counts) / self.usual_gap).to(series.values.dtype)

    def _predict(self, series: TimeSeries, samples: int) -> Prediction:
        series, index = compact(series, series.counts)
        batch, time, dim = series.values.shape
        fed = series.known  # at a query all channels are drawn and fed back
        draws = self.noise.at_points("value", series, samples, self.head.draws, series.values).unbind(2)
        latents = self.noise.at_points("latent", series, samples, self.latent, series.values).unbind(2)
        spread = (samples, batch, dim)
        values, seen = series.values.unbind(1), series.seen.unbind(1)
        gap, known = gap_features(self._gap(series)).unbind(1), fed.to(series.values).unbind(1)
        x, flag = series.values.new_zeros(spread), series.values.new_zeros(spread)
        latent, state = x.new_zeros(samples, batch, self.latent), self._state(x)
        paths, densities = [], []
        for i in range(time):
            inputs = torch.cat([x, flag, gap[i].expand(samples, -1, -1)], -1)
            state = self._remember(inputs, latent, state)
            density, latent = self._emit(state, values[i].expand(spread), seen[i].expand(spread), latents[i])
            x = torch.where(seen[i], values[i], density.draw(draws[i]))
            flag = known[i].expand(spread)
            x = x * flag
            paths.append(x)
            densities.append(density)
        unmove = lambda steps: put_back(torch.stack(steps, 2), index, 2)
        density = densities[0].stack(densities, unmove)
        return Prediction(unmove(paths), density)
