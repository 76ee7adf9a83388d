"""Read a run's scalars from its metrics.csv, else from its TensorBoard event files.

TensorBoard's own reader, which takes seconds to import, is not used.

An event file is a sequence of records: length (8 bytes, little-endian), checksum (4), data, checksum (4). The data is
a protocol buffer, TensorFlow's Event: step is field 2, summary field 5; in a summary each value is field 1, and in a
value tag is field 1 and simple_value field 2.
"""

import csv
import io
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from vrnn_lab.core import run_files
from vrnn_lab.reports.files import opened

POINTS = 200  # points of a curve in a page, at most
CSV_BYTES = 256 * 1024**2  # larger CSV files are not read
FILE_BYTES = 4 * 1024**3  # larger event files are not read
RECORD_BYTES = 8 * 1024  # larger records, such as figures, are skipped; scalars have some 50 bytes
RECORDS = 2_000_000  # records read of an event file, at most
PARSED_BYTES = 16 * 1024**2  # bytes parsed of the records of a tag in an event file, at most
FILES = 100  # the newest so many event files of a run are read
AT_THE_END = b"fit/seconds"
STEP, SUMMARY, VALUE, TAG, NUMBER = 2, 5, 1, 1, 2


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return (step, value) of a tag, sorted and thinned to about POINTS.

    A step that was run again after a resume has the later value.
    """
    wanted, values = tag.encode(), _points_of_csv(folder, tag)
    if not values:
        for file in sorted(folder.glob("events*"), key=lambda f: f.lstat().st_mtime)[-FILES:]:
            values |= _points(file, folder, wanted)
    points = sorted(values.items())
    every = -(-len(points) // POINTS) or 1
    return points[:-1:every] + points[-1:]


def _points_of_csv(folder: Path, tag: str) -> dict[int, float]:
    """Return {step: value} of a column of metrics.csv, empty where there is no such file or it is damaged."""
    file = folder / run_files.CURVES
    if not file.is_file():
        return {}
    try:
        with opened(file, folder, CSV_BYTES) as stream:
            rows = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
            return {int(row["step"]): float(row[tag]) for row in islice(rows, RECORDS) if row.get(tag)}
    except (ValueError, KeyError, TypeError, csv.Error):
        return {}


def _points(file: Path, folder: Path, tag: bytes) -> dict[int, float]:
    """Return {step: value} of a tag in one file, empty for a file that `files.opened` refuses."""
    values: dict[int, float] = {}
    parsed = 0
    try:
        with opened(file, folder, FILE_BYTES) as stream:
            for record in islice(_records(stream), RECORDS):
                if AT_THE_END in record:  # this file holds the final scores of the best checkpoint, no curve
                    return {}
                if tag in record and (parsed := parsed + len(record)) <= PARSED_BYTES:  # skip records of other tags
                    values |= dict(_values(record, tag))
    except ValueError:  # `files.files_not_read` reports the reason
        return {}
    return values


def _records(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the complete records of a file up to RECORD_BYTES long; a partial or empty record ends it."""
    end = stream.seek(0, 2)
    place = stream.seek(0)
    while len(head := stream.read(12)) == 12:
        length = struct.unpack_from("<Q", head)[0]
        place += 12 + length + 4
        if place > end or not length:
            return
        if length <= RECORD_BYTES:
            yield stream.read(length)
        stream.seek(place)


def _values(record: bytes, tag: bytes) -> Iterator[tuple[int, float]]:
    event = list(_fields(record))
    step = next((value for field, value in event if field == STEP and isinstance(value, int)), 0)
    for field, summary in event:
        if field == SUMMARY and isinstance(summary, bytes):
            for inner, each in _fields(summary):
                parts = dict(_fields(each)) if inner == VALUE and isinstance(each, bytes) else {}
                number = parts.get(NUMBER)
                if parts.get(TAG) == tag and isinstance(number, bytes) and len(number) == 4:
                    yield step, struct.unpack("<f", number)[0]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of a protocol buffer's fields: integers as int, everything else as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):
            length, place = _varint(data, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = data[place : place + length], place + length
        else:
            return
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 64:
        byte = data[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            break
    return value, place
