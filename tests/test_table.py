"""The user's own table: what is read, how it is split, and what is said when it cannot be used."""

import builtins
import gzip
import logging
import pickle

import numpy as np
import pandas as pd
import pytest

from vrnn_lab.data import splits as windows
from vrnn_lab.data.table.dataset import Table

SPLITS = ("train", "val", "test")


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "data.csv") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def wide(series: int = 20, points: int = 5, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"s{i}" for i in range(series)], points)
    times = np.sort(rng.uniform(0, 10, (series, points)), 1).ravel()
    return pd.DataFrame({"id": ids, "time": times, "a": rng.normal(size=len(ids)), "b": rng.normal(size=len(ids))})


def long_record(points: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame({"time": np.cumsum(rng.exponential(size=points)), "x": rng.normal(size=points)})


def save(frame: pd.DataFrame, path) -> str:
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return str(path)


def same(one, other) -> None:
    assert one.names == other.names
    for name in ("times", "values", "offsets", "windows", "ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def by_name(series) -> dict:
    cut = series.offsets
    return {n: (series.times[a:b], series.values[a:b]) for n, a, b in zip(series.names, cut, cut[1:], strict=False)}


def refused(message: str, *args, **options) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Table(*args, **options).splits


# ---- reading ------------------------------------------------------------------------------------------------


def test_a_wide_table_is_read_with_all_its_number_columns(file):
    table = Table(file("id,time,a,b,place\nx,0,1.5,2,here\nx,1.5,,3,there\ny,0,4,,here\n"))
    assert table.channels == ("a", "b")
    series = table.whole()
    assert series.names == ("x", "y")
    np.testing.assert_array_equal(series.times, [0, 1.5, 0])
    np.testing.assert_array_equal(series.values, [[1.5, 2], [np.nan, 3], [4, np.nan]])
    np.testing.assert_array_equal(series.windows, [[0, 1.5], [0, 0]])
    assert table.time_unit == ""


def test_the_channels_may_be_named_in_any_order(file):
    table = Table(file("id,time,a,b,c\nx,0,1,2,word\n"), values=["b", "a"])
    assert table.channels == ("b", "a")
    np.testing.assert_array_equal(table.whole().values, [[2, 1]])


def test_row_numbers_that_pandas_wrote_are_no_channel(file):
    assert Table(file(",id,time,a\n0,x,0,1\n1,x,1,2\n")).channels == ("a",)


def test_rows_in_any_order_give_the_same_series_with_a_notice(tmp_path, caplog):
    frame = wide()
    straight = Table(save(frame, tmp_path / "straight.csv"))
    shuffled = Table(save(frame.sample(frac=1, random_state=0), tmp_path / "shuffled.csv"))
    for split in SPLITS:
        same(straight.splits[split], shuffled.splits[split])
    assert "straight.csv" not in caplog.text
    assert "shuffled.csv" in caplog.text and "sorted by time" in caplog.text


def test_series_that_take_turns_in_the_file_need_no_notice(file, caplog):
    table = Table(file("id,time,a\ny,0,1\nx,0,2\ny,1,3\nx,1,4\n"))
    np.testing.assert_array_equal(table.whole().values[:, 0], [2, 4, 1, 3])
    assert not caplog.records


def test_empty_rows_are_dropped_and_series_without_a_value_left_out(file, caplog):
    table = Table(file("id,time,a\nx,0,1\nx,1,\nempty,0,NaN\n\ny,2,3\n"))
    assert table.whole().names == ("x", "y")
    np.testing.assert_array_equal(table.whole().times, [0, 2])
    assert "'empty'" in caplog.text


def test_names_are_kept_as_they_are_written(file):
    assert Table(file("id,time,a\n007,0,1\nNA,0,2\n7,0,3\n")).whole().names == ("007", "7", "NA")


def test_the_long_form_is_the_same_table(tmp_path):
    frame = wide()
    frame.loc[::3, "a"] = np.nan
    stacked = frame.melt(["id", "time"], var_name="kind", value_name="number").sample(frac=1, random_state=0)
    one = Table(save(frame, tmp_path / "wide.csv"))
    other = Table(save(stacked, tmp_path / "long.csv"), channel="kind", value="number")
    assert one.channels == other.channels == ("a", "b")
    for split in SPLITS:
        same(one.splits[split], other.splits[split])


def test_channels_of_the_long_form_may_be_chosen(file):
    text = "id,time,channel,value\nx,0,a,1\nx,0,b,2\nx,1,c,3\n"
    table = Table(file(text), channel="channel", value="value", values=["c", "b"])
    np.testing.assert_array_equal(table.whole().values, [[np.nan, 2], [3, np.nan]])


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("unique_id,ds,y", {"id": "unique_id", "time": "ds"}),
        ("item_id,timestamp,target", {"id": "item_id", "time": "timestamp"}),
    ],
)
def test_files_of_other_libraries_load_as_they_are(file, header, options):
    table = Table(file(f"{header}\nA,2024-01-01,1\nA,2024-01-02,2\n"), **options)
    assert table.channels == (header.split(",")[-1],)
    assert np.diff(table.whole().times) == 1


