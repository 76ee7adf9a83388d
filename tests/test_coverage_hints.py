"""Tests of the hints that a run prints on wrong intervals, and of the shares of values that they rest on."""

from dataclasses import replace

import pandas as pd
import pytest
from omegaconf import DictConfig

from helpers.oracle import QUESTIONS
from helpers.small import model_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.reports.run_table import _coverage_hints, facts
from vrnn_lab.runs.build import Parts, apart_from_training

LEVELS = (0.1, 0.35, 0.7)  # of training, whose standardised values do not come back to the last bit


def series(name: str, split: str, values, step: float = 1.0) -> list[dict]:
    return [{"id": name, "split": split, "time": step * i, "v": v} for i, v in enumerate(values)]


def parts_of(tmp_path, test: list[dict]) -> Parts:
    """A table whose training values lie in 0.1 to 0.7 and whose training series are 0 to 2 long."""
    rows = [row for name in "abcd" for row in series(name, "train", LEVELS)] + series("e", "val", LEVELS)
    pd.DataFrame(rows + test).to_csv(tmp_path / "t.csv", index=False)
    data = Table(str(tmp_path / "t.csv"), dequantise=False)
    return Parts(DictConfig({"seed": 0}), model_of("rnn", data.scale), data, QUESTIONS)


def test_nothing_is_asked_beyond_training_where_test_series_repeat_it(tmp_path):
    parts = parts_of(tmp_path, series("f", "test", LEVELS))
    assert apart_from_training(parts, "test") == {"test/outside_range": 0.0, "test/longer_windows": 0.0}


def test_values_outside_the_training_range_are_counted_among_known_ones(tmp_path):
    parts = parts_of(tmp_path, series("f", "test", [0.0, 0.4, None]) + series("g", "test", [0.8, 0.7, 0.1]))
    assert apart_from_training(parts, "test")["test/outside_range"] == pytest.approx(2 / 5)


def test_windows_longer_than_any_of_training_are_counted(tmp_path):
    parts = parts_of(tmp_path, series("f", "test", LEVELS, step=1.5) + series("g", "test", LEVELS))
    assert apart_from_training(parts, "test")["test/longer_windows"] == 0.5


@pytest.mark.parametrize("change", [{"own_levels": False}, {"variation": None}])
def test_data_without_levels_of_their_own_have_no_training_range(tmp_path, change):
    parts = parts_of(tmp_path, series("f", "test", LEVELS))
    parts.model.scale = replace(parts.model.scale, **change)
    assert apart_from_training(parts, "test") == {}


WRONG = {"test/forecast/coverage_90": 0.5, "fit/steps": 5000.0}
HINTS = {
    "true intervals have none": ({"test/forecast/coverage_90": 0.92, "test/outside_range": 1.0}, ""),
    "few steps come first": (WRONG | {"fit/steps": 20.0, "test/outside_range": 1.0}, "only 20 steps"),
    "outside the range": (WRONG | {"test/outside_range": 0.3, "test/longer_windows": 1.0}, "30% of the values"),
    "longer windows": (WRONG | {"test/outside_range": 0.05, "test/longer_windows": 0.4}, "40% of the series"),
    "neither": (WRONG | {"test/outside_range": 0.05, "test/longer_windows": 0.05}, "recalibrate=true"),
}


@pytest.mark.parametrize("case", HINTS)
def test_wrong_intervals_are_explained_by_their_likely_cause(case):
    metrics, expected = HINTS[case]
    hints = _coverage_hints(metrics, "test")
    assert len(hints) == bool(expected) and all(expected in hint for hint in hints)


def test_a_hint_stands_below_the_table_of_a_run():
    metrics = WRONG | {"test/outside_range": 0.3, "test/nll_samples": 1, "test/forecast/coverage_50": 0.2}
    assert "hint: the coverage of this model's 90 % intervals is far from 0.9: 30%" in facts(metrics, "test")
