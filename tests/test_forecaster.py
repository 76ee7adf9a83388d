"""Data frames in and out, from Python."""

import gc
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import vrnn_lab
from helpers.predictions import KEYS, table
from vrnn_lab import evaluate, predict
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.plain import typed
from vrnn_lab.evaluation.recalibration import Recalibration
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.forecasting.frames import as_pandas


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    frame = table(40).rename(columns={"id": "plant no", "time": "day"})
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["day"], "D")
    folder = tmp_path_factory.mktemp("fitted") / "run"
    return Forecaster(*KEYS, folder=folder).fit(frame, id="plant no", time="day"), frame


@pytest.mark.slow
def test_what_it_says_is_what_the_command_says(fitted, monkeypatch, capsys, tmp_path):
    forecaster, frame = fitted
    mine = frame[frame["plant no"] < "s2"]
    found = forecaster.predict(mine, horizon=2, every=1, seed=3, paths=2)
    mine.to_csv(tmp_path / "mine.csv", index=False)
    arguments = f"run={forecaster.folder} input={tmp_path}/mine.csv output={tmp_path}/out.csv"
    monkeypatch.setattr("sys.argv", ["predict", *f"{arguments} horizon=2 every=1 seed=3 paths=2".split()])
    assert run_command(predict.main) == 0
    written = pd.read_csv(tmp_path / "out.csv").assign(time=lambda x: pd.to_datetime(x["time"], format="ISO8601"))
    pd.testing.assert_frame_equal(written, found, check_dtype=False, rtol=1e-12)
    assert found["time"].dtype.kind == "M"


def test_a_finished_run_is_loaded_and_asked(fitted):
    forecaster, frame = fitted
    at = pd.DataFrame({"plant no": ["s0", "new"], "day": pd.to_datetime(["2024-04-15", "2024-04-16"])})
    found = vrnn_lab.Forecaster.load(forecaster.folder).predict(frame, at=at)
    assert found["id"].tolist() == ["new"] * 2 + ["s0"] * 2
    pd.testing.assert_frame_equal(found, forecaster.predict(frame, at=at))


def test_other_names_of_columns_are_given_by_name(fitted):
    forecaster, frame = fitted
    other = frame.rename(columns={"plant no": "id", "day": "time"})
    pd.testing.assert_frame_equal(
        forecaster.predict(other, id="id", time="time", fill=True), forecaster.predict(frame, fill=True)
    )


@pytest.mark.slow
def test_the_run_is_one_like_any_other(fitted, monkeypatch, capsys):
    forecaster, frame = fitted
    monkeypatch.setattr("sys.argv", ["evaluate", f"run={forecaster.folder}"])
    assert run_command(evaluate.main) == 0 and "this model" in capsys.readouterr().out
    again = Forecaster(*KEYS, folder=forecaster.folder).fit(frame, id="plant no", time="day")
    np.testing.assert_array_equal(
        again.predict(frame, fill=True)["mean"], forecaster.predict(frame, fill=True)["mean"]
    )


def test_recalibrated_spreads_are_those_of_the_file(fitted):
    forecaster, frame = fitted
    plain = forecaster.predict(frame, horizon=2, every=1, recalibrate=False)
    factors = torch.tensor([2.0, 0.5]).double()
    Recalibration(("a", "b"), torch.ones(2).double(), factors).save(forecaster.folder)
    found = forecaster.predict(frame, horizon=2, every=1)
    pd.testing.assert_frame_equal(found, forecaster.predict(frame, horizon=2, every=1, recalibrate=True))
    factor = found["channel"].map({"a": 2.0, "b": 0.5})
    np.testing.assert_allclose(found["mean"], plain["mean"])
    np.testing.assert_allclose(found["q95"] - found["mean"], (plain["q95"] - plain["mean"]) * factor)


def test_backtests_are_of_the_series_held_out(fitted):
    forecaster, frame = fitted
    found = forecaster.backtest(horizon=1, folds=2)
    assert len(found) and set(found["id"]) < set(frame["plant no"])
    assert ((found["time"] > found["origin"]) & (found["time"] <= found["origin"] + pd.Timedelta("1D"))).all()


def test_spans_of_time_are_written_as_one_likes(fitted):
    forecaster, frame = fitted
    few = frame[frame["plant no"] == "s0"]
    found = [
        forecaster.predict(few, horizon=horizon, every=every)
        for horizon, every in ((0.5, "1/24"), ("12h", "1h"), (pd.Timedelta("12h"), 0.0416666667))
    ]
    hours = found[0]["time"] - few["day"].max()
    assert (hours.dt.total_seconds() % 3600 == 0).all() and len(found[0]) == 24
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other)


