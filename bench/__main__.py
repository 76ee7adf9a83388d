"""python -m bench: measure, print one table, keep the rows in outputs/bench."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import results
from bench.machine import machine
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.core.files import write_whole

# Suites in their order, each with the threads it is measured with; 0 is the machine as it is.
ONE_AND_TWO = ("solve", "training", "vrnn", "whole")
SUITES = dict.fromkeys(ONE_AND_TWO, (1, 2)) | {
    "linear": (1,),
    "sweep": (0,),
    "memory": (1,),
    "data": (0,),
    "gpu": (0,),
}
KEYS = {"threads": "", "quick": "false", "slow": "false", "device": "auto"}
USAGE = f"""python -m bench [suite ...] [threads=1,2] [quick=true] [slow=true] [device=auto|cpu|cuda]
python -m bench table      the rows measured last, as Markdown

suites:  {", ".join(SUITES)}; by default all
threads: measure with these numbers of cores only; 0 is the machine as it is
quick:   small and few, to see that all works, into quick.json; its numbers mean nothing
slow:    what takes many minutes, too

Rows go to {results.FOLDER}/latest.json, where those that are not measured stay; the machine to machine.json."""


def understood(argv: list[str]) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """What is asked for: (suite, threads) each, and the options."""
    given = KEYS | {a.partition("=")[0]: a.partition("=")[2] for a in argv if "=" in a}
    for key in given:
        if key not in KEYS:
            raise ValueError(f"'{key}=' is not understood; expected one of {', '.join(f'{k}=' for k in KEYS)}.")
    names = [a for a in argv if "=" not in a]
    for name in names:
        if name not in SUITES:
            raise ValueError(f"no suite '{name}'; choose among {', '.join(SUITES)}.")
    asked = threads_of(given["threads"])
    jobs = [
        (name, n) for name in SUITES if name in names or not names for n in SUITES[name] if not asked or n in asked
    ]
    if not jobs:
        of = ", ".join(f"{name} {'/'.join(map(str, SUITES[name]))}" for name in names)
        raise ValueError(f"threads={given['threads']}: nothing to measure; there is {of}.")
    return jobs, given


def threads_of(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"threads={text}; expected whole numbers, as threads=1,2.") from None


def chosen(given: dict[str, str], key: str, choices: tuple[str, ...]) -> str:
    if given[key] not in choices:
        raise ValueError(f"{key}={given[key]}; expected one of {', '.join(choices)}.")
    return given[key]


def measure(suite: str, threads: int, options: dict, file: Path) -> bool:
    """One suite in a process of its own, each row kept as it comes; whether it came to its end."""
    call = [sys.executable, "-m", "bench.worker", suite, str(threads), json.dumps(options)]
    found: list[results.Row] = []
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                found.append(json.loads(line))
                results.keep(file, found)
                print(results.line(found[-1]), file=sys.stderr, flush=True)
        except BaseException:
            worker.terminate()
            raise
    if worker.returncode == 0:
        results.keep(file, found, all_of_them=True)
    return worker.returncode == 0


def main() -> int:
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    if argv == ["table"]:
        print(results.page())
        return 0
    jobs, given = understood(argv)
    quick, slow = (chosen(given, key, ("true", "false")) == "true" for key in ("quick", "slow"))
    options = {"quick": quick, "slow": slow, "device": chosen(given, "device", ("auto", "cpu", "cuda"))}
    file = results.FOLDER / ("quick.json" if quick else "latest.json")
    write_whole(file.with_name("machine.json"), json.dumps(machine(), indent=1))
    cores = len(os.sched_getaffinity(0))
    failed = []
    for suite, threads in jobs:
        print(f"{suite}, threads {threads or 'as they are'}", file=sys.stderr, flush=True)
        if threads > cores:
            print(f"not measured: there are {cores} cores.", file=sys.stderr)
        elif not measure(suite, threads, options, file):
            failed.append(f"{suite} threads={threads}")
    print(results.page(file))
    if failed:
        raise RuntimeError(f"these broke off, and their rows are what came before: {', '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
