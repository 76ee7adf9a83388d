"""Write files atomically, and read them back with a check of their checksums."""

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

PART = ".part"  # suffix of a file that is being written
KEY = "sha256"  # key of the checksum in a JSON file
MARK = f"# {KEY} "  # prefix of a YAML file's checksum, in the first line so that a truncated file still has it
LARGEST = 2**26  # bytes; no text file of a run folder is larger


class UnwritableError(OSError):
    """Report a file that could not be written; the message names the file, the reason and the remedy."""


class DamagedError(ValueError):
    """Report a file whose contents changed since it was written; the message names file, fault and remedy."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the folder of `path`; on exit, rename that file to `path`.

    Both the contents and the new name are synced to disk (fsync of file and folder), so that after a power failure
    `path` is either the old file or the new one. A failed attempt leaves no temporary file.
    Raise UnwritableError where the disk is full or permissions are missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        if isinstance(error, UnwritableError) or not _is_of(error, path, temporary):
            raise
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # disk errors, which name no file


def unwritable(path: Path, error: OSError) -> UnwritableError:
    """Return the error of a file that the disk did not take, or of a folder where the file is not known."""
    return UnwritableError(
        f"{path} cannot be written ({error.strerror}); free disk space there, fix its permissions, or choose "
        "another path. Files that were written earlier are unchanged."
    )


def _is_of(error: OSError, path: Path, temporary: Path) -> bool:
    """Return whether an error comes from writing `path`, and not from other code within the context."""
    if error.filename is None:
        return error.errno in FULL
    return Path(os.fsdecode(error.filename)) in (path, temporary, *path.parents)


def _flush(path: Path) -> None:
    """Sync a file or a folder's entries to disk; ignore file systems that do not support fsync of folders."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(opened)
    finally:
        os.close(opened)


def clean(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; no process may be writing there."""
    for left in folder.rglob(f".*{PART}"):
        with suppress(OSError):
            left.unlink()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; raise UnwritableError where that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; raise UnwritableError where that fails."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file atomically, with a checksum of its contents under the key sha256.

    Raise UnwritableError where that fails.
    """
    write_whole(path, json.dumps({**content, KEY: _digest(content)}, indent=indent) + "\n")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """Return the contents of a JSON file without its checksum; raise DamagedError where they do not match it.

    A file without a checksum, from an earlier version, is accepted. cure: last sentence of the error message.
    """
    try:
        content = json.loads(_text(path, cure))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DamagedError) else _damaged(path, error, cure) from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} holds a {type(content).__name__}; expected an object of names and values. {cure}")
    return checked(content, path, cure)


def checked(content: dict[str, Any], path: Path, cure: str) -> dict[str, Any]:
    """Return the parsed contents of a JSON file without the checksum; raise DamagedError where it does not match."""
    last = next(reversed(content), "")
    digest = content.pop(KEY, None)
    if digest not in (None, _digest(content)) or (digest is None and _is_digest(content.get(last))):
        raise DamagedError(f"{path} is damaged: its contents do not match its checksum (key {KEY}). {cure}")
    return content


def _is_digest(value: Any) -> bool:
    """Return whether a value looks like a checksum; as a file's last value, its key must then be damaged."""
    return isinstance(value, str) and len(value) == 64


def write_yaml(path: Path, text: str) -> None:
    """Write a YAML file atomically, with a checksum of its text as a comment in the first line.

    Raise UnwritableError where that fails.
    """
    write_whole(path, yaml_text(text))


def yaml_text(text: str) -> str:
    """Return the text of a YAML file below a comment with its checksum."""
    return f"{MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def read_yaml(path: Path, cure: str) -> Any:
    """Return the contents of a YAML file as plain Python; raise DamagedError where they do not match the checksum.

    Numbers are read as OmegaConf reads them. Aliases, which let a small file expand to gigabytes, and tags, which
    could construct objects, are refused; ${...} stays text. A file without a checksum is accepted.
    """
    text = checked_text(_text(path, cure), path, cure)
    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, error, cure) from error


def checked_text(text: str, path: Path, cure: str) -> str:
    """Return the text of a YAML file without its checksum line; raise DamagedError where it does not match."""
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
    """Return OmegaConf's YAML loader class with aliases disabled."""
    from omegaconf._utils import get_yaml_loader

    class Plain(get_yaml_loader()):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it holds an alias (*name), which no file of a run folder does")
            return super().compose_node(parent, index)

    return Plain


def _text(path: Path, cure: str) -> str:
    if (size := path.stat().st_size) > LARGEST:
        raise DamagedError(f"{path} has {size} bytes; such a file of a run has at most {LARGEST}. {cure}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, error, cure) from error


def _damaged(path: Path, error: Exception, cure: str) -> DamagedError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
    return DamagedError(f"{path} is damaged ({reason}). {cure}")
