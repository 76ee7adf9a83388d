"""The lock holds an allowed release of every dependency with its hashes; the Makefile names files that are there."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[1]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
MAKEFILE = (TOP / "Makefile").read_text()
EXTRAS = re.search(r"^EXTRAS := (.+)$", MAKEFILE, re.M)[1].split()
ENTRIES = re.split(r"\n(?=\S)", (TOP / "requirements.lock").read_text().split("make lock\n")[1])


def locked() -> dict[str, list[str]]:
    """Return the locked releases of each package; there are several where they depend on the version of Python."""
    found: dict[str, list[str]] = {}
    for entry in ENTRIES:
        name, version = re.match(r"(\S+)==(\S+)", entry).groups()
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_every_dependency_is_locked_at_a_release_that_is_allowed():
    wanted = PROJECT["dependencies"] + [r for extra in EXTRAS for r in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        releases = locked()[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(release) for release in releases), (str(requirement), releases)


@pytest.mark.parametrize("pin", re.findall(r"^[a-z].*==.*$", (TOP / "constraints.txt").read_text(), re.M))
def test_it_agrees_with_the_constraints(pin):
    name, version = pin.split("==")
    assert locked()[canonicalize_name(name)] == [version]


def test_every_entry_names_the_hashes_of_its_files():
    assert len(ENTRIES) > 50
    for entry in ENTRIES:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_the_tests_of_the_oldest_releases_are_there():
    names = re.search(r"^FEW := (.+)$", MAKEFILE, re.M)[1].split()
    assert names and all((TOP / "tests" / f"test_{name}.py").is_file() for name in names)
