"""Choose the GPU of a job where several jobs run on one machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout


@contextmanager
def device_for(devices: int, folder: Path | None = None) -> Iterator[int]:
    """Reserve the device with the fewest jobs for the block, and yield its index as torch counts devices.

    A job holds one of its device's slots, files of `folder` that it locks: when its process dies, however it does,
    the kernel releases the slot. Jobs with different CUDA_VISIBLE_DEVICES are told apart. Raise ValueError for fewer
    than one device.
    """
    if devices < 1:
        raise ValueError(f"{devices} devices to choose from; expected 1 or more.")
    folder = folder or Path(gettempdir()) / f"vrnn_lab-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    names = _names(devices)
    with FileLock(folder / "choosing"):
        jobs = [sum(_take(slot) is None for slot in folder.glob(f"{name}.slot*")) for name in names]
        device = jobs.index(min(jobs))
        slots = (_take(folder / f"{names[device]}.slot{i}") for i in count())
        slot = next(slot for slot in slots if slot)
    try:
        yield device
    finally:
        slot.release()


def _names(devices: int) -> list[str]:
    """Return the machine-wide names of the visible devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip().replace("/", "-") for name in visible.split(",") if name.strip()]
    return names[:devices] if len(names) >= devices else [str(i) for i in range(devices)]


def _take(slot: Path) -> FileLock | None:
    """Return the lock of a slot, released with the last reference to it, or None where another job holds it."""
    lock = FileLock(slot, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
