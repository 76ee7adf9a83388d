"""Serve scripts: --json prints the result of a command as JSON, and --quiet prints only warnings and errors."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from math import isfinite
from typing import Any

QUIET, JSON = "--quiet", "--json"
HELP = """
  --json               the result as one JSON object on the standard output; all else goes to the standard error
  --quiet              no output but warnings and errors; with --json also the result"""
VARIABLE = "VRNN_LAB_FLAGS"  # of the environment, so that processes which a command starts know the flags too
_results: list[dict[str, Any]] = []


def has_flag(flag: str) -> bool:
    """Return whether the command of this process, or the one that started it, was given QUIET or JSON."""
    return flag in os.environ.get(VARIABLE, "").split()


def result(**values: Any) -> None:
    """Give the result of a command, which --json prints once the command has ended well."""
    _results[:] = [values]


@contextmanager
def for_scripts() -> Iterator[None]:
    """Take --quiet and --json out of the arguments of this process, and send output to where they say.

    The standard output is replaced as a file descriptor too, so that processes which the command starts follow.
    """
    flags = {word for word in sys.argv[1:] if word in (QUIET, JSON)}
    if not flags:
        yield
        return
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in flags]
    os.environ[VARIABLE] = " ".join(sorted(flags))
    _results.clear()
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if QUIET in flags else sys.stderr):
        os.dup2(nowhere.fileno() if QUIET in flags else 2, 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            del os.environ[VARIABLE]
    if JSON in flags and _results:
        print(json.dumps(_plain(_results[0]), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are not finite are null, and what JSON lacks is text."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
