"""Train, score and draw a model: python -m vrnn_lab.run; -m runs a sweep, resume=<run folder> resumes a run."""

import gc
import itertools
import os
import re
import sys
from contextlib import contextmanager, suppress
from datetime import datetime
from math import nan
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from vrnn_lab.cli.arguments import configure_logging, outlive_readers, refuse_repeated, run_command
from vrnn_lab.cli.result import JSON, has_flag, result
from vrnn_lab.cli.shown_text import complain, say
from vrnn_lab.cli.signals import install
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.compose import compose, from_overrides
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, groups, options
from vrnn_lab.config.plain import flatten, to_dict
from vrnn_lab.config.validate import check
from vrnn_lab.core import run_files
from vrnn_lab.sweeps.gpu_slots import device_for
from vrnn_lab.sweeps.sweep import Sweeper, SweepFailed, plan
from vrnn_lab.training.ddp import launched

PASSED_ON = (
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)

DIR_FLAGS = ("--config-dir", "-cd")
ELSEWHERE = ("hydra/launcher=submitit_slurm", "hydra/launcher=ray")  # jobs run on machines with other devices


def job(
    config: DictConfig,
    folder: Path,
    overrides: list[str],
    choices: dict[str, Any] | None = None,
    resuming: bool = False,
    links: bool = False,
) -> float:
    """Run once in a folder, print the table, and return the score, val/loss; NaN in all but the first process."""
    configure_logging()
    from vrnn_lab.reports.run_page import write_page
    from vrnn_lab.reports.run_table import print_run
    from vrnn_lab.runs.folder import SCORE
    from vrnn_lab.training import fit as fitting

    try:
        metrics = fitting.run(config, folder, overrides, choices, resuming=resuming, links=links)
    except KeyboardInterrupt:
        if not (folder / run_files.LAST).exists():
            raise KeyboardInterrupt("no checkpoint was written yet; to start again, repeat the command") from None
        raise KeyboardInterrupt(
            f"to resume from the last checkpoint: python -m vrnn_lab.run resume={folder}"
        ) from None
    if metrics is None:  # only the first process of this run prints the table
        return nan
    text = print_run([folder], metrics)
    result(run=str(folder), **metrics)
    with suppress(OSError), open(folder / run_files.LOG, "a", encoding="utf-8") as log:  # it is printed already
        log.write(text)
    try:
        say(f"page     {write_page(folder)}")
    except (OSError, ValueError) as error:  # a full disk, or a file that is too large for the page
        complain(f"warning: the page of the run was not written: {error}")
    return metrics[SCORE]


def _import_training() -> None:
    """Import what a run needs, without garbage collection meanwhile, which saves a sixth of the time."""
    gc.disable()
    try:
        import vrnn_lab.training.fit  # noqa: F401 - imported only to load it
    finally:
        gc.enable()


def job_of_sweep(config: DictConfig, folder: Path, overrides: list[str], choices: dict[str, Any]) -> float:
    """Run one job of a sweep, in any process; print a line on how it ended, and raise RuntimeError if it failed."""
    configure_logging()
    _import_training()
    from vrnn_lab.runs.folder import SCORE
    from vrnn_lab.training import fit as fitting

    say(f"started  {folder.name}")
    try:
        with _placed(config):
            metrics = fitting.run(config, folder, overrides, choices, in_sweep=True)
        assert metrics is not None
        fit = f"{SCORE} {metrics[SCORE]:.4g}, {metrics['fit/seconds']:.0f} s of fit"
        say(f"done     {folder.name}: {fit}")
        return metrics[SCORE]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        fitting.release()
    complain(f"failed   {folder.name}: {reason}")
    raise RuntimeError(reason)  # a new error, which can be pickled and whose traceback holds no tensors


@contextmanager
def _placed(config: DictConfig):
    """Give a job of a sweep the GPU with the fewest jobs, on a machine with several."""
    from torch.cuda import device_count

    if config.trainer.accelerator == "cpu" or config.trainer.devices != 1 or device_count() < 2:
        yield
        return
    with device_for(device_count()) as device:
        config.trainer.devices = [device]
        yield


