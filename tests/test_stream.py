"""A Parquet file read from disk: the same numbers as in memory, and what is said when it cannot be."""

import errno
import multiprocessing
import os
import shutil
import sys

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch

from vrnn_lab.config.compose import compose
from vrnn_lab.data import splits
from vrnn_lab.data.table import array_writer, columns, row_chunks, sorted_rows, store
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.runs.dataset_cache import data_of

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and batches of rows so small that every series is cut by some."""
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    for module in (row_chunks, sorted_rows):
        monkeypatch.setattr(module, "ROWS", 7)
    return tmp_path / "cache" / "streams"


def wide(series: int = 24, seed: int = 0, names=None) -> pd.DataFrame:
    """Series of 1 to 20 points, with rows and values missing; sorted."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 21, series)
    names = sorted(names or [f"s{i}" for i in range(series)])
    count = lengths.sum()
    frame = pd.DataFrame({"id": np.repeat(names, lengths), "time": np.cumsum(rng.uniform(0.1, 1, count))})
    for name in ("a", "b"):
        frame[name] = np.where(rng.random(count) < 0.3, np.nan, rng.normal(size=count))
    frame["place"] = "here"
    return frame


def save(frame: pd.DataFrame, path, **options) -> str:
    frame.to_parquet(path, index=False, **options)
    return str(path)


def alike(path: str, exact: bool = True, **options) -> Table:
    """The table streamed, having seen that it is that in memory."""
    one, other = Table(path, **options), Table(path, stream=True, **options)
    assert one.channels == other.channels and one.time_unit == other.time_unit
    for split in SPLITS:
        a, b = one.splits[split], other.splits[split]
        assert list(a.names or ()) == list(b.names or ())
        for name in ("times", "values", "offsets", "windows", "ids"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for x, y in zip(
            one.batches(split, one.task, alike=True), other.batches(split, other.task, alike=True), strict=True
        ):
            assert torch.equal(x.values, y.values) and torch.equal(x.times, y.times) and torch.equal(x.ids, y.ids)
            for given in ("covariates", "error"):
                of_one, of_other = getattr(x, given), getattr(y, given)
                assert (of_one is None) == (of_other is None) and (of_one is None or torch.equal(of_one, of_other))
    for x, y in zip(one.train_dataloader(), other.train_dataloader(), strict=True):
        assert torch.equal(x.values, y.values) and torch.equal(x.ids, y.ids)
    for name in ("mean", "std", "clock", "gap", "longest", "start", "reach"):
        assert torch.equal(getattr(one.scale, name), getattr(other.scale, name))
    return other


def refused(message: str, path: str, **options) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Table(path, stream=True, **options).splits


# ---- the same numbers ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [{}, {"values": ["b"]}, {"window": 4}, {"window": 4, "stride": 1}, {"shares": [0.4, 0.3, 0.3], "seed": 3}],
    ids=str,
)
def test_a_streamed_table_is_the_table(tmp_path, options, seed):
    path = save(wide(seed=seed), tmp_path / "t.parquet", row_group_size=50)
    table = alike(path, **options)
    values = table.whole().points.values
    while isinstance(values.base, np.ndarray):
        values = values.base
    assert isinstance(values, np.memmap)


def test_series_may_stand_in_any_order_if_each_stands_together(tmp_path):
    frame = wide(12, names=[f"{i:02d}" for i in range(12)])
    frame["id"] = frame["id"].astype(int)  # 2 stands before 10, and after it as text
    alike(save(frame, tmp_path / "numbers.parquet"))
    backwards = pd.concat([part for _, part in list(frame.groupby("id"))[::-1]])
    alike(save(backwards, tmp_path / "backwards.parquet"))


def test_names_may_be_categories_and_of_any_language(tmp_path):
    frame = wide(4, names=["Ägypten", "中文", "z", "a name with words"])
    alike(save(frame.assign(id=frame.id.astype("category")), tmp_path / "t.parquet"))


def test_dates_and_a_split_column_are_followed(tmp_path):
    frame = wide()
    frame["time"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["time"], unit="h")
    number = np.arange(len(frame)) / len(frame)
    frame["split"] = np.array(SPLITS)[np.searchsorted([0.5, 0.8], number, side="right")]  # in the midst of series too
    assert alike(save(frame, tmp_path / "t.parquet")).time_unit == "days"
    alike(save(frame.assign(id=(frame.id != frame.id[0]).astype(int)), tmp_path / "two.parquet"), window=5)


