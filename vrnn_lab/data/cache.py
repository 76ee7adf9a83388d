"""Where fetched data lies."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$VRNN_LAB_CACHE, else ~/.cache/vrnn_lab."""
    return Path(os.environ.get("VRNN_LAB_CACHE") or "~/.cache/vrnn_lab").expanduser()
