"""The ledger of published numbers is what its pages say, and every test that it names exists."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ENTRIES = ROOT / "docs" / "ledger" / "entries.yaml"


def load():
    spec = importlib.util.spec_from_file_location("ledger", ROOT / "docs" / "ledger" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ledger = load()


def rows() -> list[dict]:
    return [row for group in yaml.safe_load(ENTRIES.read_text()) for row in group["rows"]]


def test_the_page_is_what_its_program_writes():
    assert (ROOT / "docs" / "ledger.md").read_text() == ledger.page()


def test_there_are_thirty_published_numbers_and_each_has_a_source():
    assert len(rows()) >= 30
    assert all(str(row["source"]).strip() and float(row["published"]) > 0 for row in rows())


def test_every_test_that_a_row_names_exists():
    named = {name for row in rows() for name in re.findall(r"tests/\w+\.py::\w+", row.get("cause", ""))}
    assert named
    for name in named:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "missed"}, "is not missed"),
        ({"outcome": "fine"}, "expected one of reached"),
        (
            {"here": {"page": "hopper.md", "section": "Interpolation", "row": "nothing", "column": "10 %"}},
            "no row 'nothing'",
        ),
        (
            {"here": {"page": "hopper.md", "section": "Nowhere", "row": "linear", "column": "10 %"}},
            "no section 'Nowhere'",
        ),
        ({"here": {"page": "physionet.md", "pattern": "no such words"}}, "nothing matches"),
        ({"outcome": "refuted", "cause": "it seems so"}, "no test in the cause shows it"),
    ],
)
def test_a_row_that_its_page_does_not_bear_out_is_refused(change, message):
    entry = {
        "published": "1.441",
        "here": {
            "page": "hopper.md",
            "section": "Extrapolation: 200 points, seen ones among the first 100",
            "row": "`latent_ode` | 7500",
            "column": "10 %",
            "part": 0,
        },
        "outcome": "reached",
    }
    assert ledger.checked(entry)[0] == "0.569"
    with pytest.raises(ValueError, match=message):
        ledger.checked({**entry, **change})


def test_a_number_that_is_better_when_higher_is_compared_so():
    entry = {"published": "0.858", "here": {"page": "physionet.md", "pattern": "AUC: ([0-9.]*[0-9])"}}
    ledger.checked({**entry, "higher": True, "outcome": "reached"})
    with pytest.raises(ValueError, match="is not reached"):
        ledger.checked({**entry, "outcome": "reached"})