def test_one_long_series_is_cut_in_time(tmp_path):
    alike(save(wide().drop(columns="id"), tmp_path / "river.parquet"), id=None, window=10, stride=3)


def test_rounded_values_get_the_same_noise(tmp_path, caplog):
    frame = wide(40)
    frame["a"] = (4 * frame["a"]).round()
    path = save(frame, tmp_path / "t.parquet")
    alike(path)
    assert "'a' (to 1)" in caplog.text
    alike(path, seed=1)
    alike(path, window=5)


def test_the_scale_of_many_pieces_is_that_of_one(tmp_path, monkeypatch):
    from vrnn_lab.data import base, splits

    frame = wide(60)
    frame["a"] = (4 * frame["a"]).round()
    path = save(frame, tmp_path / "t.parquet")
    whole = Table(path)
    expected = whole.scale, whole.splits["train"].values
    monkeypatch.setattr(base, "CELLS", 30)
    monkeypatch.setattr(splits, "CELLS", 30)
    small = Table(path)
    np.testing.assert_array_equal(small.splits["train"].values, expected[1])
    for name in ("mean", "std", "clock", "gap"):
        np.testing.assert_allclose(getattr(small.scale, name), getattr(expected[0], name), rtol=1e-12)
    monkeypatch.setattr(base, "GAPS", 100)
    assert small.splits["train"]._gap(0.0) == pytest.approx(expected[0].gap.item(), rel=0.5)


# ---- what is kept --------------------------------------------------------------------------------------------


def test_a_file_is_written_once_until_it_changes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(store, "KEPT", 2)
    path, calls, convert = tmp_path / "t.parquet", [], store._convert
    monkeypatch.setattr(store, "_convert", lambda *args: calls.append(1) or convert(*args))
    for seed in range(4):
        save(wide(seed=seed), path)
        os.utime(path, (seed, seed))
        for _ in range(2):
            expected = Table(str(path), dequantise=False).whole().values
            np.testing.assert_array_equal(Table(str(path), stream=True).whole().values, expected)
        assert len(calls) == seed + 1
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2


