"""The state of a data set in one file of arrays and JSON: read back without running anything out of it."""

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

# Of whose objects a state may consist; a file can name no other class, and none of these does anything when made.
CLASSES = {
    kind.__name__: kind
    for kind in (Points, Ragged, PackedStrings, ColumnRoles, RowCounts, Contents, Runs, Scale, Trend, Variation)
}
PATHS = (PosixPath, WindowsPath)
OWN = ("task", "trainer", "batch_size", "order")  # set by whoever uses a data set
TEXT = "state"  # the array that holds the JSON


class Unknown(TypeError):
    """A value of a kind that no file can hold."""


def write(data: SeriesData, file: Path) -> None:
    """Write what a data set has become, its splits included; Unknown where that holds objects of other classes."""
    writer = _Writer()
    state = {key: writer.plain(value) for key, value in vars(data).items() if key not in OWN}
    text = json.dumps({"state": state, "objects": writer.objects}).encode()
    arrays = {f"array_{i}": array for i, array in enumerate(writer.arrays)}
    with file.open("wb") as out:
        np.savez(out, allow_pickle=False, **{TEXT: np.frombuffer(text, np.uint8)}, **arrays)


def read(data: SeriesData, file: Path) -> bool:
    """Give a data set as its constructor made it the state in a file; false where the file cannot be used.

    That is where it is damaged (the ZIP archive's CRC-32 of every array is verified) or of another version.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = json.loads(archive[TEXT].tobytes())
            reader = _Reader(lambda name: archive[name], found["objects"])
            state = {key: reader.value(value) for key, value in found["state"].items()}
    except (BadZipFile, KeyError, ValueError, TypeError, IndexError, EOFError, OSError, RecursionError):
        return False
    if vars(data).keys() - set(OWN) - {"_splits"} - state.keys():
        return False
    vars(data).update(state)
    return True


class _Writer:
    """Turns values into JSON, arrays into a list; an object that stands in several places is written once."""

    def __init__(self):
        self.arrays: list[NDArray] = []
        self.objects: list[Any] = []
        self._known: dict[int, tuple[Any, Any]] = {}  # by id: the value, which so lives as long, and its JSON

    def plain(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = (value, self._new(value))
        return self._known[id(value)][1]

    def _new(self, value: Any) -> dict[str, Any]:
        kind = type(value)
        if kind in (list, tuple):
            return {kind.__name__: [self.plain(each) for each in value]}
        if kind is dict:
            return {"dict": [[self.plain(key), self.plain(each)] for key, each in value.items()]}
        if kind in PATHS:
            return {"path": str(value)}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._array(value.detach().cpu().numpy())}
        if isinstance(value, (np.ndarray, np.generic)):
            return {"array": self._array(np.asarray(value)), "number": isinstance(value, np.generic)}
        if CLASSES.get(kind.__name__) is kind:
            state = {key: self.plain(each) for key, each in vars(value).items()}
            self.objects.append({"class": kind.__name__, "state": state})
            return {"object": len(self.objects) - 1}
        raise Unknown(f"a {kind.__name__}")

    def _array(self, array: NDArray) -> int:
        if array.dtype.hasobject:
            raise Unknown("an array of Python objects")
        self.arrays.append(array)
        return len(self.arrays) - 1


class _Reader:
    """Turns what `_Writer` wrote into values again."""

    def __init__(self, array: Callable[[str], NDArray], objects: list[Any]):
        self._array = array
        self._arrays: dict[int, NDArray] = {}
        self._objects: list[Any] = []
        for each in objects:  # what an object holds stands before it
            self._objects.append(self._object(each))

    def value(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        if (items := plain.get("list", plain.get("tuple"))) is not None:
            return [*map(self.value, items)] if "list" in plain else (*map(self.value, items),)
        if "dict" in plain:
            return {self.value(key): self.value(each) for key, each in plain["dict"]}
        if "path" in plain:
            return Path(plain["path"])
        if "tensor" in plain:
            return torch.from_numpy(self.array(plain["tensor"]))
        if "array" in plain:
            found = self.array(plain["array"])
            return found[()] if plain["number"] else found
        return self._objects[plain["object"]]

    def array(self, place: int) -> NDArray:
        if place not in self._arrays:
            self._arrays[place] = self._array(f"array_{int(place)}")
        return self._arrays[place]

    def _object(self, plain: dict[str, Any]) -> Any:
        kind = CLASSES[plain["class"]]
        found = object.__new__(kind)
        state = {key: self.value(each) for key, each in plain["state"].items()}
        if set(getattr(kind, "__dataclass_fields__", ())) - state.keys():
            raise KeyError(kind.__name__)  # of a version that knew fewer
        vars(found).update(state)
        return found
