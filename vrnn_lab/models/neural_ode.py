"""Define the neural ODE on the data themselves."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrnn_lab.core.densities import Density
from vrnn_lab.core.log_density import logs_of
from vrnn_lab.core.series import Scale, TimeSeries, compact, put_back
from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import OneScaleHead, floored
from vrnn_lab.models.layers import Activation, mlp
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.models.ode import integrate_with_jumps, ticks_in_training
from vrnn_lab.models.recipe import Recipe


class NeuralODE(SequenceModel):
    """Model the data y themselves by dy/dt = f(y^power) (Chen et al. 2018, arXiv 1806.07366).

    y is in training standard deviations, t in typical training windows. f reads y relative to the training mean; with
    a power above 1 it reads y relative to the data's own zero, which then matters.

    first observed point    x ~ head with location a and a spread of its own, both learned
    later observed points   x ~ head(y), y carried on from the previous observed point
    other points            y from the previous observed point; before the first one, backwards from it

    At an observed point y becomes x; a missing channel keeps its carried value (a, at the first point).

    So log p is exact. Where nothing is observed, the first point that counts takes the place of the first observed
    one: its value in the loss, its draw in prediction. The task forecast until=1 is torchdiffeq's ode_demo: the first
    point of each window is observed, one solve, the others are scored. Steps are at most 1 / nodes typical training
    windows; a queried point ends a step, so further queries change other predictions by the solver's error.

    ValueError where the head needs more than one number per channel.
    """

    causal = True  # except for points before the first observed one
    takes_error = True
    has_kl = False
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
                "the state of a neural ODE is the predicted value, one number per channel, but this head needs more "
                "numbers; choose model/head=gaussian or laplace with model.head.noise=channel or global, or "
                "model=latent_ode."
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
        """Return dy/dt at some states, both in the data's units."""
        inside = (logs_of(states, self.data_in_log) - self.data_mean) / self.data_std
        rate = self._field(self.first, inside.to(self.dtype_of_weights)) * self.data_std / self.data_clock
        return torch.where(self.data_in_log, states * rate, rate)  # d x / d t = x d log x / d t

    def _anchor(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """Return the index (batch, 1) of each compacted row's initial point, and which values reset the state."""
        seen = series.seen.any(-1)
        any_seen = seen.any(1, keepdim=True)
        anchor = torch.where(any_seen, seen.to(torch.uint8).argmax(1, keepdim=True), 0)
        place = torch.arange(seen.shape[1], device=seen.device)
        instead = series.known & (place == anchor)[..., None]
        return anchor, torch.where(any_seen[..., None], series.seen, instead)

    def _carry(self, series: TimeSeries, values: Tensor, anchor: Tensor, resets: Tensor) -> Tensor:
        """Return y at every point of compacted rows, before the point's own values reset it, (batch, time, dim).

        It runs in both directions from the anchor at once, as rows of one batch; gaps are zero until the anchor is
        reached. It runs forward alone where every row is known to start from its first point.
        """
        times = series.times
        place = torch.arange(times.shape[1], device=times.device)
        ahead = torch.diff(times, dim=1, append=times[:, -1:])
        ahead = torch.where((place >= anchor) & series.counts.roll(-1, 1), ahead, 0)
        inputs, gap = torch.cat([values, resets.to(values)], -1), ahead
        both = not (series.in_training and series.opens_seen)
        if both:
            back = torch.diff(times, dim=1, prepend=times[:, :1]).neg()
            back = torch.where(place <= anchor, back, 0).flip(1)
            only = torch.cat([values, (resets & (place == anchor)[..., None]).to(values)], -1).flip(1)
            inputs, gap = torch.cat([inputs, only]), torch.cat([ahead, back])
        start = self.first.expand(len(inputs), -1)
        jump = lambda inputs, state: torch.where(
            inputs[..., self.scale.dim :] > 0, inputs[..., : self.scale.dim], state
        )
        most = None
        if series.in_training:
            most = ticks_in_training(times.shape[1], self.reach, self.step, series.longest_gap)
        _, arrived = integrate_with_jumps(self._field, jump, inputs, gap, start, self.step, most)
        carried = torch.cat([start[:, None], arrived[:, :-1]], 1)
        if not both:
            return carried
        forward, backward = carried.chunk(2)
        return torch.where((place < anchor)[..., None], backward.flip(1), forward)

    def _density(self, carried: Tensor, anchor: Tensor) -> Density:
        """Return the density of every point; the anchor, whose location is `first`, has a spread of its own."""
        density = self.head(carried)
        there = (torch.arange(carried.shape[-2], device=carried.device) == anchor)[..., None]
        return replace(density, scale=torch.where(there, floored(self.log_spread), density.scale))

    def _terms(self, series: TimeSeries) -> tuple[Tensor, Tensor]:
        """Return log p of each series' scored values, in nats, and y at each of its points."""
        series, index = compact(series, series.counts)
        anchor, resets = self._anchor(series)
        carried = self._carry(series, series.values, anchor, resets)
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
        anchor, resets = self._anchor(series)
        noise = self.noise.at_points("value", series, samples, self.head.draws, series.values)
        first = (
            self._density(self.first.expand_as(series.values), anchor)
            .with_measurement_error(series.error)
            .draw(noise)
        )
        values = torch.where(series.seen, series.values, first)
        if series.seen.any(-1).any(1).all():
            values = values[:1]  # every row has an observed start, equal in all samples: one solve serves them all
        rows = lambda x: x.repeat(len(values), *[1] * (x.ndim - 1))
        many = replace(series.map(rows), values=values.flatten(0, 1))
        carried = self._carry(many, many.values, rows(anchor), rows(resets)).unflatten(0, values.shape[:2])
        density = self._density(carried.expand(samples, -1, -1, -1), anchor).with_measurement_error(series.error)
        unmove = lambda x: put_back(x, index, 2)
        return Prediction(unmove(density.draw(noise)), density.map(unmove))
