"""The lock holds an allowed release of every dependency with its hashes; the Makefile names files that are there."""

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vrnn_lab
from helpers import extras

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


def test_the_page_of_versions_lists_what_is_public():
    page = (TOP / "docs" / "versions.md").read_text()
    names = {*re.findall(r"`vrnn_lab\.(\w+)`", page)}
    assert names == {*vrnn_lab.__all__}
    spec = spec_from_file_location("hooks", TOP / "docs" / "site" / "hooks.py")
    spec.loader.exec_module(hooks := module_from_spec(spec))
    contracts = re.search(r"parts of your own \| (.*?) and their", page)[1]
    assert {*re.findall(r"`(\w+)`", contracts)} == {name for names in hooks.EXTENDING.values() for name in names}


def test_the_version_is_one_everywhere_and_has_its_notes():
    version = PROJECT["version"]
    assert f"version: {version}" in (TOP / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", (TOP / "CHANGELOG.md").read_text(), re.M)
    minor = version.rsplit(".", 1)[0].replace(".", "_")
    assert (TOP / "tests" / "fixtures" / f"run_of_{minor}_0").is_dir()


def test_every_extra_is_tried_alone():
    of_users = {*PROJECT["optional-dependencies"]} - {"test"}
    assert {*extras.WORKS} == of_users


def test_the_tests_of_the_oldest_releases_are_there():
    names = re.search(r"^FEW := (.+)$", MAKEFILE, re.M)[1].split()
    assert names and all((TOP / "tests" / f"test_{name}.py").is_file() for name in names)
