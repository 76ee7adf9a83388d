"""The neural ODE on the data themselves."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.densities import Density
from vrnn_lab.core.series import Scale, TimeSeries, compact, put_back
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import OneScaleHead, floored
from vrnn_lab.models.layers import Activation, mlp
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.models.ode import through, ticks_in_training
from vrnn_lab.models.recipe import Recipe


class NeuralODE(SequenceModel):
    """dy/dt = f(y^power) of the data y themselves (Chen et al. 2018, arXiv 1806.07366).

    y is in training standard deviations, t in typical training windows. f reads y from the training mean; a power
    above 1 is one of y from the data's own zero, which then matters.

    first seen point      x ~ head with location a and a spread of its own, both learned
    later seen points     x ~ head(y), y carried on from the seen point before
    points between seen ones, or after them: from the seen point before; points before them: back from the first
    At a seen point y becomes x, a channel that is missing stays as it was carried (a, at the first).

    So log p is exact. Where nothing is seen, the first point that counts takes the place of the first seen one:
    its value in the loss, its draw in prediction. The task forecast until=1 is torchdiffeq's ode_demo: the first
    point of each window seen, one solve, the others scored. Steps are no longer than a typical training window's
    over `nodes`; a point that is asked ends a step, so asking more moves other answers by the solver's error.
    """

    causal = True  # but for points before the first seen one
    takes_error = True
    zero: Tensor

    def __init__(
        self,
        scale: Scale,
        recipe: Recipe,
        head,
        width: Count = 50,
        depth: Natural = 1,
        activation: Activation = "tanh",
        power: Count = 1,
        spread: Positive = 0.1,
        nodes: Count = 20,
    ):
        super().__init__(scale, recipe, head(scale), states=scale.dim)
        if not isinstance(self.head, OneScaleHead) or self.head.width != scale.dim:
            raise ValueError(
                "the state of a neural ODE is the data themselves, one location a channel, and this head wants more; "
                "choose model/head=gaussian or laplace with model.head.noise=channel or global, or model=latent_ode."
            )
        self.layers, self.power = mlp(scale.dim, width, scale.dim, depth, activation), power
        for name, parameter in self.layers.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=spread)
            else:
                nn.init.zeros_(parameter)
        zero = scale.mean / scale.std if power > 1 else torch.zeros(scale.dim)
        self.register_buffer("zero", zero.float())
        self.first = nn.Parameter(torch.zeros(scale.dim))
        self.log_spread = nn.Parameter(torch.zeros(scale.dim))
        self.step, self.reach = 1 / nodes, (scale.longest / scale.clock).item()

    def _field(self, time: Tensor, state: Tensor) -> Tensor:
        return self.layers((state + self.zero) ** self.power if self.power > 1 else state)

    def vector_field(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """dy/dt at some states, both in the data's units."""
        inside = ((states - self.data_mean) / self.data_std).to(self.dtype_of_weights)
        return self._field(self.first, inside) * self.data_std / self.data_clock

    def _anchor(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """The place (batch, 1) of compacted rows that all else starts from, and what values are taken in."""
        seen = series.seen.any(-1)
        any_seen = seen.any(1, keepdim=True)
        anchor = torch.where(any_seen, seen.to(torch.uint8).argmax(1, keepdim=True), 0)
        place = torch.arange(seen.shape[1], device=seen.device)
        instead = series.known & (place == anchor)[..., None]
        return anchor, torch.where(any_seen[..., None], series.seen, instead)

    def _carry(self, series: TimeSeries, values: Tensor, anchor: Tensor, taken: Tensor) -> Tensor:
        """y at every point of compacted rows, before it takes in the point's values (batch, time, dim).

        Both ways from the anchor at once, as rows of one batch; until it is reached, gaps are zero. Forward alone
        where every row is known to start from its first point.
        """
        times = series.times
        place = torch.arange(times.shape[1], device=times.device)
        ahead = torch.diff(times, dim=1, append=times[:, -1:])
        ahead = torch.where((place >= anchor) & series.counts.roll(-1, 1), ahead, 0)
        told, gap = torch.cat([values, taken.to(values)], -1), ahead
        both = not (series.in_training and series.opens_seen)
        if both:
            back = torch.diff(times, dim=1, prepend=times[:, :1]).neg()
            back = torch.where(place <= anchor, back, 0).flip(1)
            only = torch.cat([values, (taken & (place == anchor)[..., None]).to(values)], -1).flip(1)
            told, gap = torch.cat([told, only]), torch.cat([ahead, back])
        start = self.first.expand(len(told), -1)
        jump = lambda told, state: torch.where(told[..., self.scale.dim :] > 0, told[..., : self.scale.dim], state)
        most = None
        if series.in_training:
            most = ticks_in_training(times.shape[1], self.reach, self.step, series.longest_gap)
        _, arrived = through(self._field, jump, told, gap, start, self.step, most)
        carried = torch.cat([start[:, None], arrived[:, :-1]], 1)
        if not both:
            return carried
        forward, backward = carried.chunk(2)
        return torch.where((place < anchor)[..., None], backward.flip(1), forward)

    def _density(self, carried: Tensor, anchor: Tensor) -> Density:
        """Of every point; the anchor's, whose location is `first`, has a spread of its own."""
        density = self.head(carried)
        there = (torch.arange(carried.shape[-2], device=carried.device) == anchor)[..., None]
        return replace(density, scale=torch.where(there, floored(self.log_spread), density.scale))

    def _terms(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """log p of each series' scored values, and y at each of its points."""
        series, index = compact(series, series.counts)
        anchor, taken = self._anchor(series)
        carried = self._carry(series, series.values, anchor, taken)
        density = self._density(carried, anchor).with_measurement_error(series.error)
        log_prob = density.log_prob(series.values, series.scored).sum(1)
        return log_prob, put_back(carried, index)

    def _loss_terms(self, series, samples):
        log_prob, states = self._terms(series)
        return LossTerms(-log_prob, log_prob.new_zeros(len(log_prob)), states=states[None])

    def _log_weights(self, series, samples):
        return self._terms(series)[0].expand(samples, -1)

    def _predict(self, series, samples):
        series, index = compact(series, series.counts)
        anchor, taken = self._anchor(series)
        noise = self.noise.at_points("value", series, samples, self.head.draws, series.values)
        first = (
            self._density(self.first.expand_as(series.values), anchor)
            .with_measurement_error(series.error)
            .draw(noise)
        )
        values = torch.where(series.seen, series.values, first)
        if series.seen.any(-1).any(1).all():
            values = values[:1]  # no row is to be drawn from its first point on: one solve serves all samples
        rows = lambda x: x.repeat(len(values), *[1] * (x.ndim - 1))
        many = replace(series.map(rows), values=values.flatten(0, 1))
        carried = self._carry(many, many.values, rows(anchor), rows(taken)).unflatten(0, values.shape[:2])
        density = self._density(carried.expand(samples, -1, -1, -1), anchor).with_measurement_error(series.error)
        unmove = lambda x: put_back(x, index, 2)
        return Prediction(unmove(density.draw(noise)), density.map(unmove))
