"""docs/your-data.md works as it stands, from its first command to its last."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vrnn_lab.cli.arguments import run_command

TEXT = (Path(__file__).parent.parent / "docs" / "your-data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def call(line: str, monkeypatch) -> int:
    """A command in this process: to import torch for each would take most of the time."""
    python, flag, module, *arguments = shlex.split(line)
    assert (python, flag) == ("python", "-m")
    monkeypatch.setattr("sys.argv", [module, *arguments])
    return run_command(importlib.import_module(module).main)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What every block of the page left in an empty folder, and what the commands printed."""
    folder, said = tmp_path_factory.mktemp("page"), []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for place, (language, block) in enumerate(BLOCKS):
            if language == "python":
                exec(block, shown := {})
                said.append(shown)
            elif not language:
                failing = BLOCKS[place + 1][1] if BLOCKS[place + 1][0] == "text" else ""
                for line in block.splitlines():
                    assert call(line, monkeypatch) == (2 if failing.startswith("error:") else 0), line
    return folder, said


@pytest.mark.slow
def test_every_command_runs_and_leaves_what_it_says(page):
    folder, _ = page
    assert len(BLOCKS) > 10
    ahead, filled = (pd.read_csv(folder / name) for name in ("ahead.csv", "filled.csv"))
    assert len(ahead) == 40 * 14 * 2 and ahead["time"].str.match(r"\d{4}-\d\d-\d\d$").all()
    empty = pd.read_csv(folder / "weather.csv")[["temperature", "humidity"]].isna().sum()
    assert filled["channel"].value_counts().to_dict() == empty.to_dict()
    assert len(list((folder / "ahead_figures").glob("*.png"))) == 2
    crossed = pd.read_csv(folder / "when.csv")
    assert len(crossed) == 40 * 14 and crossed["crossed"].between(0, 1).all() and (crossed["never"] > 0).any()
    mixed = pd.read_csv(folder / "mixed.csv")
    assert len(mixed) == len(ahead) and not np.allclose(mixed["mean"], ahead["mean"])
    asked = pd.read_csv(folder / "asked_for.csv")
    assert asked["id"].tolist() == ["new"] * 2 + ["station 03"] * 2 and "path_3" in asked


@pytest.mark.slow
def test_python_says_the_same(page):
    folder, said = page
    theirs = pd.read_csv(folder / "filled.csv", parse_dates=["time"])
    pd.testing.assert_frame_equal(said[-1]["filled"], theirs, check_dtype=False, rtol=1e-9)
    assert len(said[-1]["ahead"]) == 28


def test_the_refusal_it_shows_is_the_one_it_meets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (_, made), (_, line), (_, shown) = BLOCKS[:3]
    exec(made, {})
    assert call(line, monkeypatch) == 2
    assert shown.split("weather.csv: ")[1].strip() in capsys.readouterr().err
