"""From the cells of a CSV or Parquet file to numbers, times and names; errors name the column, line and cell."""

import difflib
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.table import parquet_file, time_zones
from vrnn_lab.data.table.csv_dialect import (
    comma_cure,
    dialect_of,
    first_decimal_comma,
    has_decimal_comma,
    is_csv,
    numbers_in,
    read_csv,
    readable_csv,
    with_points,
)
from vrnn_lab.data.table.wide_times import melt_cure

log = logging.getLogger("vrnn_lab")
ENDINGS = (".csv", ".csv.gz", ".parquet")
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "none", "-nan", "-NaN", "<NA>"]
LARGEST = 1e150  # in magnitude, of values and times: their squares are finite, and so are sums of those
CODE = "Write a text as numbers: 0 and 1, or for several kinds a column of 0 and 1 each."
OTHER_NAMES = {  # what Nixtla, GluonTS and others call these columns
    "id": ("unique_id", "item_id", "series_id", "ID", "Id"),
    "time": ("ds", "timestamp", "datetime", "date", "Time", "Date"),
    "channel": ("kind", "variable", "parameter", "Channel"),
    "value": ("y", "target", "Value"),
}


@dataclass(frozen=True)
class Cells:
    """Rows of a file as they were read; the frame's index counts the file's data rows from 0."""

    path: Path
    frame: pd.DataFrame

    def where(self, place: int) -> str:
        """Where the row at this place of the frame stands in the file."""
        return where(self.path, int(self.frame.index[place]))

    def column(self, name: str) -> pd.Series:
        return cast(pd.Series, self.frame[name])

    def text(self, column: str, place: int) -> str:
        return str(self.column(column).iloc[place])

    def rows(self, mask: NDArray[np.bool_]) -> "Cells":
        return self if mask.all() else replace(self, frame=self.frame.loc[mask])


def where(path: Path, row: int) -> str:
    """Where a data row, counted from 0, stands in a file."""
    if not is_csv(path):
        return f"row {row + 1}"
    return f"line {row + 2 + dialect_of(path).skipped}"


