"""Name the run and the table that come with the package, so that it can be tried before anything is trained."""

from pathlib import Path

EXAMPLE = "example"  # stands for them as run=, input= and data.path=
FOLDER = Path(__file__).parent.parent / "example"
RUN, TABLE = FOLDER / "run.zip", FOLDER / "co2.csv"  # made by experiments/example_run.py


def file_of(text: str) -> Path:
    """Return the file that input= or data.path= names; `example` is TABLE, unless a file or folder is called so."""
    path = Path(text).expanduser()
    return TABLE if text == EXAMPLE and not path.exists() else path


def run_of(path: Path) -> Path:
    """Return the folder or the packed run that run= names; `example` is RUN, unless a file or folder is called so."""
    return RUN if str(path) == EXAMPLE and not path.exists() else path
