"""Files out of a folder or an archive, read without unpacking anything to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path
from re import Pattern

ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar", ".zip")


def contents(path: Path, wanted: Pattern[str], packed: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """(name, what it holds) of every file whose name is wanted: in an archive, in a folder, or in those archives of
    the folder whose names are `packed`. Nothing else is read; ValueError for an archive that breaks off.
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
    try:
        yield from _zipped(path, wanted) if path.suffix.lower() == ".zip" else _tarred(path, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole archive ({error}); download it again.") from error


def _tarred(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and wanted.search(member.name):
                opened = archive.extractfile(member)
                assert opened is not None
                yield member.name, opened.read()


def _zipped(path: Path, wanted: Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if wanted.search(name):
                yield name, archive.read(name)
