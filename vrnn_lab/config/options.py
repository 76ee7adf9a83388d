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
