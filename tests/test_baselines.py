"""Baselines that go on beyond the seen values: closed forms."""

from dataclasses import replace
from math import isfinite

import numpy as np
import pytest
import torch

from helpers.oracle import QUESTIONS, small_data
from helpers.small import batch_of
from vrnn_lab.core.series import series_of
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.evaluation.baselines import baselines, drift, last, references
from vrnn_lab.evaluation.trends import seasonal

MEAN = torch.tensor([7.0], dtype=torch.float64)


def asked_of(times, values, seen_until: float):
    """One series of one channel: seen up to a time, scored after it."""
    times = torch.as_tensor(times, dtype=torch.float64)[None]
    values = torch.as_tensor(values, dtype=torch.float64)[None, :, None]
    seen = (times <= seen_until)[..., None]
    return replace(series_of(times, values), seen=seen, scored=~seen)


def test_drift_goes_on_along_a_line_as_far_as_was_seen_and_no_further():
    times = np.array([0.0, 1.0, 4.0, 5.5, 7.0, 8.0, 30.0])
    series = asked_of(times, 2 * times + 1, 4.0)
    truth = [1, 3, 9, 12, 15, 17, 17]
    assert drift(series, MEAN)[0, :, 0].tolist() == pytest.approx(truth)


def test_drift_without_two_seen_values_is_the_last_one():
    times = np.arange(4.0)
    assert drift(asked_of(times, times + 3, 0.0), MEAN).flatten().tolist() == [3, 3, 3, 3]
    assert drift(asked_of(times, times + 3, -1.0), MEAN).flatten().tolist() == [7, 7, 7, 7]


def test_drift_of_each_channel_reads_its_own_seen_values():
    batch = batch_of(dim=2)
    together = drift(batch, torch.zeros(2, dtype=batch.values.dtype))
    for i in range(2):
        cut = {name: getattr(batch, name)[..., i : i + 1] for name in ("values", "seen", "scored")}
        alone = drift(replace(batch, **cut, clean=None, error=None), torch.zeros(1, dtype=batch.values.dtype))
        torch.testing.assert_close(alone, together[..., i : i + 1])


@pytest.mark.parametrize(("slope", "with_drift"), [(0.0, False), (0.0, True), (0.3, True)])
def test_seasonal_naive_is_exact_for_an_exact_period(slope, with_drift):
    times = np.arange(0, 40, 0.5)
    values = np.sin(2 * np.pi * times / 5) + slope * times
    series = asked_of(times, values, 18.0)
    guess = seasonal(series, last(series, MEAN), 5.0, with_drift)
    torch.testing.assert_close(guess[series.scored], series.values[series.scored])


def test_seasonal_naive_fills_a_gap_from_both_sides_and_falls_back_where_no_season_was_seen():
    times = torch.arange(12.0, dtype=torch.float64)[None]
    values = times[..., None].clone()
    seen = torch.ones_like(values, dtype=torch.bool)
    seen[0, 5] = False
    series = replace(series_of(times, values), seen=seen, scored=~seen)
    assert seasonal(series, last(series, MEAN), 3.0)[0, 5, 0] == 5  # the mean of 2 and 8
    assert seasonal(series, last(series, MEAN), 100.0)[0, 5, 0] == 4  # the last value
    none = replace(series, seen=torch.zeros_like(seen))
    assert seasonal(none, last(none, MEAN), 3.0).flatten().tolist() == [7] * 12


class Seasons(SeriesData):
    """A noisy season on a slope."""

    channels = ("a",)
    periods = (4.0, 1.0)

    def make(self):
        rng = np.random.default_rng(0)
        times = np.sort(rng.uniform(0, 20, (6, 80)), 1)
        values = np.sin(2 * np.pi * times / 4) + 0.1 * times + 0.1 * rng.standard_normal(times.shape)
        return {
            split: Ragged.of(times[i : i + 2], values[i : i + 2, :, None], first_id=i)
            for split, i in (("train", 0), ("val", 2), ("test", 4))
        }


def test_seasonal_baselines_stand_where_a_period_is_known():
    found = references(Seasons(), QUESTIONS)
    crps = {row: found[f"reference/{row}/forecast/crps"] for row in baselines(Seasons(), Seasons().scale)}
    assert all(map(isfinite, crps.values()))
    assert min(crps, key=lambda row: crps[row]) == "seasonal naive + drift"
    assert "seasonal naive" not in baselines(small_data(), small_data().scale)
