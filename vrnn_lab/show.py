"""Write one page about one run, with its scores, figures, losses and config: python -m vrnn_lab.show."""

import sys
from pathlib import Path

from vrnn_lab.cli.arguments import arguments, folder_of, run_command
from vrnn_lab.cli.result import HELP, result
from vrnn_lab.cli.shown_text import say
from vrnn_lab.core.example import run_of

USAGE = """python -m vrnn_lab.show run=<run folder> [output=<file>.html]

Writes a page that holds all of a run: the table of its scores, what they say, the calibration of its intervals, the
figures, the losses, the config, and the command that makes the same run. The page is one file, which needs no server
and runs no script. A single run writes it when it ends; report compares many runs.
  run                  the folder of a run, also of one that failed or was interrupted; or a packed run
  output               where the page goes, by default report.html in the run folder, for a packed run here"""
USAGE += HELP


def main() -> int:
    given = arguments(USAGE, ("run", "output"), sys.argv[1:])
    folder = folder_of(given)
    output = Path(given["output"]) if "output" in given else None
    if output is not None and output.suffix != ".html":
        raise ValueError(f"output={output}: expected a file that ends in .html.")
    if not run_of(folder).exists():
        raise ValueError(f"run={folder} does not exist; expected a run folder.")
    if output is None and not folder.is_dir():
        output = Path("report.html")  # a packed run has no folder of its own
    from vrnn_lab.reports.run_page import write_page
    from vrnn_lab.runs.packed import unpacked

    written = write_page(unpacked(folder), output)
    say(f"page     {written}")
    result(page=str(written))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
