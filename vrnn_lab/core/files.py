"""Files that are whole or not there, and that say when they are damaged."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PART = ".part"  # the ending of a file that is being written
KEY = "sha256"  # of the checksum in a JSON file
MARK = f"# {KEY} "  # begins the first line of a YAML file: of one that is cut short it is still there
LARGEST = 2**26  # bytes of a text file of a run folder: larger ones are none of ours


class UnwritableError(OSError):
    """A file could not be written; its text names the file, the reason and the cure."""


class DamagedError(ValueError):
    """A file is not as it was written; its text names the file, what was found and the cure."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write beside `path`; then rename it to `path`.

    Its contents are on the disk before it is renamed, and the new name before this returns (fsync of file and
    folder), so that after a power failure `path` is the old file or the new one. Of a failed try nothing is left.
    Raises UnwritableError where the disk or its permissions refuse.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _flush(beside)
        beside.replace(path)
        _flush(path.parent)
    except OSError as error:
        if isinstance(error, UnwritableError) or not _is_of(error, path, beside):
            raise
        raise UnwritableError(
            f"{path} cannot be written ({error.strerror}); free some room there, mend its permissions, or name "
            "another place. What was written before is as it was."
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # whose errors name no file


def _is_of(error: OSError, path: Path, beside: Path) -> bool:
    """Return whether an error is one of writing `path`, and not one of what else is done meanwhile."""
    if error.filename is None:
        return error.errno in FULL
    return Path(os.fsdecode(error.filename)) in (path, beside, *path.parents)


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk; file systems that know no fsync are left alone."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(opened)
    finally:
        os.close(opened)


def clean(folder: Path) -> None:
    """Remove what killed processes left half written; nobody else may be writing there."""
    for left in folder.rglob(f".*{PART}"):
        with suppress(OSError):
            left.unlink()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole; UnwritableError where that fails."""
    with replacing(path) as beside:
        beside.write_bytes(content)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8; UnwritableError where that fails."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file whole, with a checksum of its contents under the key sha256."""
    write_whole(path, json.dumps({**content, KEY: _digest(content)}, indent=indent) + "\n")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """Return the contents of a JSON file, less its checksum; DamagedError where they are not what was written.

    A file without a checksum, as earlier versions wrote them, is taken as it is. cure: ends the message.
    """
    try:
        found = json.loads(_text(path, cure))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DamagedError) else _damaged(path, error, cure) from error
    if not isinstance(found, dict):
        raise DamagedError(f"{path} holds a {type(found).__name__}; expected an object of names and values. {cure}")
    return checked(found, path, cure)


def checked(found: dict[str, Any], path: Path, cure: str) -> dict[str, Any]:
    """Return the contents of a JSON file less its checksum; DamagedError where that does not match."""
    last = next(reversed(found), "")
    digest = found.pop(KEY, None)
    if digest not in (None, _digest(found)) or (digest is None and _is_digest(found.get(last))):
        raise DamagedError(f"{path} is damaged: its contents do not match its checksum (key {KEY}). {cure}")
    return found


def _is_digest(value: Any) -> bool:
    """Return whether the last value of a file is a checksum, of which the key then is damaged."""
    return isinstance(value, str) and len(value) == 64


def write_yaml(path: Path, text: str) -> None:
    """Write YAML whole, with a checksum of it as a comment in the first line."""
    write_whole(path, f"{MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_yaml(path: Path, cure: str) -> Any:
    """Return the contents of a YAML file as plain Python; DamagedError where they are not what was written.

    Numbers are read as OmegaConf reads them. Aliases, with which a small file stands for gigabytes, and tags, with
    which it could construct objects, are refused; ${...} stays text. A file without a checksum is taken as it is.
    """
    text = checked_text(_text(path, cure), path, cure)
    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, error, cure) from error


def checked_text(text: str, path: Path, cure: str) -> str:
    """Return the text of a YAML file less its checksum; DamagedError where that does not match."""
    if text.startswith(MARK):
        head, _, text = text.partition("\n")
        if head.removeprefix(MARK) != hashlib.sha256(text.encode()).hexdigest():
            raise DamagedError(
                f"{path} is damaged: it does not match the checksum in its first line. {cure} If you changed it "
                "yourself, remove that line."
            )
    return text


@cache
def _loader() -> type:
    """Return OmegaConf's reader of YAML, less aliases."""
    from omegaconf._utils import get_yaml_loader

    class Plain(get_yaml_loader()):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it holds an alias (*name), which no file of a run folder does")
            return super().compose_node(parent, index)

    return Plain


def _text(path: Path, cure: str) -> str:
    if (size := path.stat().st_size) > LARGEST:
        raise DamagedError(f"{path} has {size} bytes, and no such file of a run has more than {LARGEST}. {cure}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, error, cure) from error


def _damaged(path: Path, error: Exception, cure: str) -> DamagedError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
    return DamagedError(f"{path} is damaged ({reason}). {cure}")