def resume(folder: Path, changes: list[str], dirs: tuple[str, ...] = ()) -> int:
    """Resume a run with its own config, of which only trainer.* and the loggers may change; trust= may be given.

    dirs: folders of configs besides our own, for loggers. Raise ConfigError for any other change, and where the run
    would be recorded at a place that its config names.
    """
    from vrnn_lab.runs.folder import config_to_build
    from vrnn_lab.runs.trust import refuse_places, trust_of

    trust = trust_of(next((c.partition("=")[2] for c in reversed(changes) if c.startswith("trust=")), ""))
    changes = [change for change in changes if not change.startswith("trust=")]
    config = config_to_build(folder, trust)
    if chosen := [change for change in changes if change.startswith("logger=")]:
        of_loggers = [change for change in changes if change.startswith(("logger=", "logger."))]
        config.logger = compose(["model=rnn", "data=ou", *of_loggers], dirs).logger  # any model and data
        changes = [change for change in changes if change not in of_loggers]
    if not chosen and trust is not True:
        given = {change.partition("=")[0] for change in changes}
        refuse_places(to_dict(config), folder, given)
    for change in changes:
        key = change.split("=")[0]
        if not key.startswith(("trainer.", "logger.")):
            raise ConfigError(
                f"{key} cannot be given with resume=: a run resumes with its own config, of which only trainer.* and "
                "logger may change. Start a new run to change anything else."
            )
        if key not in flatten(to_dict(config)):
            raise ConfigError(f"{key}: the run has no such key.{did_you_mean(key, flatten(to_dict(config)))}")
    changed = DictConfig(OmegaConf.merge(config, from_overrides(changes)))
    job(changed, folder, changes, resuming=True, links=trust is True)
    return 0


def check_beforehand(argv: list[str]) -> None:
    """Raise ConfigError, before any folder is made, for a call that does not compose or cannot work."""
    from vrnn_lab.training.devices import check_accelerator

    overrides, dirs = _overrides_and_dirs(argv)
    if _sweeps(argv):
        for each in plan(overrides, dirs):
            if not set(ELSEWHERE) & set(overrides):
                check_accelerator(each.config)
        return
    config = compose([o for o in overrides if not _of_hydra(o)], dirs)
    check(config)
    if config.retry:
        raise ConfigError("retry belongs to a sweep (-m); a single run that failed is resumed by resume=<folder>.")
    check_accelerator(config)


