"""Write a table of any length to a CSV or Parquet file, frame by frame."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd

from vrnn_lab.core.files import replacing

ENDINGS = (".csv", ".parquet")


def check_ending(path: Path) -> None:
    """Raise ValueError unless a path ends in .csv or .parquet and, for the latter, pyarrow is installed."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"output={path}: expected a file that ends in {' or '.join(ENDINGS)}.")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401 - imported only to test that it is installed
        except ImportError:
            raise ValueError(
                f"output={path} is a Parquet file, and pyarrow, which writes it, is not installed; "
                "run: pip install 'vrnn_lab[parquet]', or write a .csv."
            ) from None


@contextmanager
def writing(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Give a function that appends a frame to the file; the file appears under its name, complete, at the end."""
    with replacing(path) as temporary, ExitStack() as opened:
        yield (_parquet if path.suffix.lower() == ".parquet" else _csv)(temporary, opened)


def _csv(path: Path, opened: ExitStack) -> Callable[[pd.DataFrame], None]:
    out = opened.enter_context(path.open("w", encoding="utf-8", newline=""))
    return lambda frame: frame.to_csv(out, index=False, header=not out.tell(), lineterminator="\n")


def _parquet(path: Path, opened: ExitStack) -> Callable[[pd.DataFrame], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writers: list[pq.ParquetWriter] = []

    def write(frame: pd.DataFrame) -> None:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if not writers:
            writers.append(opened.enter_context(pq.ParquetWriter(path, table.schema)))
        writers[0].write_table(table)

    return write