@pytest.mark.parametrize(
    "moments",
    [
        ("1970-01-01", "1970-01-02 12:00", "2024-01-02"),
        ("1970-01-01", "1970-01-02 12:00", "2024-01-02T00:00:00"),
        ("1970-01-01T00:00Z", "1970-01-02 04:30-07:30", "2024-01-02T02:00:00+02:00"),
    ],
)
def test_iso_dates_become_days_since_1970(file, moments):
    table = Table(file("id,time,a\n" + "".join(f"x,{moment},1\n" for moment in moments)))
    np.testing.assert_array_equal(table.whole().times, [0, 1.5, 19724])
    assert table.time_unit == "days"


def test_seconds_since_1970_keep_their_full_precision(file):
    times = [1_700_000_000.000001, 1_700_000_000.000003, 1_700_000_000.125]
    table = Table(file("id,time,a\n" + "".join(f"x,{t!r},1\n" for t in times)))
    assert table.whole().times.tolist() == times


def test_a_file_of_one_series_needs_no_id(file):
    table = Table(file("time,x\n0,1\n1,2\n", "river.csv"), id=None)
    assert table.whole().names == ("river",)


def test_parquet_gives_what_csv_gives(tmp_path):
    frame = wide()
    one, other = Table(save(frame, tmp_path / "t.csv")), Table(save(frame, tmp_path / "t.parquet"))
    for split in SPLITS:
        same(one.splits[split], other.splits[split])


def test_parquet_may_hold_moments_whole_numbers_and_an_index(tmp_path):
    days = pd.to_datetime(["1970-01-02", "1970-01-03"]).tz_localize("UTC")
    frame = pd.DataFrame(
        {"id": [7, 7], "time": days, "a": pd.array([1, None], "Int64"), "b": [1.5, 2.5]}, index=[3, 9]
    )
    series = Table(save(frame, tmp_path / "t.parquet")).whole()
    assert series.names == ("7",)
    np.testing.assert_array_equal(series.times, [1, 2])
    np.testing.assert_array_equal(series.values, [[1, 1.5], [np.nan, 2.5]])
    dates = frame.assign(time=days.date).set_index("id")
    same(series, Table(save(dates, tmp_path / "dates.parquet")).whole())


def test_a_packed_csv_is_read(tmp_path):
    with gzip.open(tmp_path / "t.csv.gz", "wt") as out:
        out.write("id,time,a\nx,0,1\n")
    assert Table(str(tmp_path / "t.csv.gz")).channels == ("a",)


# ---- splits -------------------------------------------------------------------------------------------------


