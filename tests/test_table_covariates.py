"""Columns beside the values of a table, from file to answer: known everywhere, one a series, error bars."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import vrnn_lab
from helpers.commands import command
from vrnn_lab.config.compose import compose
from vrnn_lab.core.series import series_of
from vrnn_lab.core.tasks import DensityTask, Forecast, Own
from vrnn_lab.data.table import columns
from vrnn_lab.data.table.columns import Cells, ColumnRoles
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.runs.build import assemble, check_channels

NAN = np.nan
WIDE = """id,time,flux,bar,temp,age
a,0,1.25,0.1,3,
a,1,2.5,0.2,4,30
a,2,,,5,
b,1,0.5,0,6,40
b,0,3.75,0.3,7,40
c,0,3.5,0.3,8,41
"""
LONG = """id,time,kind,v,e,temp,age
a,0,x,1.25,0.1,3,
a,0,y,2.5,0.2,3,30
a,2,x,1.0,0.5,5,
b,1,y,0.5,0,6,40
b,0,x,3.75,0.3,7,40
"""
BESIDE = {"known": ["temp"], "static": ["age"], "dequantise": False}


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "data.csv").write_text(text)
        return str(tmp_path / "data.csv")

    return write


def refused(message: str, *args, **options) -> None:
    with pytest.raises(ValueError, match=message):
        Table(*args, **options).whole()


def test_columns_beside_the_values_are_read_and_are_no_channels(file):
    table = Table(file(WIDE), values=["flux"], error=["bar"], **BESIDE)
    points = table.whole().points
    assert table.channels == ("flux",) and table.covariates == ("temp", "age")
    np.testing.assert_array_equal(points.values[:, 0], [1.25, 2.5, 3.75, 0.5, 3.5])
    np.testing.assert_array_equal(points.covariates, [[3, 30], [4, 30], [7, 40], [6, 40], [8, 41]])
    np.testing.assert_array_equal(points.error[:, 0], [0.1, 0.2, 0.3, 0, 0.3])
    assert Table(file(WIDE), **BESIDE).channels == ("flux", "bar")  # all other columns of numbers


def test_the_long_form_has_them_beside_the_value(file):
    table = Table(file(LONG), channel="kind", value="v", error=["e"], **BESIDE)
    points = table.whole().points
    np.testing.assert_array_equal(points.values, [[1.25, 2.5], [1, NAN], [3.75, NAN], [NAN, 0.5]])
    np.testing.assert_array_equal(points.error, [[0.1, 0.2], [0.5, NAN], [0.3, NAN], [NAN, 0]])
    np.testing.assert_array_equal(points.covariates, [[3, 30], [5, 30], [7, 40], [6, 40]])


def test_a_channel_may_have_no_error_bars_and_a_model_may_be_told_them_too(file):
    text = WIDE.replace("a,2,,,5,\n", "")
    table = Table(file(text), values=["flux", "temp"], error=["bar", None], known=["bar"], dequantise=False)
    points = table.whole().points
    assert table.channels == ("flux", "temp") and table.covariates == ("bar",)
    np.testing.assert_array_equal(points.error, [[0.1, 0], [0.2, 0], [0.3, 0], [0, 0], [0.3, 0]])
    np.testing.assert_array_equal(points.covariates[:, 0], points.error[:, 0])


def test_a_batch_has_covariates_at_every_point_and_error_bars_where_values_are(file):
    series = Table(file(LONG), channel="kind", value="v", error=["e"], **BESIDE).whole()
    batch = series.batch(np.arange(2), DensityTask(), Own(np.random.default_rng, range(2))).check()
    assert batch.covariates.tolist() == [[[3, 30], [5, 30]], [[7, 40], [6, 40]]]
    assert batch.error.tolist() == [[[0.1, 0.2], [0.5, 0]], [[0.3, 0], [0, 0]]]
    alone = series.batch(np.array([1]), Forecast(1, scored="held_out"), Own(np.random.default_rng, range(1)))
    assert alone.covariates.tolist() == [[[7, 40], [6, 40]]]  # also where it is asked
    given = alone.given()
    assert torch.equal(given.covariates, alone.covariates) and torch.equal(given.error, alone.error)


def test_the_scale_of_covariates_is_that_of_training_points(file):
    text = WIDE.replace("age", "age,split").replace("\na,", "\na,", 1)
    rows = [line + (",train" if line[0] in "ab" else ",val") for line in text.splitlines()[1:]]
    extra = "d,0,1,0.5,100,50,test"
    scale = Table(file("\n".join([text.splitlines()[0], *rows, extra])), values=["flux"], **BESIDE).scale
    told = np.array([[3, 30], [4, 30], [7, 40], [6, 40]])
    assert scale.covariates == ("temp", "age") and not scale.errors
    assert scale.covariate_mean.tolist() == pytest.approx(told.mean(0).tolist())
    assert scale.covariate_std.tolist() == pytest.approx(told.std(0).tolist())


def test_windows_of_one_long_series_keep_what_stands_beside(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"time": np.arange(60.0), "x": rng.normal(size=60), "e": 0.1 + np.arange(60) / 100})
    frame["hour"] = frame.time % 24
    frame.to_csv(tmp_path / "x.csv", index=False)
    table = Table(
        str(tmp_path / "x.csv"), id=None, values=["x"], error=["e"], known=["hour"], window=6, dequantise=False
    )
    for split in table.splits.values():
        for row in range(len(split)):
            batch = split.batch(np.array([row]), DensityTask(), Own(np.random.default_rng, range(1)))
            np.testing.assert_array_equal(batch.covariates[0, :, 0], batch.times[0] % 24)
            np.testing.assert_allclose(batch.error[0, :, 0], 0.1 + batch.times[0] / 100)


@pytest.mark.parametrize(
    "text, options, message",
    [
        (WIDE, {"known": ["temps"]}, r"no column 'temps'.*Did you mean 'temp' for .* in data\.known"),
        (WIDE, {"static": ["ages"]}, r"'age' for 'ages' in data\.static"),
        (WIDE, {"values": ["flux"], "error": ["ba"]}, r"'bar' for 'ba' in data\.error"),
        (
            WIDE.replace(",5,", ",,"),
            {"known": ["temp"]},
            r"line 4 has no 'temp', but a column of data\.known needs a number",
        ),
        (WIDE.replace(",5,", ",warm,"), {"known": ["temp"]}, r"'warm' in line 4.*data\.known takes numbers.*0 and 1"),
        (
            WIDE.replace("6,40", "6,39"),
            {"static": ["age"]},
            r"series 'b' has two values of 'age', 39 in line 5 and 40",
        ),
        (WIDE.replace(",41", ","), {"static": ["age"]}, r"series 'c' \(line 7\) has no 'age' in any row"),
        (WIDE.replace("0.2,4", ",4"), {"values": ["flux"], "error": ["bar"]}, r"line 3 has a value but no 'bar'"),
        (
            WIDE.replace("0.2", "-2"),
            {"values": ["flux"], "error": ["bar"]},
            r"line 3 has a negative 'bar'",
        ),
        (WIDE, {"error": ["bar"]}, r"data\.error=\['bar'\] and data\.values=None; expected the channels"),
        (WIDE, {"values": ["flux"], "error": ["flux"]}, r"data\.values and data\.error both name the column 'flux'"),
        (WIDE, {"known": ["time"]}, r"data\.time and data\.known both name"),
        (WIDE, {"known": ["age"], "static": ["age"]}, r"data\.known and data\.static both name"),
        (WIDE, {"known": ["split"]}, r"data\.known and data\.split both name"),
        (LONG, {"channel": "kind", "value": "v", "error": ["e", "e"]}, r"data\.error and data\.error both name"),
        (
            LONG.replace("0.2,3,", "0.2,4,"),
            {"channel": "kind", "value": "v", "known": ["temp"]},
            r"series 'a' has two values of 'temp' at time=0, 3 in line 2 and 4 in line 3",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_the_cure(file, text, options, message):
    refused(message, file(text), **options)


def test_another_reader_of_the_same_columns_needs_only_the_frame(file, tmp_path):
    """As a question does: rows without a value have covariates all the same."""
    frame = pd.read_csv(file(WIDE))
    cells = Cells(tmp_path / "questions.csv", frame)
    found = columns.covariates(cells, "id", ColumnRoles(("temp",), ("age",)))
    np.testing.assert_array_equal(found, [[3, 30], [4, 30], [5, 30], [6, 40], [7, 40], [8, 41]])
    assert columns.covariates(cells, "id", ColumnRoles()) is None
    np.testing.assert_array_equal(columns.errors(cells, None, np.array([1, NAN])), [0, NAN])


# ---- from a file to an answer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on x = 2 temp + 3 age + noise, its error bars known; a day's temperature is told beforehand."""
    folder = tmp_path_factory.mktemp("told")
    rng = np.random.default_rng(0)
    rows = 60 * 8
    frame = pd.DataFrame({"id": np.repeat([f"s{i:02}" for i in range(60)], 8), "time": np.tile(np.arange(8.0), 60)})
    frame["temp"], frame["age"] = rng.normal(20, 5, rows), np.repeat(rng.normal(50, 10, 60), 8)
    frame["bar"] = rng.uniform(0.1, 2, rows)
    frame["x"] = 2 * frame.temp + 3 * frame.age + frame.bar * rng.normal(size=rows)
    frame.to_csv(folder / "told.csv", index=False)
    keys = ["data=table", "data.path=told.csv", "data.values=[x]", "data.known=[temp]", "data.static=[age]"]
    keys += ["data.error=[bar]", "model=rnn", "model.width=16", "optim.lr=2e-2", "task=density", "trainer=cpu"]
    keys += ["trainer.max_epochs=60", "trainer.check_val_every_n_epoch=30", "data.batch_size=50"]
    command("run", *keys, "evaluate.samples=2", "evaluate.draws=9", "hydra.run.dir=run", folder=folder)
    return folder / "run"


