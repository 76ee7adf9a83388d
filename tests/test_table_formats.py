"""Tables as other programs write them: separators, decimal commas, a column per time, and zones of time."""

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.predictions import Decay, ask, parts_of
from helpers.small import scale_of
from vrnn_lab.data.table import columns, csv_dialect, reader, row_chunks
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.csv_dialect import Dialect, dialect_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.data.table.reader import SeriesReader, TableSchema
from vrnn_lab.data.table.time_format import Clock
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.forecasting.forecast import Forecasts, Query
from vrnn_lab.runs import build

COMMAS = "id;time;a;b\nx;0,5;1,25;\nx;1,5;-2,5;3\ny;0;1,5e2;0,125\n"
POINTS = "id,time,a,b\nx,0.5,1.25,\nx,1.5,-2.5,3\ny,0,1.5e2,0.125\n"


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "data.csv") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def same(one: Table, other: Table) -> None:
    assert one.channels == other.channels and one.whole().names == other.whole().names
    np.testing.assert_array_equal(one.whole().times, other.whole().times)
    np.testing.assert_array_equal(one.whole().values, other.whole().values)


def asked(path, key: str = "input", **columns) -> list:
    """The series that `predict` reads of a file or frame whose model has the channels a and b."""
    return list(SeriesReader(path, key, TableSchema(**columns), ("a", "b"), ColumnRoles(), None).series(whole=True))


# ---- separators and decimal commas --------------------------------------------------------------------------


