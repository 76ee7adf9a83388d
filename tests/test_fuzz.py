"""Broken inputs: whatever a file, an override or an argument holds, the outcome is success or one message.

Each law has a fast form, which runs in the suite, and a long form (make stress) of the same function.
"""

import importlib
import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import (
    TABLE_OPTIONS,
    argument_lists,
    asked_files,
    bounded,
    called,
    csv_files,
    outcome,
    override_lists,
    parquet_files,
    run_beforehand,
    tiny_run,
)
from vrnn_lab import fetch, predict, sample
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.data.table.reader import SeriesReader, TableSchema

COMMANDS = ["predict", "evaluate", "sample", "report", "search", "fetch", "describe"]


def inputs(fast: int, long: int):
    """The number of inputs of a test; the long form is one of `make stress`."""
    return pytest.mark.parametrize("examples", [fast, pytest.param(long, marks=pytest.mark.stress)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny run, and files beside it."""
    made = tmp_path_factory.mktemp("fuzz")
    tiny_run(made)
    return made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative names of an input lie in a folder of the test; so does the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("vrnn_lab"), "level", logging.CRITICAL)


def half_written(folder: Path) -> list[Path]:
    """What is left of a file that was being written: beside its place, under a name with a dot before it."""
    return [path for path in folder.rglob(".*.[0-9]*") if path.suffix[1:].isdecimal()]


def looked_at(path: Path, options: dict) -> None:
    table = Table(str(path), **options)
    _ = table.splits, table.scale, table.describe()


def predict_from(path: Path, long: bool) -> None:
    form = TableSchema(channel="split", value="a") if long else TableSchema()
    list(SeriesReader(path, "input", form, ("a", "b"), ColumnRoles(), None).series(whole=True))


def written(path: Path, content: bytes, count: list[int]) -> Path:
    """A file of its own time, which readers that remember files go by."""
    path.write_bytes(content)
    count[0] += 1
    os.utime(path, ns=(count[0], count[0]))
    return path


@pytest.mark.slow
@inputs(150, 10_000)
def test_a_mutated_csv_file_is_read_or_refused_in_one_message(examples, tmp_path):
    count = [0]

    @bounded(examples)
    @given(csv_files(), st.sampled_from(TABLE_OPTIONS), st.booleans())
    def holds(content, options, long):
        path = written(tmp_path / "f.csv", content, count)
        outcome(lambda: looked_at(path, options))
        outcome(lambda: predict_from(path, long))

    holds()


@pytest.mark.slow
@inputs(150, 10_000)
def test_a_mutated_parquet_file_is_read_or_refused_in_one_message(examples, tmp_path):
    count = [0]

    @bounded(examples)
    @given(parquet_files(), st.sampled_from([*TABLE_OPTIONS, *[{"stream": True}] * 4]), st.booleans())
    def holds(content, options, long):
        path = written(tmp_path / "f.parquet", content, count)
        outcome(lambda: looked_at(path, options))
        outcome(lambda: predict_from(path, long))

    holds()
    assert not half_written(tmp_path)


@pytest.mark.slow
@inputs(40, 2_000)
def test_overrides_compose_to_a_run_that_can_be_built_or_are_refused_in_one_message(examples):
    @bounded(examples)
    @given(override_lists())
    def holds(argv):
        called(lambda: run_beforehand(argv), argv)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@inputs(8, 1_000)
def test_arguments_of_a_command_are_obeyed_or_refused_in_one_message(examples, name, folder, monkeypatch):
    from vrnn_lab.sweeps import trial

    def no_network(*_):
        raise fetch.FetchError("there is no network")

    monkeypatch.setattr(trial, "work", lambda plan: None)
    monkeypatch.setattr(fetch, "download", no_network)
    main = importlib.import_module(f"vrnn_lab.{name}").main

    @bounded(examples)
    @given(argument_lists(name, folder))
    def holds(argv):
        asked_files(folder)  # a call may have written over them
        called(main, argv)

    holds()
    assert not half_written(Path.cwd()) and not half_written(folder)


# ---- what was found ------------------------------------------------------------------------------------------

ROWS = 15
IDS, TIMES = [f"s{i // 3}" for i in range(ROWS)], [float(i % 3) for i in range(ROWS)]


def parquet(path: Path, columns: dict[str, pa.Array], names: list[str] | None = None) -> Path:
    pq.write_table(pa.table(list(columns.values()), names=names or list(columns)), path)
    return path


ODD = {
    "lists": pa.array([[1.0, 2.0]] * ROWS),
    "structs": pa.array([{"x": 1}] * ROWS),
    "maps": pa.array([[("k", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    "bytes that are no text": pa.array([b"\xff\xfe"] * ROWS),
    "times of day in nanoseconds": pa.array([1] * ROWS, pa.time64("ns")),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_columns_that_are_no_numbers_are_named_where_they_are_asked_for(kind, stream, tmp_path):
    path = parquet(tmp_path / "t.parquet", {"id": pa.array(IDS), "time": pa.array(TIMES), "a": ODD[kind]})
    with pytest.raises(ValueError, match=r"t\.parquet: column 'a' holds the text '.*' in row 1; expected numbers"):
        _ = Table(str(path), values=["a"], stream=stream).whole()
    path = parquet(tmp_path / "u.parquet", {"id": ODD[kind], "time": pa.array(range(ROWS)), "a": pa.array(TIMES)})
    assert len(Table(str(path), stream=stream).whole()) == 1  # a name like any other


@pytest.mark.parametrize("stream", [False, True])
def test_names_of_series_may_be_numbers_of_half_precision(stream, tmp_path):
    ids = pa.array([float(i // 3) for i in range(ROWS)], pa.float16())
    path = parquet(tmp_path / "t.parquet", {"id": ids, "time": pa.array(TIMES), "a": pa.array(TIMES)})
    assert len(Table(str(path), stream=stream).whole()) == ROWS // 3
    for rows in (path, pq.read_table(path).to_pandas()):
        found = SeriesReader(rows, "input", TableSchema(), ("a",), ColumnRoles(), None).series(whole=True)
        assert len(list(found)) == ROWS // 3


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    columns = {"id": pa.array(IDS), "time": pa.array(TIMES), "a": pa.array(TIMES), "b": pa.array(TIMES)}
    path = parquet(tmp_path / "t.parquet", columns, ["id", "time", "a", "time"])
    for use in (
        lambda: looked_at(path, {}),
        lambda: looked_at(path, {"stream": True}),
        lambda: predict_from(path, False),
    ):
        with pytest.raises(ValueError, match=r"t\.parquet has more than one column named 'time'"):
            use()


def test_a_damaged_page_of_parquet_is_refused_by_its_file(tmp_path):
    path = parquet(tmp_path / "t.parquet", {"id": pa.array(IDS), "time": pa.array(TIMES), "a": pa.array(TIMES)})
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    for use in (
        lambda: looked_at(path, {}),
        lambda: looked_at(path, {"stream": True}),
        lambda: predict_from(path, False),
    ):
        with pytest.raises(ValueError, match=r"t\.parquet cannot be read as Parquet: .* If it is damaged"):
            use()


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_quotation_mark_left_open_in_the_last_row_is_named_by_its_line(column, end, mark, tmp_path):
    rows = [
        ["id", "time", "a"],
        *([name, "2024-01-0" + str(int(t) + 1), "1"] for name, t in zip(IDS, TIMES, strict=True)),
    ]
    rows[-1][column] = '"' + rows[-1][column]
    for tail in ("", end):
        path = tmp_path / f"t{len(tail)}.csv"
        path.write_bytes((end.join(mark.join(row) for row in rows) + tail).encode())
        for use in (lambda path=path: looked_at(path, {}), lambda path=path: predict_from(path, False)):
            with pytest.raises(ValueError, match=r"opens a cell in line 16 is never closed"):
                use()


REFUSED = {
    "model._target_=0": r"model\._target_=0: expected the name of a class with its module",
    "+optim=0": r"\+optim=0: .*cannot be combined",
    "~seed": r"seed is missing, but a run needs it",
    "~data": r"data is missing, but a run needs it",
    "++tricks=-1": r"tricks=-1: expected none",
    "++trainer.max_steps=${nothing}": r"trainer\.max_steps: .*nothing",
    "seed=${seed}": r"seed: Recursive interpolation detected; expected \$\{<key>\} of another key",
    "data.seed={}": r"data\.seed=\{\}: expected a whole number",
    "a b=1": r"'a b=1' cannot be read; expected key=value",
    "+model@foo=rnn": r"foo: a run has no such key or group",
    "labels=null": r"labels=null: expected one of learn, none",
    "objective=[null]": r"objective=\[null\]: these overrides cannot be combined, or one has a value",
    "evaluate=builtins.int": r"evaluate=builtins\.int: expected the keys of a part",
    "+lr=1": r"lr: a run has no such key or group",
    "model=glob(*)": r"glob\(\*\)",
}


@pytest.mark.slow
@pytest.mark.parametrize("override", REFUSED)
def test_an_override_of_a_wrong_kind_is_refused_by_its_key(override):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        run_beforehand([override])


@pytest.mark.parametrize("value", ["\x1a", "[1", "{a: b"])
def test_a_value_of_evaluate_that_is_no_yaml_is_refused_by_its_key(value, folder):
    main = importlib.import_module("vrnn_lab.evaluate").main
    code, message = called(main, [f"run={folder / 'run'}", f"data.path={value}"])
    assert code == 2 and "data.path=" in message and "cannot be read as key=value" in message


def test_a_folder_of_configs_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"--config-dir=nowhere is not a folder"):
        compose([], ("nowhere",))


@pytest.mark.parametrize(("main", "argument"), [(sample.main, "n"), (sample.main, "points"), (predict.main, "draws")])
def test_a_count_beyond_all_memory_is_refused(main, argument, folder):
    given = [f"run={folder / 'run'}", f"{argument}={'9' * 30}", f"input={folder / 'question.csv'}", "output=o.csv"]
    given = [word for word in given if main is predict.main or not word.startswith("input=")]
    code, text = called(main, [*given, *(["horizon=1"] if main is predict.main else [])])
    assert code == 2 and "expected a whole number from 1 to 1000000" in text
