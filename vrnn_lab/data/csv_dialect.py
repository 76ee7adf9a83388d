"""Reads CSV files by pandas, whichever of comma, semicolon and tab separates their cells and marks their decimals."""

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
from pandas.api import types

log = logging.getLogger("vrnn_lab")
ENDINGS = (".csv", ".csv.gz")
LINES = 10_000  # at least so many are searched for decimals
LONGEST = 2**20  # characters of a header
DECIMAL_COMMA = r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"
NAMES = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Dialect:
    """The separator of the cells of a CSV file, and the mark that stands before the decimals of its numbers."""

    separator: str = ","
    decimal: str = "."

    @property
    def options(self) -> str:
        """The arguments of pandas.read_csv that differ from its defaults, as Python: ", sep=';', decimal=','"."""
        separator = "" if self.separator == "," else f", sep={self.separator!r}"
        return separator + ("" if self.decimal == "." else f", decimal={self.decimal!r}")


def is_csv(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def read_csv(path: Path, **options) -> Any:
    """A frame, or with `chunksize` an iterator over frames. ValueError for a file that pandas cannot read."""
    with readable_csv(path):
        dialect = dialect_of(path)
        found = pd.read_csv(
            path,
            sep=dialect.separator,
            decimal=dialect.decimal,
            keep_default_na=False,
            skip_blank_lines=False,  # so that the line numbers of messages are the file's
            skipinitialspace=True,
            index_col=False,
            low_memory=False,
            **options,
        )
    return with_points(path, found, options.get("dtype", {})) if isinstance(found, pd.DataFrame) else found


def with_points(path: Path, frame: pd.DataFrame, words: Container[str]) -> pd.DataFrame:
    """The frame with a point in numbers with decimal commas that were left as texts, because another cell of their
    column is no number. Columns in `words` stay as they are."""
    if is_csv(path) and dialect_of(path).decimal == ",":
        for name in frame:
            content = cast(pd.Series, frame[name])
            if name not in words and (types.is_object_dtype(content) or types.is_string_dtype(content)):
                frame[name] = content.str.replace(rf"^\s*(?={DECIMAL_COMMA}\s*$)([+-]?\d*),", r"\1.", regex=True)
    return frame


@contextmanager
def readable_csv(path: Path) -> Iterator[None]:
    """Turns what pandas raises for a CSV file that it cannot read into a ValueError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} has no rows; expected a header with the columns' names, then data.") from None
    except pd.errors.ParserWarning:
        raise ValueError(
            f"{path} has rows with more cells than its header; give every column a name, and write decimals with a "
            "point: a decimal comma separates two cells."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8.") from None
    except (pd.errors.ParserError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip()}") from None


def dialect_of(path: Path) -> Dialect:
    """The dialect of a file, found once while the file stays the same; a notice tells of one that is not the usual.

    The cells are separated by semicolons or tabs if the header has such and, outside of quotation marks, no comma.
    Their numbers then have decimal commas if some cell is a number with a decimal comma and none is one with a point.
    """
    state = path.stat()
    return _dialect(path, str(path.absolute()), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _dialect(path: Path, _absolute: str, _size: int, _changed: int) -> Dialect:
    with _open(path) as lines:
        header = re.sub('"[^"]*"', "", lines.readline(LONGEST))
        count, separator = max((header.count(mark), mark) for mark in NAMES)
        if "," in header or not count:
            return Dialect()
        comma, point = _decimals(lines, separator)
    if comma is None or point is not None:
        log.info("%s: its cells are read as separated by %s.", path, NAMES[separator])
        return Dialect(separator)
    log.info(
        "%s: its cells are read as separated by %s, and its numbers as having decimal commas, such as %s.",
        path,
        NAMES[separator],
        comma,
    )
    return Dialect(separator, ",")


def _open(path: Path) -> io.TextIOWrapper:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    return opened(path, "rt", encoding="utf-8-sig", errors="replace")  # wrong bytes are told by pandas


def _decimals(lines: Iterator[str], separator: str) -> tuple[str | None, str | None]:
    """The first cell that is a number with a decimal comma, and the first with a point.

    Searches LINES lines, and further until one of both is met.
    """
    found: dict[str, str] = {}
    cell = r'(?:^|{0})\s*"?({1})"?\s*(?={0}|$)'
    patterns = {
        mark: re.compile(cell.format(separator, DECIMAL_COMMA.replace(",", re.escape(mark)))) for mark in ",."
    }
    while block := list(islice(lines, LINES)):
        for line in block:
            for mark, pattern in patterns.items():
                if mark not in found and (match := pattern.search(line)):
                    found[mark] = match[1]
            if len(found) == 2:
                break
        if found:
            break
    return found.get(","), found.get(".")


def has_decimal_comma(text: str) -> bool:
    return re.fullmatch(DECIMAL_COMMA, text.strip()) is not None


def first_decimal_comma(content: pd.Series) -> int | None:
    """The place of the first number with a decimal comma in a column of texts that holds mostly such or numbers."""
    if not (types.is_object_dtype(content) or types.is_string_dtype(content)):
        return None
    filled = content.notna().to_numpy()
    texts = content.astype(str)
    commas = filled & texts.str.strip().str.fullmatch(DECIMAL_COMMA).to_numpy(bool, na_value=False)
    if not commas.any():
        return None
    numbers = filled & ~np.isnan(np.asarray(pd.to_numeric(texts, errors="coerce"), np.float64))
    return int(np.argmax(commas)) if (commas | numbers).sum() > filled.sum() / 2 else None


def comma_cure(path: Path, frame: pd.DataFrame, cell: str) -> str:
    """Return the cure for cells with a decimal comma that were read as text: a command for all such columns."""
    names = [str(name) for name in frame if first_decimal_comma(cast(pd.Series, frame[name])) is not None]
    text = f"'{cell}' looks like a number with a decimal comma; write it with a point: {cell.replace(',', '.')}."
    if not names:
        return text
    change = f"frame[{names}] = frame[{names}].replace(',', '.', regex=True)"
    if not is_csv(path):
        return f"{text} In pandas: {change}.astype(float)"
    new = path.with_name(f"{path.name.split('.')[0]}_points.csv")
    sep = Dialect(dialect_of(path).separator).options
    return (
        f"{text} All of them by pandas: import pandas as pd; frame = pd.read_csv({str(path)!r}, dtype=str, "
        f"keep_default_na=False, skipinitialspace=True{sep}); {change}; frame.to_csv({str(new)!r}, index=False)"
    )