def column_names(path: Path, key: str = "data.path") -> list[str]:
    """The columns a file has; ValueError if it is missing or of no known kind. key: the option that names it."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{key}={path} {found} (looked in {Path.cwd()}); expected a CSV or Parquet file.")
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"{key}={path} has no ending we read; expected one of {', '.join(ENDINGS)}.")
    if path.suffix.lower() == ".parquet":
        return [name for name in parquet_file.schema(path, key).names if not name.startswith("__index_level_")]
    return [str(name) for name in read_csv(path, nrows=0).columns]


def refuse_stream(path: Path, channel: str | None, beside: "ColumnRoles") -> None:
    """ValueError for a file or a form that cannot be read bit by bit."""
    if beside.wanted:
        raise ValueError(
            f"data.stream=true reads values alone, and data.{beside.wanted[0][0]} names other columns; leave those "
            "out, or leave data.stream out, which reads the whole file into memory."
        )
    if channel is not None:
        raise ValueError(
            "data.stream=true reads tables with a column a channel; the long form (data.channel) cannot be streamed. "
            "Turn it into the other once: duckdb's PIVOT, or pandas' pivot_table; or leave data.stream out."
        )
    if is_csv(path):
        new = path.name.split(".")[0] + ".parquet"
        raise ValueError(
            f"data.stream=true reads Parquet, and data.path={path} is a CSV file. Turn it into one, of any size: "
            f"duckdb -c \"COPY (SELECT * FROM '{path}' ORDER BY id, time) TO '{new}'\", or by pyarrow's open_csv and "
            "ParquetWriter; or leave data.stream out."
        )


def demand(path: Path, found: list[str], wanted: Iterable[tuple[str, str]], keys: str = "data.") -> None:
    """ValueError unless every wanted column, (config key, name), is among those found. keys: where those belong."""
    wanted = list(wanted)
    missing = [(key, name) for key, name in wanted if name not in found]
    if not missing:
        return
    text = f"{path} has no column {_listed(name for _, name in missing)}; it has {_listed(found)}."
    roles = dict(wanted)
    if "time" in dict(missing) and (cure := melt_cure(path, found, roles.get("id"), roles["time"], keys)):
        raise ValueError(f"{text} {cure}")
    cures = [_cure(keys + key, name, near) for key, name in missing if (near := _nearest(key, name, found))]
    text += f" Did you mean {', '.join(cures)}?" if cures else f" Name yours with {keys}{missing[0][0]}=..."
    if missing[0][0] == "id":
        text += f" A file of one series needs none: {keys}id=null."
    if is_csv(path) and (mark := next((m for m in ";\t|" if any(m in name for name in found)), None)):
        text += (
            f" The cells seem to be separated by {mark!r}; save the file with commas, or with semicolons or tabs and "
            "no comma in the header."
        )
    raise ValueError(text)


def read(path: Path, wanted: list[str], words: Iterable[str]) -> Cells:
    """The wanted columns of a file; those named in `words` are kept as text. ValueError if there is no row."""
    words = set(words)
    if path.suffix.lower() == ".parquet":
        frame = parquet_file.read(path, wanted, words)
    else:
        frame = read_csv(path, **_kinds(wanted, words)).loc[:, wanted]
    if not len(frame):
        raise ValueError(f"{path} has no rows, only the columns {_listed(wanted)}; expected a row per time.")
    return Cells(path, frame)


class RepeatedError(ValueError):
    """A series has two values at one time."""


def without_copies(cells: Cells) -> Cells:
    """The rows without those that repeat an earlier row in every cell; a notice counts them."""
    copies = cells.frame.duplicated().to_numpy()
    if not copies.any():
        return cells
    place = int(np.flatnonzero(copies)[0])
    log.warning(
        "%s: %d rows repeat an earlier row exactly and are dropped, the first in %s.",
        cells.path,
        int(copies.sum()),
        cells.where(place),
    )
    return cells.rows(~copies)


def chunks(path: Path, wanted: list[str], words: Iterable[str], rows: int) -> Iterator[Cells]:
    """The same, so many rows at a time; nothing where there is none."""
    parquet = path.suffix.lower() == ".parquet"
    words = set(words)
    kinds = _kinds(wanted, words)
    found = _batches(path, wanted, rows) if parquet else read_csv(path, chunksize=rows, **kinds)
    with closing(found):
        while True:
            with readable_csv(path):
                frame = next(found, None)
            if frame is None:
                return
            yield Cells(path, with_points(path, frame.loc[:, wanted], words))


def _batches(path: Path, wanted: list[str], rows: int) -> Generator[pd.DataFrame, None, None]:
    """Rows of a Parquet file, counted through."""
    first = 0
    for batch in parquet_file.batches(path, wanted, rows):
        with parquet_file.readable(path):
            frame = batch.to_pandas(ignore_metadata=True)
        yield frame.set_index(pd.RangeIndex(first, first + len(frame)))
        first += len(frame)


def _kinds(wanted: list[str], words: set[str]) -> dict[str, Any]:
    """How pandas is to read the columns of a CSV file. Not words as categories: those of 007 would be numbers."""
    missing = {name: MISSING for name in wanted if name not in words}
    return {"dtype": dict.fromkeys(words, "str"), "na_values": missing}


@dataclass(frozen=True)
class ColumnRoles:
    """Columns that stand beside the values: what is known everywhere, and error bars."""

    known: tuple[str, ...] = ()  # one number a row
    static: tuple[str, ...] = ()  # one number a series
    error: tuple[str | None, ...] = ()  # one a channel (None: it has none); long form: one beside the value

    @property
    def covariates(self) -> tuple[str, ...]:
        return (*self.known, *self.static)

    @property
    def wanted(self) -> list[tuple[str, str]]:
        """(config key, column)."""
        named = [("known", name) for name in self.known] + [("static", name) for name in self.static]
        return named + [("error", name) for name in self.error if name is not None]


def covariates(cells: Cells, id: str | None, beside: ColumnRoles) -> NDArray[np.float64] | None:
    """(rows, covariates): the known ones as each row has them, the static ones as their series has them."""
    if not beside.covariates:
        return None
    known = [_known(cells, name) for name in beside.known]
    if not beside.static:
        return np.stack(known, 1)
    owner, names = (np.zeros(len(cells.frame), np.int64), ("",)) if id is None else words(cells, id)
    return np.stack(known + [_static(cells, name, owner, names) for name in beside.static], 1)


def _known(cells: Cells, column: str) -> NDArray[np.float64]:
    found = numbers(cells, column, f"data.known takes numbers. {CODE}")
    empty = first(np.isnan(found))
    if empty is not None:
        raise ValueError(
            f"{cells.path}: {cells.where(empty)} has no '{column}', which data.known says is known everywhere; fill "
            "it in, in every row, or leave it out of data.known and it is a channel."
        )
    return found


def _static(cells: Cells, column: str, owner: NDArray[np.int64], names: tuple[str, ...]) -> NDArray[np.float64]:
    """(rows,): the one number each row's series has."""
    found = numbers(cells, column, f"data.static takes numbers. {CODE}")
    there = np.flatnonzero(~np.isnan(found) & (owner >= 0))
    series, place = np.unique(owner[there], return_index=True)
    value = np.full(len(names) + 1, np.nan)  # the last is that of rows without a name
    value[series] = found[there][place]
    other = first(found[there] != value[owner[there]])
    if other is not None:
        row = int(there[other])
        begun, name = int(there[place[series == owner[row]][0]]), names[owner[row]]
        raise ValueError(
            f"{cells.path}: series '{name}' has two values of '{column}', {found[begun]:g} in {cells.where(begun)} "
            f"and {found[row]:g} in {cells.where(row)}; data.static takes one a series. Correct it, or name what "
            "changes with time in data.known=[...]."
        )
    without = first(np.isnan(value[owner]) & (owner >= 0))
    if without is not None:
        raise ValueError(
            f"{cells.path}: series '{names[owner[without]]}' ({cells.where(without)}) has no '{column}' in any row; "
            "data.static takes one number for every series. Fill it in, in one of its rows or in all."
        )
    return value[owner]


