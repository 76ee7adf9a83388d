"""Files out of a folder or an archive, read without unpacking anything to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path
from re import Pattern

MEMBER = 256 * 1024**2  # bytes of a file in an archive; a table of that size has some ten million values
WHOLE = 4 * 1024**3  # bytes of all files that are read of an archive
ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar", ".zip")


def contents(path: Path, wanted: Pattern[str], packed: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """(name, what it holds) of every file whose name is wanted: in an archive, in a folder, or in those archives of
    the folder whose names are `packed`. Nothing else is read; ValueError for an archive that breaks off, and for one
    that unpacks to more than `MEMBER` bytes a file or `WHOLE` bytes in all.
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
    whole = 0
    try:
        for name, held in _zipped(path, wanted) if path.suffix.lower() == ".zip" else _tarred(path, wanted):
            if (whole := whole + len(held)) > WHOLE:
                raise TooLarge(
                    f"{path} unpacks to more than {WHOLE:,} bytes; unpack what you need of it to a folder."
                )
            yield name, held
    except TooLarge:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is no whole archive ({error}); download it again.") from error


class TooLarge(ValueError):
    """An archive that unpacks to more than is read."""


def _tarred(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for each in archive:
            if each.isreg() and wanted.search(each.name):
                yield each.name, member(archive, each)


def _zipped(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            if wanted.search(each.filename):
                yield each.filename, member(archive, each)


def member(archive: tarfile.TarFile | zipfile.ZipFile, info: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    """What a file of an archive holds; `TooLarge` for more than `MEMBER` bytes, none of which is unpacked."""
    name, size = (info.name, info.size) if isinstance(info, tarfile.TarInfo) else (info.filename, info.file_size)
    if size > MEMBER:
        raise TooLarge(f"{name} of {archive_name(archive)} unpacks to {size:,} bytes, more than {MEMBER:,}.")
    if isinstance(archive, tarfile.TarFile):
        opened = archive.extractfile(info) if isinstance(info, tarfile.TarInfo) else None
        return b"" if opened is None else opened.read(MEMBER)
    with archive.open(name) as opened:
        return opened.read(MEMBER)


def archive_name(archive: tarfile.TarFile | zipfile.ZipFile) -> str:
    """The path of an archive, for a message."""
    return str(archive.name if isinstance(archive, tarfile.TarFile) else archive.filename)
