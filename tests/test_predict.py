"""Forecasts for the user's own series: what is asked, over which windows, and what comes out."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from omegaconf import OmegaConf

from helpers.commands import command
from helpers.predictions import LEVELS, Decay, ask, parts_of, table
from helpers.small import model_of, scale_of
from vrnn_lab import predict
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.series import series_of
from vrnn_lab.data.table import reader as reading
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.reader import SeriesReader, TableSchema
from vrnn_lab.forecasting import forecast
from vrnn_lab.forecasting.forecast import Forecasts, Query
from vrnn_lab.forecasting.queries import SeriesQuery, Times, over_windows
from vrnn_lab.forecasting.summary import summary
from vrnn_lab.forecasting.writer import writing
from vrnn_lab.models.base import Prediction


def long_of(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.melt(["id", "time"], ["a", "b"], "kind", "number")


LONG = TableSchema(channel="kind", value="number")


# ---- the answer -------------------------------------------------------------------------------------------


def test_mean_std_and_quantiles_are_those_of_the_process():
    frame = pd.DataFrame({"id": "x", "time": [100.0, 102.0], "a": [-4.0, np.nan], "b": [-5.0, -9.0]})
    found = ask(frame, at=pd.DataFrame({"id": ["x"] * 2, "time": [103.0, 107.0]}), draws=9999)
    scale = scale_of()
    expected = []
    for time in (103.0, 107.0):
        for channel, (last, value) in enumerate(((100.0, -4.0), (102.0, -9.0))):
            decay = np.exp(-(time - last) / float(scale.clock))
            mean, std = float(scale.mean[channel]), float(scale.std[channel])
            expected.append((mean + (value - mean) * decay, std * np.sqrt(1 - decay**2)))
    assert found[["time", "channel"]].values.tolist() == [[t, c] for t in (103.0, 107.0) for c in "ab"]
    np.testing.assert_allclose(found[["mean", "std"]], expected, rtol=1e-5)
    for name, level in LEVELS.items():
        exact = torch.special.ndtri(torch.tensor(level)).item()
        assert ((found[name] - found["mean"]) / found["std"] - exact).abs().max() < 0.05
    assert (found.dtypes.iloc[3:] == np.float64).all()


def test_quantiles_of_99_draws_are_order_statistics_of_the_paths():
    found = ask(table(), horizon=2.0, every=1.0, paths=99)
    paths = np.sort(found[[f"path_{n + 1}" for n in range(99)]], 1)
    np.testing.assert_allclose(found[list(LEVELS)], paths[:, [4, 24, 49, 74, 94]])


def test_a_mixture_over_paths_has_the_spread_between_them_too():
    mean = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    batch = series_of([[1.0]], [[[torch.nan]]], scored=[[[True]]])
    told = summary(Prediction(mean, Gaussian(mean, torch.ones_like(mean))), batch, 0)
    assert (told["mean"].item(), told["std"].item()) == pytest.approx((1, 2**0.5))


def test_zeros_and_ones_have_their_probability_and_its_quantiles():
    model = model_of("rnn model/head=bernoulli", scale_of(support="binary"))
    frame = pd.DataFrame({"id": "x", "time": [100.0, 101.0], "a": [0, 1], "b": [1, 0]})
    found = ask(frame, model, horizon=3.0, every=1.0)
    assert found["mean"].between(0, 1).all()
    np.testing.assert_allclose(found["std"], np.sqrt(found["mean"] * (1 - found["mean"])), rtol=1e-4)
    for name, level in LEVELS.items():
        assert (found[name] == (level > 1 - found["mean"])).all()
    with pytest.raises(
        ValueError, match="series 'x' holds 7 in channel 'b' at time 100; the model takes binary values"
    ):
        ask(frame.assign(b=[7, 0]), model, horizon=3.0, every=1.0)


def test_a_value_that_the_input_holds_is_its_own_answer():
    frame = pd.DataFrame({"id": "x", "time": [100.0, 102.0], "a": [-4.0, np.nan], "b": [-5.0, -9.0]})
    found = ask(frame, at=frame[["id", "time"]], paths=2)
    known = found.iloc[[0, 1, 3]]
    for name in ("mean", *LEVELS, "path_1", "path_2"):
        assert known[name].tolist() == [-4.0, -5.0, -9.0]
    assert known["std"].tolist() == [0, 0, 0] and found["std"][2] > 0


# ---- the three questions ----------------------------------------------------------------------------------


def test_ahead_is_from_each_series_own_last_observed_time():
    frame = pd.DataFrame({"id": [*"xxy"], "time": [1.0, 5.0, 3.0], "a": [0.0, None, 0.0], "b": [1.0, None, None]})
    found = ask(frame, horizon=0.3, every=0.1)
    assert found[found.channel == "a"].groupby("id")["time"].apply(list).to_dict() == {
        "x": pytest.approx([1.1, 1.2, 1.3]),
        "y": pytest.approx([3.1, 3.2, 3.3]),
    }


def test_filling_asks_every_empty_cell_and_no_other():
    frame = table()
    found = ask(frame, fill=True)
    empty = frame.melt(["id", "time"], ["a", "b"], "channel", "value").query("value.isna()")
    expected = empty[["id", "time", "channel"]].sort_values(["id", "time", "channel"])
    assert found[["id", "time", "channel"]].values.tolist() == expected.values.tolist() != []


def test_a_row_that_is_empty_altogether_is_asked_at_its_time():
    frame = pd.DataFrame({"id": "x", "time": [100.0, 101.0], "a": [-4.0, None], "b": [-5.0, None]})
    assert ask(frame, fill=True)[["time", "channel"]].values.tolist() == [[101.0, "a"], [101.0, "b"]]


def test_where_nothing_is_asked_there_are_no_rows_but_columns():
    frame = pd.DataFrame({"id": "x", "time": [100.0], "a": [-4.0], "b": [-5.0]})
    assert list(ask(frame, fill=True, paths=1)) == ["id", "time", "channel", "mean", "std", *LEVELS, "path_1"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, r"at=<file of id, time>, or horizon=<H> \(and every=<E>\), or fill=true"),
        ({"fill": True, "horizon": 1.0, "every": 1.0}, "one of four"),
        ({"every": 1.0}, "expected both to be positive"),
        ({"horizon": 1.0, "every": 2.0}, "every= at most horizon="),
        ({"horizon": 1.0, "every": 0.0}, "positive"),
        ({"fill": True, "paths": 100}, "as many draws as paths"),
        ({"fill": True, "draws": 0}, "at least 1"),
    ],
)
def test_a_question_that_is_none_is_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        Query(**asked)


# ---- windows ----------------------------------------------------------------------------------------------


def questions(times, asked, longest: float = 10.0, name: str = "x"):
    rows = reading.SeriesRows(
        name, np.array(times, float), np.zeros((len(times), 1)), np.zeros((len(times), 1), bool),
        np.zeros((len(times), 0)), np.zeros((len(times), 1)),
    )  # fmt: skip
    asked = np.array(asked, float)
    wanted = Times(asked, np.ones((len(asked), 1), bool), np.zeros((len(asked), 0)), np.zeros((len(asked), 1)))
    scale = replace(scale_of(1, clock=4.0), longest=torch.tensor(longest).double())
    return list(over_windows(rows, wanted, scale, ColumnRoles()))


def test_a_series_no_longer_than_those_of_training_is_one_window():
    (one,) = questions([0, 4], [1, 2, 10])
    assert one.window == (0, 10) and one.times.tolist() == [0, 1, 2, 4, 10]


def test_questions_about_a_longer_series_each_have_a_window_as_in_training():
    found = questions(range(101), [3.5, 4.5, 50.5, 53.5, 99.5])
    assert [q.times[q.queried[:, 0]].tolist() for q in found] == [[3.5, 4.5], [50.5, 53.5], [99.5]]
    assert [q.window for q in found] == [(0, 10), (47, 57), (90, 100)]
    assert all(q.times[0] == q.window[0] and q.times[-1] == q.window[1] for q in found)
    assert len({q.id for q in found}) == 3
    assert found[0].id == questions([0], [1])[0].id != questions([0], [1], name="y")[0].id


def test_no_question_is_lost_to_rounding():
    for shift in np.random.default_rng(0).uniform(0, 1, 50):
        asked = [101 + shift, 102 + shift, 104 + shift]
        (one,) = questions(np.arange(101) + shift, asked)
        assert one.times[one.queried[:, 0]].tolist() == asked


def test_what_lies_far_from_all_that_is_seen_still_sees_its_neighbours():
    (ahead,) = questions(range(101), [101, 130])
    assert ahead.window == (95, 130)  # longer than any of training, half of one before
    (gap,) = questions([*range(30), *range(60, 90)], [44.0])
    assert gap.window[0] <= 29 - 2 and gap.window[1] >= 60 + 2


def test_a_series_of_which_nothing_is_seen_was_watched_as_those_of_training_or_from_the_first_question_on():
    start = 100.0
    assert [q.window for q in questions([], [start + 1, start + 2])] == [(start, start + 4)]
    assert [q.window for q in questions([], [start + 1, start + 9])] == [(start, start + 9)]
    assert [q.window for q in questions([], [500, 501])] == [(500, 504)]


@pytest.mark.parametrize("name", ["rnn", "latent_ode", "latent_ode_poisson", "vrnn", "latent_sde"])
def test_every_kind_of_model_answers_with_no_points_one_and_many(name, tmp_path):
    frame = table()
    at = pd.DataFrame({"id": ["none", "s0", "s1"], "time": [101.0, 102.0, 400.0]})
    scale = replace(scale_of(), dates=False)
    found = ask(frame, model_of(name, scale), at=at)
    assert found["id"].tolist() == ["none"] * 2 + ["s0"] * 2 + ["s1"] * 2
    assert np.isfinite(found.iloc[:, 3:].astype(float)).all(axis=None)


def test_an_answer_depends_on_its_own_series_alone(monkeypatch):
    frame, model = table(6), model_of("latent_ode", double=True)
    whole = ask(frame, model, horizon=3.0, every=1.0)
    one = ask(frame[frame["id"] == "s3"], model, horizon=3.0, every=1.0)
    np.testing.assert_allclose(one.iloc[:, 3:], whole[whole["id"] == "s3"].iloc[:, 3:], rtol=1e-9)
    monkeypatch.setattr("vrnn_lab.forecasting.summary.ROWS_AT_ONCE", 1)
    np.testing.assert_allclose(ask(frame, model, horizon=3.0, every=1.0).iloc[:, 3:], whole.iloc[:, 3:], rtol=1e-9)


# ---- files ------------------------------------------------------------------------------------------------


def test_rows_in_any_order_give_the_same(tmp_path):
    frame, at = table(), pd.DataFrame({"id": ["s2", "new", "s0"], "time": [105.0, 1.0, 101.0]})
    mixed = lambda x: x.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(ask(mixed(frame), fill=True), ask(frame, fill=True))
    pd.testing.assert_frame_equal(ask(mixed(frame), at=mixed(at)), ask(frame, at=at))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("form", [TableSchema(), LONG], ids=["wide", "long"])
def test_bit_by_bit_is_as_whole(ending, form, tmp_path, monkeypatch):
    frame = table(6) if form.value is None else long_of(table(6)).sort_values("id")
    at = pd.DataFrame({"id": ["s0", "s0", "s1a", "s3"], "time": [101.0, 103.0, 100.0, 103.0]})
    files = [tmp_path / f"{name}{ending}" for name in ("input", "at")]
    for each, file in zip((frame, at), files, strict=True):
        each.to_parquet(file) if ending == ".parquet" else each.to_csv(file, index=False)
    expected = [ask(frame, form=form, **kind) for kind in ({"fill": True}, {"at": at})]
    monkeypatch.setattr(reading, "SMALL", 4)
    found = [ask(files[0], form=form, in_memory=False, **kind) for kind in ({"fill": True}, {"at": files[1]})]
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)
    assert not SeriesReader(files[0], "input", form, ("a", "b"), ColumnRoles(), None).small


def test_bit_by_bit_wants_the_rows_of_a_series_together(tmp_path):
    file = tmp_path / "x.csv"
    table().sort_values("time").to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"comes back in line \d+ after another series; .*ORDER BY id, time"):
        ask(file, in_memory=False, fill=True)


def test_bit_by_bit_wants_series_in_one_order(tmp_path):
    frame, at = table(), pd.DataFrame({"id": ["s2", "s0"], "time": [105.0, 101.0]})
    frame.to_csv(tmp_path / "x.csv", index=False)
    at.to_csv(tmp_path / "at.csv", index=False)
    with pytest.raises(ValueError, match="'s2' has another place in"):
        ask(tmp_path / "x.csv", in_memory=False, at=tmp_path / "at.csv")


def test_the_long_form_says_the_same():
    frame = table()
    pd.testing.assert_frame_equal(ask(long_of(frame), form=LONG, fill=True), ask(frame, fill=True))
    seen = long_of(frame).dropna()
    pd.testing.assert_frame_equal(ask(seen, form=LONG, horizon=2.0, every=1.0), ask(frame, horizon=2.0, every=1.0))


def test_one_series_has_no_id():
    frame = table(1)
    found = ask(frame.drop(columns="id"), form=TableSchema(id=None), horizon=1.0, every=1.0)
    assert found["id"].tolist() == ["series"] * 2
    assert found["mean"].tolist() == ask(frame, horizon=1.0, every=1.0)["mean"].tolist()


def test_a_channel_that_is_missing_was_not_observed(caplog):
    frame = table()
    expected = ask(frame.assign(b=np.nan), horizon=2.0, every=1.0)
    found = ask(frame.drop(columns="b").assign(z=1.0), horizon=2.0, every=1.0)
    pd.testing.assert_frame_equal(found, expected)
    assert "no column b: its values are taken as not observed" in caplog.text


def test_names_of_digits_are_texts(tmp_path):
    frame = table().assign(id=lambda x: ["00" + name[1:] if name < "s2" else name for name in x["id"]])
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert ask(tmp_path / "x.csv", horizon=1.0, every=1.0)["id"].unique().tolist() == ["000", "001", "s2", "s3"]
    found = ask(tmp_path / "x.csv", at=pd.DataFrame({"id": ["001"], "time": [101.0]}))
    assert found["id"].tolist() == ["001"] * 2


def test_whole_numbers_as_ids_stay_such():
    frame = table().assign(id=lambda x: x["id"].str[1:].astype(int))
    assert ask(frame, horizon=1.0, every=1.0)["id"].unique().tolist() == [0, 1, 2, 3]


def test_ids_too_large_for_a_signed_number_are_kept():
    frame = table().assign(id=lambda x: x["id"].str[1:].astype(np.uint64) + np.uint64(2**63))
    assert ask(frame, horizon=1.0, every=1.0)["id"].unique().tolist() == [str(2**63 + i) for i in range(4)]


def test_numbers_that_pandas_keeps_as_categories_are_numbers():
    frame = table()
    expected = ask(frame, horizon=1.0, every=1.0)
    pd.testing.assert_frame_equal(
        ask(frame.astype(dict.fromkeys(["time", "a"], "category")), horizon=1.0, every=1.0), expected
    )


def test_a_column_that_is_there_twice_is_refused():
    frame = table()
    with pytest.raises(ValueError, match="more than one column named a"):
        ask(pd.concat([frame, frame[["a"]]], axis=1), horizon=1.0, every=1.0)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["$x_{$", "1 $ is 1 $", "a/b", "..", "温" * 100, "\U00020000" * 99, "n" * 300])
def test_a_series_of_any_name_has_its_figure(name, tmp_path):
    frame = table().query("id == 's1'").assign(id=name)
    asked = Forecasts.of(parts_of(Decay(scale_of())), frame, Query(horizon=1.0, every=0.5), TableSchema())
    predict.write(asked, tmp_path / "out.csv", 1.0, in_memory=True)
    assert len(list((tmp_path / "out_figures").glob("*.png"))) == 1


def test_progress_is_told_also_where_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "LOG_EVERY", -1.0)
    asked = Forecasts.of(parts_of(Decay(scale_of())), table().dropna(), Query(fill=True), TableSchema())
    predict.write(asked, tmp_path / "out.csv", 0.0, in_memory=True)
    assert len(pd.read_csv(tmp_path / "out.csv")) == 0


# ---- dates ------------------------------------------------------------------------------------------------


def dated(texts) -> pd.DataFrame:
    return pd.DataFrame({"id": "x", "time": texts, "a": [-4.0, None], "b": [-5.0, -9.0]})


@pytest.mark.parametrize(
    ("texts", "every", "expected"),
    [
        (["2024-02-27", "2024-02-28"], 1.0, ["2024-02-29", "2024-03-01"]),
        (["2024-02-27", "2024-02-28"], 0.1, ["2024-02-28T02:24:00", "2024-02-28T04:48:00"]),
        (
            ["2024-02-27T12:00:00Z", "2024-02-27T23:00:00+02:00"],
            1.0,
            ["2024-02-28T21:00:00Z", "2024-02-29T21:00:00Z"],
        ),
    ],
)
def test_dates_stay_dates(texts, every, expected):
    model = Decay(replace(scale_of(), dates=True))
    found = ask(dated(texts), model, horizon=2 * every, every=every)
    assert found["time"].tolist() == [t for t in expected for _ in "ab"]


@pytest.mark.parametrize("zone", [None, "Europe/Paris"])
def test_datetimes_stay_datetimes(zone):
    times = pd.to_datetime(["2024-02-27", "2024-02-28T12:00:00.25"], format="ISO8601").tz_localize(zone)
    found = ask(dated(times), horizon=1.0, every=1.0)
    assert found["time"].tolist() == [pd.Timestamp("2024-02-29T12:00:00.25", tz=zone)] * 2


def test_moments_are_written_to_the_microsecond_as_they_were_read():
    start = pd.Timestamp("2024-02-27T23:59:59.998998")
    times = start + pd.to_timedelta(np.arange(2003), "us")
    frame = pd.DataFrame({"id": "x", "time": times, "a": 1.0, "b": [*[1.0] * 2002, None]})
    at = pd.DataFrame({"id": "x", "time": times})
    assert ask(frame, at=at)["time"].tolist() == [t for t in times for _ in "ab"]
    ahead = ask(frame.tail(2), horizon=1.0, every=0.1)["time"].drop_duplicates()
    assert ahead.tolist() == [times[-1] + pd.Timedelta(microseconds=8_640_000_000 * n) for n in range(1, 11)]


def test_dates_before_the_reach_of_nanoseconds_stay_such():
    times = np.array(["1424-02-27", "1424-02-28"], "datetime64[s]")
    assert ask(dated(times), horizon=1.0, every=1.0)["time"].dt.strftime("%Y-%m-%d").tolist() == ["1424-02-29"] * 2


def test_spans_of_time_are_refused():
    with pytest.raises(ValueError, match="is of the type period"):
        ask(dated(pd.period_range("2024-01", periods=2, freq="M")), horizon=1.0, every=1.0)


@pytest.mark.parametrize(("dates", "times"), [(False, ["2024-01-01", "2024-01-02"]), (True, [1.0, 2.0])])
def test_dates_for_numbers_are_refused(dates, times):
    with pytest.raises(ValueError, match="but the times that the model was trained on are"):
        ask(dated(times), Decay(replace(scale_of(), dates=dates)), fill=True)


# ---- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda f: f.rename(columns={"time": "hour"}), "has no column 'time'.*Name the column with time="),
        (lambda f: f.rename(columns={"id": "ids"}), "Did you mean id=ids"),
        (lambda f: f[["id", "time"]], "none of the model's channels, a, b"),
        (
            lambda f: pd.concat([f, f.iloc[[3]].assign(a=9.0, b=9.0)]),
            r"'s1' has two rows at time=.*line 5 and line 26",
        ),
        (lambda f: f.assign(a=["x", *f["a"][1:]]), "column 'a' holds the text 'x' in line 2"),
        (lambda f: f.assign(time=[None, *f["time"][1:]]), "line 2 has no 'time'"),
        (lambda f: f.assign(id=[None, *f["id"][1:]]), "line 2 has no 'id'"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(changed, said, tmp_path):
    file = tmp_path / "x.csv"
    changed(table()).to_csv(file, index=False)
    with pytest.raises(ValueError, match=said):
        ask(file, fill=True)


def test_the_long_form_is_refused_where_a_channel_stands_twice_or_none_is_known():
    long = long_of(table()).dropna()
    with pytest.raises(ValueError, match=r"'s0', channel 'a' has two rows at"):
        ask(pd.concat([long, long.iloc[[0]].assign(**{LONG.value: 9.0})]), form=LONG, fill=True)
    with pytest.raises(ValueError, match=r"holds none of the model's channels"):
        ask(long.assign(kind="z"), form=LONG, fill=True)


def test_a_model_of_events_is_refused_by_naming_sample():
    model = model_of("latent_ode_poisson model/head=events", scale_of(1, support="events"))
    with pytest.raises(ValueError, match=r"python -m vrnn_lab\.sample"):
        ask(table(), model, fill=True)


def test_ids_that_the_input_does_not_have_are_told(caplog):
    ask(table(), at=pd.DataFrame({"id": ["typo"], "time": [101.0]}))
    assert "1 series have no row" in caplog.text and "'typo'" in caplog.text


def test_nothing_is_left_of_a_table_that_failed(tmp_path):
    (tmp_path / "x.csv").write_text("before")
    with pytest.raises(KeyError), writing(tmp_path / "x.csv") as out:
        out(pd.DataFrame({"a": [1]}))
        raise KeyError
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


# ---- covariates -------------------------------------------------------------------------------------------


def with_covariates():
    scale = replace(
        scale_of(), covariates=("warm", "kind"), covariate_mean=torch.zeros(2).double(),
        covariate_std=torch.ones(2).double(),
    )  # fmt: skip
    config = OmegaConf.create({"data": {"_target_": forecast.TABLE, "known": ["warm"], "static": ["kind"]}})
    return replace(parts_of(model_of("rnn", scale, double=True)), config=config)


def told(frame, **asked) -> pd.DataFrame:
    all_ = Forecasts.of(with_covariates(), frame, Query(**asked), TableSchema())
    return pd.concat([all_.frame(summary) for summary in all_.summaries(True)], ignore_index=True)


def test_covariates_of_a_question_are_those_of_its_rows():
    frame = table().fillna(-7.0).assign(warm=1.0, kind=2.0)
    at = pd.DataFrame({"id": ["s0", "s1"], "time": 105.0, "warm": [1.0, 1.0]})
    extended = pd.concat([frame, at.assign(kind=[np.nan, 2.0])])
    found, filled = told(frame, at=at), told(extended, fill=True)
    both = found.merge(filled, on=["id", "time", "channel"])
    np.testing.assert_allclose(both["mean_x"], both["mean_y"])
    other = told(frame, at=at.assign(warm=[5.0, 1.0]))
    assert (np.abs(found["mean"] - other["mean"]) > 1e-6).tolist() == [True, True, False, False]


def test_a_horizon_takes_its_covariates_from_the_future():
    frame = table().fillna(-7.0).assign(warm=1.0, kind=2.0)
    last = frame.groupby("id")["time"].max()
    rows = [(name, end + step, 0.1 * step) for name, end in last.items() for step in (-1.0, 0.5, 1.0, 2.0, 3.0)]
    future = pd.DataFrame(rows, columns=["id", "time", "warm"])
    later = future[[step in (0.5, 1.0, 2.0) for *_, step in [(0, 0, s) for _ in last for s in (-1, 0.5, 1, 2, 3)]]]
    expected = told(frame, at=later)
    found = told(frame, horizon=2.0, future=future.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(found, expected)
    gridded = told(frame, horizon=2.0, every=1.0, future=future)
    assert (gridded["time"] - gridded["id"].map(last)).round(9).tolist() == [1.0, 1.0, 2.0, 2.0] * len(last)
    merged = gridded.merge(expected, on=["id", "time", "channel"])
    assert len(merged) == len(gridded) and merged["std_x"].gt(0).all()
    days = frame.assign(time=19_000.0 + frame["time"] / 86_400)  # seconds, as dates are read
    ends = days.groupby("id")["time"].max()
    rows = [(name, end + k / 86_400, 1.0) for name, end in ends.items() for k in range(1, 31)]
    seconds = pd.DataFrame(rows, columns=["id", "time", "warm"])
    assert len(told(days, horizon=30 / 86_400, every=1 / 86_400, future=seconds)) == 60 * len(ends)
    with pytest.raises(ValueError, match=r"future= has no row 1\.5 after its last observed time"):
        told(frame, horizon=2.0, every=1.5, future=future)
    with pytest.raises(ValueError, match="give horizon=<H> too"):
        told(frame, fill=True, future=future)
    with pytest.raises(ValueError, match="has no 'warm' at time"):
        told(frame, horizon=2.0, future=future.drop(columns="warm"))


@pytest.mark.parametrize(
    ("change", "asked", "said"),
    [
        (
            lambda f: f,
            {"horizon": 1.0, "every": 1.0},
            "horizon= predicts at times at which the model needs warm, which are not known there",
        ),
        (lambda f: f.drop(columns="warm"), {"fill": True}, "no column 'warm'"),
        (lambda f: f.assign(warm=np.nan), {"fill": True}, "has no 'warm' at time"),
        (lambda f: f.assign(kind=range(len(f))), {"fill": True}, "two values of 'kind'"),
        (lambda f: f, {"at": pd.DataFrame({"id": ["s0"], "time": [105.0]})}, "'s0' has no 'warm' at time 105"),
        (
            lambda f: f,
            {"at": pd.DataFrame({"id": ["z"], "time": 1.0, "warm": [1.0]})},
            "'z' has no 'kind', of which the model needs one number",
        ),
        (
            lambda f: f.assign(id="s0", time=1.0).head(1),
            {"at": pd.DataFrame({"id": ["s0"], "time": [1.0], "warm": [3.0]})},
            "'s0' has two values of 'warm' at time 1.0, 1 in input= and 3 in at=",
        ),
    ],
)
def test_a_question_without_its_covariates_is_refused(change, asked, said):
    with pytest.raises(ValueError, match=said):
        told(change(table().assign(warm=1.0, kind=2.0)), **asked)


def test_error_bars_reach_the_model_with_their_values():
    beside = ColumnRoles(error=("sa", None))
    frame = pd.DataFrame({"id": "x", "time": [100.0, 101.0], "a": [-4.0, -5.0], "b": [-5.0, None], "sa": [0.5, 0.25]})
    source = SeriesReader(frame, "input", TableSchema(), ("a", "b"), beside, None)
    ((rows, times),) = SeriesQuery(horizon=1.0, every=1.0).of(source, True)
    (question,) = over_windows(rows, times, scale_of(), beside)
    assert question.error.tolist() == [[0.5, 0], [0.25, 0], [0, 0]]
    with pytest.raises(ValueError, match="row 2 has a negative 'sa'"):  # of an empty cell, which may be asked for
        list(
            SeriesReader(
                frame.assign(a=[1.0, None], sa=[1.0, -1.0]), "input", TableSchema(), ("a", "b"), beside, None
            ).series(True)
        )
    with pytest.raises(ValueError, match="row 1 has a negative 'sa'"):
        list(SeriesReader(frame.assign(sa=[-1.0, 1.0]), "at", TableSchema(), ("a", "b"), beside, None).series(True))
    with pytest.raises(ValueError, match="has a value but no 'sa'"):
        list(
            SeriesReader(frame.assign(sa=[None, 1.0]), "input", TableSchema(), ("a", "b"), beside, None).series(True)
        )


# ---- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    table(40).rename(columns={"id": "name", "time": "hour"}).to_csv(folder / "train.csv", index=False)
    keys = "model=rnn model.width=8 data=table data.path=train.csv data.id=name data.time=hour trainer=cpu"
    command("run", *keys.split(), "trainer.max_epochs=1", "evaluate.samples=1", "hydra.run.dir=run", folder=folder)
    table().rename(columns={"id": "name", "time": "hour"}).to_csv(folder / "mine.csv", index=False)
    return folder


@pytest.mark.slow
def test_the_command_writes_a_table_and_figures_and_the_same_again(run):
    arguments = ["run=run", "input=mine.csv", "horizon=2", "every=1"]
    said = command("predict", *arguments, "output=deep/out.csv", "figures=2", "paths=3", folder=run).stdout
    found = pd.read_csv(run / "deep" / "out.csv")
    assert "deep/out.csv, 16 rows" in said and len(found) == 16
    assert list(found) == ["id", "time", "channel", "mean", "std", *LEVELS, "path_1", "path_2", "path_3"]
    figures = sorted((run / "deep" / "out_figures").iterdir())
    assert [f.name for f in figures] == ["s0.png", "s1.png"] and min(imread(figures[0]).shape[:2]) > 200
    command("predict", *arguments, "output=out.parquet", "paths=3", "stream=true", folder=run)
    pd.testing.assert_frame_equal(pd.read_parquet(run / "out.parquet"), found, rtol=1e-12)
    assert {p.name for p in (run / "deep").iterdir()} == {"out.csv", "out_figures"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": None}, "run=<run folder> is missing"),
        ({"input": None}, "input=<file> is missing"),
        ({"output": ""}, "output=<file> is missing"),
        ({"output": "out.txt"}, "output=out.txt: expected a file that ends in .csv or .parquet"),
        ({"output": "mine.csv"}, "output=mine.csv is also an input"),
        ({"input": "nowhere.csv"}, "input=nowhere.csv does not exist"),
        ({"fill": None, "at": "nowhere.csv"}, "at=nowhere.csv does not exist"),
        ({"run": "nowhere"}, "is not a run folder"),
        ({"run": "bare"}, "no checkpoint yet"),
        ({"fill": None}, "the query is missing or not unique"),
        ({"fill": "yes"}, "fill=yes: expected true or false"),
        ({"horizon": "far"}, "horizon=far: expected a number"),
        ({"draws": "0"}, "draws=0: expected a whole number from 1"),
        ({"figures": "few"}, "figures=few: expected true or false"),
        ({"horizons": "1"}, "'horizons=1' is not understood"),
        ({"id": "who"}, "has no column 'who'"),
        ({"run": "old", "recalibrate": "true"}, "were not recalibrated yet"),
    ],
)
def test_what_cannot_work_is_one_message_and_no_file(changes, said, run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    (run / "bare" / ".hydra").mkdir(parents=True, exist_ok=True)
    (run / "bare" / ".hydra" / "config.yaml").write_text((run / "run" / ".hydra" / "config.yaml").read_text())
    if not (run / "old").exists():  # of a version that fitted no recalibration
        shutil.copytree(run / "run", run / "old")
        (run / "old" / "recalibration.json").unlink()
    arguments = {"run": "run", "input": "mine.csv", "output": "none.csv", "fill": "true"} | changes
    monkeypatch.setattr("sys.argv", ["predict", *(f"{k}={v}" for k, v in arguments.items() if v is not None)])
    assert run_command(predict.main) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not Path("none.csv").exists()


def test_help_needs_no_torch(monkeypatch, capsys, tmp_path):
    code = "import sys; sys.argv = ['x', '--help']\nfrom vrnn_lab import predict\n"
    code += "try: predict.main()\nexcept SystemExit: pass\nassert not {'torch', 'pandas'} & set(sys.modules)"
    assert b"fill=true" in subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
