"""Pack a run into one file, which predict, evaluate, sample and show take as run=<file>, and unpack it without risk.

A packed run is a ZIP archive with the few files of a run folder that predictions and scores need. A file from
somebody else is treated as a foreign run folder is (vrnn_lab.runs.trust): no name in it leads out of the folder that
it is unpacked to, nothing but tensors and plain Python is read from its checkpoint, and its config builds no class
that neither conf/ nor the user names.
"""

import atexit
import io
import re
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from omegaconf import OmegaConf

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.core.example import RUN, TABLE, run_of
from vrnn_lab.core.files import DamagedError, read_yaml, replacing, write_yaml, yaml_text
from vrnn_lab.runs import checkpoints
from vrnn_lab.runs.folder import COPY, config_of
from vrnn_lab.runs.trust import refuse_links

NEEDED = (run_files.CONFIG, run_files.BEST)
KEPT = (*NEEDED, run_files.CHOICES, run_files.OVERRIDES, run_files.ORIGIN)
KEPT += (run_files.METRICS, run_files.CALIBRATION, run_files.RECALIBRATION)
OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks")  # entries of a checkpoint that are left out
LOGGER = re.compile(r"[+~]*logger[.=]")
FOLDER_NAME = re.compile(r"\w([\w .,=+-]*\w)?")  # of the run folders of a mixture
LARGEST = 2**30  # bytes that a packed run may unpack to
DATE = (2026, 1, 1, 0, 0, 0)  # of every member, so that the same run gives the same file


def pack(folder: Path, output: Path) -> list[str]:
    """Write a run, or a mixture with its runs, to one file; return the names of what it holds.

    Left out are the data, the figures, the logs, the loggers, and what only a resumed fit needs. Raise ConfigError
    where the folder has no checkpoint, or holds links.
    """
    refuse_links(folder)
    runs = [folder]
    if (folder / run_files.MIXTURE).is_file():
        named = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        runs = [path for path in named if any((path / name).is_file() for name in (*NEEDED, run_files.BASELINE))]
    for run in runs:
        if not (run / run_files.BASELINE).is_file() and (lacking := [n for n in NEEDED if not (run / n).is_file()]):
            raise ConfigError(
                f"{run} cannot be packed: {lacking[0]} does not exist in it; expected the folder of a run with a "
                "checkpoint, or of vrnn_lab.auto."
            )
    files = [folder / run_files.MIXTURE] if folder not in runs else []
    files += [run / name for run in runs for name in (*KEPT, run_files.BASELINE) if (run / name).is_file()]
    with replacing(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in files:
            content = _content(file)
            archive.writestr(
                zipfile.ZipInfo(file.relative_to(folder).as_posix(), DATE), content, zipfile.ZIP_DEFLATED
            )
    return [file.relative_to(folder).as_posix() for file in files]


def _content(file: Path) -> bytes:
    """Return the bytes to pack of a file: configs without their loggers, whose keys may hold passwords."""
    name = "/".join(file.parts[-2:])
    if name == run_files.BEST:
        return _weights(file)
    if name in (run_files.CONFIG, run_files.CHOICES):
        known = read_yaml(file, COPY)
        return yaml_text(OmegaConf.to_yaml({k: v for k, v in known.items() if k != "logger"})).encode()
    if name == run_files.OVERRIDES:
        return yaml_text(OmegaConf.to_yaml([o for o in read_yaml(file, COPY) if not LOGGER.match(str(o))])).encode()
    return file.read_bytes()


def _weights(file: Path) -> bytes:
    """Return a checkpoint without the state of its optimizer, which is twice as large as the weights."""
    content: dict[str, Any] = {k: v for k, v in checkpoints.read(file).items() if k not in OF_TRAINING}
    stream = io.BytesIO()
    torch.save(content | {"callbacks": {}}, stream)
    return stream.getvalue()


def unpacked(path: Path) -> Path:
    """Return a run folder as it is; of a packed run, a temporary folder with its content.

    The folder is removed when the process ends. The name `example` stands for the run that comes with the package.
    Raise DamagedError for a file that is no packed run, or a damaged one.
    """
    path = run_of(path)
    if not path.is_file():
        return path
    state = path.stat()
    return _unpacked_once(path.absolute(), state.st_size, state.st_mtime_ns)


@cache
def _unpacked_once(file: Path, _size: int, _changed: int) -> Path:
    place = Path(mkdtemp(prefix="vrnn_lab_"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = place / file.stem
    unpack(file, folder)
    if file == RUN:  # its data come with the package too
        config = config_of(folder)
        config.data.path = str(TABLE)
        write_yaml(folder / run_files.CONFIG, OmegaConf.to_yaml(config))
    return folder


def unpack(file: Path, folder: Path) -> None:
    """Unpack a packed run to a new folder; raise DamagedError where the file is none."""
    if folder.exists():
        raise ConfigError(f"{folder} exists; name a new folder.")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check(file, members)
            contents = {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise DamagedError(f"{file} is no packed run, or is damaged ({error}). Copy it again, or {PACK}.") from error
    for name, content in contents.items():
        target = folder / name
        assert target.resolve().is_relative_to(folder.resolve())  # as `_check` has ensured
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


PACK = "make one: python -m vrnn_lab.pack run=<run folder>"


def _check(file: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise DamagedError unless every member is a plain file that a packed run has, at its place, of bounded size."""
    names = Counter(member.filename for member in members)
    for member in members:
        top, _, below = member.filename.partition("/")
        kind = stat.S_IFMT(member.external_attr >> 16)
        known = member.filename in (*KEPT, run_files.MIXTURE)
        within = FOLDER_NAME.fullmatch(top) and below in (*KEPT, run_files.BASELINE)
        plain = kind in (0, stat.S_IFREG) and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not (known or within) or not plain or names[member.filename] > 1:
            raise DamagedError(
                f"{file} is no packed run: it holds {member.filename!r:.100}, which none has, and was not unpacked. "
                f"To {PACK}."
            )
    if (size := sum(member.file_size for member in members)) > LARGEST:
        raise DamagedError(f"{file} would unpack to {size:,} bytes; a packed run has at most {LARGEST:,}.")
    if not members:
        raise DamagedError(f"{file} is no packed run: it is empty. To {PACK}.")