def test_series_are_split_by_name_in_exact_shares_and_by_the_seed(tmp_path):
    path = save(wide(40), tmp_path / "t.csv")
    one = {split: set(part.names) for split, part in Table(path).splits.items()}
    assert [len(one[split]) for split in SPLITS] == [28, 6, 6]
    assert len(set.union(*one.values())) == 40
    assert set(Table(path, seed=1).splits["test"].names) != one["test"]


def test_three_series_give_one_to_each_split(tmp_path):
    splits = Table(save(wide(3), tmp_path / "t.csv")).splits
    assert [len(splits[split]) for split in SPLITS] == [1, 1, 1]


def test_a_split_column_is_followed(tmp_path):
    frame = wide(6).assign(split=np.repeat(["test", "train", "val"], 10))
    splits = Table(save(frame, tmp_path / "t.csv")).splits
    assert splits["test"].names == ("s0", "s1")
    assert splits["train"].names == ("s2", "s3")
    assert Table(save(frame, tmp_path / "t.csv"), split=None).splits["test"].names != ("s0", "s1")


def test_a_split_column_may_divide_one_series_in_time(tmp_path):
    frame = long_record(30).assign(split=np.repeat(SPLITS, 10))
    splits = Table(save(frame, tmp_path / "t.csv"), id=None).splits
    assert [len(splits[split].times) for split in SPLITS] == [10, 10, 10]
    assert splits["train"].times.max() < splits["val"].times.min()


def test_a_single_series_is_cut_in_time_into_windows_that_share_no_point(tmp_path):
    frame = long_record(200)
    splits = Table(save(frame, tmp_path / "t.csv"), id=None, window=10, stride=3).splits
    assert splits["train"].times.max() < splits["val"].times.min()
    assert splits["val"].times.max() < splits["test"].times.min()
    assert len(splits["train"]) == (140 - 10) // 3 + 1
    np.testing.assert_array_equal(splits["train"].times[10:13], frame.time[3:6])
    assert len(splits["val"]) == 3 and len(np.unique(splits["val"].times)) == 30
    ids = np.concatenate([splits[split].ids for split in SPLITS])
    assert len(set(ids)) == len(ids)
    np.testing.assert_array_equal(splits["val"].windows[:, 1], splits["val"].times[9::10])


def test_several_series_are_split_by_name_before_they_are_cut(tmp_path):
    frame = wide(11, 25)
    splits = Table(save(frame, tmp_path / "t.csv"), window=10).splits
    assert [set(np.diff(splits[split].offsets)) for split in SPLITS] == [{10}] * 3
    names = [set(splits[split].names) for split in SPLITS]
    assert [len(n) for n in names] == [7, 2, 2]
    assert len(splits["train"]) == 2 * len(names[0])


