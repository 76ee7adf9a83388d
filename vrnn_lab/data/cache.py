"""Where fetched data lies."""

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """$VRNN_LAB_CACHE, else ~/.cache/vrnn_lab."""
    return Path(os.environ.get("VRNN_LAB_CACHE") or "~/.cache/vrnn_lab").expanduser()


def own_folder(folder: Path) -> None:
    """Make a folder that its owner alone may enter (mode 0700); OSError where it is somebody else's.

    What lies there is read back by later processes, and others, who may share the cache, must not put it there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if hasattr(os, "getuid") and state.st_uid != os.getuid():
        raise OSError(1, "the folder belongs to another user; name a cache of your own: VRNN_LAB_CACHE", str(folder))
    if stat.S_IMODE(state.st_mode) & 0o077:
        folder.chmod(0o700)
