"""python -m vrnn_lab.rank: one of the processes of a run; vrnn_lab.processes starts it and tells it what to do."""

import os
import pickle
import sys
import traceback
from threading import Thread


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the pipe closes
    os._exit(1)


def main() -> None:
    config, folder = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_parent, daemon=True).start()
    from omegaconf import DictConfig

    from vrnn_lab.command import quiet

    quiet()
    from vrnn_lab.fitting import take_part

    try:
        take_part(DictConfig(config), folder)
    except BaseException:  # recorded in the run folder: whoever started us says it
        if os.environ.get("VRNN_LAB_TRACEBACK"):
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # at once: to take leave of processes that are gone could hang


if __name__ == "__main__":
    main()
