"""A first look at a table of the user's own: copies of rows, row numbers, spans of time, and the package itself."""

import logging
from math import isclose

import numpy as np
import pandas as pd
import pytest
import torch

import vrnn_lab
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.data.table.time_format import Span
from vrnn_lab.models.losses import Activity, Latents


def frame_of(count: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.repeat(list("abcdef"), count), "time": np.tile(np.arange(count) * 1.5, 6)})
    return frame.assign(v=rng.normal(size=len(frame)))


def table(tmp_path, frame: pd.DataFrame, **keys) -> Table:
    frame.to_csv(tmp_path / "table.csv", index=False)
    return Table(str(tmp_path / "table.csv"), **keys)


def test_rows_that_repeat_another_exactly_are_dropped_with_a_notice(tmp_path, caplog):
    frame = frame_of()
    twice = pd.concat([frame.iloc[:5], frame.iloc[[2]], frame.iloc[5:], frame.iloc[[40]]])
    with caplog.at_level(logging.WARNING, "vrnn_lab"):
        found = table(tmp_path, twice).whole()
    assert "2 rows repeat an earlier row exactly and are dropped, the first in line 7" in caplog.text
    np.testing.assert_array_equal(found.values, table(tmp_path, frame).whole().values)


def test_rows_that_contradict_each_other_stay_an_error(tmp_path):
    frame = frame_of()
    with pytest.raises(ValueError, match=r"series 'a' has two rows at time=0.0, line 2 and line 74"):
        table(tmp_path, pd.concat([frame, frame.iloc[[0]].assign(v=9.0)])).whole()


def test_row_numbers_and_calendars_are_no_channels_unless_named(tmp_path, caplog):
    frame = frame_of()
    frame.insert(0, "rownames", np.arange(1, len(frame) + 1))
    frame = frame.assign(month=1 + np.arange(len(frame)) % 12, year=2001, hour=0.5)
    with caplog.at_level(logging.WARNING, "vrnn_lab"):
        assert table(tmp_path, frame).channels == ("v", "hour")  # half an hour is no calendar's
    assert "look like row numbers or a calendar are left out: rownames, month, year" in caplog.text
    assert table(tmp_path, frame, values=["v", "year"]).channels == ("v", "year")
    alone = frame[["id", "time", "year"]]
    assert table(tmp_path, alone).channels == ("year",)  # something must be a channel


@pytest.mark.parametrize(
    ("text", "days"), [("2y", 730.485), ("1w", 7), ("3M", 91.310625), ("1h", 1 / 24), ("1/24", 1 / 24)]
)
def test_lengths_of_time_are_understood(text, days):
    assert isclose(Span.of("horizon", text), days)


def test_a_length_that_is_none_is_refused_with_what_is_understood():
    with pytest.raises(
        ValueError, match=r"horizon=2 fortnights: expected a number or, if times are dates, .* 2y, 3M \(months\), 1w"
    ):
        Span.of("horizon", "2 fortnights")


@pytest.mark.slow
def test_the_step_ahead_is_the_usual_gap_where_none_is_given(tmp_path, caplog):
    keys = ("model=rnn", "model.width=8", "trainer=cpu", "trainer.max_epochs=1", "evaluate.samples=2")
    forecaster = vrnn_lab.Forecaster(*keys, folder=tmp_path / "run").fit(frame_of())
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        ahead = forecaster.predict(frame_of(), horizon=3)
    assert "every=1.5, the median gap between training points" in caplog.text
    assert len(ahead) == 2 * 6


def test_few_series_say_nothing_about_active_latents():
    one = Latents(torch.ones(1, 3), torch.ones(1), torch.zeros(1, 3), torch.ones(1, dtype=torch.bool))
    activity = Activity()
    activity.add(one)
    assert "active_units" not in activity.result() and activity.result()["kl_0"] == 1
    for _ in range(5):
        activity.add(one)
    assert activity.result()["active_units"] == 0


def test_the_package_lists_what_users_call():
    assert dir(vrnn_lab) == ["Forecaster", "__version__", "auto", "build", "load"]
    assert vrnn_lab.__version__[0].isdigit()
