"""Out-of-time validation: a second fit without the ends of the series measures forecasts beyond them."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.core.files import DamagedError
from vrnn_lab.core.series import series_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.evaluation.recalibration import Beyond, Recalibration, beyond_training, load
from vrnn_lab.reports.run_table import _out_of_time
from vrnn_lab.runs.build import assemble, load_parts
from vrnn_lab.training import fit, out_of_time
from vrnn_lab.training.fit_recalibration import recalibrate

KEYS = ("model=rnn", "data=table", "evaluate.draws=19", "evaluate.samples=2", "trainer=cpu", "trainer.max_steps=40")


def panel(tmp_path, series=40, points=9, bend=0.0) -> str:
    """Straight lines with noise; bend: how they curve upwards, which no series shows before its end."""
    rng = np.random.default_rng(0)
    owner, times = np.repeat(np.arange(series), points), np.tile(np.arange(float(points)), series)
    values = rng.normal(size=series)[owner] + 0.3 * times + bend * np.maximum(times - 4, 0) ** 2
    values += 0.1 * rng.normal(size=len(times))
    pd.DataFrame({"id": owner, "time": times, "x": values}).to_csv(tmp_path / "panel.csv", index=False)
    return str(tmp_path / "panel.csv")


def parts_of(path, *more):
    return assemble(compose([*KEYS, f"data.path={path}", *more]))


def test_the_second_half_of_each_series_is_left_out_and_asked(tmp_path):
    data = Table(panel(tmp_path))
    whole = float(data.scale.reach)
    cut = out_of_time.without_ends(data)
    assert cut is not None and set(cut.splits["train"].lengths) == {5} == set(cut.splits["val"].lengths)
    assert (cut.splits["train"].windows == [0, 4]).all() and float(cut.scale.reach) == 4
    assert float(data.scale.reach) == whole == 8  # the whole data set stays as it is
    asked = out_of_time.ends(data, cut.scale, keep_start=False)
    assert asked is not None and len(asked.origin) == len(data.splits["train"]) + len(data.splits["val"])
    tested = set(data.splits["test"].ids)
    for batch, _ in asked.batches(9):
        times = batch.times[:, :, None].expand_as(batch.values)
        assert times[batch.scored].unique().tolist() == [5, 6, 7, 8] and times[batch.seen].max() == 4
        assert not tested & set(batch.ids.tolist())
        assert batch.seen.any(1).all()  # though the question is longer than any training window


def test_series_of_two_points_are_kept_whole(tmp_path):
    data = Table(panel(tmp_path, points=2))
    cut = out_of_time.without_ends(data)
    assert cut is not None and set(cut.splits["train"].lengths) == {2}
    assert out_of_time.ends(data, cut.scale, keep_start=True) is None


def test_a_point_lies_beyond_training_by_its_time_or_by_its_distance_from_the_start():
    batch = series_of([[0.0, 5.0, 9.0], [20.0, 25.0, 40.0]], np.zeros((2, 3, 1)))
    assert (beyond_training(batch, end=30.0, longest=10.0) > 0).tolist() == [[False] * 3, [False, False, True]]
    found = beyond_training(batch, end=30.0, longest=6.0)
    assert found[:, 2].tolist() == [0.5, 14 / 6] and (found[:, :2] <= 0).all()


def test_factors_beyond_training_apply_there_alone_and_survive_the_file(tmp_path):
    one = torch.ones(1).double()
    found = Recalibration(
        ("x",), 2 * one, 3 * one, beyond=Beyond(7.0, 7.0, (0.0, 0.3), torch.stack([5 * one, 6 * one]), (44,))
    )
    found.save(tmp_path)
    assert load(tmp_path, ("x",)).lines()[-1] == (
        "spread x beyond training by 0.3 longest windows or more x 6.000 (44 out-of-time values)"
    )
    seen = [[[True], [False], [True], [False], [False], [False]]]
    batch = series_of([[0.0, 1.0, 2.0, 6.0, 8.0, 10.0]], np.zeros((1, 6, 1)), seen=seen)
    assert load(tmp_path, ("x",)).factors(batch)[0, :, 0].tolist() == [1, 2, 1, 3, 5, 6]


def test_each_stretch_beyond_training_holds_nine_tenths():
    rng = torch.Generator().manual_seed(0)
    distance = torch.rand(3000, generator=rng)
    least = (1 + 4 * distance) * torch.randn(3000, generator=rng).abs()
    starts, factors = out_of_time.by_distance(least, torch.zeros(3000).long(), distance, 1)
    assert starts == pytest.approx([0, 1 / 3, 2 / 3], abs=0.03)
    place = torch.bucketize(distance, torch.tensor(starts[1:]), right=True)
    for i, (factor,) in enumerate(factors):
        assert (least[place == i] <= factor).double().mean().item() == pytest.approx(0.9, abs=0.01)
    assert factors[0] < factors[1] < factors[2]
    assert out_of_time.by_distance(least[:40], torch.zeros(40).long(), distance[:40], 1)[0] == [0.0]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty.*"
)  # as commands do (vrnn_lab.cli.arguments.configure_logging)
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
def test_forecasts_beyond_training_are_as_wide_as_their_errors(tmp_path, caplog):
    """The curve bends upwards where no series was seen before: the model's own intervals there are too narrow."""
    path, folder = panel(tmp_path, bend=0.4), tmp_path / "run"
    config = compose([*KEYS, f"data.path={path}", "trainer.max_steps=150"])
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        metrics = fit.run(config, folder)
    assert metrics is not None and "a second fit of" in caplog.text
    found = json.loads((folder / run_files.OUT_OF_TIME).read_text())
    assert metrics["out_of_time/values"] == sum(found["values"]) > 60
    assert metrics["out_of_time/coverage_90"] < 0.8 and found["factors"][-1][0] > 1.3
    beyond = load(folder, ("x",)).beyond
    assert beyond is not None and (beyond.end, beyond.longest) == (8.0, 8.0)
    text = "\n".join(_out_of_time(metrics))
    assert "best baseline" in text and f"{metrics['out_of_time/values']:.0f} values" in text
    caplog.clear()
    again = out_of_time.measured(load_parts(folder), folder)
    assert again is not None and again.factors == found["factors"] and "a second fit" not in caplog.text
    (folder / run_files.OUT_OF_TIME).write_text('{"starts": [')
    with pytest.raises(DamagedError, match=r"is damaged .* Remove it"):
        out_of_time.measured(load_parts(folder), folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*exists and is not empty.*")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
def test_it_can_be_switched_off_and_sweeps_go_without(tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_time, "validate", lambda *_: pytest.fail("a second fit was made"))
    path, parts = panel(tmp_path), None
    for number, (more, in_sweep) in enumerate(((["out_of_time=false"], False), ([], True))):
        folder = tmp_path / str(number)
        fit.run(compose([*KEYS, f"data.path={path}", *more]), folder, in_sweep=in_sweep)
        parts = load_parts(folder)
        assert not (folder / run_files.OUT_OF_TIME).exists() and load(folder, ("x",)).beyond is None
    assert parts is not None and recalibrate(parts).beyond is None


def test_where_it_cannot_be_made_it_is_refused_before_training(tmp_path):
    path, folder = panel(tmp_path, series=1, points=300), tmp_path / "run"
    with pytest.raises(ConfigError, match="out_of_time=true: it needs a table of whole series"):
        fit.run(compose([*KEYS, f"data.path={path}", "data.window=20", "out_of_time=true"]), folder)
    with pytest.raises(ConfigError, match="expected one of auto, true, false"):
        parts_of(path, "out_of_time=maybe")
    parts = parts_of(panel(tmp_path), "evaluate.draws=1", "out_of_time=true")
    with pytest.raises(ConfigError, match="no spread"):
        out_of_time.check(parts)


def test_a_baseline_that_forecasts_better_is_named():
    scores = {"out_of_time/coverage_90": 0.7, "out_of_time/values": 50.0, "out_of_time/last/nmse": 0.4}
    better = _out_of_time(scores | {"out_of_time/model/nmse": 0.3})
    assert len(better) == 1 and "nmse 0.3" in better[0] and "last, nmse 0.4" in better[0]
    worse = _out_of_time(scores | {"out_of_time/model/nmse": 0.5})
    assert worse[1].startswith("hint: ") and "'last'" in worse[1] and _out_of_time({}) == []
