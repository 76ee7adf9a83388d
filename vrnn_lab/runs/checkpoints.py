"""Write checkpoints of a fit atomically and verify them when they are read.

Paths inside a checkpoint are never trusted to name files.
"""

import io
import logging
import os
import shutil
import zipfile
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from vrnn_lab.core import run_files
from vrnn_lab.core.files import DamagedError, replacing, write_bytes

log = logging.getLogger("vrnn_lab")
PARTS = ("state_dict", "global_step", "callbacks", "channels")  # entries of every checkpoint of a fit


def read(file: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint, on the CPU; raise DamagedError where it is not what a fit wrote.

    The checksums of the file's format (a ZIP archive with a CRC-32 of each record, which torch.load does not verify)
    are verified, and nothing but tensors and plain Python is read (weights_only).
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if not all(map(_is_whole, archive.infolist())):
                raise DamagedError(f"{file} is damaged: its ZIP directory is not as torch writes it. {_cure(file)}")
            broken = archive.testzip()
        if broken:
            raise DamagedError(
                f"{file} is damaged: the checksum of its record {broken} does not match. {_cure(file)}"
            )
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (DamagedError, FileNotFoundError, PermissionError):
        raise
    except (zipfile.BadZipFile, RuntimeError, EOFError, UnpicklingError, KeyError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"{file} is damaged ({reason:.80}). {_cure(file)}") from error
    missing = [part for part in PARTS if not isinstance(content, dict) or part not in content]
    if missing:
        raise DamagedError(f"{file} is not a checkpoint of a run: it holds no {missing[0]}. {_cure(file)}")
    return content


def _is_whole(record: zipfile.ZipInfo) -> bool:
    """Return whether torch reads all bytes of a record, so that the checksum stands for what it reads.

    Of a record that is shorter than its checksum says, or marked as a folder (DOS attribute 0x10), torch reads less
    without an error, and leaves the rest of the tensor as the memory was.
    """
    sizes = record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size
    return sizes and not record.external_attr & 0x10


class RemovedError(RuntimeError):
    """Signal that the folder of a run is gone."""


def check_there(folder: Path) -> None:
    """Raise RemovedError where the folder of a run was removed or moved while the run was at work."""
    if not folder.is_dir():
        raise RemovedError(
            f"the run folder {folder} was removed, or moved, while the run was training, and so the run has ended. "
            "Nothing more was written. If it was moved, resume it there: python -m vrnn_lab.run resume=<folder>"
        )


def _cure(file: Path) -> str:
    folder = file.parent.parent
    return (
        f"Copy it again from where the run was made; or remove {file.parent} and {folder / run_files.METRICS} and "
        f"train again: python -m vrnn_lab.run resume={folder}"
    )


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint that a run resumes from, with its path: the last, or if damaged the one before it.

    None where there is none yet. Raise DamagedError where the last is damaged and none is before it, or the best is.
    """
    last, before, best = (folder / name for name in (run_files.LAST, run_files.BEFORE_LAST, run_files.BEST))
    if not last.exists() and not before.exists():
        return None
    if best.exists():
        read(best)
    try:
        if last.exists():
            return last, read(last)
        raise DamagedError(f"{last} does not exist.")
    except DamagedError as error:
        if not before.exists():
            raise
        reason, checkpoint = str(error).partition(". ")[0].rstrip("."), read(before)
        log.warning("warning: %s. The run resumes from the checkpoint before it.", reason)
        _keep(before, last)
        return last, checkpoint


def _keep(file: Path, name: Path) -> None:
    """Give a file a second name: by a hard link where the file system knows links, else by a copy."""
    with replacing(name) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)


class CheckpointFiles(TorchCheckpointIO):
    """Read and write checkpoint files atomically, and keep the last but one; only files are ever removed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, content = Path(path), io.BytesIO()
        check_there(path.parent.parent)
        torch.save(checkpoint, content)  # to memory first, so that a full disk raises a plain OSError
        if path.name == Path(run_files.LAST).name and path.exists():
            _keep(path, path.with_name(Path(run_files.BEFORE_LAST).name))
        write_bytes(path, content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(ModelCheckpoint):
    """Extend ModelCheckpoint to keep its best score when the run resumes, also in a folder that was moved."""

    @cached_property  # constant, and needed several times a step
    def state_key(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().state_key

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.max_epochs and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1  # always validate the last epoch

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        files = [Path(str(self.dirpath)) / Path(name).name for name in (run_files.BEST, run_files.LAST)]
        # Files are missing where max_steps ended the fit before any validation. Saving is collective over processes,
        # so the first one decides for all.
        for file in trainer.strategy.broadcast([file for file in files if not file.exists()]):
            trainer.save_checkpoint(file)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of a checkpoint; of its paths, at which files are removed, use only the file names."""
        here = lambda path: str(Path(str(self.dirpath)) / Path(path).name) if path else ""
        paths = {key: here(value) for key, value in state_dict.items() if key.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