@pytest.mark.parametrize(("count", "points", "window"), [(2, 100, None), (10, 130, None), (4, 60, 12)])
def test_few_long_series_are_each_split_in_time(tmp_path, count, points, window):
    table = Table(save(wide(count, points), tmp_path / "t.csv"), window=window)
    splits, whole = table.splits, table.whole()
    for split in SPLITS:
        assert set(splits[split].names) == set(whole.names)
    for name in whole.names:
        ends = {split: splits[split].windows[[n == name for n in splits[split].names]] for split in SPLITS}
        assert ends["train"].max() < ends["val"].min() and ends["val"].max() < ends["test"].min()
    assert splits["train"].lengths.max() == (window or max(10, points // 10))
    assert not table.scale.whole_series


@pytest.mark.parametrize(("count", "points", "window"), [(11, 100, None), (3, 99, None), (4, 59, 12)])
def test_many_or_short_series_are_split_as_a_whole(tmp_path, count, points, window):
    splits = Table(save(wide(count, points), tmp_path / "t.csv"), window=window).splits
    assert not set(splits["train"].names) & set(splits["test"].names)


def test_a_single_record_is_cut_into_windows_of_a_tenth_of_it(tmp_path):
    splits = Table(save(long_record(400), tmp_path / "t.csv"), id=None).splits
    assert [np.diff(splits[split].offsets).tolist() for split in SPLITS] == [[40] * 7, [40], [40]]


def test_a_segment_shorter_than_the_window_is_one_shorter_window(tmp_path):
    splits = Table(save(long_record(40), tmp_path / "t.csv"), id=None, window=20).splits
    assert [np.diff(splits[split].offsets).tolist() for split in SPLITS] == [[20], [6], [6]]


def test_the_scale_is_that_of_the_training_split_alone(tmp_path):
    frame = wide(12)
    frame["split"] = np.repeat(["train"] * 6 + ["val"] * 3 + ["test"] * 3, 5)
    before = Table(save(frame, tmp_path / "t.csv")).scale
    frame.loc[frame.split != "train", ["a", "b"]] *= 1000
    after = Table(save(frame, tmp_path / "t.csv")).scale
    np.testing.assert_array_equal(before.mean, after.mean)
    np.testing.assert_allclose(before.std, frame[frame.split == "train"][["a", "b"]].std(ddof=0))


def test_splits_and_windows_that_overlap_are_no_copies(tmp_path):
    """Nor are they when they are kept for the next process."""
    path = save(wide(200, 50), tmp_path / "t.csv")
    table = Table(path, window=20, stride=1, dequantise=False)
    assert len({id(table.splits[split].points.values) for split in SPLITS}) == 1
    assert len(table.splits["train"].values) > 5 * len(table.whole().values)
    assert len(pickle.dumps(table, protocol=5)) < 3 * 8 * 3 * 200 * 50
    again = pickle.loads(pickle.dumps(table, protocol=5))
    same(again.splits["test"], table.splits["test"])


# ---- rounded values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (np.arange(10.0), 1.0),
        (np.arange(10) / 10, 0.1),
        (np.arange(10) * 10.0, 10.0),
        ((np.arange(10) / 10).astype(np.float32).astype(float) + 20, 0.0),
        (np.random.default_rng(0).normal(size=50), 0.0),
        (np.random.default_rng(0).normal(0, 100, 50).round(1), 0.0),
        (np.full(10, 3.0), 0.0),
        (np.array([np.nan, 1, 0, 1]), 1.0),
        (np.array([np.nan]), 0.0),
    ],
)
def test_the_rounding_step_is_the_largest_power_of_ten_above_a_hundredth_of_the_std(values, step):
    if values.dtype == float and len(values) == 10 and values.min() == 20:
        step = 0.1  # single precision is no obstacle
    assert windows.rounding_step(lambda: [values[~np.isnan(values)]]) == pytest.approx(step)


def test_rounded_channels_get_noise_of_one_step_in_every_split(tmp_path, caplog):
    frame = wide(50, 20)
    frame["a"] = (5 * frame["a"]).round()
    path = save(frame, tmp_path / "t.csv")
    table, plain = Table(path), Table(path, dequantise=False)
    for split in SPLITS:
        noise = table.splits[split].values - plain.splits[split].values
        assert (np.abs(noise[:, 0]) <= 0.5).all()
        assert (noise[:, 1] == 0).all()
    noise = (table.splits["train"].values - plain.splits["train"].values)[:, 0]
    assert abs(noise.mean()) < 4 * (1 / 12 / len(noise)) ** 0.5
    assert abs(noise.var() - 1 / 12) < 0.02
    assert "'a' (to 1)" in caplog.text and "'b'" not in caplog.text


