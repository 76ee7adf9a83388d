"""Locate the cache of downloaded data, and make private folders in it."""

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """Return the path in $VRNN_LAB_CACHE, or ~/.cache/vrnn_lab without it."""
    return Path(os.environ.get("VRNN_LAB_CACHE") or "~/.cache/vrnn_lab").expanduser()


def own_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter (mode 0700); raise OSError where it belongs to another user.

    Later processes read files back from it, so other users of a shared cache must not be able to write there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if hasattr(os, "getuid") and state.st_uid != os.getuid():
        raise OSError(
            1, "the folder belongs to another user; set VRNN_LAB_CACHE to a folder of your own", str(folder)
        )
    if stat.S_IMODE(state.st_mode) & 0o077:
        folder.chmod(0o700)
