"""Define a batch of irregularly sampled time series, and what a model must know of its training data."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class TimeSeries:
    """Hold a batch of series. A value is *known* if it is seen (an input) or scored (a target).

    A *query* is a scored point with no seen value. A point with no seen and no scored value is padding, at any place
    in its row: it changes no loss and no other prediction.
    """

    times: Float64[Tensor, "batch time"]  # non-decreasing per row, in the data's own unit
    values: Float[Tensor, "batch time dim"]  # in the data's own units; zero where nothing is known
    seen: Bool[Tensor, "batch time dim"]  # observed values that the model may condition on
    scored: Bool[Tensor, "batch time dim"]  # values that the model must predict
    window: Float64[Tensor, "batch 2"]  # the row's observation period, fixed by the data before any task
    ids: Int64[Tensor, " batch"]  # identify the series: evaluation noise is a function of (seed, id)
    clean: Float[Tensor, "batch time dim"] | None = None  # the noise-free curve, where it is known
    labels: Int64[Tensor, "batch ..."] | None = None  # a class per series or point, -1 = none
    covariates: Float[Tensor, "batch time covariate"] | None = None  # known at every point, queries included
    error: Float[Tensor, "batch time dim"] | None = None  # known std of the observation noise; 0 = none
    # The training loader knows the following without a synchronisation with the device; None and False are always
    # valid. They may be wrong once seen or scored are changed: then set in_training=False, which disables the others.
    most_seen: int | None = None  # upper bound on the points with a seen value in any row
    longest_gap: float | None = None  # upper bound on the time between neighbouring unpadded points
    opens_seen: bool = False  # in every row, the first unpadded point has a seen value
    in_training: bool = False  # all points lie in windows from which the model's scale was computed

    @property
    def known(self) -> Bool[Tensor, "batch time dim"]:
        return self.seen | self.scored

    @property
    def counts(self) -> Bool[Tensor, "batch time"]:
        """Mark the points that are not padding."""
        return self.known.any(-1)

    @property
    def labels_that_count(self) -> Int64[Tensor, "batch ..."] | None:
        """Return the labels, with those of padding points set to -1; None without labels."""
        if self.labels is None or self.labels.ndim == 1:
            return self.labels
        return torch.where(self.counts, self.labels, -1)

    def to(self, device) -> "TimeSeries":
        if self.times.device == torch.device(device):
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> "TimeSeries":
        """Return the batch with `change` applied to every tensor in it."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in named.items() if isinstance(v, Tensor)})

    def rows(self, index) -> "TimeSeries":
        """Return some rows of the batch; index: a slice, a list or a tensor of indices."""
        return self.map(lambda tensor: tensor[index])

    def given(self) -> "TimeSeries":
        """Return the inputs of prediction: seen values, and the times, covariates and error bars of all points.

        Unseen values are zeroed, clean curves and labels removed, and scored points marked in all channels.
        """
        queried = self.scored.any(-1, keepdim=True).expand_as(self.scored)
        values = torch.where(self.seen, self.values, 0)
        return replace(self, values=values, scored=queried, clean=None, labels=None)

    def check(self) -> "TimeSeries":
        """Return the batch itself; raise ValueError for misfitting shapes, decreasing times or values not finite."""
        if self.values.shape[:2] != self.times.shape or self.seen.shape != self.values.shape:
            raise ValueError(
                f"the shapes of times {tuple(self.times.shape)}, values {tuple(self.values.shape)} and seen "
                f"{tuple(self.seen.shape)} do not match; expected (batch, time) for times and (batch, time, dim) for "
                "values and seen."
            )
        if not self.times.isfinite().all():
            raise ValueError("times must be finite, but some are NaN or infinite. Drop those points first.")
        falls = (self.times.diff(dim=1) < 0).any(1).nonzero()
        if len(falls):
            raise ValueError(
                f"times must not decrease, but those of row {falls[0].item()} do. Sort each row by time."
            )
        if not torch.where(self.known, self.values, 0).isfinite().all():
            raise ValueError("known values must be finite; mark what was not observed as not seen instead.")
        self._check_covariates_and_error()
        return self

    def _check_covariates_and_error(self) -> None:
        covariates, error = self.covariates, self.error
        if covariates is not None and covariates.shape[:2] != self.times.shape:
            raise ValueError(
                f"the shape of covariates {tuple(covariates.shape)} does not match that of times "
                f"{tuple(self.times.shape)}; expected (batch, time, covariate)."
            )
        if covariates is not None and not covariates[self.counts].isfinite().all():
            raise ValueError(
                "covariates must be finite at every point that is known or queried, but some are NaN or infinite. "
                "A covariate is known everywhere: fill it in, or make it a channel."
            )
        if error is not None and error.shape != self.values.shape:
            raise ValueError(
                f"the shape of error {tuple(error.shape)} does not match that of values {tuple(self.values.shape)}; "
                "expected (batch, time, dim)."
            )
        if error is not None and not (error[self.known].isfinite() & (error[self.known] >= 0)).all():
            raise ValueError(
                "the error of a known value must be finite and not negative; give 0 where there is none."
            )


