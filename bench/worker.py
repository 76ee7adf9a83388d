"""Measure one suite, a line of JSON per row (python -m bench.worker <suite> <threads> <options as JSON>)."""

import importlib
import json
import os
import signal
import sys
from datetime import datetime

THREADS_OF = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pin(threads: int) -> None:
    """Restrict this process to some cores and threads; call it before JAX is imported, which uses all it finds."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-threads:])
    for name in THREADS_OF:
        os.environ[name] = str(threads)


def rows_of(suite: str, threads: int):
    module = importlib.import_module(f"bench.{suite}")
    from bench.harness import OPTIONS

    for row in module.rows(quick=OPTIONS.quick):
        key = {"suite": suite, "threads": threads, "device": OPTIONS.device}
        yield {**row, **key, "load": round(os.getloadavg()[0], 1), "measured": f"{datetime.now():%Y-%m-%d %H:%M}"}


def _ended(number, frame) -> None:
    raise SystemExit(128 + number)  # so that the processes it started are ended too


def main(suite: str, threads: int, options: dict) -> None:
    # The process that started this one handles Ctrl-C, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ended)
    if threads:
        pin(threads)
    import torch

    from bench import harness
    from vrnn_lab.cli.arguments import configure_logging
    from vrnn_lab.training.devices import keep_memory

    configure_logging()
    keep_memory()  # as a run does
    if threads:
        torch.set_num_threads(threads)
    if options.get("device", "auto") == "auto":
        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    for key, value in options.items():
        setattr(harness.OPTIONS, key, value)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the output of libraries is not taken for rows
    for row in rows_of(suite, threads):
        print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
