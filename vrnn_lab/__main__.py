"""vrnn-lab <command> ...: the commands by one name; `vrnn-lab run` is `python -m vrnn_lab.run`."""

import runpy
import sys

from vrnn_lab.cli.arguments import run_command
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.errors import ConfigError

COMMANDS = {
    "auto": "find a good model for a table, within a stated time",
    "run": "train a model and score it; -m sweeps, resume=<run folder> resumes",
    "search": "search good values of a model's keys",
    "report": "compare runs in tables and on a page",
    "show": "write one page about one run",
    "evaluate": "score a run again, or by a rolling-origin backtest",
    "predict": "forecast or fill series of your own by a run",
    "sample": "draw series from a run's prior",
    "pack": "pack a run into one file that others can use",
    "describe": "list every option and key of the configs",
    "fetch": "download a real data set into the cache",
}


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(["vrnn-lab <command> [key=value ...]", "", *lines, "", "vrnn-lab <command> --help says more."])


def start() -> int:
    """Start the command that the first argument names, with the other arguments as its own."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise ConfigError(
            f"vrnn-lab {words[0]}: there is no such command.{did_you_mean(words[0], COMMANDS)} There are "
            f"{', '.join(COMMANDS)}."
        )
    del sys.argv[1]
    # As python -m does it: processes that a command starts look up the module that is run as __main__.
    runpy.run_module(f"vrnn_lab.{words[0]}", run_name="__main__", alter_sys=True)
    return 0


def main() -> int:
    """Run `start` and return its exit code; an error is one message."""
    return run_command(start)


if __name__ == "__main__":
    sys.exit(main())
