"""Files out of a folder or an archive, read without unpacking anything to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path

ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar", ".zip")


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of an archive, of a folder, or of the archives that lie in the folder: (its name, what it holds).

    ValueError for an archive that cannot be read to its end.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and _is_archive(file):
                yield from contents(file)
            elif file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes()
    elif _is_archive(path):
        try:
            yield from _zipped(path) if path.name.lower().endswith(".zip") else _tarred(path)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
            raise ValueError(f"{path} is no whole archive ({error}); download it again.") from error
    else:
        yield path.name, path.read_bytes()


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def _tarred(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                opened = archive.extractfile(member)
                assert opened is not None
                yield member.name, opened.read()


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                yield name, archive.read(name)
