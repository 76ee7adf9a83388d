"""Define the base class of models that proceed from point to point."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from math import inf
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from vrnn_lab.core.densities import Density
from vrnn_lab.core.series import Scale, TimeSeries, compact, gaps, put_back
from vrnn_lab.core.types import Dropout
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import Head
from vrnn_lab.models.last_value import LastValue, StepLevel, kept_channels, last_values
from vrnn_lab.models.recipe import Recipe


class StepModel(SequenceModel):
    """Model a series by the chain rule: the term of a point may depend on every value known before it.

    A subclass defines the transition of its state (`_remember`) and the density of the next point (`_emit`); at
    queries, prediction feeds the model's own draws back. Models without latents have latent size 0.

    level=last: values are read and predicted as changes from the last known value (`LastValue`); none: they are used
    unchanged; auto: `kept_channels` decides. ValueError where level=last and the values are not real.
    """

    causal = True
    latent: int = 0  # dimensions per step

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head: Callable[[Scale], Head],
        states: int,
        level: StepLevel,
        dropout: Dropout = 0.0,
    ):
        kept = kept_channels(level, scale)
        keeps = bool(kept.any())
        # A spread predicted per point is one of changes, so it starts in their units.
        output_head = head(replace(scale, variation=None) if keeps else scale)
        super().__init__(scale, recipe, output_head, states)
        if level == "last" and scale.support != "real":
            raise ValueError(
                "model.level=last predicts changes of real values, but the values of the data set are "
                f"{scale.support}; set model.level=auto or none."
            )
        self.dropout = dropout
        # Standard normal noise lies below it with a probability of `dropout`.
        self.least_noise = NormalDist().inv_cdf(dropout) if dropout else -inf
        self.last = LastValue(scale, kept, getattr(output_head, "noise", "point") == "point") if keeps else None

    def vary(self, batch):
        """Mask the first points of about half of the series, at random, where every series is read from its own
        start.

        If every series were read from its first point on, the state could count points, and the first query past the
        longest series would meet a count that no training series reached. At least two points stay.
        """
        if not self.scale.whole_series:
            return batch
        self.noise.seed(self.seed, self.global_step, 1, device=self.device)
        place = batch.counts.cumsum(1)
        drawn = self.noise.of_series("start", batch, 1, 1, batch.times)[0]
        share = (2 * torch.special.ndtr(drawn) - 1).clamp(min=0)  # zero for half of the series on average
        left_out = (share * (place[:, -1:] - 1).clamp(min=0)).floor()
        kept = (place > left_out)[..., None]
        return replace(batch, seen=batch.seen & kept, scored=batch.scored & kept, opens_seen=False)

    def _dropped(
        self, stream: str, series: TimeSeries, x: Float[Tensor, "*samples batch time width"]
    ) -> Float[Tensor, "*samples batch time width"]:
        """Return x after dropout in training, with new draws at every point; `stream` names what is dropped.

        A share `dropout` of the numbers becomes zero, and the others are divided by 1 - dropout.
        """
        if not self.training or not self.dropout:
            return x
        noise = self.noise.at_points(stream, series, 1, x.shape[-1], x)[0]
        return x * (noise >= self.least_noise) / (1 - self.dropout)

    def _read_scale(self) -> Scale:
        """Return the scale of the network's inputs, which has twice the channels where the model keeps the level."""
        return self.scale if self.last is None else replace(self.scale, channels=2 * self.scale.channels)

    def _reading(self, values: Tensor, known: Tensor, last: Tensor, ever: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's inputs at points, and a mask of the known ones."""
        if self.last is None:
            return values * known, known
        return self.last.read(values, known, last, ever), torch.cat([known, known], -1)

    def _readings(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """Return the network's inputs at every point of compacted rows, and a mask of the known ones."""
        return self._reading(series.values, series.known, *last_values(series.values, series.known))

    def _moved(self, density: Density, series: TimeSeries) -> Density:
        """Return the density of the values of compacted rows, from the head's density."""
        if self.last is None:
            return density
        return self.last.move(density, *last_values(series.values, series.known))

    @abstractmethod
    def _start(self, like: Tensor, *rows: int) -> Float[Tensor, "*rows state"]:
        """Return the state before anything is known."""

    @abstractmethod
    def _remember(
        self, values: Tensor, known: Tensor, gap: Tensor, covariates: Tensor | None, latent: Tensor, state: Tensor
    ) -> Float[Tensor, "... state"]:
        """Return s_i from the previous point (values, mask of the known ones, z), the gap to point i, its covariates
        and s_{i-1}.

        The covariates of point i are known beforehand (as in Salinas et al. 2020, arXiv 1704.04110, section 3.1).
        """

    @abstractmethod
    def _emit(
        self, state: Tensor, values: Tensor, seen: Tensor, noise: Tensor, ahead: Float[Tensor, "... ahead"]
    ) -> tuple[Density, Float[Tensor, "... latent"]]:
        """Return p(x_i | s_i, z_i), and z_i drawn with standard normal noise given the observed values of point i.

        ahead: what `_look_ahead` returned for point i.
        """

    def _look_ahead(self, series: TimeSeries) -> Float[Tensor, "batch time ahead"]:
        """Return at every point of compacted rows a summary of the observed values from it on, up to the next query,
        which the posterior of its latent may read; nothing (ahead = 0) where a model has none."""
        return series.values.new_zeros(*series.times.shape, 0)

    def _before(self, series: TimeSeries) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the inputs of each step of compacted rows: the previous point (values, mask), the gap (batch, time,
        1), and the step's own covariates.

        The first step has no previous point. One more step follows the last point, to take that point in.
        """
        values, known = self._readings(series)
        values = self._dropped("dropout of inputs", series, values)
        nothing = torch.zeros_like(values[:, :1])
        gap = torch.cat([self._gap(series), nothing[:, :, 0]], 1)
        covariates = series.covariates
        if covariates is not None:
            covariates = torch.cat([covariates, torch.zeros_like(covariates[:, :1])], 1)
        return torch.cat([nothing, values], 1), torch.cat([nothing, known.to(values)], 1), gap[..., None], covariates

    def _gap(self, series: TimeSeries) -> Tensor:
        """Return the gaps of compacted rows, in usual gaps."""
        return (gaps(series.times, series.counts) / self.usual_gap).to(series.values.dtype)

    def _longest(self, series: TimeSeries) -> float | None:
        """Return a bound on the gaps, in usual gaps, that needs no synchronisation with the device; None where none
        is known."""
        if series.longest_gap is None or not series.in_training:
            return None
        return series.longest_gap / self.usual_gap

    def _predict(self, series: TimeSeries, samples: int) -> Prediction:
        series, index = compact(series, series.counts)
        batch, time, dim = series.values.shape
        draws = self.noise.at_points("value", series, samples, self.head.draws, series.values).unbind(2)
        latents = self.noise.at_points("latent", series, samples, self.latent, series.values).unbind(2)
        ahead = self._look_ahead(series).unbind(1)
        spread = (samples, batch, dim)
        values, seen = series.values.unbind(1), series.seen.unbind(1)
        # At a query all channels are drawn, and the draws become the inputs of the next step.
        gap, known = self._gap(series)[..., None].unbind(1), series.known.unbind(1)
        last, ever = series.values.new_zeros(spread), torch.zeros(spread, dtype=torch.bool, device=series.ids.device)
        before = self._reading(last, ever, last, ever)
        latent, state = last.new_zeros(samples, batch, self.latent), self._start(last, samples, batch)
        paths, densities = [], []
        for i in range(time):
            covariates = None if series.covariates is None else series.covariates[:, i].expand(samples, -1, -1)
            read, flag = before[0], before[1].to(last)
            state = self._remember(read, flag, gap[i].expand(samples, -1, -1), covariates, latent, state)
            value, shown = values[i].expand(spread), seen[i].expand(spread)
            density, latent = self._emit(state, *self._reading(value, shown, last, ever), latents[i], ahead[i])
            density = density if self.last is None else self.last.move(density, last, ever)
            density = density.with_measurement_error(None if series.error is None else series.error[:, i])
            density = density.given(value, shown)
            there = known[i].expand(spread)
            x = torch.where(there, torch.where(shown, value, density.draw(draws[i])), 0)
            before = self._reading(x, there, last, ever)
            last, ever = torch.where(there, x, last), ever | there
            paths.append(x)
            densities.append(density)
        unmove = lambda steps: put_back(torch.stack(steps, 2), index, 2)
        density = densities[0].stack(densities, unmove)
        return Prediction(unmove(paths), density)
