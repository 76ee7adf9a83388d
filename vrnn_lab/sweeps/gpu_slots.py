"""Which GPU a job takes, where several jobs run on one machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout


@contextmanager
def device_for(devices: int, folder: Path | None = None) -> Iterator[int]:
    """Of so many devices the one with the fewest jobs, as torch counts them; it is the caller's while within.

    A job holds one of its device's slots, files of `folder` that it locks: when its process dies, however it
    does, the kernel gives the slot back. Jobs that see other devices (CUDA_VISIBLE_DEVICES) are told apart.
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
    """What the visible devices are called on the whole machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip().replace("/", "-") for name in visible.split(",") if name.strip()]
    return names[:devices] if len(names) >= devices else [str(i) for i in range(devices)]


def _take(slot: Path) -> FileLock | None:
    """The lock of a slot (given back with the last reference to it), or None where a job has it."""
    lock = FileLock(slot, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
