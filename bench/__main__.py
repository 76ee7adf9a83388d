"""Measure the suites, print one table, and store its rows in outputs/bench (python -m bench)."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import results
from bench.machine import machine
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.core.files import write_whole

# The suites in their order, each with its numbers of threads; 0 leaves threads and cores as they are.
ONE_AND_TWO = ("solve", "training", "vrnn", "whole")
SUITES = dict.fromkeys(ONE_AND_TWO, (1, 2)) | {
    "steps": (1,),
    "linear": (1,),
    "sweep": (0,),
    "memory": (1,),
    "data": (0,),
    "gpu": (0,),
}
KEYS = {"threads": "", "quick": "false", "slow": "false", "device": "auto"}
USAGE = f"""python -m bench [suite ...] [threads=1,2] [quick=true] [slow=true] [device=auto|cpu|cuda]
python -m bench table      print the rows measured last, as Markdown

suites:  {", ".join(SUITES)}; by default all
threads: measure with these numbers of cores only; 0 leaves threads and cores as they are
quick:   run small problems to check that every suite works; rows go to quick.json, their numbers mean nothing
slow:    also measure what takes many minutes

Rows are written to {results.FOLDER}/latest.json, which keeps the rows of suites that are not measured; a description
of the machine is written to machine.json."""


def parse(argv: list[str]) -> tuple[list[tuple[str, int]], dict[str, str]]:
    """Return the jobs to run, (suite, threads) each, and the options; raise ValueError for unknown arguments."""
    given = KEYS | {a.partition("=")[0]: a.partition("=")[2] for a in argv if "=" in a}
    for key in given:
        if key not in KEYS:
            raise ValueError(f"'{key}=' is not an option; expected one of {', '.join(f'{k}=' for k in KEYS)}.")
    names = [a for a in argv if "=" not in a]
    for name in names:
        if name not in SUITES:
            raise ValueError(f"there is no suite '{name}'; choose among {', '.join(SUITES)}.")
    wanted_threads = threads_of(given["threads"])
    jobs = [
        (name, n)
        for name in SUITES
        if name in names or not names
        for n in SUITES[name]
        if not wanted_threads or n in wanted_threads
    ]
    if not jobs:
        available = ", ".join(f"{name} {'/'.join(map(str, SUITES[name]))}" for name in names)
        raise ValueError(
            f"threads={given['threads']}: no suite is measured with these numbers of threads; choose among "
            f"{available}."
        )
    return jobs, given


def threads_of(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"threads={text}; expected whole numbers, as threads=1,2.") from None


def choice(given: dict[str, str], key: str, choices: tuple[str, ...]) -> str:
    if given[key] not in choices:
        raise ValueError(f"{key}={given[key]}; expected one of {', '.join(choices)}.")
    return given[key]


def measure(suite: str, threads: int, options: dict, file: Path) -> bool:
    """Measure one suite in its own process, storing each row as it arrives; return whether the suite succeeded."""
    call = [sys.executable, "-m", "bench.worker", suite, str(threads), json.dumps(options)]
    rows: list[results.Row] = []
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                rows.append(json.loads(line))
                results.keep(file, rows)
                print(results.line(rows[-1]), file=sys.stderr, flush=True)
        except BaseException:
            worker.terminate()
            raise
    if worker.returncode == 0:
        results.keep(file, rows, complete=True)
    return worker.returncode == 0


def main() -> int:
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    if argv == ["table"]:
        print(results.page())
        return 0
    jobs, given = parse(argv)
    quick, slow = (choice(given, key, ("true", "false")) == "true" for key in ("quick", "slow"))
    options = {"quick": quick, "slow": slow, "device": choice(given, "device", ("auto", "cpu", "cuda"))}
    file = results.FOLDER / ("quick.json" if quick else "latest.json")
    write_whole(file.with_name("machine.json"), json.dumps(machine(), indent=1))
    cores = len(os.sched_getaffinity(0))
    failed = []
    for suite, threads in jobs:
        print(f"{suite}, threads {threads or 'unchanged'}", file=sys.stderr, flush=True)
        if threads > cores:
            print(f"{suite} was not measured: it needs {threads} cores, this machine has {cores}.", file=sys.stderr)
        elif not measure(suite, threads, options, file):
            failed.append(f"{suite} threads={threads}")
    print(results.page(file))
    if failed:
        raise RuntimeError(
            f"these suites failed, so only rows measured before the failure are stored: {', '.join(failed)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
