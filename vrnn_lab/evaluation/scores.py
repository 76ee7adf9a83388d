"""Score predictions of held-out values, from draws, or in closed form from a single density."""

from collections import defaultdict
from math import pi, sqrt

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vrnn_lab.core.densities import Bernoulli, Gaussian, log_mean_exp
from vrnn_lab.core.log_density import LogDensity
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.models.base import Prediction

COVERAGES = (50, 90)
LEVELS = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
DRAWS_AT_ONCE = 1000  # draws whose distances from all others are in memory at once

Scores = dict[str, Float[Tensor, "batch time dim"]]
Plain = Gaussian | LogDensity  # densities of baselines: Gaussian, of the values or of their logarithms


def sample_scores(prediction: Prediction, values: Float[Tensor, "batch time dim"]) -> Scores:
    """Return scores of a predictive mixture per value, in the data's units; for binary values nll and Brier only."""
    log_prob = log_mean_exp(prediction.density.log_prob_each(values))
    if isinstance(prediction.density, Bernoulli):
        return {"nll": -log_prob, "brier": (prediction.mean - values) ** 2}
    paths = prediction.paths.sort(0).values
    scores = {"nll": -log_prob, "mse": (prediction.mean - values) ** 2, "crps": fair_crps(paths, values)}
    for share in COVERAGES:
        low, high = central(paths, share)
        scores[f"coverage_{share}"] = ((low <= values) & (values <= high)).to(values)
    return scores


