"""The scripts that make the tables of docs/hopper.md and of the gaps: their questions, their scale, their process."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.small import model_of, scale_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.validate import check
from vrnn_lab.core.series import series_of

DOCS = Path(__file__).parent.parent / "docs"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


hopper, gaps = script("hopper"), script("gaps")


class OneBatch:
    """A data set of three series of ten points and two channels, under any task."""

    channels = ("a", "b")

    def __init__(self, error=None):
        rng = np.random.default_rng(0)
        self.times = np.sort(rng.uniform(0, 5, (3, 10)), 1)
        self.values, self.error = rng.normal(size=(3, 10, 2)), error

    def batches(self, split, task, size):
        for i in range(0, 3, size):
            rows = slice(i, i + size)
            known = np.ones((10, 2), bool)
            masks = [task(t, known, t[[0, -1]], np.random.default_rng(1)) for t in self.times[rows]]
            seen, scored = (np.stack(part) for part in zip(*masks, strict=True))
            error = None if self.error is None else self.error[rows]
            yield series_of(self.times[rows], self.values[rows], seen=seen, scored=scored, error=error)


@pytest.mark.slow
@pytest.mark.parametrize("job", hopper.JOBS, ids=lambda job: job.name)
def test_every_run_of_the_hoppers_table_composes_and_fits_its_constructors(job):
    check(compose(job.given))


@pytest.mark.parametrize("question", [hopper.QUESTIONS[0], hopper.Question("", "extrapolation", 6)])
def test_errors_are_in_the_papers_scale_of_all_points_and_of_those_held_out(question, monkeypatch):
    monkeypatch.setattr(hopper, "paper_scale", lambda: torch.tensor([2.0, 5.0], dtype=torch.float64))
    data = OneBatch()
    everywhere, held_out = hopper.errors(data, question, 0.5, lambda batch: torch.zeros_like(batch.values))
    each = 100 * (data.values / [2.0, 5.0]) ** 2
    assert everywhere == pytest.approx(each.mean())
    (batch,) = data.batches("test", question.task(0.5), 3)
    hidden = ~batch.seen[..., 0].numpy()
    if question.until:
        assert not batch.seen[:, 6:].any() and (batch.seen[..., 0].sum(1) == 3).all()
        hidden = np.arange(10)[None].repeat(3, 0) >= 6
    assert held_out == pytest.approx(each[hidden].mean())


def test_a_gap_is_the_middle_third():
    (row,) = OneBatch().batches("test", gaps.Gap(), 3)
    assert row.scored[0, :, 0].tolist() == [False] * 3 + [True] * 4 + [False] * 3
    assert torch.equal(row.seen, ~row.scored)


def test_the_process_knows_the_error_bars():
    times, at = np.arange(12.0), np.array([4.5])
    values = np.sin(times / 3)
    error = np.full(12, 0.01)
    ask = lambda values, error, error_at: gaps.gaussian_process(times, values, error, at, np.array([error_at]))
    mean, std = ask(values, error, 0.0)
    assert mean[0] == pytest.approx(np.sin(1.5), abs=0.05)
    np.testing.assert_allclose(ask(values, error, 3.0)[1], np.hypot(std, 3.0))
    spoiled, doubtful = values.copy(), error.copy()
    spoiled[4] += 2
    doubtful[4] = 50.0  # a value that says nothing
    assert abs(ask(spoiled, doubtful, 0.0)[0] - mean) < 0.1 < abs(ask(spoiled, error, 0.0)[0] - mean)


@pytest.mark.slow
@pytest.mark.parametrize("errors", [False, True])
def test_all_answer_the_same_hidden_values(errors):
    data = OneBatch(np.full((3, 10, 2), 0.2) if errors else None)
    models = {name: model_of(name, scale_of(2, shift=0.0, factor=1.0)) for name in ("latent_ode", "latent_sde")}
    scores = gaps.scores_of(models, data)
    assert list(scores) == ["latent_ode", "latent_sde", "Gaussian process", "straight lines"]
    assert scores["latent_ode"] == gaps.scores_of({"latent_ode": models["latent_ode"]}, data)["latent_ode"]
    assert gaps.hidden_of(data) == gaps.hidden_of(OneBatch())
    (batch,) = data.batches("test", gaps.Gap(), 3)
    lines = gaps.linear(batch.given(), torch.zeros(2))
    expected = ((lines - batch.values) ** 2)[batch.scored].mean().item()
    assert scores["straight lines"]["/mse"] == pytest.approx(expected)
    assert all(np.isfinite(list(each.values())).all() for each in scores.values())


def test_the_picture_asks_between_the_seen_points(tmp_path):
    data = OneBatch(np.full((3, 10, 2), 0.2))
    row = next(data.batches("test", gaps.Gap(), 1))
    asked, is_grid = gaps.grid_row(row, 20)
    asked.check()
    assert is_grid.sum() == 20 and not asked.seen[0, is_grid].any() and asked.scored[0, is_grid].all()
    torch.testing.assert_close(asked.values[0, ~is_grid], row.values[0, row.seen[0, :, 0]])
