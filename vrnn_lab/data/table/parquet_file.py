"""Read Parquet files by pyarrow, with columns of any type as numbers, times and texts that pandas can hold."""

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


def schema(path: Path, key: str = "data.path") -> Any:
    """Return the Arrow schema of a file; key: the option that names the file, for messages.

    Raise ValueError where the file cannot be read, pyarrow is missing, or two columns have one name.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(
            f"{key}={path} is a Parquet file, and pyarrow, which reads it, is not installed; "
            "run: pip install 'vrnn_lab[parquet]', or save the table as CSV."
        ) from None
    with readable(path):
        schema = pq.read_schema(path)
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ValueError(
            f"{path} has more than one column named {', '.join(map(repr, twice))}; expected each name once. Rename "
            "one of them."
        )
    return schema


def read(path: Path, wanted: list[str], words: Iterable[str]) -> pd.DataFrame:
    """Read the wanted columns of a whole file, those named in `words` as categories.

    Without categories, one object for each of many equal texts would take most of the time and memory.
    """
    import pyarrow.parquet as pq

    with readable(path):
        table = pq.read_table(path, columns=wanted, read_dictionary=sorted(words))
        table = supported(table)
        return table.to_pandas(ignore_metadata=True, split_blocks=True, self_destruct=True)


def batches(path: Path, wanted: list[str] | None, rows: int) -> Generator[Any, None, None]:
    """Yield record batches of at most `rows` rows, not whole row groups, which may be as large as the file."""
    import pyarrow.parquet as pq

    with readable(path):
        for batch in opened(path, pq).iter_batches(rows, columns=wanted):
            yield supported(batch)


def opened(path: Path, pq: Any) -> Any:
    """Open a Parquet file for reading in small pieces; pq: the module pyarrow.parquet."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)


def row_count(path: Path) -> int:
    """Return the number of rows of a file, from its footer."""
    import pyarrow.parquet as pq

    with readable(path):
        return pq.read_metadata(path).num_rows


def supported(table: Any) -> Any:
    """Convert cells of a table or batch that are neither numbers, dates nor texts ([1, 2], b'a', 12:30:00) to texts.

    Texts can be compared, sorted and shown in a message; pandas would make arrays, dicts and bytes of such cells.
    Half precision numbers become single precision, because pandas cannot sort or group by half precision.
    """
    import pyarrow as pa

    halves = [pa.types.is_float16(kind) for kind in table.schema.types]
    if not any(halves) and not any(map(_is_odd, table.schema.types)):
        return table
    columns = [
        column.cast(pa.float32()) if half else _texts(column) if _is_odd(column.type) else column
        for column, half in zip(table.columns, halves, strict=True)
    ]
    return type(table).from_arrays(columns, names=table.schema.names)


def _is_odd(kind: Any) -> bool:
    import pyarrow as pa

    of = pa.types
    kind = kind.value_type if of.is_dictionary(kind) else kind
    binary = of.is_binary(kind) or of.is_large_binary(kind) or of.is_fixed_size_binary(kind)
    return of.is_nested(kind) or of.is_time(kind) or binary


def _texts(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_time(column.type):  # Python's time objects have no nanoseconds
        return column.cast(pa.string())
    return pa.array([None if cell is None else str(cell) for cell in column.to_pylist()], pa.string())


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert errors that Arrow raises for an unreadable Parquet file to a ValueError that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet: {' '.join(str(error).split())} If it is damaged, write it again."
        ) from None


def release() -> None:
    """Return the unused memory of pyarrow's pool to the operating system."""
    if "pyarrow" in sys.modules:
        import pyarrow as pa

        pa.default_memory_pool().release_unused()