@pytest.mark.slow
def test_backtests_have_the_dates_of_the_series(fitted, monkeypatch, capsys, tmp_path):
    forecaster, frame = fitted
    found = forecaster.backtest(horizon="2D", folds=1)
    moments = lambda names, days: {*zip(names, days.dt.round("ms"), strict=True)}
    assert len(found) and moments(found["id"], found["time"]) <= moments(frame["plant no"], frame["day"])
    keys = f"run={forecaster.folder} backtest=true backtest.horizon=2 backtest.folds=1 output={tmp_path}/b.csv"
    monkeypatch.setattr("sys.argv", ["evaluate", *keys.split()])
    assert run_command(evaluate.main) == 0 and " nan" not in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "b.csv")
    assert (pd.to_datetime(written["time"], format="ISO8601") == found["time"]).all()


def test_a_damaged_checkpoint_is_named(fitted, tmp_path):
    forecaster, _ = fitted
    shutil.copytree(forecaster.folder, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"best\.ckpt is damaged"):
        Forecaster.load(tmp_path / "run")


def test_a_fit_that_is_refused_leaves_nothing(fitted, tmp_path):
    _, frame = fitted
    with pytest.raises(ValueError, match="the data frame has no column 'plant'"):
        Forecaster(*KEYS, folder=tmp_path / "new").fit(frame, id="plant", time="day")
    assert not (tmp_path / "new").exists()


def test_a_question_to_nothing_says_so(fitted, caplog):
    forecaster, frame = fitted
    with pytest.raises(ValueError, match="has no rows"):
        forecaster.predict(frame.iloc[:0], fill=True)
    full = frame.dropna()
    assert forecaster.predict(full, fill=True).empty and "the input has no empty cell" in caplog.text


def test_a_slip_of_the_pen_is_named(fitted):
    forecaster, frame = fitted
    with pytest.raises(TypeError, match="has no argument 'draw'"):
        forecaster.predict(frame, fill=True, draw="9")