def _overrides_and_dirs(argv: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the overrides of a call, and its folders of configs besides our own."""
    given = _values(argv, DIR_FLAGS)
    dirs = tuple(str(Path(folder).absolute()) for folder in given)
    return tuple(a for a in argv if not a.startswith("-") and a not in given), dirs


def _of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def check_launch(argv: list[str]) -> None:
    """Raise ConfigError for what several processes of one run, started by torchrun or srun, cannot do."""
    if launched()[1] == 1:
        return
    if _sweeps(argv):
        raise ConfigError("start a sweep without torchrun or srun: its jobs start their own processes.")
    if not any(a.startswith(("resume=", "hydra.run.dir=")) for a in argv):
        raise ConfigError(
            "this command was started as several processes, which must agree on the run's folder; set "
            "hydra.run.dir=<folder>."
        )


def _sweeps(argv: list[str]) -> bool:
    return bool({"-m", "--multirun"} & set(argv))


def _values(argv: list[str], flags: tuple[str, ...]) -> list[str]:
    """Return the values of a flag, given as --flag value or --flag=value."""
    separate = [b for a, b in itertools.pairwise(argv) if a in flags]
    return separate + [a.partition("=")[2] for a in argv if a.partition("=")[0] in flags and "=" in a]


def through_hydra(argv: list[str]) -> int:
    """Compose and launch by Hydra one run, or the jobs of a sweep by any launcher; return the exit code."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach us, to print them as one line
    failures: list[BaseException] = []
    run_one = job_of_sweep if _sweeps(argv) else job
    # Register our sweeper under the name of Hydra's basic one, which the configuration names.
    Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"] = Sweeper

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def launch(config: DictConfig) -> Any:
        of_hydra = HydraConfig.get()
        try:
            chosen = to_dict(of_hydra.runtime.choices)
            return run_one(config, Path(of_hydra.runtime.output_dir), list(of_hydra.overrides.task), chosen)
        except Exception as error:
            if run_one is job_of_sweep:  # the sweeper records the failure
                raise
            failures.append(error)  # keep the error from Hydra, which would add to its message

    try:
        launch()
        if failures:
            raise failures[0]
    except SweepFailed as error:
        complain(f"error: {error}")
        return 1
    except OSError as error:
        if error in failures or error.filename is None:
            raise
        raise ConfigError(
            f"the run folder {error.filename} cannot be made ({error.strerror}); choose another with "
            "hydra.run.dir=<folder>, or correct its permissions."
        ) from error
    return 0


def usage(dirs: tuple[str, ...] = ()) -> str:
    """Return the help of config.yaml with all choices; Hydra's own listing of them takes seconds."""
    texts = yaml.safe_load((CONF / "config.yaml").read_text())["hydra"]["help"]
    options_of = {group: set(options(group)) for group in groups()}
    for folder in map(Path, dirs):
        for file in folder.glob("*/**/*.yaml"):
            options_of.setdefault(str(file.parent.relative_to(folder)), set()).add(file.stem)
    choices = "".join(f"{group}: {', '.join(sorted(names))}\n" for group, names in sorted(options_of.items()))
    text = texts["template"].replace("$APP_CONFIG_GROUPS", choices)
    return re.sub(r"\$\{hydra\.help\.(\w+)\}", lambda name: texts[name[1]], text)


def main() -> int:
    argv = sys.argv[1:]
    install()
    if {"-h", "--help"} & set(argv):
        print(usage(_overrides_and_dirs(argv)[1]))
        return 0
    if any(a.split("=")[0] in PASSED_ON for a in argv):
        return through_hydra(argv)
    configure_logging()
    refuse_repeated(_overrides_and_dirs(argv)[0])
    if _sweeps(argv) and has_flag(JSON):
        raise ConfigError(
            "--json prints the result of one run, and -m makes a sweep of many; leave --json out, and read their "
            "results by python -m vrnn_lab.report outputs/<sweep> runs=true --json"
        )
    _import_training()
    folders = [a.partition("=")[2] for a in argv if a.startswith("resume=")]
    check_launch(argv)
    if folders and (Path(folders[-1]) / run_files.STUDY).is_file():
        from vrnn_lab.auto import resume as resume_study

        return resume_study(Path(folders[-1]), [a for a in argv if not a.startswith("resume=")])
    if folders:
        changes, dirs = _overrides_and_dirs(argv)
        if flags := [a for a in argv if a.startswith("-") and a.partition("=")[0] not in DIR_FLAGS]:
            raise ConfigError(f"{flags[0]} cannot be given with resume=; of flags it takes --config-dir.")
        return resume(Path(folders[-1]), [a for a in changes if not a.startswith("resume=")], dirs)
    if _sweeps(argv) and not any(a.startswith("sweep=") for a in argv):
        argv.append(f"sweep={datetime.now():%Y-%m-%d_%H-%M-%S}")
    check_beforehand(argv)
    if _sweeps(argv):
        Sweeper.request = _overrides_and_dirs(argv)
        own = [a for a in Sweeper.request[0] if not _of_hydra(a) and not a.startswith(("sweep=", "retry="))]
        sys.argv[1:] = ["-m", *(a for a in argv if a not in (*own, "-m", "--multirun"))]
    return through_hydra(argv)


if __name__ == "__main__":
    outlive_readers()
    sys.exit(run_command(main, scripts=True))
