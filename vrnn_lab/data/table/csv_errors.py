"""Compose messages about unreadable CSV files, which name the fault, its line and the remedy."""

import csv
import gzip
from io import BufferedIOBase
from pathlib import Path

KINDS = {  # first bytes of other file types
    b"PK\x03\x04": "an Excel workbook or another ZIP file; save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV in UTF-8",
    b"PAR1": "a Parquet file; rename it to .parquet",
    b"\x1f\x8b": "a gzip file; rename it to .csv.gz",
    b"\xff\xfe": "text in UTF-16; save it as CSV in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as CSV in UTF-8",
}
BEGINNING = 4096  # bytes read to recognise a binary file
SHOWN = 40  # characters of a line or cell in a message
MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


def open_binary(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def refuse_binary(path: Path) -> None:
    """Raise ValueError for a file whose first bytes are not text."""
    with open_binary(path) as file:
        start = file.read(BEGINNING)
    for mark, kind in KINDS.items():
        if start.startswith(mark):
            raise ValueError(f"{path} is not a CSV file: its first bytes are those of {kind}.")
    if b"\0" in start:
        line = start[: start.index(b"\0")].count(b"\n") + 1
        raise ValueError(
            f"{path} is not a CSV file: line {line} holds a zero byte, as binary files do; expected text in UTF-8. "
            "Save the table as CSV in UTF-8."
        )


def wrong_bytes(path: Path, options: str) -> str | None:
    """Return a message about the first line that is not UTF-8, or None.

    options: further arguments of pandas.read_csv for the suggested command.
    """
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                shown = line[max(0, error.start - SHOWN // 2) : error.start + SHOWN // 2].decode("cp1252", "replace")
                new = path.with_name(f"{path.name.split('.')[0]}_utf8.csv")
                return (
                    f"{path} is not UTF-8 text: line {number} holds the byte 0x{line[error.start]:02x}, in "
                    f"'{shown.strip()}' if it is Windows' code page 1252; expected UTF-8. Save it as CSV in UTF-8, "
                    f"or with pandas: import pandas as pd; pd.read_csv({str(path)!r}, encoding='cp1252', dtype=str, "
                    f"keep_default_na=False{options}).to_csv({str(new)!r}, index=False)"
                )
    return None


def wrong_cells(path: Path, separator: str, skipped: int) -> str | None:
    """Return a message about the first row with too many cells or with a misplaced quotation mark, or None.

    skipped: lines before the header.
    """
    last, names = skipped, 0
    limit = csv.field_size_limit(2**31 - 1)  # a cell whose quotation mark is never closed may be very long
    try:
        with open_binary(path) as file:
            lines = (line.decode("utf-8-sig", "replace") for line in file)
            for _ in range(skipped):
                next(lines, None)
            reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
            for cells in reader:
                first, last = last + 1, skipped + reader.line_num
                names = names or len(cells)
                if len(cells) > names:
                    return _too_many(path, cells, names, separator, first, last)
    except csv.Error as error:
        if "unexpected end" in str(error):
            return (
                f"{path}: a quotation mark that opens a cell in line {last + 1} is never closed; expected one at the "
                'end of the cell. Close or delete it, and write a quotation mark inside a cell twice: "".'
            )
        return (
            f"{path}: line {last + 1} has text after the quotation mark that ends a cell; expected a "
            f'{MARKS.get(separator, separator)} there. Write a quotation mark inside a cell twice: "".'
        )
    finally:
        csv.field_size_limit(limit)
    return None


def _too_many(path: Path, cells: list[str], names: int, separator: str, first: int, last: int) -> str:
    spare = separator.join(cells[names:])[:SHOWN]
    name = MARKS.get(separator, repr(separator))
    text = (
        f"{path}: line {first} has {len(cells)} cells, more cells than its header, which names {names} columns; the "
        f"extra text is '{spare}'. "
    )
    if last > first:
        text += (
            f"The row extends to line {last}, because a quotation mark opens a cell that ends only there: close it "
            "where the cell should end. "
        )
    text += f"Delete the extra cells, name every column, or put a cell that holds a {name} in quotation marks"
    return text + (
        "; a decimal comma splits a number into two cells: write decimals with a point." if separator == "," else "."
    )
