"""Save the state of a data set to one file of arrays and JSON, which can be read without running code from it."""

import json
from collections.abc import Callable
from pathlib import Path, PosixPath, WindowsPath
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from vrnn_lab.core.series import Scale, Trend, Variation
from vrnn_lab.data.base import Points, Ragged, SeriesData
from vrnn_lab.data.packed_strings import PackedStrings
from vrnn_lab.data.splits import Contents, Runs
from vrnn_lab.data.table.columns import ColumnRoles
from vrnn_lab.data.table.summary import RowCounts

# A state may hold objects of these classes only, so that a file can name no other; creating them runs no other code.
CLASSES = {
    kind.__name__: kind
    for kind in (Points, Ragged, PackedStrings, ColumnRoles, RowCounts, Contents, Runs, Scale, Trend, Variation)
}
PATHS = (PosixPath, WindowsPath)
OWN = ("task", "trainer", "batch_size", "order")  # attributes that the user of a data set sets; they are not saved
TEXT = "state"  # name of the array that holds the JSON


class Unknown(TypeError):
    """Report a value of a type that cannot be saved."""


def write(data: SeriesData, file: Path) -> None:
    """Write the state of a data set with its splits; raise Unknown where it holds objects of unsupported classes."""
    writer = _Writer()
    state = {key: writer.encoded(value) for key, value in vars(data).items() if key not in OWN}
    text = json.dumps({"state": state, "objects": writer.objects}).encode()
    arrays = {f"array_{i}": array for i, array in enumerate(writer.arrays)}
    with file.open("wb") as out:
        np.savez(out, allow_pickle=False, **{TEXT: np.frombuffer(text, np.uint8)}, **arrays)


def read(data: SeriesData, file: Path) -> bool:
    """Load the state in a file into a newly constructed data set; return False where the file cannot be used.

    The file may be damaged (the ZIP archive's CRC-32 of every array is verified) or of another version.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            content = json.loads(archive[TEXT].tobytes())
            reader = _Reader(lambda name: archive[name], content["objects"])
            state = {key: reader.value(value) for key, value in content["state"].items()}
    except (BadZipFile, KeyError, ValueError, TypeError, IndexError, EOFError, OSError, RecursionError):
        return False
    if vars(data).keys() - set(OWN) - {"_splits"} - state.keys():
        return False
    vars(data).update(state)
    return True


class _Writer:
    """Convert values to JSON and collect their arrays in a list; an object referenced twice is written once."""

    def __init__(self):
        self.arrays: list[NDArray] = []
        self.objects: list[Any] = []
        self._known: dict[int, tuple[Any, Any]] = {}  # by id: the value, kept alive so that ids stay unique, its JSON

    def encoded(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = (value, self._new(value))
        return self._known[id(value)][1]

    def _new(self, value: Any) -> dict[str, Any]:
        kind = type(value)
        if kind in (list, tuple):
            return {kind.__name__: [self.encoded(item) for item in value]}
        if kind is dict:
            return {"dict": [[self.encoded(key), self.encoded(item)] for key, item in value.items()]}
        if kind in PATHS:
            return {"path": str(value)}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._array(value.detach().cpu().numpy())}
        if isinstance(value, (np.ndarray, np.generic)):
            return {"array": self._array(np.asarray(value)), "number": isinstance(value, np.generic)}
        if CLASSES.get(kind.__name__) is kind:
            state = {key: self.encoded(item) for key, item in vars(value).items()}
            self.objects.append({"class": kind.__name__, "state": state})
            return {"object": len(self.objects) - 1}
        raise Unknown(f"a {kind.__name__}")

    def _array(self, array: NDArray) -> int:
        if array.dtype.hasobject:
            raise Unknown("an array of Python objects")
        self.arrays.append(array)
        return len(self.arrays) - 1


class _Reader:
    """Convert the JSON and arrays of `_Writer` back to values."""

    def __init__(self, array: Callable[[str], NDArray], objects: list[Any]):
        self._array = array
        self._arrays: dict[int, NDArray] = {}
        self._objects: list[Any] = []
        for content in objects:  # an object comes after the objects that it holds
            self._objects.append(self._object(content))

    def value(self, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        if (items := content.get("list", content.get("tuple"))) is not None:
            return [*map(self.value, items)] if "list" in content else (*map(self.value, items),)
        if "dict" in content:
            return {self.value(key): self.value(item) for key, item in content["dict"]}
        if "path" in content:
            return Path(content["path"])
        if "tensor" in content:
            return torch.from_numpy(self.array(content["tensor"]))
        if "array" in content:
            array = self.array(content["array"])
            return array[()] if content["number"] else array
        return self._objects[content["object"]]

    def array(self, place: int) -> NDArray:
        if place not in self._arrays:
            self._arrays[place] = self._array(f"array_{int(place)}")
        return self._arrays[place]

    def _object(self, content: dict[str, Any]) -> Any:
        kind = CLASSES[content["class"]]
        value = object.__new__(kind)
        state = {key: self.value(item) for key, item in content["state"].items()}
        if set(getattr(kind, "__dataclass_fields__", ())) - state.keys():
            raise KeyError(kind.__name__)  # written by a version with fewer fields
        vars(value).update(state)
        return value
