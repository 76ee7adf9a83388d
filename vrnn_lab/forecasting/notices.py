"""Warn about inputs outside the training range and queries beyond training, and count recalibrated values."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from vrnn_lab.core.log_density import log_array
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.evaluation.recalibration import Recalibration
from vrnn_lab.forecasting.ensemble import Ensemble, Recalibrations
from vrnn_lab.forecasting.queries import SeriesWindow
from vrnn_lab.models.base import SequenceModel

log = logging.getLogger("vrnn_lab")
FAR = 3.0  # a value further than so many training stds from the training mean is outside the training range
ROUNDING = 1e-9  # tolerance as a fraction of the longest window


@dataclass
class Notices:
    """Count over all series of a query what is worth a warning; `close` logs it once at the end."""

    scale: Scale
    absolute: bool = False  # whether predictions depend on the time itself, not only on time differences
    low: Counter[str] = field(default_factory=Counter)
    high: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    queried: int = 0
    ahead: int = 0
    furthest: float = 0.0
    later: int = 0
    recalibrated: int = 0
    values_queried: int = 0

    @classmethod
    def of(cls, model: SequenceModel) -> list["Notices"]:
        """Return the counters of a model; for an ensemble one for each member, whose training data may differ."""
        members = list(model) if isinstance(model, Ensemble) else [model]
        return [cls(member.scale, getattr(member, "origin", "row") in ("common", "middle")) for member in members]

    def add_inputs(self, values: NDArray[np.float64]) -> None:
        """Count input values (points, dim), NaN = not observed, that lie outside the training range."""
        if (
            self.scale.support != "real" or self.scale.trend is not None
        ):  # with a trend values are expected to leave the training range
            return
        logs = log_array(values, self.scale.log_channels.numpy())
        z = (logs - self.scale.mean.cpu().numpy()) / self.scale.std.cpu().numpy()
        for i, channel in enumerate(self.scale.channels):
            self.values[channel] += int((~np.isnan(z[:, i])).sum())
            self.low[channel] += int((z[:, i] < -FAR).sum())
            self.high[channel] += int((z[:, i] > FAR).sum())

    def add_queries(self, window: SeriesWindow) -> None:
        """Count queried times that lie further after the last observed point, or later, than anything in training."""
        times = window.times[window.queried.any(1)]
        seen = window.times[(~np.isnan(window.values) & ~window.queried).any(1)]
        self.queried += len(times)
        longest, end = float(self.scale.longest), float(self.scale.start + self.scale.reach)
        if longest > 0 and len(seen):
            far = times - seen[-1]
            self.ahead += int((far > longest * (1 + ROUNDING)).sum())
            self.furthest = max(self.furthest, float(far.max(initial=0.0)))
        if self.absolute:
            self.later += int((times > end + ROUNDING * abs(end)).sum())

    def add_predictions(self, batch: TimeSeries, recalibration: Recalibration | Recalibrations | None) -> None:
        """Count the queried values of a batch, and those that the recalibration changes."""
        queried = batch.scored & ~batch.seen
        self.values_queried += int(queried.sum())
        if recalibration:
            self.recalibrated += int((queried & recalibration.changed(batch)).sum())

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each count that is worth a warning."""
        in_log = self.scale.log_channels
        limits = [self.scale.mean.cpu() + sign * FAR * self.scale.std.cpu() for sign in (-1, 1)]
        low, high = (torch.where(in_log, limit.exp(), limit).tolist() for limit in limits)
        outside = [
            f"of {self.values[channel]} values of {channel}, {self.low[channel]} are below "
            f"{low[i]:.4g} and {self.high[channel]} above {high[i]:.4g}"
            for i, channel in enumerate(self.scale.channels)
            if self.low[channel] + self.high[channel]
        ]
        if outside:
            yield (
                f"input values lie more than {FAR:g} training stds from the training mean, where predictions are "
                f"extrapolated: {'; '.join(outside)}."
            )
        if self.ahead:
            yield (
                f"{self.ahead} of {self.queried} queried times lie further after the last observed point (up to "
                f"{self.furthest:.4g}) than the longest training window ({float(self.scale.longest):.4g}): the model "
                "was not trained to look that far ahead."
            )
        if self.later:
            yield (
                f"{self.later} of {self.queried} queried times lie after the end of the training times, and this "
                "model depends on the time itself: these predictions are extrapolated."
            )


def close(counted: Sequence[Notices], recalibration: Recalibration | Recalibrations | None) -> None:
    """Log the warnings of all counters, each distinct line once, and the recalibration."""
    for line in dict.fromkeys(line for notices in counted for line in notices.warnings()):
        log.warning(line)
    if recalibration:
        log.info(
            "recalibrated: %d of %d values (recalibrate=false leaves them as they are)",
            counted[0].recalibrated,
            counted[0].values_queried,
        )
        for line in recalibration.lines():
            log.info(line)
