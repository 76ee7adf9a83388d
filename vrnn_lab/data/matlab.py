"""Read arrays from a user's MATLAB file."""

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray
from scipy.io import loadmat


def read_arrays(path: Path, names: Sequence[str], source: str) -> list[NDArray]:
    """Return the arrays of these names; source: what the file is expected to be, for messages.

    Raise ValueError where the file does not exist, is not a MATLAB file, or lacks an array.
    """
    if not path.is_file():
        raise ValueError(f"data.path={path} does not exist (looked in {Path.cwd()}); {source}.")
    try:
        arrays = loadmat(path, variable_names=list(names))
    except Exception as error:  # loadmat raises errors of many types for other files
        raise ValueError(f"data.path={path} cannot be read as a MATLAB file ({error}); {source}.") from error
    if missing := sorted(set(names) - set(arrays)):
        raise ValueError(f"data.path={path} lacks {', '.join(missing)}; {source}.")
    return [arrays[name] for name in names]
