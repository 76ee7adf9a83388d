"""Define output heads, which turn a network's last layer into a density."""

from abc import ABC, abstractmethod
from math import log, sqrt
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vrnn_lab.core.densities import Bernoulli, Density, Event, Gaussian, Laplace, Mixture
from vrnn_lab.core.other_densities import StudentT
from vrnn_lab.core.series import Scale
from vrnn_lab.core.supports import BINARY, EVENTS, REAL
from vrnn_lab.core.types import Count, Positive

FIRST_DF = 6.0  # initial degrees of freedom of Student's t
LOG_DF = -4.0, 7.0  # limits of the log of these less 2; at the upper one t is normal for all purposes
RAREST = 1e-3  # the share of ones, or of zeros, from which a binary channel's bias begins at least
FLOOR = 1e-3  # least predicted std, in training standard deviations of its channel; the only such limit


class Head(nn.Module, ABC):
    """Turn raw network outputs (..., width) into a density over a point's channels (..., dim)."""

    support: ClassVar[str]  # the kind of values it models, of `vrnn_lab.core.supports`
    takes_error: ClassVar[bool] = False  # its densities support with_measurement_error (known error bars)
    takes_log: ClassVar[bool] = False  # the exponential of its values has a mean, so that data.log can be used
    width: int  # raw numbers per point
    draws: int  # standard normals that one draw of a point needs

    @abstractmethod
    def forward(self, raw: Float[Tensor, "*shape width"]) -> Density: ...

    def begin(self, network: nn.Sequential) -> nn.Sequential:
        """Set the last layer of a fresh output network so that stds start at a sensible size, and return the
        network."""
        return network

    def located(self, place: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape width"]:
        """Return raw numbers that put each channel of the density (binary: its logit) at a place; all others are
        zero."""
        return nn.functional.pad(place, (0, self.width - place.shape[-1]))


def first_std(scale: Scale, otherwise: float) -> Float[Tensor, " dim"]:
    """Return the initial value of a learned std, in training standard deviations.

    For a user's table it is the residual of a cheap forecast on the training data: a std that starts far too small
    takes thousands of steps to grow. The synthetic datasets keep `otherwise`, the start that their results were
    measured with.
    """
    if scale.variation is None or not scale.own_levels:
        return torch.full((scale.dim,), otherwise)
    return scale.variation.residual.clamp(0.02, 1.0).float()


def last_bias(network: nn.Sequential) -> Tensor:
    """Return the bias of the last layer of an output network, to be changed in place."""
    layer = network[-1]
    assert isinstance(layer, nn.Linear)
    return layer.bias.detach()


def floored(log_std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return sqrt(exp(2 r) + FLOOR^2), the std of an unbounded r, in training standard deviations."""
    floor = torch.full_like(log_std, 2 * log(FLOOR))
    return torch.exp(0.5 * torch.logaddexp(2 * log_std.clamp(max=40.0), floor))


class OneScaleHead(Head):
    """Predict a location per channel, with a spread per point, per channel, or one for all (global).

    A learned spread starts at `first_std`; a channel or global spread starts at `start` where that is given (in
    training standard deviations). With `fixed` the spread is constant, in the data's own units. ValueError for
    combinations that have no meaning, and for a `fixed` std below FLOOR training standard deviations.

    A global or channel std is exp(speed * parameter). An optimizer such as Adam takes steps of one size for all
    weights, so the log-std changes `speed` times as fast as other weights. At speed 1 it lags hundreds of steps
    behind the errors of the mean, and intervals are far too wide or too narrow at the end of training.
    """

    support = REAL

    def __init__(
        self,
        scale: Scale,
        noise: Literal["point", "channel", "global"] = "point",
        fixed: Positive | Count | None = None,
        start: Positive | Count | None = None,
        speed: Positive = 1.0,
    ):
        super().__init__()
        self.speed = speed if fixed is None else 1.0
        if fixed is not None and noise == "point":
            raise ValueError(
                "head.fixed sets one std for all points, but head.noise=point predicts one for each point; "
                "set head.noise=channel, or head.fixed=null."
            )
        if start is not None and (noise == "point" or fixed is not None):
            raise ValueError(
                "head.start is the initial value of a std that is learned per channel or for all channels; set "
                "head.noise=channel and head.fixed=null, or head.start=null."
            )
        self.noise, self.draws = noise, scale.dim
        self.width = 2 * scale.dim if noise == "point" else scale.dim
        if fixed is not None:
            inside = fixed / scale.std
            if (inside < FLOOR).any():
                raise ValueError(
                    f"head.fixed={fixed} lies below the floor of {FLOOR} training standard deviations "
                    f"(smallest allowed here: {FLOOR * scale.std.max().item():.3g})."
                )
            self.register_buffer("log_std", 0.5 * torch.log(inside**2 - FLOOR**2).float())
        elif noise != "point":
            # Not 1: from a wide start a path model may explain everything as noise and never recover.
            begin = first_std(scale, 0.05) if start is None else torch.full((scale.dim,), start)
            begin = begin.log() if noise == "channel" else begin.log().mean(0, keepdim=True)
            self.log_std = nn.Parameter(begin / speed)
        self.first_std = first_std(scale, 1.0)  # read by `begin` only

    def begin(self, network):
        if self.noise == "point":
            last_bias(network)[self.draws :] += self.first_std.log()
        return network

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Split raw numbers into the location and the std, both (..., dim)."""
        mean, log_std = raw.chunk(2, -1) if self.noise == "point" else (raw, self.speed * self.log_std)
        return mean, floored(log_std).expand_as(mean)


class GaussianHead(OneScaleHead):
    """Predict a Gaussian with a mean per point and a std per point, per channel, or one for all (global)."""

    takes_error = takes_log = True

    def forward(self, raw):
        return Gaussian(*self._split(raw))


class LaplaceHead(OneScaleHead):
    """Predict a Laplace density (the L1 loss) with a std per point, per channel, or one for all (`fixed` sets the
    std)."""

    def forward(self, raw):
        mean, std = self._split(raw)
        return Laplace(mean, std / sqrt(2))


class StudentTHead(OneScaleHead):
    """Predict Student's t, for values with outliers, with a std per point, per channel, or one for all.

    df: the degrees of freedom, above 2, so that the std is finite; None: learned for each channel, starting from 6.
    ValueError for a `df` of 2 or less.
    """

    def __init__(
        self,
        scale: Scale,
        noise: Literal["point", "channel", "global"] = "point",
        fixed: Positive | Count | None = None,
        start: Positive | Count | None = None,
        speed: Positive = 1.0,
        df: Positive | Count | None = None,
    ):
        super().__init__(scale, noise, fixed, start, speed)
        if df is not None and not df > 2:
            raise ValueError(f"head.df={df}; expected more than 2, since Student's t has no std otherwise, or null.")
        self.log_df = nn.Parameter(torch.full((scale.dim,), log((df or FIRST_DF) - 2)), requires_grad=df is None)

    def forward(self, raw):
        mean, std = self._split(raw)
        df = (2 + self.log_df.clamp(*LOG_DF).exp()).expand_as(mean)
        return StudentT(mean, std * ((df - 2) / df).sqrt(), df)


class MixtureHead(Head):
    """Predict a mixture of Gaussians, joint over a point's channels (Bishop 1994; RNN-GMM of arXiv 1506.02216).

    covariance=full, for two channels, adds a correlation 0.999 tanh(r) within each component, as for pen strokes
    (Graves 2013, arXiv 1308.0850, eq. 24). ValueError where it is set for another number of channels.
    """

    support = REAL
    takes_error = takes_log = True

    def __init__(self, scale: Scale, components: Count = 5, covariance: Literal["diagonal", "full"] = "diagonal"):
        super().__init__()
        if covariance == "full" and scale.dim != 2:
            raise ValueError(
                f"head.covariance=full needs two channels, but the data have {scale.dim}; set "
                "head.covariance=diagonal."
            )
        self.components, self.dim, self.full = components, scale.dim, covariance == "full"
        self.width = components * (1 + 2 * scale.dim + self.full)
        self.draws = scale.dim + 1
        # Identical components would receive identical gradients, so their centres start apart.
        self.start: Tensor
        self.register_buffer("start", spread_of(components).expand(-1, scale.dim).clone())
        self.first_std = first_std(scale, 1.0)  # read by `begin` only

    def begin(self, network):
        biases = last_bias(network).view(self.components, -1)
        biases[:, 1 : 1 + self.dim] += spread_of(self.components) * (self.first_std - 1)
        biases[:, 1 + self.dim : 1 + 2 * self.dim] += self.first_std.log()
        return network

    def located(self, place):
        # The location comes after the weight, and before the stds and the correlation.
        component = nn.functional.pad(place, (1, self.dim + self.full))
        return component.repeat(*[1] * (place.ndim - 1), self.components)

    def forward(self, raw):
        components = raw.unflatten(-1, (self.components, -1))
        means, log_std = components[..., 1 : 1 + 2 * self.dim].chunk(2, -1)
        rho = 0.999 * torch.tanh(components[..., -1]) if self.full else torch.zeros_like(components[..., 0])
        return Mixture(components[..., 0].log_softmax(-1), means + self.start, floored(log_std), rho)


def spread_of(components: int) -> Float[Tensor, "components 1"]:
    """Return the initial centres of a mixture's components, in training standard deviations."""
    return torch.linspace(-1, 1, components)[:, None] if components > 1 else torch.zeros(1, 1)


class BernoulliHead(Head):
    """Predict zeros and ones from one logit per channel.

    The bias of an output network begins at the logit of the share of ones. From a bias of zero, the first steps would
    teach the network little but how rare ones are: on piano rolls, where 4 % of the values are ones, a VRNN was
    measured to learn nothing else within 500 steps. (`linear_sde` with decoder_depth=0 has no output network.)
    """

    support = BINARY

    def __init__(self, scale: Scale):
        super().__init__()
        self.width = self.draws = scale.dim
        self.share = scale.share_of_ones  # read by `begin` only

    def begin(self, network):
        if self.share is not None:
            last_bias(network)[:] += torch.logit(self.share.float(), eps=RAREST)
        return network

    def forward(self, raw):
        return Bernoulli(raw)


class EventHead(Head):
    """Predict events, which consist of times alone, so that a point needs no raw numbers."""

    support = EVENTS
    width = draws = 0

    def __init__(self, scale: Scale):
        super().__init__()
        self.dim = scale.dim

    def forward(self, raw):
        return Event(raw.new_ones(*raw.shape[:-1], self.dim))


def on_floor(density: Density, std: Tensor) -> Bool[Tensor, "..."]:
    """Return which predicted stds are determined by the floor more than by the model; std: training stds (dim,)."""
    return density.narrowest < sqrt(2) * FLOOR * std
