"""Extrapolate observed values: by a line through them, or by the value one known period earlier."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vrnn_lab.core.series import TimeSeries

SEASONS = 100  # most periods searched for an observed value of the same season
NEAR = 0.25  # fraction of a period within which observed values must lie on both sides
ROUNDING = 1e-6  # tolerance of times, as a fraction of a period


def with_drift(series: TimeSeries, flat: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
    """Add the mean slope between the first and the last observed value to a guess that is flat after the last one.

    This is the random walk with drift of Hyndman & Athanasopoulos: last + (t - t_last) (last - first) / (t_last -
    t_first). t - t_last is limited to t_last - t_first, so that two values close together do not ruin a long
    forecast. Points up to the last observed value, and channels with fewer than two observed values, keep the guess.
    """
    times = series.times[..., None].expand(series.seen.shape)
    start = torch.where(series.seen, times, torch.inf).amin(1, keepdim=True)
    end = torch.where(series.seen, times, -torch.inf).amax(1, keepdim=True)
    places = torch.arange(times.shape[1], device=times.device)[None, :, None]
    first = torch.where(series.seen, places, times.shape[1] - 1).amin(1, keepdim=True)
    final = torch.where(series.seen, places, 0).amax(1, keepdim=True)
    rise = series.values.gather(1, final) - series.values.gather(1, first)
    share = ((times - end) / (end - start)).clamp(0, 1)
    return torch.where((end > start) & (times > end), flat + share.to(rise) * rise, flat)


def seasonal(
    series: TimeSeries, otherwise: Float[Tensor, "batch time dim"], period: float, drift: bool = False
) -> Float[Tensor, "batch time dim"]:
    """Repeat the observed value a whole number of periods away, the fewest for which there is one.

    A season has a value where observed values lie within a quarter of a period on both sides: the straight line
    between them. Where values exist equally far before and after a point, their mean is used. drift: the mean change
    from season to season is added for every period between (seasonal naive with drift). `otherwise` is used where no
    season has a value. period: in the data's time unit.
    """
    guesses = otherwise.clone()
    for i in range(len(guesses)):
        times = series.times[i].double().cpu().numpy()
        for channel in range(guesses.shape[2]):
            seen = series.seen[i, :, channel].cpu().numpy()
            if seen.any():
                values = series.values[i, seen, channel].double().cpu().numpy()
                guess = _seasonal(times[seen], values, times, period, drift)
                known = torch.from_numpy(guess).to(guesses)
                guesses[i, :, channel] = torch.where(known.isfinite(), known, guesses[i, :, channel])
    return guesses


def _seasonal(
    times: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64], period: float, drift: bool
) -> NDArray[np.float64]:
    """Return the seasonal guess of one channel, NaN where no season has a value."""
    change = 0.0
    if drift:
        changes = values - _between(times, values, times - period, period)
        change = float(np.mean(changes[np.isfinite(changes)])) if np.isfinite(changes).any() else 0.0
    guess = np.full(at.shape, np.nan)
    start = np.maximum(np.ceil((at - times[-1]) / period - ROUNDING), 1)
    for more in range(SEASONS):
        open_ = np.isnan(guess)
        count = (start + more)[open_]
        if not open_.any() or (more > (times[-1] - times[0]) / period + 1):
            break
        before = _between(times, values, at[open_] - count * period, period) + count * change
        after = _between(times, values, at[open_] + count * period, period) - count * change
        guess[open_] = np.where(np.isnan(before), after, np.where(np.isnan(after), before, (before + after) / 2))
    return guess


def _between(
    times: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64], period: float
) -> NDArray[np.float64]:
    """Interpolate linearly between observed neighbours; NaN where one of them is not near."""
    left = np.searchsorted(times, at + ROUNDING * period, "right") - 1
    right = np.searchsorted(times, at - ROUNDING * period, "left")
    exists = (left >= 0) & (right < len(times))
    left, right = left.clip(0), right.clip(max=len(times) - 1)
    near = (at - times[left] <= NEAR * period) & (times[right] - at <= NEAR * period)
    return np.where(exists & near, np.interp(at, times, values), np.nan)