def test_what_cannot_work_is_refused(fitted, tmp_path):
    forecaster, frame = fitted
    with pytest.raises(ValueError, match="not fitted"):
        Forecaster("model=rnn", folder=tmp_path).predict(frame, fill=True)
    with pytest.raises(ValueError, match="data=ou: a Forecaster's data is the frame"):
        Forecaster("data=ou")
    with pytest.raises(ValueError, match="holds a run on another frame"):
        Forecaster(*KEYS, folder=forecaster.folder).fit(frame[1:], id="plant no", time="day")
    with pytest.raises(ValueError, match="is not a run folder"):
        Forecaster.load(tmp_path)
    with pytest.raises(ValueError, match="has no column 'name'"):
        forecaster.predict(frame, fill=True, id="name")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=3", r"optim\.lrr: there is no such key .* Did you mean 'optim\.lr'"),
        ("optim.lr=fast", r"optim\.lr='fast': expected"),
        ("model=rnnn", "rnnn"),
        ("model.layers=0", r"model\.layers"),
        ("model=vrnn", "model= is given twice, as rnn and as vrnn"),
    ],
)
def test_a_wrong_key_or_type_is_refused_by_the_constructor(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Forecaster("model=rnn", override, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


NAMES = [
    "a",
    "Größe [m]",
    "温度",
    "1",
    "1.5",
    "null",
    "true",
    "a,b",
    "[x]",
    "${a}",
    "C:\\temp",
    'the "best"',
    "b\\",
    "it's",
]


@pytest.mark.slow
# ---- keywords, scores, figures ------------------------------------------------------------------------------


def test_keywords_are_overrides_and_are_checked_at_once():
    made = Forecaster(model="latent_ode", optim="adamw", lr=1e-3, max_time="2m", batch_size=20, seed=3)
    expected = {"model=latent_ode", "optim=adamw", "optim.lr=0.001", "data.batch_size=20", "trainer.max_time=2m"}
    assert set(made.overrides) == {*expected, "seed=3"}
    assert Forecaster("model=rnn", overrides=["optim.lr=0.1"]).overrides == ["model=rnn", "optim.lr=0.1"]
    wrong = {
        "rnnn": {"model": "rnnn"},
        "optim.lr": {"overrides": ["optim.lr=fast"]},
        "max_time": {"max_time": "soon"},
    }
    for said, keys in wrong.items():
        with pytest.raises(ConfigError, match=said):
            Forecaster(**keys)
    with pytest.raises(ValueError, match="given twice"):
        Forecaster("model=vrnn", model="rnn")
    with pytest.raises(TypeError):
        Forecaster(modell="rnn")


def test_it_is_cloned_as_estimators_of_scikit_learn_are():
    from sklearn.base import clone

    made = Forecaster(model="rnn", lr=0.01, overrides=("trainer=cpu",))
    copied = clone(made)
    assert copied is not made and copied.get_params() == made.get_params() and copied.overrides == made.overrides
    assert copied.set_params(lr=0.1).overrides == ["model=rnn", "optim.lr=0.1", "trainer=cpu"]
    with pytest.raises(ValueError, match="rate is no parameter of a Forecaster"):
        copied.set_params(rate=1)
    assert repr(made) == "Forecaster(model='rnn', lr=0.01, overrides=('trainer=cpu',)): not fitted"


def test_a_score_is_minus_the_crps_of_what_is_held_out(fitted):
    forecaster, frame = fitted
    assert "fitted to a, b" in repr(forecaster)
    mine = frame[frame["plant no"] < "s12"]
    found = forecaster.score(mine, "gaps", draws=19)
    rank = mine.groupby("plant no")["day"].rank().to_numpy() - 1
    seen, hidden = mine[rank % 2 == 0], mine[rank % 2 == 1]
    predicted = forecaster.predict(seen, at=hidden[["plant no", "day"]], draws=19, paths=19)
    std = dict(zip(forecaster.parts.model.scale.channels, forecaster.parts.model.scale.std.tolist(), strict=True))
    total = []
    for _, row in predicted.iterrows():
        near = (hidden["day"] - row["time"]).abs() < pd.Timedelta(1, "s")
        truth = hidden[(hidden["plant no"] == row["id"]) & near][row["channel"]].iloc[0]
        draws = row[[f"path_{i + 1}" for i in range(19)]].to_numpy(float)
        spread = np.abs(draws[:, None] - draws).sum() / (2 * 19 * 18)
        total += [] if np.isnan(truth) else [(np.abs(draws - truth).mean() - spread) / std[row["channel"]]]
    assert found == pytest.approx(-np.mean(total), rel=1e-9)
    assert forecaster.score(mine) < 0
    with pytest.raises(ValueError, match="expected forecast or gaps"):
        forecaster.score(mine, "both")
    with pytest.raises(ValueError, match="none can be held out"):
        forecaster.score(mine.groupby("plant no").head(1))


def test_a_figure_of_the_first_series_and_series_from_the_prior(fitted):
    forecaster, frame = fitted
    drawn = forecaster.plot(frame, horizon=3, every=1)
    assert len(drawn.axes) == 2 and "s0" in drawn.get_suptitle()
    found = forecaster.sample(n=3, points=5)
    assert list(found.columns) == ["series", "time", "a", "b"] and len(found) == 15


@pytest.mark.slow
def test_without_a_folder_nothing_is_left_and_save_keeps_it(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, frame = fitted
    indexed = frame.rename(columns={"plant no": "unique_id", "day": "ds"}).set_index(["unique_id", "ds"])
    made = Forecaster(*KEYS).fit(indexed)
    place = made.folder
    assert place.is_dir() and not list(tmp_path.iterdir())
    kept = made.save(tmp_path / "kept")
    found = made.predict(indexed, horizon=1, every=1)
    with pytest.raises(ConfigError, match="holds something already"):
        made.save(tmp_path / "kept")
    again = made.fit(indexed.iloc[:-40])  # on other data, in a temporary folder of its own
    assert again.folder != place and again.folder.is_dir()
    del made, again
    gc.collect()
    assert not place.exists()
    again = Forecaster.load(kept)
    pd.testing.assert_frame_equal(again.predict(indexed, horizon=1, every=1), found)
    assert len(again.backtest(horizon=1, folds=1))  # the copy has its data with it
    two = Forecaster.load([kept, fitted[0].folder])
    assert Forecaster.load(two.save(tmp_path / "both")).parts.model.names[0].endswith("1_kept")


@pytest.mark.slow
def test_a_fit_starts_from_the_weights_of_another_run(fitted, tmp_path):
    first, frame = fitted
    again = Forecaster(*KEYS, "optim.lr=1e-12", folder=tmp_path / "again")
    again.fit(frame.iloc[::-1], id="plant no", time="day", start=first)
    ours, theirs = (dict(each.parts.model.named_parameters()) for each in (again, first))
    assert all(torch.allclose(weight, theirs[name], atol=1e-6) for name, weight in ours.items())
    wider = [key for key in KEYS if not key.startswith("model.width")]
    with pytest.raises(ConfigError, match="is a run of another model"):
        Forecaster(*wider, "model.width=9", folder=tmp_path / "wider").fit(frame, "plant no", "day", start=first)
    with pytest.raises(ConfigError, match="was trained on the channels a, b"):
        Forecaster(*KEYS, folder=tmp_path / "b").fit(frame.drop(columns="a"), "plant no", "day", start=first)
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        Forecaster(*KEYS, folder=tmp_path / "none").fit(frame, "plant no", "day", start=tmp_path / "nowhere")
    assert not (tmp_path / "none").exists()


def test_frames_of_other_libraries_are_converted_and_other_things_refused():
    frame = pd.DataFrame({"a": [1.0]})
    other = SimpleNamespace(to_pandas=lambda: frame)
    assert as_pandas(other) is frame
    assert list(as_pandas(frame.rename_axis("time")).columns) == ["time", "a"]
    dated = frame.set_index(pd.DatetimeIndex(["2024-01-01"]))
    assert list(as_pandas(dated).columns) == ["time", "a"]
    with pytest.raises(TypeError, match="frame is a list; expected a data frame"):
        as_pandas([1])


def test_columns_may_have_any_name():
    keys = ["data=table", "data.path=x.csv", f"data.values={typed(NAMES)}"]
    assert list(compose(keys).data["values"]) == NAMES
    for name in [*NAMES, None]:
        assert compose([*keys[:2], f"data.id={typed(name)}"]).data.id == name
