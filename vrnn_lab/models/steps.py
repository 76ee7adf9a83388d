"""What models that go from point to point have in common."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.densities import Density
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.series import TimeSeries, compact, gaps, put_back


class StepModel(SequenceModel):
    """A model by the chain rule: the term at a point may read every value known before it.

    A leaf says how its state moves on (`_remember`) and what it says of the next point (`_emit`); at queries
    prediction feeds the model's own draws back. Leaves without latents have latent size 0.
    """

    causal = True
    latent: int = 0  # dimensions a step

    @abstractmethod
    def _start(self, like: Tensor, *rows: int) -> Float[Tensor, "*rows state"]:
        """The state before anything is known."""

    @abstractmethod
    def _remember(
        self, values: Tensor, known: Tensor, gap: Tensor, told: Tensor | None, latent: Tensor, state: Tensor
    ) -> Float[Tensor, "... state"]:
        """s_i from the point before (values, which of them are known, z), the gap to point i, the covariates of point
        i, which are known beforehand (as in Salinas et al. 2020, arXiv 1704.04110, section 3.1), and s_{i-1}."""

    @abstractmethod
    def _emit(
        self, state: Tensor, values: Tensor, seen: Tensor, noise: Tensor
    ) -> tuple[Density, Float[Tensor, "... latent"]]:
        """p(x_i | s_i, z_i) and z_i, drawn with standard normal noise given what is seen of point i."""

    def _before(self, series: TimeSeries) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """For each step of compacted rows the point before it (values, known), the gap up to it (batch, time, 1), and
        its own covariates.

        Before the first there is nothing. One more step follows the last point: where all of it is taken in.
        """
        nothing = torch.zeros_like(series.values[:, :1])
        known = series.known.to(series.values)
        gap = torch.cat([self._gap(series), nothing[:, :, 0]], 1)
        told = series.covariates
        told = told if told is None else torch.cat([told, torch.zeros_like(told[:, :1])], 1)
        return torch.cat([nothing, series.values * known], 1), torch.cat([nothing, known], 1), gap[..., None], told

    def _gap(self, series: TimeSeries) -> Tensor:
        """Gaps of compacted rows, in usual gaps."""
        return (gaps(series.times, series.counts) / self.usual_gap).to(series.values.dtype)

    def _longest(self, series: TimeSeries) -> float | None:
        """A bound on them that needs no look at the device."""
        if series.longest_gap is None or not series.in_training:
            return None
        return series.longest_gap / self.usual_gap

    def _predict(self, series: TimeSeries, samples: int) -> Prediction:
        series, index = compact(series, series.counts)
        batch, time, dim = series.values.shape
        draws = self.noise.at_points("value", series, samples, self.head.draws, series.values).unbind(2)
        latents = self.noise.at_points("latent", series, samples, self.latent, series.values).unbind(2)
        spread = (samples, batch, dim)
        values, seen = series.values.unbind(1), series.seen.unbind(1)
        # At a query all channels are drawn and fed back.
        gap, known = self._gap(series)[..., None].unbind(1), series.known.to(series.values).unbind(1)
        x, flag = series.values.new_zeros(spread), series.values.new_zeros(spread)
        latent, state = x.new_zeros(samples, batch, self.latent), self._start(x, samples, batch)
        paths, densities = [], []
        for i in range(time):
            told = None if series.covariates is None else series.covariates[:, i].expand(samples, -1, -1)
            state = self._remember(x, flag, gap[i].expand(samples, -1, -1), told, latent, state)
            density, latent = self._emit(state, values[i].expand(spread), seen[i].expand(spread), latents[i])
            density = density.blurred(None if series.error is None else series.error[:, i])
            density = density.given(values[i].expand(spread), seen[i].expand(spread))
            flag = known[i].expand(spread)
            x = torch.where(seen[i], values[i], density.draw(draws[i])) * flag
            paths.append(x)
            densities.append(density)
        unmove = lambda steps: put_back(torch.stack(steps, 2), index, 2)
        density = densities[0].stack(densities, unmove)
        return Prediction(unmove(paths), density)
