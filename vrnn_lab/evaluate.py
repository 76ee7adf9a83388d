"""python -m vrnn_lab.evaluate: the table of a run again, from its folder alone."""

import sys
from pathlib import Path

from vrnn_lab.command import arguments, folder_of, guarded, quiet, switch

USAGE = """python -m vrnn_lab.evaluate run=<run folder> [evaluate.<key>=<value> ...] [data.path=<file>] [split=val]

Scores the best checkpoint of a run again and prints its table; writes nothing but what recalibrate=true fits.
  run                  the folder of a finished run, or of one cut short after its first checkpoint
  evaluate.forecast.seen=30, evaluate.interpolation.seen=0.1, evaluate.samples=1000, ...   another yardstick
  data.<key>           other data of the same channels
  split                test (default) or val: whose scores the table shows
  recalibrate=true     fits on validation by what the spread of predictions is multiplied, a factor a channel for
                       points up to the last seen one and one for those after it; prints the table with and without,
                       and writes the factors to <run folder>/recalibration.json, for predict"""


def main() -> int:
    found = arguments(USAGE, ("run", "split", "recalibrate", "evaluate.", "data."), sys.argv[1:])
    quiet()
    from omegaconf import DictConfig, OmegaConf

    from vrnn_lab.config import ConfigError, contents, flat, near
    from vrnn_lab.experiment import load_parts, score
    from vrnn_lab.folder import config_of
    from vrnn_lab.table import print_run

    folder, split = folder_of(found), found.get("split", "test")
    if split not in ("val", "test"):
        raise ConfigError(f"split={split}: expected val or test.")
    wanted = switch(found, "recalibrate")
    keys = flat(contents(config_of(folder), resolve=False))
    changes = {k: v for k, v in found.items() if "." in k}
    for key in changes:
        if key not in keys:
            raise ConfigError(f"{key}: the run's config has no such key.{near(key, keys)}")
    parts = load_parts(folder, DictConfig(OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()])))
    recalibrated = recalibrate(parts, folder, split) if wanted else {}
    print_run(folder, score(parts) | recalibrated, split, parts.data)
    return 0


def recalibrate(parts, folder: Path, split: str) -> dict[str, float]:
    """Scores of recalibrated predictions, recalibrated/<split>/...; the factors are printed, and kept in a file."""
    from vrnn_lab.metrics import answers
    from vrnn_lab.recalibration import PLACES, fit

    found = fit(parts.model, parts.data, parts.yardstick, parts.config.seed)
    for place in PLACES:
        factors = zip(found.channels, getattr(found, place).tolist(), strict=True)
        print(f"spread x {place:13} {', '.join(f'{channel} {factor:.3f}' for channel, factor in factors)}")
    print(f"written  {found.save(folder)}\n")
    scores = answers(parts.model, parts.data, split, parts.yardstick, parts.config.seed, found.apply)
    return {f"recalibrated/{key}": value for key, value in scores.items()}


if __name__ == "__main__":
    sys.exit(guarded(main))
