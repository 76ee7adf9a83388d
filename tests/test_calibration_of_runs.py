"""The intervals of a run end to end: its files, TensorBoard, and what evaluate says of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import command
from vrnn_lab import evaluate
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.core.files import read_json
from vrnn_lab.evaluation.calibration import PIT_BINS
from vrnn_lab.figures import calibration_figures
from vrnn_lab.reports import run_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on one long series of two channels, cut in time."""
    top = tmp_path_factory.mktemp("run")
    rng, times = np.random.default_rng(0), np.arange(600.0)
    values = np.sin(times / 5)[:, None] + 0.3 * rng.standard_normal((600, 2))
    frame = pd.DataFrame({"time": times, "low": values[:, 0], "high": 50 * values[:, 1]})
    frame.mask(rng.random(frame.shape) < [0.0, 0.2, 0.2]).to_csv(top / "one.csv", index=False)
    arguments = ["model=rnn", "model.width=8", "data=table", f"data.path={top}/one.csv", "data.id=null"]
    arguments += ["data.window=20", "evaluate.samples=2", "evaluate.draws=19", "trainer=cpu", "trainer.max_epochs=2"]
    command("run", *arguments, "hydra.run.dir=run", folder=top, figures=True)
    return top / "run"


@pytest.mark.slow
def test_a_run_keeps_its_scores_by_distance_and_the_details_apart(folder):
    kept, details = (read_json(folder / f"{name}.json", "") for name in ("metrics", "calibration"))
    assert not kept.keys() & details.keys() and not [key for key in kept if "/pit/" in key]
    for key in ("forecast/energy", "forecast/channel/high/coverage_90", "interpolation/gap/1/coverage_90"):
        assert {f"val/{key}", f"test/{key}"} <= kept.keys()
    for place in ("test/forecast", "test/forecast/channel/low", "reference/last/interpolation"):
        assert sum(details[f"{place}/pit/{i + 1}"] for i in range(PIT_BINS)) == pytest.approx(1)
    assert "reference/last/forecast/energy" in kept and "test/forecast/horizon/1/channel/low/crps" in details
    assert (folder / "figures" / "calibration.png").stat().st_size > 10_000


@pytest.mark.slow
def test_tensorboard_has_the_figure_and_the_scores_of_validation(folder):
    events = EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert "calibration" in tags["images"]
    for question in ("interpolation", "forecast"):
        assert 0 <= events.Scalars(f"val/{question}/coverage_90")[-1].value <= 1
        assert events.Scalars(f"val/{question}/crps")[-1].value > 0


@pytest.fixture(scope="module")
def evaluated(folder):
    return command("evaluate", f"run={folder}", "recalibrate=true", folder=folder.parent).stdout


@pytest.mark.slow
def test_evaluate_shows_the_intervals_by_distance_and_channel_with_and_without_recalibration(folder, evaluated):
    for line in (
        "this model",
        "recalibrated",
        "test/interpolation: by gap",
        "recalibrated/test/forecast: by horizon",
    ):
        assert line in evaluated
    shown = evaluated[evaluated.index("test/forecast: by horizon") :].splitlines()
    kept = read_json(folder / "metrics.json", "")
    by_channel = next(line.split() for line in shown if line.strip().startswith("high"))
    assert f"{kept['test/forecast/channel/high/coverage_90']:.4g}" in by_channel
    factors = read_json(folder / "recalibration.json", "")
    for channel in ("low", "high"):
        assert f"{channel} {factors['forecast'][channel]:.3f}" in evaluated


@pytest.mark.slow
def test_a_backtest_prints_its_tables_and_writes_every_value(folder):
    plan = ["backtest=true", "backtest.horizon=6", "backtest.every=5", "backtest.folds=3", "output=values.csv"]
    done = command("evaluate", f"run={folder}", *plan, folder=folder.parent)
    values = pd.read_csv(folder.parent / "values.csv")
    columns = [
        "id",
        "origin",
        "time",
        "channel",
        "value",
        "mean",
        "std",
        "q05",
        "q25",
        "q50",
        "q75",
        "q95",
        "nll",
        "crps",
    ]
    assert list(values) == columns and not values.isna().any().any()
    assert sorted(values["origin"].unique()) == [583, 588, 593]
    assert values["time"].sub(values["origin"]).between(0.5, 6).all()
    shown = [line.strip() for line in done.stdout.splitlines()]
    assert {"all", "to 1.2", "to 6", "from 583", "from 593"} <= set(shown)
    mse = f"{((values['value'] - values['mean']) ** 2).mean():.4g}"
    assert mse in next(line for line in shown if line.startswith("this model"))
    assert any(line.startswith("half last + half mean") for line in shown)


REFUSED = {
    "backtest.horizon=3": "belongs to a backtest; set backtest=true",
    "output=x.csv": "belongs to a backtest; set backtest=true",
    "backtest=true": "backtest.horizon is missing",
    "backtest=true backtest.horizon=-1": "expected a number above 0",
    "backtest=true backtest.horizon=far": "expected a number or, if times are dates, a length such as 2y, 3M "
    "(months), 1w, 7D, 1h",
    "backtest=true backtest.horizon=3 backtest.step=1": "backtest.step: expected backtest.horizon",
    "backtest=true backtest.horizon=3 backtest.folds=1.5": "expected a whole number from 1",
    "recalibrate=yes": "expected true or false",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_does_not_go_together_is_refused_by_name(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", f"run={tmp_path}", *given.split()])
    monkeypatch.setattr(evaluate, "configure_logging", lambda: None)
    assert run_command(evaluate.main) == 2
    assert REFUSED[given] in capsys.readouterr().err


@pytest.mark.slow
def test_a_question_that_a_backtest_does_not_ask_is_refused(folder, monkeypatch, capsys):
    given = f"run={folder} backtest=true backtest.horizon=3 evaluate.forecast.seen=3"
    monkeypatch.setattr("sys.argv", ["evaluate", *given.split()])
    assert run_command(evaluate.main) == 2
    assert "a backtest does not use evaluate.forecast.seen; the only evaluate.* key" in capsys.readouterr().err


def test_nothing_is_drawn_of_zeros_and_ones():
    assert (
        calibration_figures.figures(
            {"test/forecast/brier": 0.1}, "test", SimpleNamespace(channels=("a",), time_unit="")
        )
        == {}
    )


def test_channels_of_any_name_have_their_row(capsys):
    names = ["wind [m/s]", "t [c]", "x [/y]", "all"]
    found = {f"test/forecast/channel/{name}/mse": 2.0 for name in names}
    found |= {
        "test/forecast/mse": 1.0,
        "test/forecast/horizon/1/share": 1.0,
        "test/forecast/horizon/1/from": 0.0,
        "test/forecast/horizon/1/mse": 1.0,
    }
    for shown in run_table.intervals(found, "test", names, ""):
        run_table.paper().print(shown)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in names:
        assert any(line.startswith(name) and line.endswith("2") for line in lines), name