def test_it_is_not_pickled(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("vrnn_lab.runs.dataset_cache.LONG", 0.0)
    monkeypatch.setattr("vrnn_lab.runs.dataset_cache._held", {})
    path = save(wide(), tmp_path / "t.parquet")
    keys = ["data=table", f"data.path={path}"]
    _ = data_of(compose([*keys, "data.stream=true"])).splits
    assert not list((cache.parent / "built").glob("*.npz"))
    assert data_of(compose(keys)).splits["train"].names and list((cache.parent / "built").glob("*.npz"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize("where", ["write", "fill"])
def test_what_was_cut_half_way_is_not_taken_for_whole(tmp_path, cache, monkeypatch, error, where):
    frame = wide(40)
    frame["a"] = (4 * frame["a"]).round()
    path, calls = save(frame, tmp_path / "t.parquet"), []
    owner, name = (array_writer.ArrayWriter, "write") if where == "write" else (np.memmap, "flush")
    before = getattr(owner, name)

    def cut(*args):
        calls.append(1)
        if len(calls) > (20 if where == "write" else 0):
            raise error
        return before(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut)
        with pytest.raises((ValueError, KeyboardInterrupt), match=r"VRNN_LAB_CACHE|^$"):
            _ = Table(path, stream=True).splits
    left = [file.name for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"]
    assert (not left) if where == "write" else not any("values_" in name for name in left)
    alike(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["values", "times", "offsets", "facts.json"])
@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_arrays_that_are_damaged_are_written_anew(name, how, tmp_path, cache, caplog):
    path = save(wide(), tmp_path / "t.parquet")
    alike(path)
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes({"flipped": content, "short": content[:-8], "gone": b""}[how])
    if how == "gone":
        (folder / name).unlink()
    alike(path)
    assert name in caplog.text and (how == "gone" or "damaged" in caplog.text)


def test_leftovers_of_a_killed_process_are_removed(tmp_path, cache):
    path = save(wide(), tmp_path / "t.parquet")
    _ = Table(path, stream=True).splits
    (whole,) = [p for p in cache.iterdir() if p.is_dir()]
    whole.rename(whole.with_name(f".{whole.name}"))
    (whole.with_name(f".{whole.name}") / "times").write_bytes(b"half")
    alike(path)
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [whole.name]


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (RuntimeError("Query interrupted"), KeyboardInterrupt),
        (duckdb.IOException("no space left"), ValueError),
        (RuntimeError("unknown"), RuntimeError),
    ],
)
def test_a_sort_that_is_cut_short_leaves_nothing(raised, becomes, tmp_path, cache, monkeypatch):
    def fails(*_):
        raise raised

    monkeypatch.setattr(sorted_rows.SortedRows, "_without_copies", fails)
    path = save(wide().sample(frac=1, random_state=0), tmp_path / "t.parquet")
    with pytest.raises(becomes):
        Table(path, stream=True).whole()
    assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    refused(r"GB are needed there, but only 1e-09 GB are free.*VRNN_LAB_CACHE", save(wide(), tmp_path / "t.parquet"))
    assert not [p for p in cache.iterdir() if p.is_dir()]


def _read(path: str, found) -> None:
    calls, convert = [], store._convert
    store._convert = lambda *args: calls.append(1) or convert(*args)
    total = float(np.nansum(Table(path, stream=True).splits["train"].values))
    found.put((len(calls), total))


@pytest.mark.slow
def test_processes_that_want_it_at_once_write_it_once(tmp_path):
    path = save(wide(3000), tmp_path / "t.parquet")
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    jobs = [context.Process(target=_read, args=(path, found)) for _ in range(2)]
    for job in jobs:
        job.start()
    (one, a), (two, b) = found.get(timeout=60), found.get(timeout=60)
    for job in jobs:
        job.join()
    assert sorted([one, two]) == [0, 1] and a == b


# ---- rows in any order ----------------------------------------------------------------------------------------


def save_csv(frame: pd.DataFrame, path, **options) -> str:
    frame.to_csv(path, index=False, **options)
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_file_in_any_order_and_format_is_the_table(ending, shuffled, tmp_path):
    frame = wide()
    if shuffled:
        frame = frame.sample(frac=1, random_state=0)
    path = tmp_path / f"t.{ending}"
    alike((save if ending == "parquet" else save_csv)(frame, path))
    assert not list((tmp_path / "cache" / "streams").glob(".*")), "something is left in the cache"


def test_so_is_one_with_dates_splits_and_decimal_commas(tmp_path):
    frame = wide()
    frame["time"] = pd.Timestamp("2024-01-01") + pd.to_timedelta((frame["time"] * 86400).round(), "s")
    frame["split"] = np.where(frame["id"] < "s13", "train", np.where(frame["id"] < "s18", "val", "test"))
    frame = frame.sample(frac=1, random_state=0)
    alike(save_csv(frame, tmp_path / "t.csv", sep=";", decimal=","))
    zoned = frame.assign(time=frame["time"].dt.tz_localize("Europe/Berlin"))
    assert alike(save(zoned, tmp_path / "t.parquet")).zoned


@pytest.mark.parametrize("shuffled", [False, True])
def test_covariates_and_error_bars_are_streamed_too(shuffled, tmp_path):
    frame, rng = wide(), np.random.default_rng(2)
    frame["dose"], frame["e"] = rng.random(len(frame)), rng.random(len(frame))
    frame["age"] = frame["id"].map({name: rng.random() for name in frame["id"].unique()})
    frame.loc[frame["id"].duplicated(), "age"] = np.nan  # known in the first row of each series alone
    frame["sex"] = frame["id"].str.len().astype(float)
    if shuffled:
        frame = frame.sample(frac=1, random_state=0)
    keys = {"values": ["a", "b"], "known": ["dose"], "static": ["age", "sex"], "error": ["e", None]}
    alike(save(frame, tmp_path / "t.parquet"), **keys)
    alike(save(frame, tmp_path / "t.parquet"), **keys | {"known": ["dose", "e"], "window": 3})


@pytest.mark.parametrize(
    "options", [{}, {"values": ["b"]}, {"error": ["e"]}, {"known": ["dose"], "static": ["age"]}], ids=str
)
def test_the_long_form_is_streamed_too(options, tmp_path):
    frame, rng = wide(), np.random.default_rng(2)
    frame["dose"] = rng.random(len(frame))
    frame["age"] = frame["id"].map({name: rng.random() for name in frame["id"].unique()})
    long = frame.melt(["id", "time", "dose", "age"], ["a", "b"], "kind", "x").dropna()
    long["e"] = rng.random(len(long))
    long = long.sample(frac=1, random_state=0)
    form = {"channel": "kind", "value": "x"}
    alike(save(long, tmp_path / "t.parquet"), **form, **options)
    alike(save_csv(long, tmp_path / "t.csv"), **form, **options)


# ---- what cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [3, 7])
def test_a_time_met_twice_is_refused_with_both_rows(tmp_path, row):
    frame = pd.DataFrame({"id": list("x" * 9), "time": np.arange(9.0), "a": np.arange(9) / 7})
    frame.loc[row, "time"] = row - 1
    refused(
        rf"series 'x' has two rows at time={row - 1}.0, row {row} and row {row + 1}",
        save(frame, tmp_path / "t.parquet"),
    )


def test_empty_and_infinite_cells_are_named_by_row(tmp_path):
    frame, path = wide().fillna(0.5), tmp_path / "t.parquet"
    refused(r"row 12 has no 'id'", save(frame.assign(id=frame.id.where(frame.index != 11)), path))
    refused(r"row 12 has no 'time'", save(frame.assign(time=frame.time.where(frame.index != 11)), path))
    refused(r"column 'a' is infinite in row 12", save(frame.assign(a=frame.a.where(frame.index != 11, np.inf)), path))
    refused("no observed value", save(frame.assign(a=np.nan), path), values=["a"])
    refused(r"the columns \['b'\] have no observed value", save(frame.assign(b=np.nan), path))
    refused("holds the text 'here' in row 1", save(frame, path), values=["place"])
    refused("no column of numbers", save(frame[["id", "time", "place"]], path))
    refused("has no rows", save(frame[:0], path))
    split = np.where(frame.index == 11, "valid", "train")
    refused(r"column 'split' holds 'valid' in row 12", save(frame.assign(split=split), path))


def test_without_duckdb_rows_in_another_order_are_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    frame = pd.DataFrame({"id": list("xxyyx"), "time": [0.0, 1, 0, 1, 2], "a": [1.5, 2, 3, 4, 5]})
    path, cure = save(frame, tmp_path / "t.parquet"), r".*pip install 'vrnn_lab\[large\]'"
    refused(r"series 'x', which begins in row 1, comes back in row 5 after series 'y'" + cure, path)
    frame = pd.DataFrame({"id": list("x" * 9), "time": [0.0, 1, 2, 3, 4, 5, 6, 5.5, 8], "a": np.arange(9) / 7})
    refused(r"series 'x' has time=5.5 in row 8, before the time of row 7" + cure, save(frame, tmp_path / "t.parquet"))
    refused("it is in the long form" + cure, path, channel="id", value="a", id=None)


def test_two_rows_of_one_time_are_refused_with_both_lines_and_copies_are_dropped(tmp_path, caplog):
    frame = wide().dropna().sample(frac=1, random_state=1)
    twice = pd.concat([frame, frame.iloc[[4]]])
    save_csv(twice, tmp_path / "t.csv")
    assert len(alike(str(tmp_path / "t.csv")).whole().values) == len(frame)
    assert "1 rows repeat an earlier row exactly and are dropped." in caplog.text
    twice.iloc[-1, twice.columns.get_loc("a")] += 1
    save_csv(twice, tmp_path / "t.csv")
    refused(rf"two rows at time=.*line 6 and line {len(frame) + 2}; expected one", str(tmp_path / "t.csv"))
    kinds = pd.DataFrame({"id": "x", "time": [0.0, 0, 0], "kind": list("aba"), "x": [1.0, 2, 3]})
    path, form = save(kinds, tmp_path / "long.parquet"), {"channel": "kind", "value": "x"}
    refused("series 'x', channel 'a' has two rows at time=0.0, row 1 and row 3", path, **form)


def test_cells_that_cannot_be_used_are_named_by_line_in_any_order(tmp_path):
    frame, path = wide().fillna(0.5).sample(frac=1, random_state=1), tmp_path / "t.csv"
    frame["a"] = frame["a"].astype(object)
    frame.iloc[10, frame.columns.get_loc("a")] = "many"
    save_csv(frame, path)
    refused(r"column 'a' holds the text 'many' in line 12", str(path))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_long_table_without_rows_channels_or_values_is_refused(ending, tmp_path):
    path, form = tmp_path / f"t.{ending}", {"channel": "kind", "value": "x"}
    write = save if ending == "parquet" else save_csv
    frame = pd.DataFrame({"id": list("aabb"), "time": [0.0, 1, 0, 1], "kind": list("pqpq"), "x": [1.0, 2, 3, 4]})
    refused("has no rows", write(frame[:0], path), **form)
    refused(
        "no channel in any",
        write(frame.assign(kind=None, x=np.nan).astype({"kind": "str"}).replace("None", ""), path),
        **form,
    )
    refused("no observed value in any", write(frame.assign(x=np.nan), path), **form)
    refused("has no rows", write(frame[:0], path), id="kind")


def test_covariates_that_contradict_each_other_are_refused_by_row(tmp_path):
    frame = wide().assign(dose=1.0, age=50.0)
    keys = {"known": ["dose"], "static": ["age"], "values": ["a", "b"]}
    path, row = tmp_path / "t.parquet", np.arange(len(frame))
    refused(r"row 12 has no 'dose'", save(frame.assign(dose=frame.dose.where(row != 11)), path), **keys)
    several = frame.id.value_counts().idxmax()
    inside = np.flatnonzero(frame.id == several)
    other = frame.assign(age=frame.age.where(row != inside[-1], 51))
    refused(
        rf"series '{several}' has two values of 'age', 50 .* and 51 in row {inside[-1] + 1}",
        save(other, path),
        **keys,
    )
    none = frame.assign(age=frame.age.where(frame.id != several))
    refused(rf"series '{several}' \(row \d+\) has no 'age' in any row", save(none, path), **keys)
    long = other.melt(["id", "time", "dose", "age"], ["a", "b"], "kind", "x")
    form = {"known": ["dose"], "static": ["age"], "channel": "kind", "value": "x"}
    refused(rf"series '{several}' has two values of 'age', 50 in row \d+ and 51 in", save(long, path), **form)
    long["age"], long["dose"] = 50.0, np.arange(len(long))
    refused(
        r"has two values of 'dose' at time=.* in row \d+ and .* in row \d+; expected one per time",
        save(long, path),
        **form,
    )


def test_series_without_a_value_are_counted(tmp_path, caplog):
    frame = wide()
    frame.loc[frame.id.isin(["s1", "s20", "s9"]), ["a", "b"]] = np.nan
    empty = (~frame.assign(n=frame.a.notna() | frame.b.notna()).groupby("id").n.any()).sum()
    table = alike(save(frame, tmp_path / "t.parquet"))
    assert (
        "s20" not in table.whole().names
        and f"{empty} series have no observed value and are left out\n" in caplog.text
    )
    assert columns.first([False]) is None


@pytest.mark.parametrize(
    "ids",
    [
        [1.0, 2.5, 1e6, 1.5e-7],
        np.array([0.1, 0.25, 3.0, 4.0], np.float32),
        [False, True],
        pd.to_datetime(["2020-01-01T00:00", "2021-05-03T04:05"]),
        [3, 20, 100],
    ],
    ids=str,
)
def test_series_are_called_alike_whatever_type_their_ids_are_of(ids, tmp_path):
    file = tmp_path / "t.parquet"
    pd.DataFrame(
        {"id": np.repeat(ids, 3), "time": [0.0, 1.0, 2.0] * len(ids), "x": np.arange(3.0 * len(ids))}
    ).to_parquet(file)
    names = [sorted(splits.names_of(Table(path=str(file), stream=store).whole())) for store in (False, True)]
    assert names[0] == names[1] and len(names[0]) == len(ids)


def test_noise_of_seeds_that_are_close_is_kept_apart(tmp_path):
    file = tmp_path / "t.parquet"
    rows = pd.DataFrame({"id": np.repeat(np.arange(9), 5), "time": np.tile(np.arange(5.0), 9)})
    rows.assign(x=np.arange(45) % 7).to_parquet(file)
    for seed in (12345678, 12345679):
        first, second = (Table(path=str(file), stream=s, seed=seed).splits["train"].values for s in (True, False))
        np.testing.assert_array_equal(first, second)


def test_a_broken_file_is_blamed_and_not_the_cache(tmp_path):
    file, x = tmp_path / "t.parquet", np.random.default_rng(0).random(4500)
    pd.DataFrame({"id": np.repeat(np.arange(900), 5), "time": np.tile(np.arange(5.0), 900), "x": x}).to_parquet(file)
    content = bytearray(file.read_bytes())
    content[200:4000] = b"\xff" * 3800
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        Table(path=str(file), stream=True).whole()
