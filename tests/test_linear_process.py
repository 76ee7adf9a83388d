"""The linear process among the baselines: dense Gaussians computed by numpy, and where it stands and where not."""

import logging
from dataclasses import replace
from math import log, pi

import numpy as np
import pytest
import torch

from helpers.oracle import QUESTIONS, small_data
from helpers.small import asked, batch_of, scale_of, told, with_empty_points
from vrnn_lab.data.base import Ragged
from vrnn_lab.evaluation import baselines as rows
from vrnn_lab.evaluation import linear_process as module
from vrnn_lab.evaluation.baselines import LINEAR_PROCESS, references
from vrnn_lab.evaluation.linear_process import FIT_POINTS, FIT_ROWS, HARMONICS, LEAST, LinearProcess, fit_batch

PERIODS = (2.0,)


def process_of(periods=PERIODS, dim: int = 2) -> LinearProcess:
    """Make a process whose hyperparameters all differ, also between channels."""
    process = LinearProcess(scale_of(dim), scale_of(dim).mean + 1, periods)
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for each in process.parameters():
            each += 0.05 * torch.randn(each.shape, generator=rng, dtype=each.dtype)
    return process


def kernel(process: LinearProcess, channel: int, apart: np.ndarray) -> np.ndarray:
    """Return the covariance of two values without noise, by the formula of the class, in training stds."""
    sizes, decay = (each[channel].tolist() for each in (process.sizes, process.dynamics.decay()))
    t = np.abs(apart) / process.clock
    found = sizes[-2] ** 2 + sizes[0] ** 2 * np.exp(-decay[0] * t)
    found += sizes[1] ** 2 * (1 + decay[1] * t) * np.exp(-decay[1] * t)
    for k, (size, rate) in enumerate(zip(sizes[2:-2], decay[2:], strict=True)):
        turn = 2 * pi * (k % HARMONICS + 1) / PERIODS[k // HARMONICS]
        found += size**2 * np.exp(-rate * t) * np.cos(turn * np.abs(apart))
    return found


def dense(process: LinearProcess, batch, row: int, channel: int):
    """Return of the seen values their times, the values less the mean, their covariance, and the noise variances."""
    seen, times = batch.seen[row, :, channel].numpy(), batch.times[row].numpy()
    std = process.std[channel].item()
    shift = process.mean[channel].item() + std * process.middle[channel].item()
    noise = np.full(len(times), process.sizes[channel, -1].item() ** 2 + LEAST)
    if batch.error is not None:
        noise += (batch.error[row, :, channel].numpy() / std) ** 2
    values = (batch.values[row, seen, channel].numpy() - shift) / std
    covariance = kernel(process, channel, times[seen][:, None] - times[seen]) + np.diag(noise[seen])
    return times, seen, values, covariance, noise, shift, std


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize("periods", [(), PERIODS])
def test_likelihood_and_answers_are_those_of_a_dense_gaussian(bars, periods):
    process, batch = process_of(periods), asked(batch_of(time=9))
    batch = told(batch) if bars else batch
    found, said = process.log_prob(batch), process(batch)
    for row, channel in np.ndindex(len(batch.ids), 2):
        times, seen, values, covariance, noise, shift, std = dense(process, batch, row, channel)
        solved = np.linalg.solve(covariance, values)
        log_p = -0.5 * (values @ solved + np.linalg.slogdet(covariance)[1] + len(values) * log(2 * pi))
        assert found[row, channel].item() == pytest.approx(log_p, abs=1e-9)
        between = kernel(process, channel, times[seen][:, None] - times)
        mean = shift + std * between.T @ solved
        variance = kernel(process, channel, 0.0) + noise - np.diag(between.T @ np.linalg.solve(covariance, between))
        assert said.mean[row, :, channel].numpy() == pytest.approx(mean, abs=1e-8)
        assert said.std[row, :, channel].numpy() == pytest.approx(std * np.sqrt(variance), abs=1e-8)


def test_how_much_is_in_memory_at_once_and_padding_change_no_answer(monkeypatch):
    process, batch = process_of(), asked(batch_of())
    whole = process(batch)
    wider, place = with_empty_points(batch)
    torch.testing.assert_close(process(wider).mean[:, place], whole.mean)
    monkeypatch.setattr(module, "CELLS", 1)
    parts = process(batch)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.std, whole.std)


def test_a_fit_raises_the_likelihood_is_repeatable_and_stays_finite():
    data = small_data()
    batch = fit_batch(data.splits["train"])
    fits = [LinearProcess(data.scale, data.scale.mean).fit(batch, steps) for steps in (3, 12, 12)]
    start = LinearProcess(data.scale, data.scale.mean)
    total = [each.log_prob(batch).sum().item() for each in (start, *fits)]
    assert total[0] < total[1] < total[2] == total[3]
    exact = data.exact(batch)[0].sum().item() + batch.seen.sum().item() * log(data.scale.std.item())
    assert total[2] > exact - 0.02 * batch.seen.sum().item()


def test_a_fit_that_runs_into_numbers_that_are_none_keeps_its_best_step(monkeypatch):
    data = small_data()
    batch, process, calls = fit_batch(data.splits["train"]), LinearProcess(data.scale, data.scale.mean), []
    plain = process.log_prob

    def broken(series):
        calls.append(1)
        return plain(series) * (torch.nan if len(calls) > 4 else 1.0)

    monkeypatch.setattr(process, "log_prob", broken)
    start = plain(batch).sum().item()
    process.fit(batch)
    assert len(calls) > 4 and plain(batch).sum().item() > start


def test_a_fit_reads_the_ends_of_evenly_chosen_series_fewer_where_channels_are_many():
    times = np.tile(np.arange(100.0), (200, 1))
    values = np.arange(200.0)[:, None, None] + np.zeros((200, 100, 10))
    found = fit_batch(Ragged.of(times, values))
    assert found.values[:, 0, 0].tolist() == np.linspace(0, 199, FIT_ROWS // 10).round().tolist()
    assert found.times.unique().tolist() == list(range(100 - FIT_POINTS, 100)) and found.seen.all()
    assert len(fit_batch(Ragged.of(times, values[..., :1])).ids) == module.FIT_SERIES
    assert len(fit_batch(Ragged.of(times[:3], values[:3])).ids) == 3


@pytest.fixture(scope="module")
def found():
    return references(small_data(), QUESTIONS)


@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_it_is_nearly_as_good_as_the_exact_answer(found, question):
    score = lambda row, name: found[f"reference/{row}/{question}/{name}"]
    assert score("exact", "nll") < score(LINEAR_PROCESS, "nll") < score("exact", "nll") + 0.05
    assert score(LINEAR_PROCESS, "crps") < 1.05 * score("exact", "crps") < score("constant", "crps")
    assert score(LINEAR_PROCESS, "coverage_90") == pytest.approx(0.9, abs=0.05)
    assert score(LINEAR_PROCESS, "values") == score("last", "values")


def test_what_would_take_long_is_left_out_and_the_reason_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "vrnn_lab")
    data = small_data()
    monkeypatch.setattr(rows, "MOST_VALUES", 100)
    assert not any(LINEAR_PROCESS in key for key in references(data, QUESTIONS))
    points = data.splits["test"].lengths.sum()
    assert (
        f"the linear process baseline is left out, since it would take long: {points} values in interp" in caplog.text
    )


def test_of_zeros_and_ones_there_is_none():
    data = small_data()
    scale = replace(data.scale, support="binary")
    assert rows.linear_process(data, scale, data.scale.mean, []) is None