def fair_crps(paths: Float[Tensor, "samples ..."], values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the unbiased estimator of the CRPS from sorted draws (Ferro 2014; Zamo & Naveau 2018, eq. PWM)."""
    count = len(paths)
    rank = torch.arange(1, count + 1, device=paths.device, dtype=paths.dtype)
    weight = (2 * rank - count - 1) / max(1, count * (count - 1))
    spread = (paths * weight.view(-1, *[1] * values.ndim)).sum(0)
    return (paths - values).abs().mean(0) - spread


def central(paths: Float[Tensor, "samples ..."], share: int) -> tuple[Tensor, Tensor]:
    """Return the ends of the central `share` % interval of sorted draws, interpolated at ranks p (samples + 1)."""
    ends = []
    for probability in (0.5 - share / 200, 0.5 + share / 200):
        place = min(max(probability * (len(paths) + 1) - 1, 0), len(paths) - 1)
        left = min(int(place + 1e-9), max(len(paths) - 2, 0))
        right = min(left + 1, len(paths) - 1)
        ends.append(paths[left] + (place - left) * (paths[right] - paths[left]))
    return ends[0], ends[1]


def quantiles(paths: Float[Tensor, "samples ..."]) -> dict[str, Float[Tensor, "..."]]:
    """Return the quantiles named in LEVELS, as ends of central intervals of draws in any order."""
    ordered = paths.sort(0).values
    (low, high), (lower, upper), (middle, _) = (central(ordered, share) for share in (90, 50, 0))
    return dict(zip(LEVELS, (low, lower, middle, upper, high), strict=True))


def energy(
    paths: Float[Tensor, "samples batch time dim"],
    values: Float[Tensor, "batch time dim"],
    scored: Bool[Tensor, "batch time dim"],
    std: Float[Tensor, " dim"],
) -> Float[Tensor, " series"]:
    """Return the energy score of joint draws, one number per series with a scored value.

    It is E |X - x| - E |X - X'| / 2 (Gneiting & Raftery 2007, eq. 22), the second mean over pairs of different draws,
    so that it is unbiased for any number of them; |.| is the norm of the vector of all scored values of a series, in
    training stds, divided by the root of their number. Unlike the CRPS, which is its form for a single value, it
    measures whether draws have the dependence of the values.
    """
    rows = scored.any(2).any(1).nonzero()[:, 0]
    scores = [energy_of(((paths[:, i] - values[i]) / std)[:, scored[i]]) for i in rows.tolist()]
    return torch.stack(scores) if scores else values.new_zeros(0)


def energy_of(apart: Float[Tensor, "samples values"]) -> Float[Tensor, ""]:
    """Return the energy score of one series, from the draws less the truth.

    Pairs are computed by matrix products, for some draws at a time.
    """
    (count, size), about = apart.shape, apart - apart.mean(0)
    pairs = torch.stack([torch.cdist(some, about).sum() for some in about.split(DRAWS_AT_ONCE)]).sum()
    return (apart.norm(dim=1).mean() - pairs / max(1, 2 * count * (count - 1))) / sqrt(size)


def plain_scores(density: Plain | Bernoulli, values: Float[Tensor, "batch time dim"]) -> Scores:
    """Return the scores of `sample_scores` in closed form for a single density.

    The CRPS is that of a Gaussian (Gneiting & Raftery 2007, eq. 21) or, where the logarithm is Gaussian, of a
    log-normal density (Baran & Lerch 2015, eq. 4).
    """
    if isinstance(density, Bernoulli):
        return {"nll": -density.log_prob_each(values), "brier": (density.mean - values) ** 2}
    z = standardised(density, values)
    normal = torch.distributions.Normal(0.0, 1.0)
    crps = z * torch.erf(z / sqrt(2)) + 2 * normal.log_prob(z).exp() - 1 / sqrt(pi)
    scores = {
        "nll": -density.log_prob_each(values),
        "mse": (density.mean - values) ** 2,
        "crps": _log_normal_crps(density, z, values, crps) if isinstance(density, LogDensity) else density.std * crps,
    }
    for share in COVERAGES:
        inside = z.abs() <= normal.icdf(torch.tensor(0.5 + share / 200))
        scores[f"coverage_{share}"] = inside.to(values)
    return scores


def _log_normal_crps(density: LogDensity, z: Tensor, values: Tensor, plain: Tensor) -> Tensor:
    """Return the CRPS of log-normal channels, and of the others from that of a standard Gaussian at z, `plain`."""
    wide, cdf = density.inner.std, torch.special.ndtr
    exponential = values * (2 * cdf(z) - 1) - 2 * density.mean * (cdf(z - wide) + cdf(wide / sqrt(2)) - 1)
    return torch.where(density.channels, exponential, wide * plain)


def standardised(density: Plain, values: Float[Tensor, "*points dim"]) -> Float[Tensor, "*points dim"]:
    """Return (x - mean) / std of a Gaussian density, of log x where that is Gaussian."""
    if isinstance(density, LogDensity):
        return (density.on_log_scale(values) - density.inner.mean) / density.inner.std
    return (values - density.mean) / density.std


class SeriesSums:
    """Accumulate one score over the scored values of each series, by the series' id."""

    def __init__(self):
        self.parts: list[Tensor] = []  # (2, batch) each: the sum, and the number of its values
        self.ids: list[Tensor] = []

    def add(self, each: Float[Tensor, "batch time dim"], batch: TimeSeries) -> None:
        """Add a batch; each: the score of every value, of which those not scored are ignored."""
        total = torch.where(batch.scored, each, 0).double().sum((1, 2))
        count = batch.scored.sum((1, 2))
        self.parts.append(torch.stack([total, count.double()]).cpu())
        self.ids.append(batch.ids.cpu())

    def above(self, other: "SeriesSums") -> tuple[float, float | None]:
        """Return the mean over values less that of `other` on the same series, and the difference's standard error.

        The standard error is that of a ratio of sums over independent series: with d_i the difference of the sums of
        series i, n_i its values, N their sum and D = sum d_i / N it is sqrt(m / (m - 1) sum (d_i - D n_i)^2) / N over
        m series; None for fewer than two series with values. ValueError where the values are not of the same series.
        """
        (total, count), (theirs, values) = self._by_id(), other._by_id()
        if not torch.equal(count, values):
            raise ValueError(
                f"one set of scores has {count.sum():.0f} values of {len(count)} series, the other "
                f"{values.sum():.0f} values of {len(values)} series; expected the same values of the same series."
            )
        apart, number = total - theirs, len(count)
        mean = apart.sum() / count.sum().clamp(min=1)
        rest = (apart - mean * count).square().sum() / count.sum().clamp(min=1) ** 2
        return mean.item(), None if number < 2 else (rest * number / (number - 1)).sqrt().item()

    def _by_id(self) -> Float64[Tensor, "2 series"]:
        if not self.ids:
            return torch.zeros(2, 0, dtype=torch.float64)
        known, place = torch.cat(self.ids).unique(return_inverse=True)
        sums = torch.zeros(2, len(known), dtype=torch.float64).index_add_(1, place, torch.cat(self.parts, 1))
        return sums[:, sums[1] > 0]


class ScoreAccumulator:
    """Accumulate sums of scores over values, channel by channel, and divide once, at the end."""

    def __init__(self, channels: tuple[str, ...], std: Float[Tensor, " dim"]):
        self.channels, self.std = channels, std
        self.sums: dict[str, Tensor] = defaultdict(lambda: std.new_zeros(len(channels)))
        self.count = std.new_zeros(len(channels))

    def add(self, scores: Scores, scored: Bool[Tensor, "batch time dim"]) -> None:
        self.count += scored.sum((0, 1)).to(self.count)
        for name, each in scores.items():
            self.sums[name] += torch.where(scored, each, 0).sum((0, 1)).to(self.count)

    def result(self, prefix: str) -> dict[str, float]:
        """Return prefix/<score>, and prefix/channel/<name>/<score> where there is more than one channel.

        nmse and ncrps are mse and crps in training stds (squared for nmse); without values the result is empty.
        """
        if not self.count.sum():
            return {}
        sums = {**self.sums}
        if "mse" in sums:
            sums["nmse"] = sums["mse"] / self.std**2
        if "crps" in sums:
            sums["ncrps"] = sums["crps"] / self.std
        total = {f"{prefix}/{name}": (each.sum() / self.count.sum()).item() for name, each in sums.items()}
        if len(self.channels) > 1:
            for name, total_of in sums.items():
                each = (total_of / self.count).tolist()
                known = zip(self.channels, each, self.count.tolist(), strict=True)
                total |= {f"{prefix}/channel/{c}/{name}": x for c, x, count in known if count}
        return total
