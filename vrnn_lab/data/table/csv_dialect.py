"""Read CSV files by pandas, with detection of their separator (comma, semicolon, tab) and decimal mark."""

import gzip
import io
import logging
import re
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from vrnn_lab.data.table.csv_errors import refuse_binary, wrong_bytes, wrong_cells

log = logging.getLogger("vrnn_lab")
ENDINGS = (".csv", ".csv.gz")
LINES = 10_000  # lines searched for decimals, at least
LONGEST = 2**20  # characters read of a header, at most
WHOLE_NUMBER = re.compile(r"\s*[+-]?\d+\s*")
DECIMAL_COMMA = r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"
GROUPED = r"[+-]?\d{1,3}(?:\.\d{3})+"  # a whole number with points between thousands
GROUPED_COMMA = rf"{GROUPED},\d+"
NUMBERS = {"comma": DECIMAL_COMMA, "point": r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?", "both": GROUPED_COMMA}
NAMES = {";": "semicolons", "\t": "tabs"}
SEPARATOR_LINE = r'"?sep=(.)"?'  # as Excel writes it before the header


@dataclass(frozen=True)
class Dialect:
    """Hold the separator of the cells of a CSV file and the decimal mark of its numbers."""

    separator: str = ","
    decimal: str = "."
    grouped: bool = False  # numbers have points between thousands
    skipped: int = 0  # lines before the header

    @property
    def options(self) -> str:
        """Return the non-default arguments of pandas.read_csv as Python code: ", sep=';', decimal=','"."""
        separator = self.as_text + ("" if self.decimal == "." else f", decimal={self.decimal!r}")
        return separator + (", thousands='.'" if self.grouped else "")

    @property
    def as_text(self) -> str:
        """Return the arguments of pandas.read_csv that are needed to read every cell of such a file as text."""
        separator = "" if self.separator == "," else f", sep={self.separator!r}"
        return separator + (f", skiprows={self.skipped}" if self.skipped else "")


def is_csv(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def read_csv(path: Path, **options) -> Any:
    """Read a CSV file as a frame, or with `chunksize` as an iterator over frames; options: of pandas.read_csv.

    Raise ValueError for a file that pandas cannot read.
    """
    words = options.get("dtype", {})
    with readable_csv(path):
        dialect = dialect_of(path)
        if dialect.grouped:  # with thousands=".", pandas would remove the points of dates such as 1.2.2024 too
            options["dtype"] = "str"
        table = pd.read_csv(
            path,
            sep=dialect.separator,
            decimal=dialect.decimal,
            skiprows=dialect.skipped,
            keep_default_na=False,
            skip_blank_lines=False,  # so that line numbers in messages match the file
            skipinitialspace=True,
            index_col=False,
            low_memory=False,
            **options,
        )
    return with_points(path, table, words) if isinstance(table, pd.DataFrame) else table


def with_points(path: Path, frame: pd.DataFrame, words: Container[str]) -> pd.DataFrame:
    """Return the frame with decimal points instead of decimal commas in columns that pandas left as text.

    Pandas does so if some cell of the column is not a number. Columns in `words` stay unchanged.
    """
    if is_csv(path) and (dialect := dialect_of(path)).decimal == ",":
        for name in frame:
            content = cast(pd.Series, frame[name])
            if name not in words and (types.is_object_dtype(content) or types.is_string_dtype(content)):
                frame[name] = _ungrouped(content) if dialect.grouped else _pointed(content)
    return frame


def _pointed(content: pd.Series) -> pd.Series:
    return content.str.replace(rf"^\s*(?={DECIMAL_COMMA}\s*$)([+-]?\d*),", r"\1.", regex=True)


def _ungrouped(content: pd.Series) -> pd.Series:
    """Remove thousands separators from a column of texts and write decimals with points.

    Return numbers if all cells are numbers, else texts.
    """
    grouped = rf"^\s*(?:{GROUPED_COMMA}|{GROUPED})\s*$"
    plain = _pointed(content.str.replace(grouped, lambda match: match[0].replace(".", ""), regex=True))
    try:
        return cast(pd.Series, pd.to_numeric(plain))
    except ValueError:
        return plain


@contextmanager
def readable_csv(path: Path) -> Iterator[None]:
    """Convert errors that pandas raises for an unreadable CSV file to a ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} has no rows; expected a header with the columns' names, then data.") from None
    except (pd.errors.ParserWarning, UnicodeDecodeError, pd.errors.ParserError) as error:
        dialect = dialect_of(path)
        fault = wrong_bytes(path, dialect.as_text) or wrong_cells(path, dialect.separator, dialect.skipped)
        raise ValueError(fault or f"{path} cannot be read as a table: {str(error).strip()}") from None
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip()}") from None


def dialect_of(path: Path) -> Dialect:
    """Detect the dialect of a file, cached while the file does not change; log a dialect other than the default.

    Cells are separated by semicolons or tabs if the header contains these and, outside quotation marks, no comma.
    Numbers then have decimal commas if some cell is a number with a decimal comma and none has a decimal point; and
    points between thousands if some cell has both, as 1.234,5 has, and every other point may separate thousands.
    A first line sep=; names the separator.
    """
    state = path.stat()
    return _dialect(path, str(path.absolute()), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _dialect(path: Path, _absolute: str, _size: int, _changed: int) -> Dialect:
    refuse_binary(path)
    with _open(path) as lines:
        header = lines.readline(LONGEST)
        named = re.fullmatch(SEPARATOR_LINE, header.rstrip("\r\n"), re.IGNORECASE)
        skipped = int(named is not None)
        header = re.sub('"[^"]*"', "", lines.readline(LONGEST) if named else header)
        count, separator = max((header.count(mark), mark) for mark in NAMES)
        if named:
            separator = named[1]
        elif "," in header or not count:
            separator = ","
        if separator == ",":
            return Dialect(skipped=skipped)
        marks = _decimals(lines, separator)
    grouped = "both" in marks and "point" not in marks
    cells = f"{path}: its cells are read as separated by {NAMES.get(separator, repr(separator))}"
    if not grouped and ("comma" not in marks or {"point", "both"} & set(marks)):
        log.info("%s.", cells)
        return Dialect(separator, skipped=skipped)
    kind = "decimal commas and points between thousands" if grouped else "decimal commas"
    log.info("%s, and its numbers as having %s, such as %s.", cells, kind, marks["both" if grouped else "comma"])
    return Dialect(separator, ",", grouped, skipped)


def _open(path: Path) -> io.TextIOWrapper:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    return opened(path, "rt", encoding="utf-8-sig", errors="replace")  # pandas reports invalid bytes


def _decimals(lines: Iterator[str], separator: str) -> dict[str, str]:
    """Return the first cell of each kind of NUMBERS that occurs: with a decimal comma, with a point, with both.

    1.234 may have a decimal point or a thousands separator: it counts as a decimal point if no cell has both marks.
    Search LINES lines at a time until one has such a cell.
    """
    examples: dict[str, str] = {}
    cell = r'(?:^|{0})\s*"?({1})"?\s*(?={0}|$)'
    kinds = NUMBERS | {"thousands": GROUPED, "point": rf"(?!{GROUPED}\s*\"?\s*(?:[{separator}]|$)){NUMBERS['point']}"}
    patterns = {kind: re.compile(cell.format(re.escape(separator), number)) for kind, number in kinds.items()}
    while not examples and (block := list(islice(lines, LINES))):
        for line in block:
            for kind, pattern in patterns.items():
                if kind not in examples and (match := pattern.search(line)):
                    examples[kind] = match[1]
    if "thousands" in examples and "both" not in examples:
        examples.setdefault("point", examples["thousands"])
    return examples


def has_decimal_comma(text: str) -> bool:
    return re.fullmatch(DECIMAL_COMMA, text.strip()) is not None


def first_decimal_comma(content: pd.Series) -> int | None:
    """Return the index of the first number with a decimal comma in a column of texts, or None.

    More than half of the filled cells must be numbers, with or without decimal commas.
    """
    if not (types.is_object_dtype(content) or types.is_string_dtype(content)):
        return None
    filled = content.notna().to_numpy()
    texts = content.astype(str)
    commas = filled & texts.str.strip().str.fullmatch(DECIMAL_COMMA).to_numpy(bool, na_value=False)
    if not commas.any():
        return None
    numbers = filled & ~np.isnan(numbers_in(texts))
    return int(np.argmax(commas)) if (commas | numbers).sum() > filled.sum() / 2 else None


def numbers_in(content: pd.Series) -> NDArray[np.float64]:
    """Return the numbers (rows,) among texts and other objects, NaN for others, infinity for those beyond floats."""
    try:
        return _to_numbers(content)
    except OverflowError:  # pandas keeps whole numbers whole, and cannot convert those of more than 308 digits
        return _to_numbers(content.map(_infinite_beyond_floats))


def _to_numbers(content: pd.Series) -> NDArray[np.float64]:
    return cast(pd.Series, pd.to_numeric(content, errors="coerce")).to_numpy(np.float64, na_value=np.nan)


def _infinite_beyond_floats(cell: Any) -> Any:
    """Return a cell as it is, or as infinity where it is a whole number that no float can hold."""
    if isinstance(cell, str):
        return float(cell) if WHOLE_NUMBER.fullmatch(cell) else cell  # float() of a large text is infinity
    if not isinstance(cell, int):
        return cell
    try:
        return float(cell)
    except OverflowError:
        return np.inf if cell > 0 else -np.inf


def comma_cure(path: Path, frame: pd.DataFrame, cell: str) -> str:
    """Return the remedy for cells with a decimal comma that were read as text: a command for all such columns."""
    names = [str(name) for name in frame if first_decimal_comma(cast(pd.Series, frame[name])) is not None]
    text = f"'{cell}' looks like a number with a decimal comma; write it with a point: {cell.replace(',', '.')}."
    if not names:
        return text
    change = f"frame[{names}] = frame[{names}].replace(',', '.', regex=True)"
    if not is_csv(path):
        return f"{text} In pandas: {change}.astype(float)"
    new = path.with_name(f"{path.name.split('.')[0]}_points.csv")
    sep = dialect_of(path).as_text
    return (
        f"{text} To convert all of them with pandas: import pandas as pd; frame = pd.read_csv({str(path)!r}, "
        f"dtype=str, keep_default_na=False, skipinitialspace=True{sep}); {change}; frame.to_csv({str(new)!r}, "
        "index=False)"
    )