@pytest.mark.parametrize(("separator", "said"), [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("packed", [False, True])
def test_semicolons_and_tabs_separate_cells_and_commas_decimals_with_one_notice(
    separator, said, packed, file, caplog, tmp_path
):
    text = COMMAS.replace(";", separator)
    path = str(tmp_path / "data.csv.gz") if packed else file("\ufeff" + text)
    if packed:
        (tmp_path / "data.csv.gz").write_bytes(gzip.compress(text.encode()))
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        same(Table(path), Table(file(POINTS, "points.csv")))
    expected = f"{path}: its cells are read as separated by {said}, and its numbers as having decimal commas, such as"
    assert [m for m in caplog.messages if "separated" in m] == [f"{expected} 0,5."]


def test_semicolons_with_points_are_read_with_points(file, caplog):
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        same(Table(file(POINTS.replace(",", ";"))), Table(file(POINTS, "points.csv")))
    assert "separated by semicolons." in caplog.text and "decimal" not in caplog.text


def test_a_comma_in_quotation_marks_does_not_make_a_header_one_of_commas(file):
    path = file('id;time;"a, in m"\nx;0;1,5\nx;1;"2,5"\n')
    assert Table(path).channels == ("a, in m",)
    np.testing.assert_array_equal(Table(path).whole().values[:, 0], [1.5, 2.5])


def test_decimals_are_looked_for_until_one_is_met(file, monkeypatch):
    monkeypatch.setattr(csv_dialect, "LINES", 2)
    text = "id;time;a\n" + "".join(f"x;{t};{t}\n" for t in range(9)) + "x;9;9,5\n"
    np.testing.assert_array_equal(Table(file(text)).whole().values[-2:, 0], [8, 9.5])


def test_a_file_that_has_changed_is_looked_at_again(file, tmp_path):
    assert dialect_of(tmp_path / file(COMMAS)) == Dialect(";", ",")
    assert dialect_of(tmp_path / file(POINTS)) == Dialect()


@pytest.mark.parametrize("chunk", [200_000, 1])
def test_questions_are_read_in_the_same_dialects_whole_and_in_chunks(chunk, file, monkeypatch, tmp_path):
    monkeypatch.setattr(reader, "SMALL", chunk)
    path = tmp_path / file(COMMAS)
    found = list(SeriesReader(path, "input", TableSchema(), ("a", "b"), ColumnRoles(), None).series(whole=False))
    assert [series.name for series in found] == ["x", "y"]
    np.testing.assert_array_equal(found[0].times, [0.5, 1.5])
    np.testing.assert_array_equal(found[0].values, [[1.25, np.nan], [-2.5, 3]])
    np.testing.assert_array_equal(asked(path, "at")[1].times, [0])


GROUPS = "id;time;a;b\nx;1,5;1.234,5;2.000\nx;2,5;-1.234.567,25;\ny;01.02.2024;12;1.500,0\n"


def test_points_between_thousands_are_taken_out_where_a_cell_shows_that_they_are(file, caplog):
    text = GROUPS.replace("01.02.2024", "1.000")
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        table = Table(file(text), dequantise=False)
        np.testing.assert_array_equal(table.whole().values, [[1234.5, 2000], [-1234567.25, np.nan], [12, 1500]])
    np.testing.assert_array_equal(table.whole().times, [1.5, 2.5, 1000])
    assert "decimal commas and points between thousands, such as 1.234,5." in caplog.text
    assert dialect_of(Path(table.path)).options == ", sep=';', decimal=',', thousands='.'"


@pytest.mark.parametrize("chunk", [200_000, 1])
def test_questions_have_points_between_thousands_too(chunk, file, monkeypatch, tmp_path):
    monkeypatch.setattr(reader, "SMALL", chunk)
    path = tmp_path / file(GROUPS.replace("01.02.2024", "1.000"))
    found = list(SeriesReader(path, "input", TableSchema(), ("a", "b"), ColumnRoles(), None).series(whole=False))
    np.testing.assert_array_equal(found[0].values, [[1234.5, 2000], [-1234567.25, np.nan]])


def test_points_of_dates_and_of_decimals_are_not_taken_for_those_between_thousands(file):
    assert dialect_of(Path(file("id;time;a\nx;0;1.234,5\nx;1;1.5\n"))) == Dialect(";")
    assert dialect_of(Path(file("id;time;a\nx;0;1.234\nx;1;1,5\n", "b.csv"))) == Dialect(";")
    with pytest.raises(ValueError, match=r"column 'time' holds numbers, but '01\.02\.2024' in line 4"):
        _ = Table(file(GROUPS, "c.csv")).whole()


@pytest.mark.parametrize("mark", [";", ",", "|"])
def test_a_first_line_names_the_separator(mark, file):
    path = file(f"sep={mark}\n" + POINTS.replace(",", mark).replace("2.5", "wrong"))
    assert dialect_of(Path(path)) == Dialect(mark, skipped=1)
    with pytest.raises(ValueError, match=r"column 'a' holds the text '-wrong' in line 4"):
        _ = Table(path, values=["a"]).whole()
    same(Table(file(f'"sep={mark}"\r\n' + POINTS.replace(",", mark), "b.csv")), Table(file(POINTS, "points.csv")))


# ---- broken files -------------------------------------------------------------------------------------------

HEAD = b"id,time,a\nx,0,1\n"
BROKEN = {
    "a quotation mark without an end": (HEAD + b'x,1,"2\nx,2,3\n', r"opens a cell in line 3 is never closed"),
    "a quotation mark closed too late": (HEAD + b'x,1,"2\nx,2,",3,4\n', r"line 3 has 5 cells.*extends to line 4"),
    "too many cells": (
        HEAD + b"x,1,2\nx,2,3,4,5\n",
        r"line 4 has 5 cells.*header, which names 3 columns; the extra text is '4,5'",
    ),
    "cells of several lines": (HEAD + b'"x\ny",1,2,3\n', r"line 3 has 4 cells.*extends to line 4"),
    "semicolons": (HEAD.replace(b",", b";") + b"x;1;2;3\n", r"line 3 has 4 cells.*holds a semicolon in quotation"),
    "after sep=": (b"sep=,\n" + HEAD + b"x,1,2,3\n", r"line 4 has 4 cells"),
    "another encoding": (HEAD + "Zürich,1,2\n".encode("cp1252"), r"line 3 holds the byte 0xfc, in 'Zürich,1,2'"),
    "UTF-16": (HEAD.decode().encode("utf-16"), r"first bytes are those of text in UTF-16; save it as CSV in UTF-8"),
    "a workbook": (b"PK\x03\x04" + bytes(30), r"first bytes are those of an Excel workbook.*save the sheet as CSV"),
    "a packed file": (gzip.compress(HEAD), r"a gzip file; rename it to \.csv\.gz"),
    "zero bytes": (HEAD + b"x,1,\0\0\n", r"line 3 holds a zero byte.*expected text in UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_what_was_found_and_where(case, tmp_path):
    content, expected = BROKEN[case]
    (tmp_path / "broken.csv").write_bytes(content)
    with pytest.raises(ValueError, match=expected) as error:
        _ = Table(str(tmp_path / "broken.csv")).whole()
    assert str(tmp_path / "broken.csv") in str(error.value) and "Error tokenizing" not in str(error.value)


def test_the_command_that_mends_an_encoding_mends_it(tmp_path):
    text = "id;time;a\nZürich;0;1,5\nZürich;1;2,5\n"
    (tmp_path / "data.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(ValueError, match="not UTF-8") as error:
        _ = Table(str(tmp_path / "data.csv")).whole()
    points_of(str(error.value))
    assert "Zürich" in (tmp_path / "data_utf8.csv").read_text(encoding="utf-8")


QUOTED = 'id,time,a,b,note\n007,0,1,"3,14",fine\n007,1,2,"2,5",so so\n007,2,3,,fine\n007,3,"4,0",5,\n'


def points_of(message: str) -> None:
    """Runs the command that an error gives."""
    exec(message.split("with pandas: ")[1])


def test_a_decimal_comma_between_commas_is_refused_and_the_command_mends_it(file, tmp_path):
    path = file(QUOTED)
    with pytest.raises(
        ValueError, match=r"column 'b' holds the text '3,14' in line 2.*looks like .*decimal"
    ) as error:
        _ = Table(path).channels
    with pytest.raises(ValueError, match=r"column 'a' holds the text '4,0' in line 5.*with a point: 4.0"):
        _ = Table(path, values=["a"]).whole()
    with pytest.raises(ValueError, match=r"column 'a' holds the text '4,0' in line 5.*decimal comma"):
        asked(tmp_path / path)
    points_of(str(error.value))
    mended = Table(str(tmp_path / "data_points.csv"))
    assert mended.channels == ("a", "b") and mended.whole().names == ("007",)
    np.testing.assert_array_equal(mended.whole().values[:, 1], [3.14, 2.5, np.nan, 5])


def test_a_column_of_decimal_commas_is_not_left_out(file):
    path = file('id,time,a,b\nx,0,1,"3,14"\nx,1,2,"2,5"\n')
    with pytest.raises(ValueError, match=r"column 'b' holds the text '3,14' in line 2.*decimal comma"):
        _ = Table(path).channels
    assert Table(path, values=["a"]).channels == ("a",)


def test_commas_and_points_in_one_file_are_refused(file, tmp_path):
    path = file("id;time;a\nx;0.5;1,25\nx;1.5;2,5\n")
    with pytest.raises(ValueError, match=r"column 'a' holds the text '1,25' in line 2") as error:
        _ = Table(path).channels
    points_of(str(error.value))
    np.testing.assert_array_equal(Table(str(tmp_path / "data_points.csv")).whole().values[:, 0], [1.25, 2.5])
    late = file("id;time;a\nx;0;1,25\nx;1;2.5\n", "late.csv")
    with pytest.raises(ValueError, match=r"column 'a' holds the text '1,25' in line 2"):
        _ = Table(late).whole()


def test_decimal_commas_of_times_and_of_frames_are_named(file):
    path = file('id,time,a\nx,"0,5",1\nx,"1,5",2\n')
    with pytest.raises(ValueError, match=r"column 'time' holds '0,5' in line 2.*decimal comma"):
        _ = Table(path).whole()
    frame = pd.DataFrame({"id": "x", "time": [0, 1], "a": ["1,5", "2"], "b": 1.0})
    with pytest.raises(
        ValueError, match=r"the data frame input: column 'a' holds the text '1,5' in row 1.*In pandas"
    ):
        asked(frame)


def test_a_decimal_comma_without_quotation_marks_is_hinted_at(file):
    with pytest.raises(
        ValueError, match=r"more cells than its header.*a decimal comma splits a number into two cells"
    ):
        _ = Table(file("id,time,a\nx,0,3,14\nx,1,2,5\n")).channels


# ---- one column per time --------------------------------------------------------------------------------------

YEARS = "country,code,1990,1991,1992,1993\nCôte d'Ivoire,CIV,1.5,2,,4\nPeru,PER,5,6,7,8\n"


def melted(message: str, path, *args, **options) -> Table:
    """The table that the command of an error makes of a file."""
    with pytest.raises(ValueError, match=message) as error:
        _ = Table(path, *args, **options).channels
    exec(str(error.value).split("with pandas: ")[1].split(" Then set")[0])
    return Table(str(Path(path).with_name(f"{Path(path).stem}_long.csv")))


def test_a_table_with_a_column_a_year_comes_with_the_command_that_melts_it(file):
    path = file(YEARS)
    message = (
        r"no column 'id', 'time'.*one column per time \('1990', '1991', ..., '1993'\).*"
        r"\.melt\(id_vars=\['country', 'code'\], var_name='time', value_name='value'\).*"
        r"Then set data.id=country, the one of \['country', 'code'\] that names the series"
    )
    table = melted(message, path)
    table.id = "country"
    assert table.channels == ("value",) and table.whole().names == ("Côte d'Ivoire", "Peru")
    np.testing.assert_array_equal(table.whole().times, [1990, 1991, 1993, 1990, 1991, 1992, 1993])
    np.testing.assert_array_equal(table.whole().values[:, 0], [1.5, 2, 4, 5, 6, 7, 8])


def test_a_table_with_a_column_a_date_is_melted_in_its_dialect(file):
    path = file("id;2020-01-01;2020-01-02;2020-01-03\nx;1,5;2,5;3\ny;4;5;6,25\n")
    table = melted(r"no column 'time'.*sep=';', decimal=','\)\.melt\(id_vars=\['id'\]", path)
    np.testing.assert_array_equal(table.whole().times[:3], 18262 + np.arange(3))
    np.testing.assert_array_equal(table.whole().values[:, 0], [1.5, 2.5, 3, 4, 5, 6.25])


def test_rows_without_a_name_are_named_by_their_number(file, tmp_path):
    table = melted(
        r"no column 'id', 'time'.*reset_index\(\)\.melt\(id_vars=\['id'\]", file("0,0.5,1\n1,2,3\n4,5,6\n")
    )
    assert table.whole().names == ("0", "1") and table.whole().times.tolist() == [0, 0.5, 1] * 2
    path = str(tmp_path / "table.parquet")
    pd.DataFrame({"1990": [1.0], "1991": [2.0], "1992": [3.0]}).to_parquet(path)
    table = melted(r"no column 'time'.*pd\.read_parquet\(.*\.melt\(id_vars=\[\]", path, id=None)
    table.id = None
    assert table.whole().values[:, 0].tolist() == [1, 2, 3]


def test_a_question_with_a_column_a_time_is_melted_too(file, tmp_path):
    with pytest.raises(ValueError, match=r"input\.csv has no column 'id', 'time'.* Then set id=country"):
        asked(tmp_path / file(YEARS, "input.csv"))
    frame = pd.DataFrame({"id": ["x"], 1990: [1.0], 1991: [2.0], 1992: [3.0]})
    with pytest.raises(
        ValueError, match=r"the data frame input has no column 'time'.*frame = frame\.melt\("
    ) as error:
        asked(frame)
    found: dict = {"frame": frame}
    exec(str(error.value).split("with pandas: ")[1], found)
    assert found["frame"].columns.tolist() == ["id", "time", "value"]


def test_a_table_of_channels_is_not_taken_for_one_of_times(file):
    with pytest.raises(ValueError, match=r"Did you mean data.time=date") as error:
        _ = Table(file("id,date,a,b,1990\nx,0,1,2,3\n")).channels
    assert "melt" not in str(error.value)


@pytest.mark.parametrize("columns", [{1990: [1.0], 1991: [2.0], 1992: [3.0]}, {"time": [0], "a": ["1,5"]}])
def test_commands_for_a_frame_change_the_frame(columns, tmp_path):
    frame = pd.DataFrame({"id": ["x"]} | columns)
    with pytest.raises(ValueError, match="the data frame") as error:
        Forecaster("model=rnn", folder=tmp_path / "run").fit(frame)
    assert "csv" not in str(error.value)
    found: dict = {"frame": frame.set_axis(map(str, frame), axis=1)}
    exec(str(error.value).split("with pandas: ")[1], found)
    frame = found["frame"]
    assert list(frame) == ["id", "time", "value"] if 1990 in columns else frame["a"].tolist() == ["1.5"]


# ---- zones --------------------------------------------------------------------------------------------------

BERLIN = "Europe/Berlin"


def test_a_mix_of_times_with_and_without_a_zone_is_refused_with_the_first_of_each(file, tmp_path):
    times = ["2024-03-31T00:00:00", "2024-03-31 01:00", "2024-03-31T04:00:00+02:00", "2024-03-31T05Z"]
    text = "id,time,a\n" + "".join(f"x,{time},1\n" for time in times)
    said = (
        r"column 'time' holds '2024-03-31T00:00:00' in line 2, which has no zone, and '2024-03-31T04:00:00\+02:00' "
        r"in line 4, which has one; .*Append Z to times that are UTC"
    )
    with pytest.raises(ValueError, match=said):
        _ = Table(file(text)).whole()
    with pytest.raises(ValueError, match=said):
        asked(tmp_path / file(text))
    frame = pd.DataFrame(
        {"id": "x", "time": [pd.Timestamp("2024-01-02", tz="UTC"), pd.Timestamp("2024-01-01")], "a": 1.0}
    )
    with pytest.raises(ValueError, match="'2024-01-01 00:00:00' in row 2, which has no zone"):
        asked(frame)


@pytest.mark.parametrize("first", ["2024-01-01T00:00", "2024-01-01T00:00-03"])
def test_a_mix_between_chunks_is_refused(first, file, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "SMALL", 1)
    second = "2024-01-02T00:00Z" if first[-3] != "-" else "2024-01-02"
    path = tmp_path / file(f"id,time,a\nx,{first},1\nx,{second},2\n")
    without, zoned = sorted([first, second], key=lambda x: x[-1] == "Z" or x[-3:] == "-03")
    with pytest.raises(ValueError, match=f"'{without}' in line ., which has no zone, and '{zoned}' in line ."):
        list(SeriesReader(path, "input", TableSchema(), ("a", "b"), ColumnRoles(), None).series(whole=False))


def test_a_mix_between_chunks_of_a_stream_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_chunks, "ROWS", 1)
    frame = pd.DataFrame({"id": "x", "time": ["2024-01-01T00:00Z", "2024-01-02"], "a": 1.0})
    frame.to_parquet(tmp_path / "table.parquet")
    with pytest.raises(
        ValueError, match="'2024-01-02' in row 2, which has no zone, and '2024-01-01T00:00Z' in row 1"
    ):
        _ = Table(str(tmp_path / "table.parquet"), stream=True).channels


@pytest.mark.parametrize("streamed", [False, True])
def test_zones_of_training_are_kept_and_moments_are_those_of_utc(streamed, tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    times = pd.date_range("2024-03-30 22:00", periods=8, freq="h", tz="UTC").tz_convert(BERLIN)
    frame = pd.concat([pd.DataFrame({"id": f"s{i}", "time": times, "a": np.arange(8.0)}) for i in range(4)])
    for zone, zoned in (BERLIN, True), (None, False):
        path = tmp_path / f"{zoned}.parquet"
        frame.assign(
            time=frame["time"].dt.tz_convert("UTC").dt.tz_localize(None) if zone is None else frame["time"]
        ).to_parquet(path)
        table = Table(str(path), stream=streamed)
        np.testing.assert_allclose(np.diff(table.whole().times[:8]) * 24, 1, rtol=1e-6)
        assert table.whole().times[0] == pd.Timestamp("2024-03-30 22:00").value / 86_400e9
        assert table.scale.dates is True and table.scale.zoned is zoned
    if not streamed:
        frame.to_csv(tmp_path / "offsets.csv", index=False)
        table = Table(str(tmp_path / "offsets.csv"))
        same(table, Table(str(tmp_path / "True.parquet")))
        assert table.scale.zoned is True
        assert Table(str(tmp_path / "offsets.csv")).zoned is False  # nothing is read yet


NAIVE = pd.DataFrame(
    {"id": "x", "time": ["2024-03-30T12:00", "2024-03-30T13:00"], "a": [-7.0, -6.0], "b": [-6.0, -5.0]}
)
ZONED = NAIVE.assign(time=NAIVE["time"] + "+01:00")


@pytest.mark.parametrize(
    ("zoned", "frame", "said"),
    [
        (False, ZONED, r"'time' has times with a zone \('2024-03-30T12:00\+01:00' in row 1\).*have none"),
        (False, NAIVE.assign(time=pd.to_datetime(ZONED["time"])), "has times with a zone"),
        (True, NAIVE, r"'time' has times without a zone \('2024-03-30T12:00' in row 1\).*have one"),
    ],
)
def test_a_question_with_another_kind_of_times_than_training_is_refused(zoned, frame, said):
    model = Decay(replace(scale_of(), dates=True, zoned=zoned))
    with pytest.raises(ValueError, match=said) as error:
        ask(frame, model, horizon=1.0, every=1.0)
    mended: dict = {"pd": pd, "frame": frame.copy()}
    exec(str(error.value).split("of Berlin: ")[1], mended)
    expected = ["2024-03-31T13:00:00", "2024-03-31T14:00:00+02:00"][zoned]
    assert ask(mended["frame"], model, horizon=1.0, every=1.0)["time"].map(pd.Timestamp).tolist()[0] == pd.Timestamp(
        expected
    )


def test_zones_in_one_of_two_files_of_a_question_are_refused_also_of_older_runs(file, tmp_path):
    given = tmp_path / file(ZONED.to_csv(index=False), "given.csv")
    at = tmp_path / file("id,time\nx,2024-04-01\n", "at.csv")
    with pytest.raises(
        ValueError, match=r"at.csv has times without a zone \('2024-04-01' in line 2\), and .*given.csv"
    ):
        ask(given, Decay(replace(scale_of(), dates=True)), at=at)


SPRING = "2024-03-30T23:00", ["00:00:00+01:00", "01:00:00+01:00", "03:00:00+02:00", "04:00:00+02:00"]
AUTUMN = "2024-10-27T00:00", ["01:00:00+02:00", "02:00:00+02:00", "02:00:00+01:00", "03:00:00+01:00"]


@pytest.mark.parametrize(("start", "expected"), [SPRING, AUTUMN])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_answers_across_a_change_of_summer_time_are_in_the_zone_of_the_question(start, expected, ending, tmp_path):
    times = pd.date_range(pd.Timestamp(start, tz=BERLIN) - pd.Timedelta("1h"), periods=2, freq="h")
    frame, path = NAIVE.assign(time=times), tmp_path / f"input.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    model = Decay(replace(scale_of(), dates=True, zoned=True))
    moments = times[-1] + pd.to_timedelta(range(1, 5), "h")
    assert [text[-14:] for text in moments.map(pd.Timestamp.isoformat)] == expected
    found = ask(path, model, horizon=4 / 24, every=1 / 24)
    assert found["time"].drop_duplicates().map(pd.Timestamp).tolist() == moments.tolist()
    if ending == "parquet":
        assert str(found["time"].dtype.tz) == BERLIN
        at = ask(path, model, at=pd.DataFrame({"id": "x", "time": moments.tz_convert("UTC")}))
        assert str(at["time"].dtype.tz) == "UTC"
        np.testing.assert_allclose(at["std"], found["std"], rtol=1e-4)
        texts = Forecasts.of(parts_of(model), path, Query(horizon=4 / 24, every=1 / 24), TableSchema())
        written = pd.concat([texts.frame(summary, text=True) for summary in texts.summaries(True)])["time"]
        assert written.drop_duplicates().str[-14:].tolist() == expected


def test_texts_of_one_offset_are_answered_with_it_and_of_several_in_utc_with_a_notice(caplog):
    model = Decay(replace(scale_of(), dates=True, zoned=True))
    found = ask(ZONED, model, horizon=2.0, every=1.0)["time"].tolist()
    assert found[::2] == ["2024-03-31T13:00:00+01:00", "2024-04-01T13:00:00+01:00"]
    several = ZONED.assign(time=["2024-03-31T01:59+01:00", "2024-03-31T03:00+02:00"])
    with caplog.at_level(logging.INFO, "vrnn_lab"):
        found = ask(several, model, horizon=1 / 24, every=1 / 24)["time"].tolist()
    assert found == ["2024-03-31T02:00:00Z"] * 2
    assert (
        "column 'time' has times with several offsets from UTC (+01:00, +02:00); predictions are written"
        in caplog.text
    )


@pytest.mark.parametrize("offset", ["-0330", "+05:45", "-08", "+00:00"])
def test_every_form_of_an_offset_is_read(offset):
    frame = NAIVE.assign(time=NAIVE["time"] + offset)
    found = ask(frame, Decay(replace(scale_of(), dates=True)), horizon=1.0, every=1.0)["time"].iloc[0]
    assert pd.Timestamp(found) == pd.Timestamp(f"2024-03-31T13:00{offset}")
    assert found.endswith({"-0330": "-03:30", "-08": "-08:00", "+00:00": "Z"}.get(offset, offset))


def test_moments_whose_offset_has_seconds_are_written_in_utc():
    times = (
        pd.DatetimeIndex(np.array(["1850-01-01", "1850-01-02"], "datetime64[us]"))
        .tz_localize("UTC")
        .tz_convert(BERLIN)
    )
    texts = Clock(True, zone=times.tz).write(np.array([-43829.0, 0.0]), text=True).tolist()
    assert texts == ["1850-01-01T00:00:00Z", "1970-01-01T01:00:00+01:00"]


def test_a_run_keeps_whether_its_dates_have_a_zone_and_older_ones_do_not_know():
    kept: dict = {}
    model = Decay(replace(scale_of(), dates=True, zoned=True))
    model.on_save_checkpoint(kept)
    kept["state_dict"] = model.state_dict()
    assert build._scale(kept).zoned is True
    assert build._scale({k: v for k, v in kept.items() if k != "zoned"}).zoned is None


@pytest.mark.parametrize("chunked", [False, True])
def test_a_text_among_numbers_with_decimal_commas_is_the_cell_that_is_named(tmp_path, chunked):
    path = tmp_path / "t.csv"
    path.write_text("id;time;x\na;1;3,5\na;2;-4,5e1\na;3;none of it\n")
    cells = next(columns.chunks(path, ["id", "time", "x"], ["id"], 10)) if chunked else None
    cells = cells or columns.read(path, ["id", "time", "x"], ["id"])
    with pytest.raises(ValueError, match="the text 'none of it' in line 4"):
        columns.numbers(cells, "x")
    path.write_text("id;time;x\n1,5;1;3,5\n1,5;2;\n1,5;3;NA\n")
    cells = columns.read(path, ["id", "time", "x"], ["id"])
    assert columns.words(cells, "id")[1] == ("1,5",) and columns.numbers(cells, "x")[0] == 3.5
