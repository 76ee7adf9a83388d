"""Predict by a baseline as a model does, with a spread that grows with the time to what is observed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.log_density import LogDensity
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.core.supports import REAL
from vrnn_lab.evaluation.baseline_units import on_log_scale
from vrnn_lab.evaluation.baselines import Guess, guesses_of
from vrnn_lab.evaluation.calibration import gap, horizon
from vrnn_lab.evaluation.recalibration import ahead
from vrnn_lab.models.base import Prediction, SequenceModel
from vrnn_lab.models.heads import FLOOR, GaussianHead
from vrnn_lab.models.recipe import Recipe

QUESTIONS = ("interpolation", "forecast")
STEPS = 60  # of L-BFGS
START = 0.1  # initial variance, and its growth over a typical window, in training variances


@dataclass(frozen=True)
class Spread:
    """Hold the variance a + b h of a baseline's errors, h the time to the nearest observed value, or since the last.

    It is that of a random walk with observation noise; b = 0 is a constant variance. Errors are in the data's units,
    or those of logarithms where a channel is modelled by them.
    """

    constant: Float64[Tensor, " dim"]
    growth: Float64[Tensor, " dim"]  # per unit of time
    furthest: float  # the largest h that it was fitted on, beyond which the variance stays

    def std(self, distance: Float64[Tensor, "batch time dim"]) -> Float64[Tensor, "batch time dim"]:
        """Return the std at a distance in time; infinite distances count as the furthest one."""
        constant, growth = self.constant.to(distance), self.growth.to(distance)
        return (constant + growth * distance.clamp(max=self.furthest)).sqrt()

    @classmethod
    def fit(
        cls, errors: Float64[Tensor, "values 2"], channel: Tensor, scale: Scale, furthest: float
    ) -> tuple["Spread", float]:
        """Return the spread of the highest Gaussian likelihood, and its mean nll.

        errors: the distance and the error of each value; channel (values,): its channel. The variance is at least
        FLOOR^2 training variances.
        """
        std, clock = scale.std.double(), scale.clock.item() or 1.0
        distance, error = errors[:, 0].clamp(max=furthest), errors[:, 1]
        logs = torch.full((2, scale.dim), START, dtype=torch.float64).log().requires_grad_()
        least, unit = FLOOR**2 * std.square(), std.square() * torch.tensor([[1.0], [1.0 / clock]]).double()
        search = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

        def nll() -> Tensor:
            constant, growth = logs.clamp(-40, 40).exp() * unit
            wide = ((least + constant)[channel] + growth[channel] * distance).sqrt()
            return -Gaussian(torch.zeros_like(wide), wide).log_prob_each(error).mean()

        def closure() -> Tensor:
            search.zero_grad()
            loss = nll()
            loss.backward()
            return loss

        with torch.enable_grad():
            search.step(closure)
        # A channel without values has the mean of the others', in training variances.
        count = torch.bincount(channel, minlength=scale.dim)
        relative = logs.detach().clamp(-40, 40).exp()
        relative = torch.where(count > 0, relative, relative[:, count > 0].mean(1, keepdim=True))
        constant, growth = (relative * unit).unbind(0)
        return cls(least + constant, growth, furthest), nll().item()


class BaselineModel(SequenceModel):
    """Predict by a baseline: a Gaussian about its guess, with one `Spread` for gaps and one for forecasts.

    Given what is observed, its values are independent of one another. Its spread is one of observed values, so it
    includes their measurement errors. It has no objective, and no density of a whole series. It may be a member of a
    mixture of models.
    """

    takes_covariates = takes_error = answers_apart = True
    has_loss = has_density = False

    def __init__(self, scale: Scale, recipe: Recipe, name: str, gaps: Spread, forecasts: Spread):
        """Take the name of the baseline, as in `metrics.json`, and its spreads; labels of the recipe are not learned.

        Raise ValueError for an unknown name, and where values are not real.
        """
        super().__init__(scale, Recipe(recipe.optim, recipe.schedule), GaussianHead(scale))
        guesses = simple(scale)
        if name not in guesses:
            raise ValueError(f"there is no baseline '{name}' here; expected one of {', '.join(guesses)}.")
        self.name, self.guess, self.spreads = name, guesses[name], {"interpolation": gaps, "forecast": forecasts}

    def _loss_terms(self, series, samples):
        raise NotImplementedError  # never fitted, and predicts in the data's units

    _log_weights = _predict = _loss_terms

    def predict(self, batch: TimeSeries, samples: int) -> Prediction:
        """Return independent draws at every point, and their densities, both in the data's units."""
        given = replace(batch.given(), scored=batch.scored)
        known = on_log_scale(given, self.scale)
        mean = self.guess(known, self.scale.mean.to(known.values)).double()
        stds = {name: self.spreads[name].std(distances(known, name)) for name in QUESTIONS}
        std = torch.where(ahead(known)[..., None], stds["forecast"], stds["interpolation"])
        inner = Gaussian(mean, std).map(lambda x: x.expand(samples, *x.shape))
        density = LogDensity(inner, self.data_in_log) if self.scale.log else inner
        noise = self.noise.at_points("value", given, samples, self.scale.dim, mean)
        paths = density.draw(noise)
        return Prediction(torch.where(given.seen, given.values.to(paths), paths), density)


def simple(scale: Scale) -> dict[str, Guess]:
    """Return the baselines that a `BaselineModel` can be: those that read the observed values alone.

    There are none where values are not real, or have a trend.
    """
    return guesses_of(scale) if scale.support == REAL and scale.trend is None else {}


def distances(batch: TimeSeries, question: str) -> Float64[Tensor, "batch time dim"]:
    """Return the time that a spread grows with: to the nearest value of the channel, or since the last point."""
    return gap(batch) if question == "interpolation" else horizon(batch)


def best_baseline(
    batches: Iterable[TimeSeries], scale: Scale, question: str, only: str | None = None
) -> tuple[str, Spread] | None:
    """Return the simple baseline with the highest likelihood on validation queries, and its spread.

    only: the name of the one to consider. None where there is no query, or values are not real.
    """
    guesses = {name: guess for name, guess in simple(scale).items() if only in (None, name)}
    kept: dict[str, list[Tensor]] = {name: [] for name in guesses}
    places, times = [], []
    for batch in batches:
        known = on_log_scale(batch, scale)
        given = replace(known.given(), scored=known.scored)
        queried = batch.scored & ~batch.seen
        for name, guess in guesses.items():
            kept[name].append((guess(given, scale.mean.to(given.values)) - known.values)[queried].double())
        places.append(torch.arange(scale.dim).expand_as(queried)[queried])
        times.append(distances(given, question)[queried])
    if not guesses or not sum(map(len, places)):
        return None
    channel, distance = torch.cat(places), torch.cat(times)
    finite = distance[distance.isfinite()]
    furthest = float(finite.max()) if len(finite) else 0.0
    fitted = {
        name: Spread.fit(torch.stack([distance, torch.cat(errors)], 1), channel, scale, furthest)
        for name, errors in kept.items()
    }
    name = min(fitted, key=lambda name: fitted[name][1])
    return name, fitted[name][0]
