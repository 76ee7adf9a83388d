"""Baselines as members of a mixture: their spread, predictions and folder, and how vrnn_lab.auto takes them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.commands import call
from helpers.small import IN_PROCESS, asked, batch_of, recipe_of, scale_of
from vrnn_lab import evaluate, predict, sample
from vrnn_lab.automatic.log_guess import log_channels, positive_channels
from vrnn_lab.automatic.mixing import folder_name, mix
from vrnn_lab.automatic.study import Study
from vrnn_lab.automatic.verdict import sentences, verdict
from vrnn_lab.config.compose import compose
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.files import DamagedError, write_json
from vrnn_lab.core.log_density import LogDensity
from vrnn_lab.core.series import series_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.evaluation.baseline_model import BaselineModel, Spread, best_baseline, simple
from vrnn_lab.evaluation.baselines import drift, last
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.runs import baseline_folder
from vrnn_lab.runs.build import load_parts
from vrnn_lab.training import fit as fitting

F64 = torch.float64


def spread_of(constant: float = 0.5, growth: float = 2.0, dim: int = 2, furthest: float = 10.0) -> Spread:
    return Spread(torch.full((dim,), constant).double(), torch.full((dim,), growth).double(), furthest)


def test_a_spread_is_that_of_the_errors():
    """Errors of variance a + b h, of each channel its own, are found to some percent; so is their likelihood."""
    rng = torch.Generator().manual_seed(0)
    distance = 6 * torch.rand(20_000, generator=rng, dtype=F64)
    channel = torch.arange(20_000) % 2
    truth = torch.tensor([0.3, 4.0], dtype=F64)[channel] + torch.tensor([1.5, 0.0], dtype=F64)[channel] * distance
    errors = truth.sqrt() * torch.randn(20_000, generator=rng, dtype=F64)
    found, nll = Spread.fit(torch.stack([distance, errors], 1), channel, scale_of(), 6.0)
    torch.testing.assert_close(found.constant, torch.tensor([0.3, 4.0], dtype=F64), rtol=0.15, atol=0.05)
    torch.testing.assert_close(found.growth, torch.tensor([1.5, 0.0], dtype=F64), rtol=0.1, atol=0.08)
    best = -Gaussian(torch.zeros_like(truth), truth.sqrt()).log_prob_each(errors).mean().item()
    assert nll == pytest.approx(best, abs=2e-3) and nll <= best + 1e-6
    far = found.std(torch.tensor([[[6.0], [60.0], [torch.inf]]], dtype=F64).expand(1, 3, 2))
    torch.testing.assert_close(far[:, 1:], far[:, :1].expand(1, 2, 2))


def test_a_channel_without_values_has_the_spread_of_the_others():
    errors, channel = torch.tensor([[0.0, 2.0], [0.0, -2.0]]).double(), torch.zeros(2, dtype=torch.long)
    found, _ = Spread.fit(errors, channel, scale_of(), 1.0)
    torch.testing.assert_close(found.constant[1] / 36, found.constant[0] / 9, rtol=1e-3, atol=0)  # of stds 6 and 3


def test_a_prediction_is_the_guess_with_the_spread_of_its_distance():
    scale = scale_of()
    model = BaselineModel(scale, recipe_of(), "last", spread_of(growth=0.0), spread_of())
    batch = series_of([[100.0, 101.0, 103.0]], [[[1.0, 2.0], [torch.nan, 3.0], [torch.nan, torch.nan]]])
    batch = replace(batch, scored=torch.tensor([[[False, False], [True, False], [True, True]]]))
    with model.fixed_noise(0):
        found = model.predict(batch, 4000)
    given = replace(batch.given(), scored=batch.scored)
    torch.testing.assert_close(found.mean, last(given, scale.mean))
    std = found.density.std[0, 0]
    assert std[1, 0].item() == pytest.approx(np.sqrt(0.5)) and std[2, 0].item() == pytest.approx(np.sqrt(0.5 + 2 * 2))
    assert (found.paths[:, 0, 0] == torch.tensor([1.0, 2.0])).all() and (found.paths[:, 0, 1, 1] == 3).all()
    assert found.paths[:, 0, 2, 0].std().item() == pytest.approx(np.sqrt(4.5), rel=0.05)
    with model.fixed_noise(0):
        assert torch.equal(model.predict(batch, 4000).paths, found.paths)


def test_where_logarithms_are_modelled_the_baseline_is_one_of_them():
    scale = replace(scale_of(), log=("a",), value_std=torch.tensor([5.0, 2.0], dtype=F64))
    model = BaselineModel(scale, recipe_of(), "last", spread_of(), spread_of())
    batch = batch_of()
    batch = replace(batch, values=batch.values.exp().clamp(0.1, 50))
    with model.fixed_noise(0):
        found = model.predict(asked(batch), 50)
    assert isinstance(found.density, LogDensity) and (found.paths[..., 0] >= 0).all()


@pytest.mark.parametrize(("kind", "expected"), [("lines", "drift"), ("walks", "last"), ("noise", "constant")])
def test_the_best_baseline_is_that_of_the_process(kind, expected):
    rng = np.random.default_rng(3)
    times = np.tile(np.arange(20.0), (60, 1))
    steps = rng.normal(size=(60, 20))
    values = {
        "lines": rng.normal(size=(60, 1)) * times + 0.05 * steps,
        "walks": steps.cumsum(1),
        "noise": rng.normal(size=(60, 1)) + 0.3 * steps,
    }[kind]
    seen = np.tile((np.arange(20) < 12)[:, None], (60, 1, 1))
    batch = series_of(times, values[..., None], seen=seen, scored=~seen)
    scale = replace(scale_of(1), mean=torch.zeros(1).double(), std=torch.tensor([values.std()]).double())
    name, spread = best_baseline([batch], scale, "forecast")
    assert name == expected and spread.furthest == 8.0
    assert (kind != "walks") or spread.growth.item() == pytest.approx(1.0, rel=0.3)


def test_there_is_none_for_other_values_or_without_queries():
    assert best_baseline([], scale_of(), "forecast") is None
    assert not simple(scale_of(support="binary")) and "drift" in simple(scale_of())
    assert "seasonal naive" in simple(replace(scale_of(), periods=(2.0,)))
    with pytest.raises(
        ValueError, match="there is no baseline 'seasonal naive' here; expected one of constant, last"
    ):
        BaselineModel(scale_of(), recipe_of(), "seasonal naive", spread_of(), spread_of())


def lines_table(path: Path) -> pd.DataFrame:
    """Straight lines with hardly any noise, which drift forecasts at once and a fit of a few steps does not."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 10, (40, 14)), 1)
    values = rng.normal(0, 3, (40, 1)) + rng.normal(0, 1, (40, 1)) * times + rng.normal(0, 0.05, times.shape)
    frame = pd.DataFrame({"id": np.repeat(np.arange(40), 14), "time": times.ravel(), "a": values.ravel()})
    frame.to_csv(path, index=False)
    return frame


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose one candidate was hardly trained, with what was chosen."""
    top = tmp_path_factory.mktemp("baselines")
    lines_table(top / "a.csv")
    keys = ("trainer=cpu", "trainer.max_steps=2", "model.width=8", "evaluate.draws=19", "evaluate.samples=2")
    made = Study(top / "found", (f"data.path={top / 'a.csv'}",), "both", None, ("rnn",), 0, keys)
    overrides = made.overrides("rnn", None, False)
    fitting.run(compose(overrides), made.folder / "rnn", overrides)
    data = made.parts().data
    return top, made, verdict(made.folder, ["rnn"], *reversed(mix(made, ["rnn"], data)), data)


@pytest.mark.slow
@IN_PROCESS
def test_a_baseline_that_is_better_on_validation_is_the_answer(study, monkeypatch, capsys):
    top, made, found = study
    assert sum(found.choices["forecast"].weights[1:]) > 0.9 and found.members[0] == "rnn"
    assert any(line.startswith("For forecasts use ") and "the baseline 'drift'" in line for line in sentences(found))
    crps = {name: found.scores[f"test/forecast/{name}"] for name in ("crps", "coverage_90")}
    assert crps["crps"] < found.metrics["rnn"]["test/forecast/crps"] / 2 and crps["coverage_90"] > 0.5
    frame = pd.read_csv(top / "a.csv")
    assert call(predict, "run=found input=a.csv output=out.csv horizon=2 every=1 draws=19", monkeypatch, top) == 0
    ahead = pd.read_csv(top / "out.csv").groupby("id").last()
    given = frame.groupby("id")
    slope = (given["a"].last() - given["a"].first()) / (given["time"].last() - given["time"].first())
    expected = given["a"].last() + slope * 2
    assert np.abs(ahead["mean"] - expected).mean() < 0.1 * frame["a"].std()
    assert call(predict, "run=found input=a.csv output=out.csv surprise=true draws=19", monkeypatch, top) == 0
    assert call(evaluate, "run=found", monkeypatch, top) == 0
    assert call(evaluate, "run=found backtest=true backtest.horizon=1 backtest.folds=1", monkeypatch, top) == 0
    assert len(Forecaster.load(top / "found").predict(frame, horizon=1.0, every=0.5)) == 80
    saved = Forecaster.load(Forecaster.load(top / "found").save(top / "saved"))
    again, before = (each.predict(frame, horizon=1.0, every=0.5) for each in (saved, Forecaster.load(top / "found")))
    pd.testing.assert_frame_equal(again, before)
    capsys.readouterr()
    baseline = next(made.folder.glob("baseline_*"))
    assert call(evaluate, f"run={baseline}", monkeypatch, top) == 2
    assert "name the folder around it" in capsys.readouterr().err
    assert call(sample, "run=found output=drawn.csv", monkeypatch, top) != 0
    assert "Traceback" not in capsys.readouterr().err


@IN_PROCESS
def test_a_folder_of_a_baseline_is_read_back_and_a_damaged_one_is_refused(study, tmp_path):
    _, made, _ = study
    folder = next(made.folder.glob("baseline_*"))
    model = load_parts(folder).model
    assert isinstance(model, BaselineModel) and not model.has_density
    kept = json.loads((folder / "baseline.json").read_text())
    kept.pop("sha256")
    broken = [kept | {"baseline": "magic"}, kept | {"gaps": {"constant": [-1], "growth": [0], "furthest": 1}}]
    broken += [kept | {"run": "../elsewhere"}, {k: v for k, v in kept.items() if k != "forecasts"}]
    content = (folder / "baseline.json").read_bytes()
    for wrong in broken:
        write_json(folder / "baseline.json", wrong)
        with pytest.raises(DamagedError, match=r"baseline\.json .*Run the same vrnn_lab\.auto command again"):
            load_parts(folder)
    (folder / "baseline.json").write_bytes(content)
    assert baseline_folder.run_of(made.folder / "rnn") == made.folder / "rnn"


def test_names_of_folders_are_plain():
    assert folder_name("seasonal naive + drift") == "baseline_seasonal_naive_drift"


def test_logarithms_are_taken_where_changes_are_relative(tmp_path):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 10, (30, 15)), 1)
    walk = rng.normal(0, 1, (30, 1)) + rng.normal(0, 0.3, times.shape).cumsum(1)
    frame = pd.DataFrame({"id": np.repeat(np.arange(30), 15), "time": times.ravel()})
    frame["grows"], frame["level"], frame["any"] = np.exp(walk).ravel(), walk.ravel() + 50, walk.ravel()
    frame.to_csv(tmp_path / "a.csv", index=False)
    table = Table(str(tmp_path / "a.csv"))
    assert positive_channels(table) == ("grows", "level")
    assert log_channels(table) == ("grows",)
    assert drift is simple(scale_of())["drift"]
