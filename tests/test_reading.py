"""Tables as other programs write them: separators, decimal commas, a column per time, and zones of time."""

import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vrnn_lab.data import csv_dialect, rows
from vrnn_lab.data.columns import Beside
from vrnn_lab.data.csv_dialect import Dialect, dialect_of
from vrnn_lab.data.rows import Form, Source
from vrnn_lab.data.table import Table

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
    return list(Source(path, key, Form(**columns), ("a", "b"), Beside(), None).series(whole=True))


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
    monkeypatch.setattr(rows, "SMALL", chunk)
    path = tmp_path / file(COMMAS)
    found = list(Source(path, "input", Form(), ("a", "b"), Beside(), None).series(whole=False))
    assert [series.name for series in found] == ["x", "y"]
    np.testing.assert_array_equal(found[0].times, [0.5, 1.5])
    np.testing.assert_array_equal(found[0].values, [[1.25, np.nan], [-2.5, 3]])
    np.testing.assert_array_equal(asked(path, "at")[1].times, [0])


QUOTED = 'id,time,a,b,note\n007,0,1,"3,14",fine\n007,1,2,"2,5",so so\n007,2,3,,fine\n007,3,"4,0",5,\n'


def points_of(message: str) -> None:
    """Runs the command that an error gives."""
    exec(message.split("by pandas: ")[1])


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
    with pytest.raises(ValueError, match=r"more cells than its header.*a decimal comma separates two cells"):
        _ = Table(file("id,time,a\nx,0,3,14\nx,1,2,5\n")).channels


# ---- one column a time --------------------------------------------------------------------------------------

YEARS = "country,code,1990,1991,1992,1993\nCôte d'Ivoire,CIV,1.5,2,,4\nPeru,PER,5,6,7,8\n"


def melted(message: str, path, *args, **options) -> Table:
    """The table that the command of an error makes of a file."""
    with pytest.raises(ValueError, match=message) as error:
        _ = Table(path, *args, **options).channels
    exec(str(error.value).split("by pandas: ")[1].split(" Then set")[0])
    return Table(str(Path(path).with_name(f"{Path(path).stem}_long.csv")))


def test_a_table_with_a_column_a_year_comes_with_the_command_that_melts_it(file):
    path = file(YEARS)
    message = (
        r"no column 'id', 'time'.*one column a time \('1990', '1991', ..., '1993'\).*"
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
    exec(str(error.value).split("by pandas: ")[1], found)
    assert found["frame"].columns.tolist() == ["id", "time", "value"]


def test_a_table_of_channels_is_not_taken_for_one_of_times(file):
    with pytest.raises(ValueError, match=r"Did you mean data.time=date") as error:
        _ = Table(file("id,date,a,b,1990\nx,0,1,2,3\n")).channels
    assert "melt" not in str(error.value)
