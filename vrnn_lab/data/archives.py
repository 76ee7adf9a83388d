"""Read files from a folder or an archive without unpacking anything to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path
from re import Pattern

MEMBER = 256 * 1024**2  # limit in bytes of one file in an archive; a table of that size has some ten million values
WHOLE = 4 * 1024**3  # limit in bytes of all files read from one archive
ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar", ".zip")


def contents(path: Path, wanted: Pattern[str], packed: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of every file whose name matches `wanted`, from an archive or a folder.

    In a folder, archives whose names match `packed` are searched too. No other file is read. Raise ValueError for a
    truncated archive, and for one that unpacks to more than `MEMBER` bytes a file or `WHOLE` bytes in all.
    """
    if not path.is_dir():
        yield from _archived(path, wanted)
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if packed.search(name) and name.lower().endswith(ENDINGS):
            yield from _archived(file, wanted)
        elif wanted.search(name) and file.is_file():
            yield name, file.read_bytes()


def _archived(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    total = 0
    try:
        for name, content in _zipped(path, wanted) if path.suffix.lower() == ".zip" else _tarred(path, wanted):
            if (total := total + len(content)) > WHOLE:
                raise TooLarge(
                    f"{path} unpacks to more than {WHOLE:,} bytes; unpack the files that you need to a folder."
                )
            yield name, content
    except TooLarge:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a complete archive ({error}); download it again.") from error


class TooLarge(ValueError):
    """Report an archive that unpacks to more bytes than the limits allow."""


def _tarred(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isreg() and wanted.search(info.name):
                yield info.name, member(archive, info)


def _zipped(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if wanted.search(info.filename):
                yield info.filename, member(archive, info)


def member(archive: tarfile.TarFile | zipfile.ZipFile, info: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    """Return the contents of a file in an archive; raise TooLarge before unpacking more than `MEMBER` bytes."""
    name, size = (info.name, info.size) if isinstance(info, tarfile.TarInfo) else (info.filename, info.file_size)
    if size > MEMBER:
        raise TooLarge(
            f"{name} in {archive_name(archive)} unpacks to {size:,} bytes, more than the limit of {MEMBER:,} bytes."
        )
    if isinstance(archive, tarfile.TarFile):
        opened = archive.extractfile(info) if isinstance(info, tarfile.TarInfo) else None
        return b"" if opened is None else opened.read(MEMBER)
    with archive.open(name) as opened:
        return opened.read(MEMBER)


def archive_name(archive: tarfile.TarFile | zipfile.ZipFile) -> str:
    """Return the path of an archive, for a message."""
    return str(archive.name if isinstance(archive, tarfile.TarFile) else archive.filename)
