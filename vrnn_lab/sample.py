"""Draw series from the prior of a fitted model: python -m vrnn_lab.sample."""

import sys
from pathlib import Path

from vrnn_lab.cli.arguments import arguments, configure_logging, folder_of, int_argument, run_command
from vrnn_lab.cli.result import HELP, result

USAGE = """python -m vrnn_lab.sample run=<run folder> [n=16] [points=<number>] [seed=0] [output=<file>.csv]

Draws whole series from the prior of a run's best checkpoint, over a typical training window.
Covariates are held at their training means.
  run                  the folder of a finished run, or of one interrupted after its first checkpoint; or a packed run
  n                    how many series
  points               how many evenly spaced times for each; by default as dense as the training series
  seed                 of the draws: the same seed, the same file
  trust                for a run of your own classes: trust=my_model names their module, trust=true trusts the whole
                       folder; without it a folder from somebody else runs no code (SECURITY.md)
  output               where they go, by default <run folder>/samples/samples.csv (samples.csv for a packed run);
                       with a figure next to it

The file has the columns series, time and one for each channel, in the data's own units."""
USAGE += HELP


def csv(draws, channels: tuple[str, ...]) -> str:
    """Return a CSV with a line for each point: series, time, and the value of each channel."""
    from vrnn_lab.models import prior_samples

    return prior_samples.table(draws, channels).to_csv(index=False, lineterminator="\n")


def main() -> int:
    given = arguments(USAGE, ("run", "n", "points", "seed", "output", "trust"), sys.argv[1:])
    folder = folder_of(given)
    count, seed = int_argument(given, "n", 16, 1), int_argument(given, "seed", 0, 0)
    points = int_argument(given, "points", 1, 1) if "points" in given else None
    kept = folder / "samples" if folder.is_dir() else Path()  # a packed run has no folder of its own
    output = Path(given.get("output", kept / "samples.csv"))
    if output.suffix != ".csv":
        raise ValueError(f"output={output}: expected a file that ends in .csv.")
    configure_logging()
    from vrnn_lab.core.files import write_whole
    from vrnn_lab.figures import model_figures
    from vrnn_lab.models import prior_samples
    from vrnn_lab.runs.build import load_parts
    from vrnn_lab.runs.packed import unpacked
    from vrnn_lab.runs.trust import trust_of

    parts = load_parts(unpacked(folder), trust=trust_of(given.get("trust", "")))
    if points is not None and parts.model.point_process:
        raise ValueError(
            "points= is for models of values at given times; this model draws the times of its events itself."
        )
    draws = prior_samples.draw(parts.model, count, seed, points)
    write_whole(output, csv(draws, parts.model.scale.channels))
    drawn = model_figures.samples(parts.model, parts.data, draws)
    (figure,) = model_figures.write({output.stem: drawn}, output.parent)
    print(f"samples  {output}\nfigure   {figure}")
    result(output=str(output), figure=str(figure))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, scripts=True))
