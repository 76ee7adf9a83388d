"""Read and write run folders: .hydra/config.yaml defines the run, metrics.json holds its result.

torch is not imported here, so that reading a folder is quick.
"""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.moved import current
from vrnn_lab.config.plain import to_dict
from vrnn_lab.core import run_files
from vrnn_lab.core.example import file_of
from vrnn_lab.core.files import clean, read_json, read_yaml, write_json, write_yaml
from vrnn_lab.runs.trust import Trust, refuse_links, refuse_targets

SCORE = "val/loss"  # the metric by which models, tricks and trials are chosen


def metrics_of(folder: Path) -> dict[str, Any]:
    """Return the recorded result of a run, empty before it has ended."""
    try:
        return read_json(
            folder / run_files.METRICS, "Remove the file; the run then resumes from its last checkpoint."
        )
    except FileNotFoundError:
        return {}


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of a completed run, None for any other."""
    metrics = metrics_of(folder)
    return metrics if metrics.get("status") == "completed" else None


def status(folder: Path) -> str:
    """Return the status of a run: new, running or interrupted, or, once it has ended, completed, failed or pruned."""
    ended = metrics_of(folder).get("status")
    if not ended and is_running(folder):
        return "running"
    if ended := ended or metrics_of(folder).get("status"):  # it may have ended between the two checks
        return ended
    return "interrupted" if (folder / run_files.CONFIG).exists() else "new"


def is_running(folder: Path) -> bool:
    """Return whether a process holds the run's lock.

    The check itself takes the lock for some microseconds; a process that wants it then waits.
    """
    if not (folder / run_files.LOCK).exists() or (folder / run_files.LOCK).is_symlink():
        return False
    try:
        with FileLock(folder / run_files.LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the folder is read-only, such as somebody else's
        return False


def record_start(folder: Path, config: DictConfig, overrides: list[str], choices: dict[str, Any]) -> None:
    """Write what the run is to disk before it starts; choices: the option of each config group."""
    own = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    write_yaml(folder / run_files.CHOICES, OmegaConf.to_yaml(own))
    write_yaml(folder / run_files.OVERRIDES, OmegaConf.to_yaml(overrides))
    write_yaml(folder / run_files.CONFIG, OmegaConf.to_yaml(config, resolve=True))


def record_failure(
    folder: Path, error: BaseException, config: DictConfig | None = None, status: str = "failed"
) -> None:
    """Record why a run has no result; also its config, where the run itself did not get to write it."""
    if config is not None and not (folder / run_files.CONFIG).exists():
        record_start(folder, with_absolute_paths(config), [], {})
    failure = {"status": status, "error": f"{type(error).__name__}: {error}"}
    write_json(folder / run_files.METRICS, failure)


def with_absolute_paths(config: DictConfig) -> DictConfig:
    """Return a config with absolute paths, so that its folder can be read from any directory."""
    absolute = lambda path: str(file_of(path).absolute())
    paths = {"data": {"path": absolute(config.data.path)}} if config.data.get("path") else {}
    paths |= {"start": absolute(config.start)} if config.get("start") else {}
    return DictConfig(OmegaConf.merge(config, paths)) if paths else config


def config_of(folder: Path) -> DictConfig:
    """Return the config of a run; raise ConfigError where there is none.

    Any ${...} in it stays text and is not resolved.
    """
    file = Path(folder) / run_files.CONFIG
    if (Path(folder) / run_files.BASELINE).is_file():
        raise ConfigError(
            f"{folder} holds a baseline that vrnn_lab.auto compared, and no run; name the folder around it: "
            f"run={Path(folder).parent}"
        )
    if not file.is_file():
        raise ConfigError(f"{folder} is not a run folder: {file} does not exist. Expected outputs/<date>/<time>.")
    plain = read_yaml(file, COPY)
    if not isinstance(plain, dict):
        raise ConfigError(f"{file} holds a {type(plain).__name__}; expected the config of a run. {COPY}")
    return DictConfig(OmegaConf.create(_literal(current(plain))))


COPY = "Copy it again from where the run was made."


def _literal(node: Any) -> Any:
    """Escape ${ in every text, which OmegaConf would resolve: ${oc.env:...} reads the environment."""
    if isinstance(node, dict):
        return {key: _literal(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_literal(value) for value in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def config_to_build(folder: Path, trust: Trust = ()) -> DictConfig:
    """Return the config of a run whose parts are about to be constructed.

    Raise ConfigError where the folder, which may be somebody else's, holds links, or its config names classes that
    neither conf/ nor the user names (vrnn_lab.runs.trust).
    """
    if trust is not True:
        refuse_links(folder)
    config = config_of(folder)
    refuse_targets(to_dict(config), folder, trust)
    return config


def choices_of(folder: Path) -> dict[str, Any]:
    """Return the option chosen of each config group, empty for a run that no command started."""
    file = Path(folder) / run_files.CHOICES
    return to_dict(read_yaml(file, COPY)) if file.is_file() else {}


def name_of(folder: Path) -> str:
    """Return a name for the run of a folder: the last two parts of its path, such as 2026-01-31/10-20-30."""
    return "/".join(folder.resolve().parts[-2:])


def command_of(folder: Path) -> str:
    """Return the command that makes the same run."""
    overrides = read_yaml(folder / run_files.OVERRIDES, COPY)
    return shlex.join(["python", "-m", "vrnn_lab.run", *map(str, overrides)])


@contextmanager
def run_lock(folder: Path, wait: bool):
    """Create a run folder and hold its lock, so that one process at a time works on it.

    wait: a second process waits, as equal jobs of a sweep do; otherwise it raises ConfigError.
    """
    # One second, since `is_running` takes the lock briefly.
    lock = FileLock(folder / run_files.LOCK, timeout=-1 if wait else 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # creates the file: on a disk without flock an existing file is a held lock
    except Timeout:
        raise ConfigError(f"another process is working on {folder}; wait until it has ended.") from None
    except OSError as error:
        raise ConfigError(
            f"the run folder {folder} cannot be written ({error.strerror}); choose another with "
            "hydra.run.dir=<folder>, or correct its permissions."
        ) from error
    try:
        clean(folder)
        yield
    finally:
        lock.release()
