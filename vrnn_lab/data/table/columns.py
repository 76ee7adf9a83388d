"""Convert the cells of a CSV or Parquet file to numbers, times and names; errors name the column, line and cell."""

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
LARGEST = 1e150  # largest magnitude of values and times, so that sums of their squares are finite
CODE = "Encode categories as numbers: two as 0 and 1, several as one column of 0 and 1 for each."
OTHER_NAMES = {  # names of these columns in Nixtla, GluonTS and others
    "id": ("unique_id", "item_id", "series_id", "ID", "Id"),
    "time": ("ds", "timestamp", "datetime", "date", "Time", "Date"),
    "channel": ("kind", "variable", "parameter", "Channel"),
    "value": ("y", "target", "Value"),
}


@dataclass(frozen=True)
class Cells:
    """Hold rows of a file as they were read; the frame's index counts the file's data rows from 0."""

    path: Path
    frame: pd.DataFrame

    def where(self, place: int) -> str:
        """Return the file's line or row, such as "line 7", of the row at a position of the frame."""
        return where(self.path, int(self.frame.index[place]))

    def column(self, name: str) -> pd.Series:
        return cast(pd.Series, self.frame[name])

    def text(self, column: str, place: int) -> str:
        return str(self.column(column).iloc[place])

    def rows(self, mask: NDArray[np.bool_]) -> "Cells":
        return self if mask.all() else replace(self, frame=self.frame.loc[mask])


def where(path: Path, row: int) -> str:
    """Return the position of a data row, counted from 0, in its file: "line 7" for CSV, else "row 6"."""
    if not is_csv(path):
        return f"row {row + 1}"
    return f"line {row + 2 + dialect_of(path).skipped}"


def column_names(path: Path, key: str = "data.path") -> list[str]:
    """Return the names of a file's columns; raise ValueError if it is missing or of an unknown type.

    key: the option that names the file, for messages.
    """
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{key}={path} {fault} (looked in {Path.cwd()}); expected a CSV or Parquet file.")
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"{key}={path} has an unknown file name ending; expected one of {', '.join(ENDINGS)}.")
    if path.suffix.lower() == ".parquet":
        return [name for name in parquet_file.schema(path, key).names if not name.startswith("__index_level_")]
    return [str(name) for name in read_csv(path, nrows=0).columns]


def demand(path: Path, names: list[str], wanted: Iterable[tuple[str, str]], keys: str = "data.") -> None:
    """Check that every wanted column, (config key, name), is among `names`; raise ValueError with a remedy.

    keys: prefix of the config keys in messages.
    """
    wanted = list(wanted)
    missing = [(key, name) for key, name in wanted if name not in names]
    if not missing:
        return
    text = f"{path} has no column {_listed(name for _, name in missing)}; it has {_listed(names)}."
    roles = dict(wanted)
    if "time" in dict(missing) and (cure := melt_cure(path, names, roles.get("id"), roles["time"], keys)):
        raise ValueError(f"{text} {cure}")
    cures = [_cure(keys + key, name, near) for key, name in missing if (near := _nearest(key, name, names))]
    text += f" Did you mean {', '.join(cures)}?" if cures else f" Name the column with {keys}{missing[0][0]}=..."
    if missing[0][0] == "id":
        text += f" If the file holds a single series, set {keys}id=null."
    if is_csv(path) and (mark := next((m for m in ";\t|" if any(m in name for name in names)), None)):
        text += (
            f" The cells seem to be separated by {mark!r}; save the file with commas, or with semicolons or tabs and "
            "no comma in the header."
        )
    raise ValueError(text)


def read(path: Path, wanted: list[str], words: Iterable[str]) -> Cells:
    """Read the wanted columns of a file, those named in `words` as text; raise ValueError if there is no row."""
    words = set(words)
    if path.suffix.lower() == ".parquet":
        frame = parquet_file.read(path, wanted, words)
    else:
        frame = read_csv(path, **_kinds(wanted, words)).loc[:, wanted]
    if not len(frame):
        raise ValueError(f"{path} has no rows, only the columns {_listed(wanted)}; expected one row per time.")
    return Cells(path, frame)


class RepeatedError(ValueError):
    """Report a series with two values at one time."""