@pytest.mark.slow
def test_a_run_uses_what_it_is_told(run):
    found = json.loads((run / "metrics.json").read_text())
    blind = np.log(2 * 5) + 0.5 * np.log(2 * np.pi * np.e)  # who does not know the temperature
    assert found["test/nll"] < blind - 0.7
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["covariates"] == ["temp", "age"] and checkpoint["errors"] is True


def test_a_loaded_model_answers_for_covariates_and_error_bars_given_from_python(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    model, data = vrnn_lab.load(str(run))
    assert model.scale.covariates == data.covariates == ("temp", "age")
    ask = lambda temp, error: series_of(
        [[0.0, 1.0]],
        [[[200.0], [NAN]]],
        scored=[[[False], [True]]],
        covariates=[[[25.0, 50.0], [temp, 50.0]]],
        error=[[[0.5], [error]]],
    )
    told = lambda *question: model.predict(ask(*question), 50).density
    warm, cold, with_measurement_error = told(25.0, NAN), told(15.0, NAN), told(25.0, 30.0)
    assert (warm.mean - cold.mean)[:, 0, 1].mean().item() == pytest.approx(20, abs=6)
    assert with_measurement_error.std[0, 0, 1].item() > 30 > warm.std[0, 0, 1].item()
    with pytest.raises(ValueError, match="the batch has 0 covariates, but the model has 2: temp, age"):
        model.predict(series_of([[0.0]], [[[200.0]]]), 1)


def test_a_fitted_model_is_not_scored_on_other_covariates(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    _, data = vrnn_lab.load(str(run))
    config = compose(["data=table", "data.path=told.csv", "data.values=[x]", "data.known=[age,temp]", "model=rnn"])
    parts = assemble(config)
    parts.data = data
    with pytest.raises(ValueError, match=r"trained with the covariates age, temp; the data set now has temp, age"):
        check_channels(("x",), parts)


def test_the_checkpoint_of_a_model_without_covariates_holds_what_it_always_held():
    config = compose(["data=periodic", "data.train=4", "data.val=2", "data.test=2", "model=rnn"])
    model = assemble(config).model
    assert not [name for name in model.state_dict() if "covariate" in name]
