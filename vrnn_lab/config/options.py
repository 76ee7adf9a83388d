"""List the files of conf/: the groups of configs and the options of each."""

from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


@cache
def groups() -> tuple[str, ...]:
    """Return the groups that a run chooses among; the spaces of conf/search are for vrnn_lab.search alone."""
    folders = [p for p in CONF.rglob("*") if p.is_dir() and any(p.glob("*.yaml")) and p != CONF / "search"]
    return tuple(sorted(str(p.relative_to(CONF)) for p in folders))


def options(group: str) -> list[str]:
    """Return the options of a group, sorted by name."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def package_of(group: str, option: str) -> str:
    """Return the place of an option's keys in a config: model for model=rnn, and logger.csv for logger=csv.

    It is _global_ for an option, such as a trick, that may set any key.
    """
    first = (CONF / group / f"{option}.yaml").read_text().partition("\n")[0]
    return first.removeprefix("# @package ") if first.startswith("# @package ") else group.replace("/", ".")