def twice(path: Path, series: str, time: str, first: str, second: str) -> RepeatedError:
    """Return the error for two rows of a series, or of a channel of it, at one time."""
    return RepeatedError(
        f"{path}: {series} has two rows at {time}, {first} and {second}; expected one. Delete or average them, or "
        "name the column that tells the series apart: data.id=..."
    )


def without_copies(cells: Cells) -> Cells:
    """Drop the rows that repeat an earlier row in every cell, and log their number."""
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
    """Read the wanted columns of a file in chunks of `rows` rows, those named in `words` as text.

    A file without rows yields nothing.
    """
    parquet = path.suffix.lower() == ".parquet"
    words = set(words)
    kinds = _kinds(wanted, words)
    frames = _batches(path, wanted, rows) if parquet else read_csv(path, chunksize=rows, **kinds)
    with closing(frames):
        while True:
            with readable_csv(path):
                frame = next(frames, None)
            if frame is None:
                return
            yield Cells(path, with_points(path, frame.loc[:, wanted], words))


def _batches(path: Path, wanted: list[str], rows: int) -> Generator[pd.DataFrame, None, None]:
    """Yield the rows of a Parquet file in batches whose index counts the rows of the file."""
    first = 0
    for batch in parquet_file.batches(path, wanted, rows):
        with parquet_file.readable(path):
            frame = batch.to_pandas(ignore_metadata=True)
        yield frame.set_index(pd.RangeIndex(first, first + len(frame)))
        first += len(frame)


def _kinds(wanted: list[str], words: set[str]) -> dict[str, Any]:
    """Return the options with which pandas reads the columns of a CSV file.

    Words are not read as categories, because pandas would turn those such as 007 into numbers.
    """
    missing = {name: MISSING for name in wanted if name not in words}
    return {"dtype": dict.fromkeys(words, "str"), "na_values": missing}


@dataclass(frozen=True)
class ColumnRoles:
    """Name the columns other than values, times and names: covariates and error bars."""

    known: tuple[str, ...] = ()  # one number per row
    static: tuple[str, ...] = ()  # one number per series
    error: tuple[str | None, ...] = ()  # one per channel (None: it has none); long form: one for the value column

    @property
    def covariates(self) -> tuple[str, ...]:
        return (*self.known, *self.static)

    @property
    def wanted(self) -> list[tuple[str, str]]:
        """Return (config key, column name) of every named column."""
        named = [("known", name) for name in self.known] + [("static", name) for name in self.static]
        return named + [("error", name) for name in self.error if name is not None]


def covariates(cells: Cells, id: str | None, roles: ColumnRoles) -> NDArray[np.float64] | None:
    """Return the covariates (rows, covariates), known ones by row and static ones by series; None without any.

    Raise ValueError for a missing known number, and for a series without one static number.
    """
    if not roles.covariates:
        return None
    numbers_of_rows = [known(cells, name) for name in roles.known]
    if not roles.static:
        return np.stack(numbers_of_rows, 1)
    owner, names = (np.zeros(len(cells.frame), np.int64), ("",)) if id is None else words(cells, id)
    return np.stack(numbers_of_rows + [_static(cells, name, owner, names) for name in roles.static], 1)


def known(cells: Cells, column: str) -> NDArray[np.float64]:
    """Return the numbers (rows,) of a covariate that changes from row to row; raise ValueError for an empty cell."""
    values = numbers(cells, column, f"data.known takes numbers. {CODE}")
    empty = first(np.isnan(values))
    if empty is not None:
        raise ValueError(
            f"{cells.path}: {cells.where(empty)} has no '{column}', but a column of data.known needs a number in "
            "every row. Fill it in, or leave the column out of data.known: it is then a channel."
        )
    return values


