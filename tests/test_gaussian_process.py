"""The Gaussian process among the baselines: closed forms, and where it stands and where not."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.oracle import QUESTIONS
from vrnn_lab.core.series import series_of
from vrnn_lab.data.base import Ragged
from vrnn_lab.data.datasets.ou import OU
from vrnn_lab.evaluation import baselines as module
from vrnn_lab.evaluation.baselines import GAUSSIAN_PROCESS, level_of, references
from vrnn_lab.evaluation.gaussian_process import FIT_POINTS, JITTER, SharedProcess, condition, fit_kernel

kernels = pytest.importorskip("sklearn.gaussian_process.kernels", reason="scikit-learn is not installed")
SIZE, LENGTH, NOISE = 2.0, 0.7, 0.3
KERNEL = lambda: kernels.ConstantKernel(SIZE) * kernels.RBF(LENGTH) + kernels.WhiteKernel(NOISE)
KEY = f"reference/{GAUSSIAN_PROCESS}"


def squared_exponential(a, b):
    return SIZE * np.exp(-((a[:, None] - b[None]) ** 2) / (2 * LENGTH**2))


@pytest.mark.parametrize("bars", [False, True])
def test_conditioning_is_that_of_the_textbook(bars):
    rng = np.random.default_rng(0)
    times, at, values = np.sort(rng.uniform(0, 5, 9)), np.array([-1.0, 2.2, 9.0]), rng.standard_normal(9)
    error = rng.uniform(0.1, 2.0, 9) if bars else None
    noise = NOISE + JITTER + (error**2 if bars else 0)
    inverse = np.linalg.inv(squared_exponential(times, times) + noise * np.eye(9))
    between = squared_exponential(times, at)
    mean, std = condition(KERNEL(), times, values, at, error)
    assert mean == pytest.approx(between.T @ inverse @ values, abs=1e-9)
    assert std**2 == pytest.approx(SIZE + NOISE - np.diag(between.T @ inverse @ between), abs=1e-9)


def test_without_seen_values_the_prior_answers():
    mean, std = condition(KERNEL(), np.zeros(0), np.zeros(0), np.array([1.0, 2.0]))
    assert mean.tolist() == [0, 0] and std == pytest.approx(np.sqrt([SIZE + NOISE] * 2))


def test_the_fit_does_not_make_the_likelihood_worse_and_its_steps_are_limited():
    rng = np.random.default_rng(1)
    times = np.tile(np.linspace(0, 1, 20), 3)
    series = np.repeat(np.arange(3.0), 20)
    values = np.sin(9 * times + series) + 0.1 * rng.standard_normal(60)

    def likelihood(kernel):
        same = np.stack([times, 1e6 * series], 1)
        covariance = kernel(same) + JITTER * np.eye(60)
        return -0.5 * (values @ np.linalg.solve(covariance, values) + np.linalg.slogdet(covariance)[1])

    few, many = (fit_kernel(times, series, values, None, steps) for steps in (1, 50))
    assert likelihood(few) < likelihood(many)
    _, std = condition(many, times[:20], values[:20], np.array([0.475]))
    assert std == pytest.approx([0.1], abs=0.05)  # the noise
    assert likelihood(fit_kernel(times, series, values)) == pytest.approx(likelihood(many), abs=0.1)


def process_of(dim: int = 2) -> SharedProcess:
    rng = np.random.default_rng(2)
    times = [np.sort(rng.uniform(0, 4, 30)) for _ in range(20)]
    series = [(each, np.sin(each[:, None] + np.arange(dim)) + 7) for each in times]
    return SharedProcess(iter(series), np.full(dim, 7.0), np.ones(dim))


def test_an_answer_is_of_a_series_own_seen_values_in_the_datas_units():
    process = process_of()
    times = torch.linspace(0, 4, 12, dtype=torch.float64).expand(2, 12)
    values = torch.sin(times[..., None] + torch.arange(2)) + 7
    seen = torch.ones_like(values, dtype=torch.bool)
    seen[:, 8:] = False
    batch = replace(series_of(times, values), seen=seen, scored=~seen)
    mean, std = process(batch)
    assert (mean - values)[~seen].abs().max() < 0.3 and std[~seen].max() < 0.5
    assert mean[:, :8].unique().tolist() == [7.0]  # not asked
    other = values + torch.where(seen, 0, 99.0)
    other[1] += 3
    again, _ = process(replace(batch, values=other))
    torch.testing.assert_close(again[0], mean[0])
    assert (again[1] - mean[1])[8:].abs().min() > 0.5
    wide = process(replace(batch, error=torch.where(seen, 0.0, 2.0)))[1]
    torch.testing.assert_close(wide[~seen], torch.hypot(std, torch.tensor(2.0))[~seen].to(wide))


def test_no_more_series_are_read_than_the_fit_needs():
    read = []

    def series():
        for place in range(1000):
            read.append(place)
            times = np.linspace(0, 1, 50)
            yield times, np.stack([np.sin(times + place), np.where(times < 0.5, np.nan, times)], 1)

    SharedProcess(series(), np.zeros(2), np.ones(2))
    assert len(read) == 2 * FIT_POINTS / 50


def test_a_channel_that_was_never_observed_is_answered_by_level_and_std():
    times = np.linspace(0, 1, 5)
    process = SharedProcess([(times, np.full((5, 1), np.nan))], np.array([3.0]), np.array([2.0]))
    batch = series_of(times[None], np.full((1, 5, 1), np.nan), scored=np.ones((1, 5, 1), bool))
    mean, std = process(batch)
    assert mean.unique().tolist() == [3.0] and std.unique().tolist() == [2.0]


class OwnLevels(OU):
    """A process of which the exact answer is known, said to be a table."""

    own_levels = True


DATA = {"train": 30, "val": 10, "test": 40, "points": (20, 30)}


def test_it_is_nearly_as_good_as_the_exact_answer():
    found = references(OwnLevels(**DATA), QUESTIONS)
    for question in ("interpolation", "forecast"):
        score = lambda row, name: found[f"reference/{row}/{question}/{name}"]  # noqa: B023 - used at once
        assert score("exact", "nll") < score(GAUSSIAN_PROCESS, "nll") < score("exact", "nll") + 0.1
        assert score(GAUSSIAN_PROCESS, "crps") < 1.1 * score("exact", "crps") < score("constant", "crps")
        assert score(GAUSSIAN_PROCESS, "coverage_90") == pytest.approx(0.9, abs=0.07)
        assert score(GAUSSIAN_PROCESS, "values") == score("last", "values")
        assert {"mse", "energy", "coverage_50"} <= {key.split("/")[3] for key in found if key.startswith(KEY)}


def rows_of(data) -> set[str]:
    return {key.split("/")[1] for key in references(data, QUESTIONS)}


@pytest.mark.slow
def test_where_series_have_no_levels_of_their_own_or_scikit_learn_is_missing_nothing_changes(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "vrnn_lab")
    plain = references(OU(**DATA), QUESTIONS)
    assert not any(key.startswith(KEY) for key in plain) and not caplog.messages
    monkeypatch.setattr(module, "available", lambda: False)
    assert references(OwnLevels(**DATA), QUESTIONS) == plain
    assert [message for message in caplog.messages if "pip install 'vrnn_lab[gp]'" in message] == caplog.messages
    assert len(caplog.messages) == 1 and caplog.records[0].levelno == logging.DEBUG


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("MOST_SEEN", "observed values of a series in "),
        ("MOST_SERIES", "40 series in interpolation"),
        ("MOST_CHANNELS", "channels"),
    ],
)
def test_what_would_take_long_is_left_out_and_the_reason_is_logged(limit, reason, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "vrnn_lab")
    monkeypatch.setattr(module, limit, 0)
    assert GAUSSIAN_PROCESS not in rows_of(OwnLevels(**DATA))
    assert len(caplog.messages) == 1 and reason in caplog.text and "would take long" in caplog.text


def test_of_zeros_and_ones_there_is_no_gaussian_process():
    class Binary(OwnLevels):
        support = "binary"

        def make(self):
            found = super().make()
            flip = lambda series: (series.values > 2).astype(float)
            return {split: Ragged.joined(s.times, flip(s), s.offsets, s.windows, s.ids) for split, s in found.items()}

        def exact(self, batch):
            return None

    data = Binary(**DATA)
    assert level_of(data, data.scale).max() < 1 and GAUSSIAN_PROCESS not in rows_of(data)