def series_of(
    times, values, seen=None, scored=None, window=None, ids=None, covariates=None, error=None
) -> TimeSeries:
    """Return a checked TimeSeries from anything that torch.as_tensor accepts; raise ValueError for invalid data.

    times (batch, time); values (batch, time, dim), NaN = not observed. By default all observed values are seen,
    nothing is scored, and the window runs from a row's first time to its last. covariates (batch, time, covariate),
    known at every point; error (batch, time, dim), stds of the observation noise, 0 = none, which may be NaN where
    values are NaN.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    values = torch.as_tensor(values, dtype=torch.float64)
    observed = ~values.isnan()
    seen = observed if seen is None else torch.as_tensor(seen, dtype=torch.bool)
    scored = torch.zeros_like(seen) if scored is None else torch.as_tensor(scored, dtype=torch.bool)
    if window is None:
        window = torch.stack([times[:, 0], times[:, -1]], 1)
    ids = torch.arange(len(times)) if ids is None else torch.as_tensor(ids)
    window = torch.as_tensor(window, dtype=torch.float64)
    if seen.shape == observed.shape and (seen & ~observed).any():
        raise ValueError("a value that is NaN is marked as seen; mark it as not seen, or give its value.")
    number = lambda x: None if x is None else torch.as_tensor(x, dtype=torch.float64)
    covariates, error = number(covariates), number(error)
    if error is not None and error.shape == values.shape:
        error = torch.where(error.isnan() & ~observed, 0.0, error)
    values = torch.where(observed, values, 0.0)
    return TimeSeries(times, values, seen, scored, window, ids, covariates=covariates, error=error).check()


def front_first(mask: Bool[Tensor, "batch time"]) -> Int64[Tensor, "batch time"]:
    """Return, for each row, the positions of its marked points in order, followed by those of the others."""
    return torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices


def pick(tensor: Tensor, index: Int64[Tensor, "batch place"], dim: int = 1) -> Tensor:
    """Return tensor[..., b, index[b, i], ...]: gather each row's own places along axis `dim` (batch is dim - 1)."""
    shape = [1] * tensor.ndim
    shape[dim - 1 : dim + 1] = index.shape
    out = list(tensor.shape)
    out[dim] = index.shape[1]
    return torch.gather(tensor, dim, index.view(shape).expand(out))


def put_back(tensor: Tensor, index: Int64[Tensor, "batch place"], dim: int = 1) -> Tensor:
    """Invert `pick` for an index that is a permutation of each row's places."""
    return pick(tensor, torch.argsort(index, dim=1), dim)


def compact(series: TimeSeries, mask: Bool[Tensor, "batch time"]) -> tuple[TimeSeries, Tensor]:
    """Return the series with the marked points moved to the front, and the index with which `put_back` undoes it.

    Clean curves and labels are removed.
    """
    index = front_first(mask)
    moved = {
        name: pick(getattr(series, name), index)
        for name in ("times", "values", "seen", "scored", "covariates", "error")
        if getattr(series, name) is not None
    }
    return replace(series, **moved, clean=None, labels=None), index