def _static(cells: Cells, column: str, owner: NDArray[np.int64], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the static number (rows,) of each row's series; raise ValueError for a series with none or several."""
    values = numbers(cells, column, f"data.static takes numbers. {CODE}")
    there = np.flatnonzero(~np.isnan(values) & (owner >= 0))
    series, place = np.unique(owner[there], return_index=True)
    static = np.full(len(names) + 1, np.nan)  # the last entry is for rows without a name, whose owner is -1
    static[series] = values[there][place]
    other = first(values[there] != static[owner[there]])
    if other is not None:
        row = int(there[other])
        begun, name = int(there[place[series == owner[row]][0]]), names[owner[row]]
        one, two = ((values[place], f"in {cells.where(place)}") for place in (begun, row))
        raise two_static(cells.path, name, column, one, two)
    without = first(np.isnan(static[owner]) & (owner >= 0))
    if without is not None:
        raise no_static(cells.path, names[owner[without]], cells.where(without), column)
    return static[owner]


def two_static(path: Path, series: str, column: str, one: tuple[float, str], two: tuple[float, str]) -> ValueError:
    """Return the error for a series with two numbers of a static covariate; one, two: a number, and where it is."""
    return ValueError(
        f"{path}: series '{series}' has two values of '{column}', {one[0]:g} {one[1]} and {two[0]:g} {two[1]}; "
        "data.static takes one per series. Correct it, or name the column in data.known=[...] if it changes with "
        "time."
    )


def no_static(path: Path, series: str, place: str, column: str) -> ValueError:
    """Return the error for a series without a number of a static covariate."""
    return ValueError(
        f"{path}: series '{series}' ({place}) has no '{column}' in any row; data.static needs one number for every "
        "series. Fill it in, in one of its rows or in all."
    )


def two_known(
    path: Path, series: str, column: str, time: str, one: tuple[float, str], two: tuple[float, str]
) -> ValueError:
    """Return the error for a time with two numbers of a known covariate; one, two: a number, and where it is."""
    return ValueError(
        f"{path}: series '{series}' has two values of '{column}' at {time}, {one[0]:g} in {one[1]} and {two[0]:g} in "
        f"{two[1]}; expected one per time."
    )


def errors(cells: Cells, column: str | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the error bars (rows,) of observed values, NaN elsewhere; zeros where there is no such column.

    Raise ValueError for an observed value with a missing or negative error bar.
    """
    if column is None:
        return np.where(np.isnan(values), np.nan, 0.0)
    bars = numbers(cells, column, "data.error takes numbers.")
    for wrong, what in ((np.isnan(bars), "a value but no"), (bars < 0, "a negative")):
        place = first(wrong & ~np.isnan(values))
        if place is not None:
            raise ValueError(
                f"{cells.path}: {cells.where(place)} has {what} '{column}'; data.error needs the "
                "standard deviation of the value's noise, 0 for a value without noise. Fill it in, or empty the "
                "value."
            )
    return np.where(np.isnan(values), np.nan, bars)


def first(mask) -> int | None:
    """Return the index of the first True of a mask (rows,), or None."""
    places = np.flatnonzero(mask)
    return int(places[0]) if len(places) else None


def looks_like_numbers(cells: Cells, column: str) -> bool:
    """Return whether more than half of the cells of a column are numbers, so that a text among them is an error.

    Raise ValueError for a column of numbers with decimal commas, which were read as text.
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
}  # columns that repeat parts of the time stamps: their smallest and largest values


def counts_rows(cells: Cells, column: str) -> bool:
    """Return whether a column has a name typical of row numbers and counts the rows of the file."""
    if column.strip().lower() not in ROW_NAMES:
        return False
    values = _parsed(cells.column(column))
    return bool(len(values) > 1 and values[0] in (0.0, 1.0) and (np.diff(values) == 1).all())


def is_calendar(cells: Cells, column: str) -> bool:
    """Return whether a column is named after a part of a date and holds valid whole numbers in every row."""
    limits = CALENDAR.get(column.strip().lower().replace("_", ""))
    if limits is None:
        return False
    values = _parsed(cells.column(column))
    return bool(
        np.isfinite(values).all()
        and (values == np.rint(values)).all()
        and limits[0] <= values.min() <= values.max() <= limits[1]
    )


def is_spare(cells: Cells, column: str) -> bool:
    """Return whether a column looks like row numbers or a part of a date, and so hardly like a channel."""
    return counts_rows(cells, column) or is_calendar(cells, column)


def number_columns(cells: Cells, id: str | None, time: str, split: str | None, roles: ColumnRoles) -> tuple[str, ...]:
    """Return the columns of numbers that are taken as channels, and log those that are left out.

    Columns that look like row numbers or a calendar are left out, unless there are no others. Raise ValueError where
    there is no column of numbers.
    """
    with_role = [name for _, name in roles.wanted]
    others = [c for c in cells.frame if c not in (id, time, split, *with_role)]
    others = [c for c in others if not c.startswith("Unnamed: ")]  # row numbers that pandas wrote
    numeric = [c for c in others if looks_like_numbers(cells, c)]
    spare = [c for c in numeric if is_spare(cells, c)]
    if len(spare) == len(numeric):  # at least one column must be a channel
        spare = []
    channels = tuple(c for c in numeric if c not in spare)
    if spare:
        log.warning(
            "%s: columns that look like row numbers or a calendar are left out: %s. To use them as channels, "
            "name all channels: data.values=[...]",
            cells.path,
            ", ".join(spare),
        )
    others = [c for c in others if c not in spare]
    cure = "Expected one per channel, or the long form: data.channel=<column> data.value=<column>."
    log_left_out(cells.path, id, time, others, channels, cure)
    return channels


def log_left_out(
    path: Path, id: str | None, time: str, others: list[str], channels: Sequence[str], cure: str
) -> None:
    """Log the columns that are not used as channels; raise ValueError where there is no channel."""
    if not channels:
        named = " and ".join(f"'{name}'" for name in (id, time) if name is not None)
        raise ValueError(f"{path} has no column of numbers other than {named}; it has {others}. {cure}")
    if left := [c for c in others if c not in channels]:
        log.info("%s: columns without numbers are left out: %s", path, ", ".join(left))


def numbers(cells: Cells, column: str, cure: str = "") -> NDArray[np.float64]:
    """Return the numbers (rows,) of a column, NaN for an empty cell.

    Raise ValueError for text, for infinite values and for those beyond LARGEST. cure: last sentence of the message
    for text.
    """
    cure = cure or "Correct the cell, or name the columns to use: data.values=[...]."
    content = cells.column(column)
    values = _parsed(content)
    wrong = first(np.isnan(values) & content.notna().to_numpy())
    if wrong is not None:
        raise _no_number(cells, column, wrong, cure)
    infinite = first(np.isinf(values))
    if infinite is not None:
        raise ValueError(
            f"{cells.path}: column '{column}' is infinite in {cells.where(infinite)}; expected finite numbers, "
            "and empty cells where nothing was observed."
        )
    if (large := first(np.abs(values) > LARGEST)) is not None:
        raise ValueError(
            f"{cells.path}: column '{column}' holds {_short(cells.text(column, large))} in {cells.where(large)}; "
            f"expected numbers up to {LARGEST:g} in magnitude, and empty cells where nothing was observed. Correct "
            "the cell, empty it if it stands for a missing value, or write the column in a larger unit."
        )
    return values


def _short(text: str) -> str:
    """Shorten the text of a cell for a message."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def _no_number(cells: Cells, column: str, place: int, cure: str) -> ValueError:
    """Return the error for a text among numbers; cure: the remedy unless the text has a decimal comma."""
    text = cells.text(column, place)
    cure = comma_cure(cells.path, cells.frame, text) if has_decimal_comma(text) else cure
    return ValueError(
        f"{cells.path}: column '{column}' holds the text '{_short(text)}' in {cells.where(place)}; expected numbers, "
        f"and empty cells where nothing was observed. {cure}"
    )


def _parsed(content: pd.Series) -> NDArray[np.float64]:
    """Return the numbers (rows,) of a column, NaN for all other cells."""
    if isinstance(content.dtype, pd.CategoricalDtype) and types.is_numeric_dtype(content.cat.categories):
        content = content.astype(np.float64)
    if not types.is_numeric_dtype(content):
        if isinstance(content.dtype, pd.CategoricalDtype) or types.is_datetime64_any_dtype(content):
            return np.full(len(content), np.nan)
        return numbers_in(content)
    return content.to_numpy(np.float64, na_value=np.nan)


def times(cells: Cells, column: str) -> tuple[NDArray[np.float64], bool]:
    """Return the times (rows,) of a column, and whether they are dates.

    Numbers stay as they are; dates become days since 1970, in UTC if they have a zone. Raise ValueError for empty
    cells, for a mixture of both, and for cells that are neither finite numbers nor ISO dates.
    """
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
        raise ValueError(
            f"{cells.path}: column '{column}' is of the type {content.dtype}; expected numbers or dates."
        )
    values = _parsed(content)
    if np.isnan(values).all():
        return _dates(cells, column), True
    wrong = first(~(np.abs(values) <= LARGEST))
    if wrong is not None:
        raise ValueError(
            f"{cells.path}: column '{column}' holds numbers, but '{_short(cells.text(column, wrong))}' in "
            f"{cells.where(wrong)}; expected finite numbers up to {LARGEST:g} in every row, or ISO "
            "dates in every row."
        )
    return values, False


def _dates(cells: Cells, column: str) -> NDArray[np.float64]:
    content = cells.column(column).astype(str)
    moments = pd.to_datetime(content, format="ISO8601", errors="coerce", utc=True)
    wrong = first(moments.isna())
    if wrong is not None:
        text = content.iloc[wrong]
        cure = " " + comma_cure(cells.path, cells.frame, text) if has_decimal_comma(text) else ""
        raise ValueError(
            f"{cells.path}: column '{column}' holds '{text}' in {cells.where(wrong)}; expected numbers in every row, "
            f"or ISO dates in every row: 2024-05-31 or 2024-05-31T14:30:00.{cure}"
        )
    zoned = time_zones.offsets(content).notna().to_numpy()
    if zoned.any() and not zoned.all():
        without, having = first(~zoned), first(zoned)
        raise time_zones.mixed(
            cells.path, column, shown(cells, column, without or 0), shown(cells, column, having or 0)
        )
    return _days(moments)


def shown(cells: Cells, column: str, place: int) -> str:
    """Format a cell and its position for a message: "'2024-05-31' in line 7"."""
    return f"'{cells.text(column, place)}' in {cells.where(place)}"


def _days(moments: pd.Series) -> NDArray[np.float64]:
    if getattr(moments.dtype, "tz", None) is not None:
        moments = moments.dt.tz_convert("UTC").dt.tz_localize(None)
    return moments.to_numpy().astype("datetime64[us]").astype(np.int64) / 86_400e6


def words(cells: Cells, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return indices (rows,) into the sorted distinct texts of a column, -1 for an empty cell, and those texts."""
    content = cells.column(column)
    if content.dtype == np.float16:  # pandas cannot make categories of half precision
        content = content.astype(np.float32)
    content = content.astype("category")
    labels = np.array([str(x) for x in content.cat.categories], dtype=object)
    filled = sorted(set(labels) - {""})
    place = {text: i for i, text in enumerate(filled)} | {"": -1}
    index = np.array([*(place[text] for text in labels), -1])
    return index[content.cat.codes.to_numpy()], tuple(filled)


def refuse_unknown_channels(
    path: Path, column: str | None, channels: Sequence[str], occurring: Sequence[str]
) -> None:
    """Raise ValueError where a channel of the long form does not occur; column: that of the channels."""
    if unknown := [name for name in channels if name not in occurring]:
        raise ValueError(
            f"{path}: data.values names channels that do not occur, {unknown}; column '{column}' "
            f"holds {list(occurring)[:20]}."
        )


def all_filled(cells: Cells, column: str, codes: NDArray[np.int64]) -> None:
    """Check that codes (rows,) of a text column have no -1; raise ValueError that names the first empty row."""
    empty = first(codes < 0)
    if empty is not None:
        raise ValueError(
            f"{cells.path}: {cells.where(empty)} has no '{column}'; expected one in every row with a value."
        )


def marks(cells: Cells, column: str) -> NDArray[np.int64]:
    """Return the split (rows,) that a column names, as an index into SPLITS; raise ValueError for other words."""
    codes, names = words(cells, column)
    all_filled(cells, column, codes)
    unknown = [i for i, word in enumerate(names) if word not in SPLITS and (codes == i).any()]
    if unknown:
        place = int(np.flatnonzero(np.isin(codes, unknown))[0])
        raise ValueError(
            f"{cells.path}: column '{column}' holds '{names[codes[place]]}' in {cells.where(place)}; expected "
            "train, val or test. data.split=null ignores the column and splits by the seed."
        )
    return np.array([SPLITS.index(word) if word in SPLITS else -1 for word in names])[codes]


def _nearest(key: str, name: str, names: list[str]) -> str | None:
    known = [other for other in OTHER_NAMES.get(key, ()) if other in names]
    near = difflib.get_close_matches(name, names, 1)
    return next(iter(near + known), None)


def _cure(key: str, name: str, near: str) -> str:
    several = key.removeprefix("data.") in ("values", "known", "static", "error")
    return f"'{near}' for '{name}' in {key}" if several else f"{key}={near}"


def _listed(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return ", ".join(f"'{name}'" for name in shown[:20]) + more