def test_the_rounding_noise_is_the_same_however_the_series_are_split_or_cut(tmp_path):
    frame = wide(12, 10)
    frame["a"] = (5 * frame["a"]).round()
    path = save(frame, tmp_path / "t.csv")
    found = [
        np.concatenate([[*part.times, *part.values[:, 0]] for part in Table(path, **options).splits.values()])
        for options in ({}, {"shares": [0.4, 0.3, 0.3]}, {"window": 5})
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(np.sort(found[0]), np.sort(other))
    assert not np.array_equal(np.sort(found[0]), np.sort(Table(path, seed=1).splits["train"].values[:, 0]))


def test_the_rounding_step_is_found_on_training_values_alone(tmp_path):
    frame = wide(12).assign(split=np.repeat(["train"] * 6 + ["val"] * 3 + ["test"] * 3, 5))
    train = frame.split == "train"
    frame.loc[~train, "a"] = frame.loc[~train, "a"].round()
    frame.loc[train, "b"] = frame.loc[train, "b"].round()
    path = save(frame, tmp_path / "t.csv")
    changed = Table(path).splits["val"].values != Table(path, dequantise=False).splits["val"].values
    assert changed.all(0).tolist() == [False, True] and not changed[:, 0].any()


# ---- what cannot be used -------------------------------------------------------------------------------------


def test_a_missing_file_a_folder_and_an_unknown_ending_are_named(tmp_path, file):
    refused("nothing.csv does not exist", str(tmp_path / "nothing.csv"))
    refused("is a folder", str(tmp_path))
    refused(r"table.xlsx has an unknown file name ending; expected one of .csv", file("x", "table.xlsx"))


def test_missing_columns_come_with_those_found_and_the_cure(file):
    refused(
        r"no column 'id', 'time'; it has 'unique_id', 'ds', 'y'. Did you mean data.id=unique_id, data.time=ds",
        file("unique_id,ds,y\nA,1,2\n"),
    )
    refused(r"no column 'id'.*data.id=null", file("time,x\n0,1\n"))
    refused(r"no column 'tme'; .* Did you mean data.time=time\?", file("id,time,x\nA,0,1\n"), time="tme")
    refused(
        r"Did you mean 'temperature' for 'temprature' in data.values",
        file("id,time,temperature\nA,0,1\n"),
        values=["temprature"],
    )
    refused(r"no column 'part'", file("id,time,x\nA,0,1\n"), split="part")
    refused(r"no column 'kind'", file("id,time,x\nA,0,1\n"), channel="kind", value="x")
    refused(r"separated by '\|'; save the file with commas", file("id|time|x\nA|0|1\n"))
    refused(r"separated by ';'; save the file with commas", file("id;time, h;x\nA;0;1\n"))


def test_text_in_a_number_column_is_named_with_its_line(file):
    text = "id,time,a\nx,0,1\n\nx,1,2\nx,2,n.d.\n"
    refused(r"column 'a' holds the text 'n.d.' in line 5", file(text))
    refused(r"column 'a' holds the text 'low' in line 2", file("id,time,a\nx,0,low\nx,1,high\n"), values=["a"])
    refused(r"no column of numbers .* it has \['a'\]", file("id,time,a\nx,0,low\nx,1,high\n"))
    long = "id,time,channel,value\nx,0,a,1\nx,1,a,?\n"
    refused(r"column 'value' holds the text '\?' in line 3", file(long), channel="channel", value="value")


def test_infinite_values_and_times_are_named_with_their_line(file):
    refused(r"column 'a' is infinite in line 3", file("id,time,a\nx,0,1\nx,1,-inf\n"))
    refused(r"column 'time' holds numbers, but 'inf' in line 3", file("id,time,a\nx,0,1\nx,inf,2\n"))


def test_a_time_met_twice_names_the_first(file):
    text = "id,time,a\nz,1,1\nx,3,1\nx,1,2\nz,1,5\nx,3,2\n"
    refused(r"series 'z' has two rows at time=1, line 2 and line 5", file(text))
    long = "id,time,channel,value\nx,2024-01-01,b,1\nx,2024-01-01,a,1\nx,2024-01-01,b,2\n"
    refused(
        r"series 'x', channel 'b' has two rows at time=2024-01-01, line 2 and line 4",
        file(long),
        channel="channel",
        value="value",
    )


def test_times_of_mixed_kinds_are_refused(file):
    refused(
        r"'01/02/2024' in line 3; expected numbers in every row, or ISO dates in every row",
        file("id,time,a\nx,2024-01-01,1\nx,01/02/2024,2\n"),
    )
    refused(r"holds numbers, but '2024-01-01' in line 3", file("id,time,a\nx,5,1\nx,2024-01-01,2\n"))
    refused(r"line 3 has no 'time'", file("id,time,a\nx,5,1\nx,,2\n"))


def test_a_row_without_a_name_is_refused(file):
    refused(r"line 3 has no 'id'", file("id,time,a\nx,5,1\n,6,2\n"))
    long = "id,time,channel,value\nx,0,a,1\nx,1,,3\n"
    refused(r"line 3 has no 'channel'", file(long), channel="channel", value="value")


def test_a_file_without_rows_or_values_is_refused(file):
    refused("has no rows", file(""))
    refused("has no rows", file("id,time,a\n"))
    refused("no observed value", file("id,time,a\nx,0,\n"), values=["a"])
    refused("no column of numbers", file("id,time,a\nx,0,\n"))


def test_a_torn_file_is_refused(tmp_path, file):
    refused("line 3 has 4 cells.*which names 3", file("id,time,a\nx,0,1\nx,1,2,3\n"))
    refused("line 3 has 5 cells.*which names 4", file("id,time,a,b\nx,0,1,2\nx,1,2,3,4\n"), values=["a"])
    refused("more cells than its header", file("id,time,a\nx,0,1,9\nx,1,2,9\n"))
    refused("cannot be read as Parquet", file("id,time,a\n", "torn.parquet"))
    (tmp_path / "latin.csv").write_bytes("id,time,a\nZürich,0,1\n".encode("latin-1"))
    refused("not UTF-8", str(tmp_path / "latin.csv"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = save(wide(), tmp_path / "t.parquet")
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    refused(r"pip install 'vrnn_lab\[parquet\]'", path)


def test_splits_that_cannot_be_made_are_refused(tmp_path, file):
    refused(r"single series, 't', of 19 points.*data.id=", save(long_record(19), tmp_path / "t.csv"), id=None)
    refused("2 series are too few for three splits", save(wide(2), tmp_path / "t.csv"))
    refused(
        "the val split is empty", save(long_record(10), tmp_path / "t.csv"), id=None, window=5, shares=[0.8, 0.1, 0.1]
    )
    half = wide(4).assign(split=np.repeat(["train", "val"], 10))
    refused("the test split is empty", save(half, tmp_path / "t.csv"))
    refused(
        r"column 'split' holds 'valid' in line 12; expected train, val or test",
        save(half.replace("val", "valid"), tmp_path / "t.csv"),
    )
    mixed = long_record(9).assign(split=list(SPLITS) * 3)
    refused("returns to the train split after it left it", save(mixed, tmp_path / "t.csv"), id=None)


def test_options_that_cannot_work_are_refused_when_the_table_is_made():
    refused("add up to 0.9", "t.csv", shares=[0.7, 0.1, 0.1])
    refused("has 2 parts", "t.csv", shares=[0.7, 0.3])
    refused("data.window=1", "t.csv", window=1)
    refused("data.stride=5 needs a window", "t.csv", stride=5)
    refused("the long form needs both columns", "t.csv", channel="kind")
    refused("data.id and data.time both name the column 'a'", "t.csv", id="a", time="a")
    refused("each once", "t.csv", channel="c", value="v", values=["a", "a"])


def test_columns_without_numbers_are_mentioned(file, caplog):
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        _ = Table(file("id,time,a,note\nx,0,1,good\n")).channels
    assert "left out: note" in caplog.text


def test_names_of_digits_are_texts(tmp_path):
    lines = [f"{name},{t},{t * 0.37}" for name in ("007", "7", "08", "9") for t in range(3)]
    (tmp_path / "a.csv").write_text("id,time,x\n" + "\n".join(lines) + "\n")
    assert list(Table(str(tmp_path / "a.csv")).whole().names) == ["007", "08", "7", "9"]
