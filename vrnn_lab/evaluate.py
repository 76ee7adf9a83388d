"""python -m vrnn_lab.evaluate: the table of a run again, from its folder alone."""

import sys

from vrnn_lab.command import arguments, folder_of, guarded, quiet

USAGE = """python -m vrnn_lab.evaluate run=<run folder> [evaluate.<key>=<value> ...] [data.path=<file>] [split=val]

Scores the best checkpoint of a run again and prints its table; writes nothing.
  run                  the folder of a finished run, or of one cut short after its first checkpoint
  evaluate.forecast.seen=30, evaluate.interpolation.seen=0.1, evaluate.samples=1000, ...   another yardstick
  data.<key>           other data of the same channels
  split                test (default) or val: whose scores the table shows"""


def main() -> int:
    found = arguments(USAGE, ("run", "split", "evaluate.", "data."), sys.argv[1:])
    quiet()
    from omegaconf import DictConfig, OmegaConf

    from vrnn_lab.config import ConfigError, contents, flat, near
    from vrnn_lab.experiment import load_parts, score
    from vrnn_lab.folder import config_of
    from vrnn_lab.table import print_run

    folder, split = folder_of(found), found.get("split", "test")
    if split not in ("val", "test"):
        raise ConfigError(f"split={split}: expected val or test.")
    keys = flat(contents(config_of(folder), resolve=False))
    changes = {k: v for k, v in found.items() if "." in k}
    for key in changes:
        if key not in keys:
            raise ConfigError(f"{key}: the run's config has no such key.{near(key, keys)}")
    parts = load_parts(folder, DictConfig(OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()])))
    metrics = score(parts)
    print_run(folder, metrics, split)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
