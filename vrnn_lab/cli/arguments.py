"""Share between the commands: messages instead of tracebacks, exit codes, arguments as key=value."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vrnn_lab.cli.result import QUIET as NO_OUTPUT
from vrnn_lab.cli.result import for_scripts, has_flag
from vrnn_lab.cli.shown_text import complain
from vrnn_lab.cli.shown_text import terminal as neutral
from vrnn_lab.cli.suggestions import did_you_mean

# Warnings and advice of other packages that do not concern the user.
QUIET = (
    ".*AutoDateLocator was unable to pick.*",
    ".*_register_pytree_node.*",
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*You defined a `validation_step`.*",
    ".*exists and is not empty.*",
    ".*smaller than the logging interval.*",
    ".*GPU available but not used.*",
    ".*grad attribute of a Tensor that is not a leaf.*",  # of torch.compile, and so are those below
    ".*TensorFloat32 tensor cores.*",
    ".*Not enough SMs.*",
)
TERMINAL = "terminal"  # the name of the handler that prints log lines
MOST = 1_000_000  # largest count that a command takes: draws, paths, series, points, folds


class Neutral(logging.Formatter):
    """Format log lines for the terminal, without the control characters that names out of files may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, neutralised."""
        return neutral(super().format(record))


def configure_logging() -> None:
    """Print our log lines plainly on the terminal and silence other packages; call it before heavy imports."""
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.distributed",
        "lightning.pytorch",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    log = logging.getLogger("vrnn_lab")
    log.setLevel(logging.DEBUG)  # run.log takes it all
    # Replace the handler: where several commands share a process, the stream of an earlier one may be closed.
    for old in [handler for handler in log.handlers if handler.get_name() == TERMINAL]:
        log.removeHandler(old)
    if not any(isinstance(h, logging.StreamHandler) and h.stream is sys.stderr for h in log.handlers):
        terminal = ToStandardError(sys.stderr)
        terminal.set_name(TERMINAL)
        terminal.setLevel(logging.WARNING if has_flag(NO_OUTPUT) else logging.INFO)
        terminal.setFormatter(Neutral())
        log.addHandler(terminal)


class ToStandardError(logging.StreamHandler):
    """Print log lines on the standard error as it is at that moment, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self.stream = sys.stderr
        super().emit(record)


class _Outliving(io.FileIO):
    """Write to a stream whose reader may go away; what is written after that is lost without an error."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            return len(memoryview(content).cast("B"))


def outlive_readers() -> None:
    """Let a training continue when the reader of its output, such as `head`, has closed the pipe."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Outliving):
            continue
        stream.flush()
        try:
            raw = io.BufferedWriter(_Outliving(stream.fileno(), "w", closefd=False))
        except io.UnsupportedOperation:  # a stream without a file descriptor, as in a notebook
            continue
        text = io.TextIOWrapper(
            raw, stream.encoding, stream.errors, line_buffering=True, write_through=name == "stderr"
        )
        setattr(sys, name, text)


def run_command(command: Callable[[], int | None], scripts: bool = False) -> int:
    """Run a command and return its exit code.

    Errors that a user can cause become one message; VRNN_LAB_TRACEBACK=1 shows the traceback. scripts: the command
    gives a result, so that --json and --quiet are understood.
    """
    try:
        with for_scripts() if scripts else nullcontext():
            return command() or 0
    except KeyboardInterrupt as interrupt:
        complain(": ".join(["interrupted", *map(str, interrupt.args)]))
        return 130
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return explain(error)


def explain(error: BaseException) -> int:
    """Print what went wrong and return the exit code: 2 for a config or file that cannot work, else 1."""
    if os.environ.get("VRNN_LAB_TRACEBACK"):
        raise error
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    complain(f"error: {kind}{error}")
    if not isinstance(error, (ValueError, OSError)):
        print("VRNN_LAB_TRACEBACK=1 before the command shows where.", file=sys.stderr)
    return 2 if isinstance(error, ValueError) else 1


def arguments(usage: str, allowed: tuple[str, ...], argv: list[str]) -> dict[str, str]:
    """Parse the key=value arguments of a small command; raise ValueError for anything else.

    allowed: keys, or prefixes of keys that end with a dot. Print `usage` and exit for --help, or for no arguments.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(usage)
        raise SystemExit(0 if argv else 2)
    refuse_repeated(argv)
    values = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals or not (key in allowed or any(a.endswith(".") and key.startswith(a) for a in allowed)):
            keys = [f"{a}<key>" if a.endswith(".") else a for a in allowed]
            raise ValueError(
                f"'{argument}' is not understood; expected key=value with key one of {', '.join(keys)}."
                f"{did_you_mean(key, keys)}"
            )
        values[key] = value
    return values


def refuse_repeated(arguments: Iterable[str]) -> None:
    """Raise ValueError where two arguments key=value give one key different values, of which one would be ignored."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.lstrip("+~").partition("=")
        if equals and values.setdefault(key, value) != value:
            raise ValueError(f"{key}= is given twice, as {values[key]} and as {value}; give it once.")


def int_argument(values: dict[str, str], key: str, usual: int, least: int) -> int:
    """Return a whole number among the arguments, from `least` to MOST; raise ValueError for anything else.

    usual: the default. A seed may be as large as random generators take.
    """
    text, most = values.get(key, str(usual)), 2**63 - 1 if key == "seed" else MOST
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise ValueError(f"{key}={text}: expected a whole number from {least} to {most}.")
    return int(text)


def folder_of(values: dict[str, str]) -> Path:
    """Return the folder of run=<folder>; raise ValueError where it is missing."""
    if "run" not in values:
        raise ValueError("run=<run folder> is missing.")
    return Path(values["run"])


def folders_of(values: dict[str, str]) -> list[Path]:
    """Return the folders, or packed runs, of run=<folder>[,<folder>...]; one whose name holds commas counts as one.

    Raise ValueError for an empty name, or for a folder named twice.
    """
    text = str(folder_of(values))
    folders, held = [], ""
    for part in text.split(","):
        held = f"{held},{part}" if held else part
        if Path(held).exists():
            folders.append(Path(held))
            held = ""
    if Path(text).exists():
        folders = [Path(text)]
    elif held or not folders:  # one does not exist: keep each name, for the error message about it
        folders = [Path(part) for part in text.split(",")]
    if "" in text.split(","):
        raise ValueError(f"run={text}: a name between two commas is empty; expected run=<folder>,<folder>.")
    if twice := {str(folder) for folder in folders if folders.count(folder) > 1}:
        raise ValueError(f"run={text} names {min(twice)} twice; each run has an equal share. Name it once.")
    return folders


def bool_argument(values: dict[str, str], key: str) -> bool:
    """Return the truth of key=true or key=false (the default); raise ValueError for anything else."""
    if (value := values.get(key, "false")) not in ("true", "false"):
        raise ValueError(f"{key}={value}: expected true or false.")
    return value == "true"
