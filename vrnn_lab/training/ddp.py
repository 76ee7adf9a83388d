"""Start and watch the processes that fit one model together (trainer=ddp), unless torchrun or srun did."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any

GRACE = 30.0  # seconds that a stopped run has for its checkpoint, which usually takes one


class ProcessError(RuntimeError):
    """Signal that one of the processes of a run failed, which ended the others."""


def launched() -> tuple[int, int]:
    """Return (rank, world size) of this process if torchrun or srun started several for one run, else (0, 1)."""
    known = os.environ
    if "RANK" in known and "WORLD_SIZE" in known:  # torchrun, and `run` below
        return int(known["RANK"]), int(known["WORLD_SIZE"])
    if int(known.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun; in a batch script alone it is not set
        return int(known["SLURM_PROCID"]), int(known["SLURM_STEP_NUM_TASKS"])
    return 0, 1


class KilledError(ProcessError):
    """Signal that a process was killed from outside rather than failing by itself."""


def run(config: dict[str, Any], folder: Path, count: int) -> None:
    """Fit a run as `count` processes of this machine, each a `ddp_worker`; the first that fails ends them all.

    Raise KilledError where a process was killed by a signal, ProcessError where one ended with an exit code.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    # The processes meet at a store of ours: if each run chose a port by itself, two might choose the same.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks: list[subprocess.Popen] = []
    codes: list[int | None] = [None]
    try:
        for rank in range(count):
            ranks.append(_start(_environment(rank, count, store.port), (config, str(folder))))
        while None in codes and not any(codes):
            sleep(0.05)
            codes = [rank.poll() for rank in ranks]
    except (KeyboardInterrupt, SystemExit):  # on a stop signal the first process writes a checkpoint
        if ranks:
            ranks[0].terminate()
            with suppress(subprocess.TimeoutExpired):
                ranks[0].wait(GRACE)
        raise
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    for code in sorted(filter(None, codes)):  # signals are negative codes and come first, as the likelier cause
        who, rest = f"process {codes.index(code)} of the {count} of this run", "so the others were ended."
        cure = f"Resume from its last checkpoint: resume={folder}"
        if code < 0:
            raise KilledError(f"{who} was killed by {signal.Signals(-code).name}, {rest} {cure}")
        raise ProcessError(f"{who} ended with exit code {code}, {rest} {cure}")


def _start(environment: dict[str, str], task: Any) -> subprocess.Popen:
    # In a session of its own, so that Ctrl-C reaches the parent alone, which passes it on.
    command = [sys.executable, "-m", "vrnn_lab.training.ddp_worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.flush()  # left open: it closes however this process ends, which then ends the worker
    return process


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun would set."""
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    store = {
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_RUN_ID": os.getpid(),
    }
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path}
    return {**os.environ, **{name: str(value) for name, value in {**place, **store, **where}.items()}}
