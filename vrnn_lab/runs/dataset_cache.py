"""Build each dataset once for all jobs that use it: keep it in the process and, where building took long, on disk."""

import hashlib
import json
import logging
import os
from copy import copy
from pathlib import Path
from time import monotonic

from filelock import FileLock
from omegaconf import DictConfig

from vrnn_lab.config.plain import to_dict
from vrnn_lab.config.validate import instantiate
from vrnn_lab.core.files import replacing
from vrnn_lab.data import saved_state
from vrnn_lab.data.base import SeriesData
from vrnn_lab.data.cache import cache_folder, own_folder
from vrnn_lab.runs import provenance

log = logging.getLogger("vrnn_lab")
LONG = 1.0  # a dataset that took more seconds to build is kept on disk
KEPT = 20  # datasets kept on disk, those used last
HELD = 4  # datasets kept in the process

_held: dict[str, SeriesData] = {}


def data_of(config: DictConfig) -> SeriesData:
    """Return the dataset of a run's config, built anew where its config, its file or the code has changed."""
    key = _key(config)
    if key not in _held:
        data = _shared(key, config)
        while len(_held) >= HELD:
            _held.pop(next(iter(_held)))
        _held[key] = data
    data = copy(_held[key])  # a shallow copy: the arrays are shared, and nothing writes to them
    if "batch_size" in config.data:
        data.batch_size = config.data.batch_size
    return data


def _key(config: DictConfig) -> str:
    plain = {k: v for k, v in to_dict(config.data).items() if k != "batch_size"}
    text = json.dumps([plain, provenance.of(config)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shared(key: str, config: DictConfig) -> SeriesData:
    """Return the dataset from disk, or build it while other processes that need it wait."""
    file = cache_folder() / "built" / f"{key}.npz"
    try:
        own_folder(file.parent)
        with FileLock(file.with_suffix(".lock")):
            return _read(config, file) or _build(config, file)
    except OSError as error:
        if error.filename is None or file.parent not in (*Path(error.filename).parents, Path(error.filename)):
            raise
        log.warning("the data set cannot be cached on disk, so every process builds it anew: %s", error)
        return _build(config)


def _build(config: DictConfig, file: Path | None = None) -> SeriesData:
    started = monotonic()
    data = instantiate(config.data, "data")
    _ = data.scale  # computing the scale reads the whole dataset
    if file and data.keep and monotonic() - started > LONG:
        _write(file, data)
    return data


def _write(file: Path, data: SeriesData) -> None:
    try:
        with replacing(file) as temporary:
            saved_state.write(data, temporary)
    except OSError as error:
        log.warning("the data set was not cached on disk for the next process: %s", error)
    except saved_state.Unknown as error:  # a user's own dataset may hold objects of any type
        log.debug("the data set was not cached on disk for the next process: its state holds %s", error)
    _forget(file.parent)


def _read(config: DictConfig, file: Path) -> SeriesData | None:
    """Return the dataset of a config with the state in a file, None where there is no usable one."""
    if not file.exists():
        return None
    os.utime(file)
    data = instantiate(config.data, "data")
    return data if saved_state.read(data, file) else None


def _forget(folder: Path) -> None:
    """Delete the files used least recently, and all pickles, which earlier versions wrote."""
    files = sorted(folder.glob("*.npz"), key=lambda p: p.stat().st_mtime)
    for old in [*files[:-KEPT], *folder.glob("*.pickle")]:
        old.unlink(missing_ok=True)
