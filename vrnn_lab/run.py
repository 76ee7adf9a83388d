"""python -m vrnn_lab.run: train a model, score it, draw it; -m sweeps, resume=<run folder> goes on."""

import itertools
import os
import signal
import sys
from math import nan
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vrnn_lab.command import guarded, quiet
from vrnn_lab.config import CONF, ConfigError, check, compose, contents, flat, jobs_of, near
from vrnn_lab.processes import launched

PASSED_ON = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)


def job(config: DictConfig, folder: Path, overrides: list[str], wait: bool = False, resuming: bool = False) -> float:
    """One run in its folder; prints its table and returns its score, val/loss."""
    quiet()
    from vrnn_lab import experiment
    from vrnn_lab.folder import SCORE
    from vrnn_lab.table import print_run

    metrics = experiment.run(config, folder, overrides, wait, resuming)
    if metrics is None:  # the first of the processes of this run prints it
        return nan
    print_run(folder, metrics)
    return metrics[SCORE]


def resume(folder: Path, changes: list[str]) -> int:
    """Go on with a run from its own config; beside it only trainer.* may be set."""
    from vrnn_lab.folder import config_of

    config = config_of(folder)
    for change in changes:
        key = change.split("=")[0]
        if not key.startswith("trainer."):
            raise ConfigError(
                f"{key} beside resume=: a run goes on with its own config, of which only trainer.* may change. "
                "Start a new run to change anything else."
            )
        if key not in flat(contents(config)):
            raise ConfigError(f"{key}: the run has no such key.{near(key, flat(contents(config)))}")
    job(DictConfig(OmegaConf.merge(config, OmegaConf.from_dotlist(changes))), folder, changes, resuming=True)
    return 0


def check_beforehand(argv: list[str]) -> None:
    """What does not compose, or cannot work, stops here, before any folder is made."""
    from vrnn_lab.experiment import check_accelerator

    overrides = [a for a in argv if not a.startswith("-")]
    dirs = _values(argv, ("--config-dir", "-cd"))
    own = [o for o in overrides if not o.lstrip("+").startswith("hydra") and o not in dirs]
    for each in jobs_of(own) if _sweeps(argv) else [own]:
        try:
            config = compose(each, tuple(dirs))
            check(config)
            check_accelerator(config)
        except ConfigError as error:
            raise ConfigError(f"{' '.join(each)}: {error}" if _sweeps(argv) else str(error)) from error


def check_launch(argv: list[str]) -> None:
    """What several processes of one run, which torchrun or srun started, cannot do."""
    if launched()[1] == 1:
        return
    if _sweeps(argv):
        raise ConfigError(
            "a sweep is started by itself, not by torchrun or srun: its jobs start their own processes."
        )
    if not any(a.startswith(("resume=", "hydra.run.dir=")) for a in argv):
        raise ConfigError(
            "started as several processes, which must agree on the run's folder; set hydra.run.dir=<folder>."
        )


def _sweeps(argv: list[str]) -> bool:
    return bool({"-m", "--multirun"} & set(argv))


def _values(argv: list[str], flags: tuple[str, ...]) -> list[str]:
    """The values of a flag, as --flag value or --flag=value."""
    found = [b for a, b in itertools.pairwise(argv) if a in flags]
    return found + [a.partition("=")[2] for a in argv if a.partition("=")[0] in flags and "=" in a]


def through_hydra(argv: list[str]) -> int:
    """Compose and launch: one run, or the jobs of a sweep by whichever launcher is chosen."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, who say them in one line
    failures: list[BaseException] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def launch(config: DictConfig) -> Any:
        of_hydra = HydraConfig.get()
        folder = Path(of_hydra.runtime.output_dir)
        try:
            return job(config, folder, list(of_hydra.overrides.task), wait=_sweeps(argv))
        except Exception as error:
            failures.append(error)
            if _sweeps(argv):
                print(f"failed   {folder}: {error}", file=sys.stderr)
            if _sweeps(argv):  # the launcher counts it; in a single run Hydra would only add to what is said
                raise

    try:
        launch()
        if failures:
            raise failures[0]
    except OSError as error:
        if error in failures or error.filename is None:
            raise
        raise ConfigError(
            f"the run folder {error.filename} cannot be made ({error.strerror}); choose another with "
            "hydra.run.dir=<folder>, or mend its permissions."
        ) from error
    return 0


def _terminated(number, frame) -> None:
    raise SystemExit(128 + number)  # Lightning alone would end with 0, as if the run were finished


def main() -> int:
    argv = sys.argv[1:]
    if _sweeps(argv):  # wherever it stands among the overrides
        argv = ["-m", *(a for a in argv if a not in ("-m", "--multirun"))]
        sys.argv[1:] = argv
    signal.signal(signal.SIGTERM, _terminated)
    if any(a.split("=")[0] in PASSED_ON for a in argv):
        return through_hydra(argv)
    quiet()
    folders = [a.partition("=")[2] for a in argv if a.startswith("resume=")]
    check_launch(argv)
    if folders:
        return resume(Path(folders[-1]), [a for a in argv if not a.startswith("resume=")])
    check_beforehand(argv)
    return through_hydra(argv)


if __name__ == "__main__":
    sys.exit(guarded(main))