def gaps(times: Float64[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float64[Tensor, "batch time"]:
    """Return the time since the previous point of compacted rows; zero at the first point and outside `mask`."""
    gap = torch.diff(times, dim=1, prepend=times[:, :1])
    return torch.where(mask, gap, 0.0)


@dataclass(frozen=True)
class Variation:
    """Measure how far the values of each channel move in training, in standardised units.

    Values are in training standard deviations from the training mean; the unit of time of slopes is a typical
    training window (`Scale.clock`).
    """

    residual: Float64[Tensor, " dim"]  # root mean square error of a simple forecast of the next value
    change: Float64[Tensor, " dim"]  # root mean square of the change from one known value to the next
    wander: Float64[Tensor, " dim"]  # root mean square of those changes minus the mean slope times the gap
    level: Float64[Tensor, " dim"]  # standard deviation, between series, of their levels
    mean_slope: Float64[Tensor, " dim"]  # mean over series of their slopes
    slope: Float64[Tensor, " dim"]  # standard deviation, between series, of their slopes
    low: Float64[Tensor, " dim"]  # the smallest value
    high: Float64[Tensor, " dim"]  # the largest value
    # Standard deviation, between series, of the log of the root mean square of their changes, less its uncertainty;
    # None: from an older run that lacks it.
    heterogeneity: Float64[Tensor, " dim"] | None = None


@dataclass(frozen=True)
class Trend:
    """Hold one polynomial in time per channel, fitted to the training part of a record, in the data's units.

    x = sum_k coefficient_k u^k + residual, u = (t - start) / reach.
    """

    coefficients: Float64[Tensor, "terms dim"]
    covariance: Float64[Tensor, "dim terms terms"]  # of the coefficients' estimates
    # Variance of the residuals times the factor of their correlation; None: from an older run that lacks it.
    noise: Float64[Tensor, " dim"] | None = None


@dataclass(frozen=True)
class Scale:
    """Hold what a model must know of its data: names, mean, std and time unit, from the training split alone."""

    channels: tuple[str, ...]
    support: str  # the kind of values, of `vrnn_lab.core.supports`
    mean: Float64[Tensor, " dim"]
    std: Float64[Tensor, " dim"]  # of positive values and counts: their mean, and `mean` is zero
    clock: Float64[Tensor, ""]  # the median length of a training window: a model's unit of time
    gap: Float64[Tensor, ""]  # the median positive time between neighbouring points
    longest: Float64[Tensor, ""]  # the longest training window
    start: Float64[Tensor, ""]  # the earliest window start: the data's time zero
    reach: Float64[Tensor, ""]  # from `start` to the last window's end
    classes: tuple[str, ...] = ()  # names of the labels' classes; none: no labels
    labels_of_points: bool = False  # each point has a class, not each series
    dates: bool | None = None  # whether times are days since 1970; None: an older run that lacks it
    zoned: bool | None = None  # whether the dates have a zone, and so are UTC; None: an older run that lacks it
    covariates: tuple[str, ...] = ()  # names of the inputs that are known everywhere and never scored
    covariate_mean: Float64[Tensor, " covariate"] = field(default_factory=lambda: torch.zeros(0).double())
    covariate_std: Float64[Tensor, " covariate"] = field(default_factory=lambda: torch.ones(0).double())
    errors: bool = False  # values have error bars
    common_time: bool = False  # series are parts of curves over one time axis: z_0 may lie at its zero
    periods: tuple[float, ...] = ()  # known periods, in the data's unit of time; their waves are the last covariates
    whole_series: bool = False  # training windows begin where their series do
    own_levels: bool = False  # series may lie at levels of their own, outside the training range
    variation: Variation | None = None  # of the training values; None: unknown
    trend: Trend | None = None  # subtracted from the values before the model reads them
    # Channels that are modelled by their logarithms; mean, std, variation and trend are then those of the logarithms.
    log: tuple[str, ...] = ()
    value_std: Float64[Tensor, " dim"] | None = None  # std of the values themselves, where `std` is another number
    share_of_ones: Float64[Tensor, " dim"] | None = None  # of binary values; read for fresh weights only

    @property
    def score_std(self) -> Float64[Tensor, " dim"]:
        """Return the std of the training values in the data's units, in which errors of predictions are measured."""
        return self.std if self.value_std is None else self.value_std

    @property
    def log_channels(self) -> Bool[Tensor, " dim"]:
        """Return which channels are modelled by their logarithms."""
        return torch.tensor([name in self.log for name in self.channels], dtype=torch.bool)

    @property
    def given_covariates(self) -> tuple[str, ...]:
        """Return the covariates in the data, without the waves of known periods, which are computed from times."""
        return self.covariates[: len(self.covariates) - 2 * len(self.periods)]

    @property
    def dim(self) -> int:
        return len(self.channels)
