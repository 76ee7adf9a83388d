"""Define the stop signals of a command, and what they do outside a fit."""

import signal
from types import FrameType
from typing import Any

# Ctrl-C; kill, and a preempted SLURM job; a terminal that is closed; SLURM's warning (--signal=USR1@60)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle a signal outside a fit: raise SystemExit with code 128 + number, as a shell reports a killed process."""
    raise SystemExit(128 + number)


def install() -> None:
    """Have SIGTERM, and SIGHUP where nohup does not ignore it, end a command in order, with its exit code."""
    signal.signal(signal.SIGTERM, terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, terminate)


def is_usual(handler: Any) -> bool:
    """Return whether a signal has its default handler or ours, and not one of, for example, a job launcher."""
    return handler in (signal.SIG_DFL, signal.default_int_handler, terminate)
