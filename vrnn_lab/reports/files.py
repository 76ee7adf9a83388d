"""Read files of run folders that other people may have made.

Only plain files that lie in the run folder itself are opened: a link to elsewhere could bring any file of the machine
into a report, and a FIFO would block it. None is read beyond a maximum size, and what is read is plain data of
bounded depth.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from vrnn_lab.core import run_files
from vrnn_lab.runs.folder import is_running

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast, where available
CONFIG_BYTES = 256 * 1024  # a config has some 5 kB
METRICS_BYTES = 16 * 1024**2
DEPTH = 64  # levels of nested lists and dicts, at most
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a circular link",
}


def size(file: Path, folder: Path) -> int:
    """Return the size in bytes of a plain file of a folder; raise ValueError for other kinds and links to outside."""
    return _checked(file, folder)[1].st_size


def _checked(file: Path, folder: Path) -> tuple[Path, os.stat_result]:
    real = Path(os.path.realpath(file))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{file.relative_to(folder)} is a link to outside of the run folder.")
    stats = os.lstat(real)
    if not stat.S_ISREG(stats.st_mode):
        kind = KINDS.get(stat.S_IFMT(stats.st_mode), "something else")
        raise ValueError(f"{file.relative_to(folder)} is not a plain file but {kind}.")
    return real, stats


@contextmanager
def opened(file: Path, folder: Path, most: int) -> Iterator[BinaryIO]:
    """Open a plain file of a folder for reading; raise ValueError where `size` does, or beyond `most` bytes."""
    real, stats = _checked(file, folder)
    if stats.st_size > most:
        raise ValueError(f"{file.relative_to(folder)} has {stats.st_size} bytes; at most {most} are read.")
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(real, os.O_RDONLY | careful), "rb") as stream:
        yield stream


def content(file: Path, folder: Path, most: int) -> bytes:
    """Return the content of a plain file of a folder; raise ValueError as `opened` does."""
    with opened(file, folder, most) as stream:
        return stream.read(most)


def pictures(folder: Path) -> list[tuple[Path, int]]:
    """Return the figures of a run that are plain files of its folder, each with its size in bytes."""
    return list(_sized(sorted((folder / run_files.FIGURES).glob("*.png")), folder))


def _sized(files: Iterable[Path], folder: Path) -> Iterator[tuple[Path, int]]:
    for file in files:
        try:
            yield file, size(file, folder)
        except (OSError, ValueError):  # `files_not_read` reports it
            continue


def files_not_read(folder: Path) -> tuple[str, ...]:
    """Return a sentence for each file of a run folder that is not read: a link to outside, a FIFO, a device."""
    sentences = []
    for place in (folder, folder / ".hydra", folder / run_files.FIGURES):
        with os.scandir(place) if _own_folder(place, folder) else nullcontext(()) as entries:
            sentences += [why for e in sorted(entries, key=lambda e: e.name) if (why := _why_not_read(e, folder))]
    return tuple(sentences)


def _own_folder(place: Path, folder: Path) -> bool:
    return place == folder or (place.is_dir() and not place.is_symlink())


def _why_not_read(entry: os.DirEntry[str], folder: Path) -> str:
    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
        return ""
    file = Path(entry.path)
    try:
        size(file, folder)
    except ValueError as error:
        return str(error)
    except OSError:
        return f"{file.relative_to(folder)} is a broken link."
    return ""


def folders_below(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield (folder, names of its subfolders) for a folder and all below it, by name; links are not followed.

    The caller removes from the list the folders to leave out. Deep folders do not overflow the stack.
    """
    waiting = [top]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                below = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) or e.name == ".hydra")
        except OSError:  # not readable by this user, or its path is too long
            continue
        yield place, below
        waiting += [place / name for name in reversed(below) if name != ".hydra"]


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a run folder; nothing is written for it, not even the lock."""
    if fcntl is None:
        return is_running(folder)
    try:
        with opened(folder / run_files.LOCK, folder, METRICS_BYTES) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError) as error:  # without flock on the disk (ENOSYS) an existing lock file is a held lock
        return isinstance(error, OSError) and error.errno == errno.ENOSYS
    return False


def parsed_yaml(text: bytes) -> Any:
    """Parse YAML into plain data; raise ValueError for aliases, which can expand without bound, and for great depth.

    Tags that construct objects raise yaml.YAMLError, and interpolations such as ${oc.env:HOME} stay text.
    """
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{event.anchor}), which no run writes.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        _check_depth(depth)
    return plain(yaml.load(text, Loader))


def parsed_json(text: bytes) -> Any:
    """Parse JSON into plain data; raise ValueError for invalid JSON and for great depth."""
    try:
        return plain(json.loads(text.decode("utf-8"), parse_int=_whole))
    except RecursionError:
        raise ValueError(f"its lists and dicts are nested more than {DEPTH} deep.") from None


def _whole(digits: str) -> int | float:
    """Return a whole number of JSON, as a float beyond 64 bits; raise ValueError where even a float overflows."""
    try:
        value, near = int(digits), float(int(digits))
    except OverflowError:
        raise ValueError(f"it has a number of {len(digits)} digits, which no float can hold.") from None
    return value if abs(value) < 2**63 else near


def _check_depth(depth: int) -> None:
    if depth > DEPTH:
        raise ValueError(f"its lists and dicts are nested more than {DEPTH} deep.")


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as dicts with string keys, lists, strings, floats and 64-bit integers; all else as strings."""
    _check_depth(depth)
    if isinstance(value, dict):
        return {str(key): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(each, depth + 1) for each in value]
    if value is None or isinstance(value, (bool, float, str)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return str(value)
