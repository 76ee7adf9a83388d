"""Pack a run into one file that other people can use, or unpack one: python -m vrnn_lab.pack."""

import sys
from pathlib import Path

from vrnn_lab.cli.arguments import arguments, folder_of, run_command
from vrnn_lab.cli.result import HELP, result
from vrnn_lab.core.example import run_of

USAGE = """python -m vrnn_lab.pack run=<run folder> [output=<file>.zip]
python -m vrnn_lab.pack run=<file>.zip output=<new folder>

Writes what predictions and scores of a run need to one file. predict, evaluate, sample, show and Forecaster.load
take it in place of the run folder: python -m vrnn_lab.predict run=<file>.zip input=... Whoever gets it needs no trust
in whoever made it: it is unpacked to a temporary folder, cannot write anywhere else, and runs no code (SECURITY.md).
  run                  the folder of a run with a checkpoint, or of vrnn_lab.auto; or a packed run, to unpack it
                       (example: the one that comes with the package)
  output               where it goes, by default <name of the run folder>.zip in the working folder

The file holds the config with the path of the data but neither the data nor the loggers, the choices and overrides as
they were typed, the releases that trained it, the weights and scale of the best checkpoint, the factors of its
intervals, and its scores. Without the state of training it cannot be resumed; start=<folder> of an
unpacked one starts a fit from its weights."""
USAGE += HELP


def main() -> int:
    given = arguments(USAGE, ("run", "output"), sys.argv[1:])
    run = run_of(folder_of(given))
    if run.is_file() and "output" not in given:
        raise ValueError(f"run={run} is a file; name the new folder that it is unpacked to: output=<folder>.")
    output = Path(given["output"]) if "output" in given else Path(f"{run.resolve().name}.zip")
    if not run.is_file() and output.suffix != ".zip":
        raise ValueError(f"output={output}: expected a file that ends in .zip.")
    if not run.exists():
        raise ValueError(f"run={run} does not exist; expected a run folder, or a packed run.")
    from vrnn_lab.runs.packed import pack, unpack

    if run.is_file():
        unpack(run, output)
        print(f"unpacked {output}")
        result(output=str(output))
        return 0
    names = pack(run, output)
    print(f"packed   {output}, {len(names)} files, {output.stat().st_size / 1000:.0f} kB")
    result(output=str(output), files=names)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
