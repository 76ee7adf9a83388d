"""Draw joint paths of a linear-Gaussian signal given Gaussian observations."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.kalman import StateSpace, posterior
from vrnn_lab.core.noise import ChannelNoise, Noise
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.base import Prediction
from vrnn_lab.models.gaussian_sites import Site
from vrnn_lab.models.linear_mixture import Components, Factors, chosen
from vrnn_lab.models.linear_signal import LinearSignal
from vrnn_lab.models.linear_state import Independent
from vrnn_lab.models.observed_points import by_length, masked_alone
from vrnn_lab.models.prior_paths import PriorPaths

AT_ONCE = 2**18  # numbers of the paths of a state that are drawn at a time, so that they stay in the cache


@dataclass(frozen=True)
class Drawn:
    """Hold joint paths of the signal, and what is known of the marginals of every point."""

    signal: Float64[Tensor, "samples batch time dim"]
    mean: Float64[Tensor, "samples batch time dim"]  # of the signal, given the sample's component of the mixture
    std: Float64[Tensor, "samples batch time dim"]  # of a value as it would be observed
    noise: Float64[Tensor, "samples batch time dim"]  # std of the observation's noise
    component: Int64[Tensor, "samples batch groups"] | None  # None: there is only one

    def prediction(self, paths: Float64[Tensor, "samples batch time dim"], series: TimeSeries) -> Prediction:
        """Return paths with the densities of single values, in the precision of the series."""
        return Prediction(paths.to(series.values), Gaussian(self.mean.to(series.values), self.std.to(series.values)))


class LinearPaths(LinearSignal):
    """Draw joint paths by Matheron's rule.

    A path is one of the prior, plus the smoother's mean of the difference between the observed values and noisy
    observations of that path.
    """

    mixture: Components | None

    @abstractmethod
    def _observed(self, series: TimeSeries, factors: Factors | None = None) -> Site:
        """Return the filter's observations; factors: those of the series, where these are the rows of a mixture."""

    @abstractmethod
    def _rows(self, series: TimeSeries) -> tuple[TimeSeries, Factors | None]:
        """Return the series once for each component of the mixture, and the factors of these rows."""

    @abstractmethod
    def _log_probs(
        self, series: TimeSeries, *masks: Bool[Tensor, "batch time dim"]
    ) -> Float64[Tensor, "components masks batch groups"]:
        """Return log p of the values of each group of channels under each mask and component."""

    def _draw(self, series: TimeSeries, samples: int, points: Bool[Tensor, "batch time dim"]) -> Drawn:
        """Draw joint paths of the signal at some points of each channel given the observed values.

        At other points, where channels are separate, the result holds the mean function.
        """
        many, factors = self._rows(series)
        site = self._observed(many, factors)
        copies = len(many.ids) // len(series.ids)
        mean = self.readout.mean(series).repeat(copies, 1, 1)
        apart = isinstance(self.dynamics, Independent) and not self.joint
        draw = self._draw_apart if apart else self._draw_together
        parts = draw(many, replace(site, value=site.value - mean), factors, samples, points.repeat(copies, 1, 1))
        paths, middle, variance = parts
        parts = paths + mean, middle + mean, (variance + site.variance).sqrt(), site.variance.sqrt()
        component = self._component(series, samples)
        return Drawn(*(chosen(x.expand(samples, *mean.shape), component) for x in parts), component=component)

    def _draw_together(
        self, series: TimeSeries, site: Site, factors: Factors | None, samples: int, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return paths (samples, batch, time, dim), mean and variance (batch, time, dim) of the signal at all points.

        site: observations less the mean function.
        """
        space = self._space(series.times[..., None], site.variance, factors)
        paced = series if factors is None else replace(series, times=series.times * factors.speed)
        moving = PriorPaths(self.dynamics, self.noise, paced, samples).draw()
        paths, mean, variance = self._given(series, space, site.value, series.seen, self.noise, moving)
        return paths.movedim(-1, 0), mean, variance  # a row is a series

    def _draw_apart(
        self,
        series: TimeSeries,
        site: Site,
        factors: Factors | None,
        samples: int,
        points: Bool[Tensor, "batch time dim"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `_draw_together` does, where each channel has a state of its own, with zeros at other points.

        Every channel of a series is a row with its own points; rows with like numbers of them are drawn together, a
        few at a time.
        """
        assert isinstance(self.dynamics, Independent)
        (batch, time), dim = series.times.shape, self.scale.dim
        place = torch.arange(points.numel(), device=points.device).view(points.shape)
        there, times, values, variance, seen, place = masked_alone(
            points, series.times[..., None], site.value, site.variance, series.seen, place
        )
        space = self._space(times, variance, factors)
        rows = lambda x: self._split(x[..., None])[..., 0]
        there, times, values, seen, place = (rows(x)[..., 0] for x in (there, times, values, seen & there, place))
        paths = values.new_zeros(samples, points.numel())
        mean, spread = values.new_zeros(2, points.numel())
        for row, longest in by_length(there.sum(1), AT_ONCE // (samples * self.dynamics.states)):
            at = lambda x, row=row, longest=longest: x[row, :longest]
            source, channel = row // dim, row % dim
            mine = TimeSeries(
                times=at(times),
                values=at(values)[..., None],
                seen=at(seen)[..., None],
                scored=at(there & ~seen)[..., None],
                window=series.window[source],
                ids=series.ids[source],
            )
            noise = self.noise.of_channels(channel, dim)
            paced = mine if factors is None else replace(mine, times=mine.times * factors.speed[source])
            moving = PriorPaths(self.dynamics.of(channel), noise, paced, samples).draw()
            part = space.part(row, longest)
            drawn, middle, variance = self._given(mine, part, mine.values, mine.seen, noise, moving)
            target = at(place)[at(there)]
            paths[:, target] = drawn[:, :, 0].movedim(-1, 0)[:, at(there)]
            mean[target], spread[target] = middle[..., 0][at(there)], variance[..., 0][at(there)]
        return paths.view(samples, batch, time, dim), mean.view(batch, time, dim), spread.view(batch, time, dim)

    def _given(
        self,
        series: TimeSeries,
        space: StateSpace,
        values: Float64[Tensor, "batch time dim"],
        seen: Bool[Tensor, "batch time dim"],
        noise: Noise | ChannelNoise,
        moving: Float64[Tensor, "samples batch time groups part"],
    ) -> tuple[
        Float64[Tensor, "rows time channels samples"],
        Float64[Tensor, "rows time channels"],
        Float64[Tensor, "rows time channels"],
    ]:
        """Return paths of the signal given the seen values, and its mean and variance at every point.

        series: whose noise is read; values: less the mean function; moving: draws of the parts from the prior.
        """
        drawn, noisy = self._prior(series, space, noise, moving)
        columns = torch.cat([self._split(values[..., None]), noisy], -1)
        states, variance = posterior(space, columns, self._split(seen[..., None])[..., 0])
        signal = space.observe.expand(*states.shape[:2], -1, -1) @ states
        first, others = signal[..., :1], signal[..., 1:]
        return drawn + first - others, first[..., 0], variance

    def _prior(
        self,
        series: TimeSeries,
        space: StateSpace,
        noise: Noise | ChannelNoise,
        moving: Float64[Tensor, "samples batch time groups part"],
    ) -> tuple[Float64[Tensor, "rows time channels samples"], Float64[Tensor, "rows time channels samples"]]:
        """Return draws of the signal less its mean, and noisy observations of them, from draws of the parts."""
        size, rows = space.observe.shape[-1], len(space.observe)
        signal = space.observe @ self._prior_states(series, noise, moving, size)
        queries = replace(series, scored=torch.zeros_like(series.seen))
        dim = signal.shape[2] * rows // len(series.ids)
        errors = self._split(noise.at_points("seen", queries, len(moving), dim, moving).movedim(0, -1))
        return signal, signal + space.noise.sqrt()[..., None] * errors

    def _prior_states(
        self,
        series: TimeSeries,
        noise: Noise | ChannelNoise,
        moving: Float64[Tensor, "samples batch time groups part"],
        size: int,
    ) -> Float64[Tensor, "rows time state samples"]:
        samples = len(moving)
        if self.joint:
            moving = moving.flatten(3)[..., None, :]
        groups = moving.shape[3]
        still = noise.of_series("level", series, samples, groups * (size - moving.shape[-1]), moving)
        still = still.unflatten(-1, (groups, -1))[:, :, None].expand(-1, -1, moving.shape[2], -1, -1)
        return torch.cat([moving, still], -1).permute(1, 3, 2, 4, 0).flatten(0, 1)

    def _rate(self, series: TimeSeries) -> Float64[Tensor, "rows 1 dim"]:
        """Return the variance of each channel's signal per typical window over a gap close to zero, H G G' H'."""
        many, factors = self._rows(series)
        observe = self.readout.observe(many.times[:, :1, None], None if factors is None else factors.signal)
        spread, moving = self.dynamics.spread(), self.dynamics.states
        if self.joint:
            read = observe[..., : self.dynamics.groups * moving].unflatten(-1, (-1, moving))
            rate = (torch.einsum("rtdgi,gij->rtdgj", read, spread) * read).sum((-1, -2))
        else:
            read = observe[..., :moving]
            rate = (torch.einsum("rtdi,dij->rtdj", read, spread) * read).sum(-1)
        return rate if factors is None else rate * factors.speed[..., None]

    def _component(self, series: TimeSeries, samples: int) -> Int64[Tensor, "samples batch groups"] | None:
        """Return a draw of each sample's component given the observed values; None where there is only one."""
        if self.mixture is None:
            return None
        return self.mixture.draw(self._log_probs(series, series.seen)[:, 0], self.noise, series, samples)