def errors(cells: Cells, column: str | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(rows,): the error bar of each value that was observed, NaN elsewhere; zeros of no column."""
    if column is None:
        return np.where(np.isnan(values), np.nan, 0.0)
    found = numbers(cells, column, "data.error takes numbers.")
    for wrong, what in ((np.isnan(found), "a value but no"), (found < 0, "a negative")):
        place = first(wrong & ~np.isnan(values))
        if place is not None:
            raise ValueError(
                f"{cells.path}: {cells.where(place)} has {what} '{column}'; data.error wants the "
                "standard deviation of its noise, 0 where there is none. Fill it in, or empty the value."
            )
    return np.where(np.isnan(values), np.nan, found)


def first(mask) -> int | None:
    """The place of the first True of a mask (rows,)."""
    found = np.flatnonzero(mask)
    return int(found[0]) if len(found) else None


def looks_like_numbers(cells: Cells, column: str) -> bool:
    """Return whether more than half of the cells of a column are numbers; a text among them is then an error.

    ValueError for a column of numbers with decimal commas, which were read as text.
    """
    content = cells.column(column).dropna()
    if types.is_bool_dtype(content) or not len(content):
        return False
    if types.is_numeric_dtype(content):
        return True
    if not (types.is_object_dtype(content) or types.is_string_dtype(content)):
        return False
    if bool(np.isnan(_parsed(content)).mean() < 0.5):
        return True
    comma = first_decimal_comma(cells.column(column))
    if comma is not None:
        raise _no_number(cells, column, comma, "")
    return False


ROW_NAMES = ("rownames", "rownumber", "row_number", "row", "rownum", "index", "obs", "x", "x1", "...1", "v1", "")
CALENDAR = {
    "year": (1000, 3000),
    "yr": (1000, 3000),
    "quarter": (1, 4),
    "month": (1, 12),
    "week": (0, 53),
    "weekday": (0, 7),
    "dayofweek": (0, 7),
    "dow": (0, 7),
    "day": (1, 31),
    "dayofyear": (1, 366),
    "doy": (1, 366),
    "hour": (0, 24),
    "minute": (0, 60),
}  # columns that repeat what the time says: their smallest and largest values


def counts_rows(cells: Cells, column: str) -> bool:
    """Whether a column is called like a row number and counts the rows of the file."""
    if column.strip().lower() not in ROW_NAMES:
        return False
    found = _parsed(cells.column(column))
    return bool(len(found) > 1 and found[0] in (0.0, 1.0) and (np.diff(found) == 1).all())


def is_calendar(cells: Cells, column: str) -> bool:
    """Whether a column is called like a part of a date and holds such whole numbers in every row."""
    limits = CALENDAR.get(column.strip().lower().replace("_", ""))
    if limits is None:
        return False
    found = _parsed(cells.column(column))
    return bool(
        np.isfinite(found).all()
        and (found == np.rint(found)).all()
        and limits[0] <= found.min() <= found.max() <= limits[1]
    )


def tell_left_out(
    path: Path, id: str | None, time: str, others: list[str], channels: Sequence[str], cure: str
) -> None:
    """A notice of the columns that are no channels; ValueError where none is one."""
    if not channels:
        raise ValueError(f"{path} has no column of numbers beside '{id}' and '{time}'; it has {others}. {cure}")
    if left := [c for c in others if c not in channels]:
        log.info("%s: columns without numbers are left out: %s", path, ", ".join(left))


def numbers(cells: Cells, column: str, cure: str = "") -> NDArray[np.float64]:
    """(rows,), NaN for an empty cell. ValueError for text, for infinite values and for those beyond LARGEST."""
    cure = cure or "Correct the cell, or name the columns to use: data.values=[...]."
    content = cells.column(column)
    found = _parsed(content)
    wrong = first(np.isnan(found) & content.notna().to_numpy())
    if wrong is not None:
        raise _no_number(cells, column, wrong, cure)
    infinite = first(np.isinf(found))
    if infinite is not None:
        raise ValueError(
            f"{cells.path}: column '{column}' is infinite in {cells.where(infinite)}; expected finite numbers, "
            "empty where nothing was observed."
        )
    if (large := first(np.abs(found) > LARGEST)) is not None:
        raise ValueError(
            f"{cells.path}: column '{column}' holds {_short(cells.text(column, large))} in {cells.where(large)}; "
            f"expected numbers up to {LARGEST:g} in magnitude, empty where nothing was observed. Correct the cell, "
            "empty it if it stands for a missing value, or divide the column by its unit."
        )
    return found


def _short(text: str) -> str:
    """A cell for a message."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def _no_number(cells: Cells, column: str, place: int, cure: str) -> ValueError:
    """The error of a text among numbers; cure: of one that is no number with a decimal comma."""
    text = cells.text(column, place)
    cure = comma_cure(cells.path, cells.frame, text) if has_decimal_comma(text) else cure
    return ValueError(
        f"{cells.path}: column '{column}' holds the text '{_short(text)}' in {cells.where(place)}; expected numbers, "
        f"empty where nothing was observed. {cure}"
    )


def _parsed(content: pd.Series) -> NDArray[np.float64]:
    """(rows,): the numbers a column holds, NaN for all else."""
    if isinstance(content.dtype, pd.CategoricalDtype) and types.is_numeric_dtype(content.cat.categories):
        content = content.astype(np.float64)
    if not types.is_numeric_dtype(content):
        if isinstance(content.dtype, pd.CategoricalDtype) or types.is_datetime64_any_dtype(content):
            return np.full(len(content), np.nan)
        return numbers_in(content)
    return content.to_numpy(np.float64, na_value=np.nan)


def times(cells: Cells, column: str) -> tuple[NDArray[np.float64], bool]:
    """(rows,) and whether they were dates: numbers as they are, ISO dates as days since 1970, of UTC if zoned."""
    content = cells.column(column)
    empty = first(content.isna())
    if empty is not None:
        raise ValueError(f"{cells.path}: {cells.where(empty)} has no '{column}'; expected a time in every row.")
    if types.is_datetime64_any_dtype(content):
        return _days(content), True
    if (
        types.is_bool_dtype(content)
        or isinstance(content.dtype, pd.PeriodDtype)
        or types.is_timedelta64_dtype(content)
    ):
        raise ValueError(f"{cells.path}: column '{column}' is {content.dtype}; expected numbers or dates.")
    found = _parsed(content)
    if np.isnan(found).all():
        return _dates(cells, column), True
    wrong = first(~(np.abs(found) <= LARGEST))
    if wrong is not None:
        raise ValueError(
            f"{cells.path}: column '{column}' holds numbers, but '{_short(cells.text(column, wrong))}' in "
            f"{cells.where(wrong)}; expected finite numbers up to {LARGEST:g} in every row, or ISO "
            "dates in every row."
        )
    return found, False


def _dates(cells: Cells, column: str) -> NDArray[np.float64]:
    content = cells.column(column).astype(str)
    found = pd.to_datetime(content, format="ISO8601", errors="coerce", utc=True)
    wrong = first(found.isna())
    if wrong is not None:
        text = content.iloc[wrong]
        cure = " " + comma_cure(cells.path, cells.frame, text) if has_decimal_comma(text) else ""
        raise ValueError(
            f"{cells.path}: column '{column}' holds '{text}' in {cells.where(wrong)}; expected numbers, or ISO dates "
            f"throughout: 2024-05-31 or 2024-05-31T14:30:00.{cure}"
        )
    zoned = time_zones.offsets(content).notna().to_numpy()
    if zoned.any() and not zoned.all():
        without, having = first(~zoned), first(zoned)
        raise time_zones.mixed(
            cells.path, column, shown(cells, column, without or 0), shown(cells, column, having or 0)
        )
    return _days(found)


def shown(cells: Cells, column: str, place: int) -> str:
    """A cell and where it stands: "'2024-05-31' in line 7"."""
    return f"'{cells.text(column, place)}' in {cells.where(place)}"


def _days(moments: pd.Series) -> NDArray[np.float64]:
    if getattr(moments.dtype, "tz", None) is not None:
        moments = moments.dt.tz_convert("UTC").dt.tz_localize(None)
    return moments.to_numpy().astype("datetime64[us]").astype(np.int64) / 86_400e6


def words(cells: Cells, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(rows,) indices into the sorted distinct texts of a column, and those; -1 for an empty cell."""
    content = cells.column(column)
    if content.dtype == np.float16:  # of which pandas makes no categories
        content = content.astype(np.float32)
    content = content.astype("category")
    labels = np.array([str(x) for x in content.cat.categories], dtype=object)
    filled = sorted(set(labels) - {""})
    place = {text: i for i, text in enumerate(filled)} | {"": -1}
    index = np.array([*(place[text] for text in labels), -1])
    return index[content.cat.codes.to_numpy()], tuple(filled)


def all_filled(cells: Cells, column: str, codes: NDArray[np.int64]) -> None:
    """ValueError for the first row whose text in this column is empty."""
    empty = first(codes < 0)
    if empty is not None:
        raise ValueError(
            f"{cells.path}: {cells.where(empty)} has no '{column}'; expected one in every row with a value."
        )


def marks(cells: Cells, column: str) -> NDArray[np.int64]:
    """(rows,): the split that a column says, an index into SPLITS. ValueError for another word, or none."""
    codes, found = words(cells, column)
    all_filled(cells, column, codes)
    unknown = [i for i, word in enumerate(found) if word not in SPLITS and (codes == i).any()]
    if unknown:
        place = int(np.flatnonzero(np.isin(codes, unknown))[0])
        raise ValueError(
            f"{cells.path}: column '{column}' says '{found[codes[place]]}' in {cells.where(place)}; expected "
            "train, val or test. data.split=null leaves the column alone and splits by the seed."
        )
    return np.array([SPLITS.index(word) if word in SPLITS else -1 for word in found])[codes]


def _nearest(key: str, name: str, found: list[str]) -> str | None:
    known = [other for other in OTHER_NAMES.get(key, ()) if other in found]
    near = difflib.get_close_matches(name, found, 1)
    return next(iter(near + known), None)


def _cure(key: str, name: str, near: str) -> str:
    several = key.removeprefix("data.") in ("values", "known", "static", "error")
    return f"'{near}' for '{name}' in {key}" if several else f"{key}={near}"


def _listed(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return ", ".join(f"'{name}'" for name in shown[:20]) + more
