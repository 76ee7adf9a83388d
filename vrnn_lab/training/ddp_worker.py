"""Run one of the processes of a run, `python -m vrnn_lab.training.ddp_worker`, started by `vrnn_lab.training.ddp`."""

import json
import os
import sys
import traceback
from pathlib import Path
from threading import Thread


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the pipe closes
    os._exit(1)


def _first_line() -> bytes:
    """Read the parent's message byte by byte, so that nothing after it waits in a buffer when the pipe is watched."""
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := os.read(sys.stdin.fileno(), 1)):
            os._exit(1)  # the parent is gone
        line += byte
    return line


def main() -> None:
    config, folder = json.loads(_first_line())
    Thread(target=_end_with_parent, daemon=True).start()
    from omegaconf import DictConfig

    from vrnn_lab.cli.arguments import configure_logging

    configure_logging()
    from vrnn_lab.cli.signals import install
    from vrnn_lab.training.fit import take_part

    install()
    try:
        take_part(DictConfig(config), Path(folder))
    except SystemExit as stopped:  # by a signal, with a checkpoint written
        os._exit(int(stopped.code or 0))
    except BaseException:  # recorded in the run folder; the parent reports it
        if os.environ.get("VRNN_LAB_TRACEBACK"):
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # at once: a clean shutdown could wait forever for processes that are gone


if __name__ == "__main__":
    main()
