"""Every command of the gallery runs as shown, shortened, and leaves the picture of its page."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vrnn_lab.config.compose import compose
from vrnn_lab.config.validate import check
from vrnn_lab.data.cache import cache_folder

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
ENTRIES = yaml.safe_load((FOLDER / "entries.yaml").read_text())
FETCHED = {"paleoclimate": "EPICA_Dome_C_CO2.csv", "light_curves": "lc_1.3444.614.tar.bz2",
           "speech": "JapaneseVowels_TRAIN.ts", "motion": "BasicMotions_TRAIN.ts"}  # fmt: skip
QUICK = ["trainer.max_steps=4", "evaluate.samples=2", "evaluate.draws=3", "trainer=cpu"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_every_page_has_its_picture_and_a_command_that_composes(entry):
    assert (FOLDER / f"{entry['name']}.png").stat().st_size > 10_000
    assert entry["shows"].endswith(".") and entry["not"].endswith(".")
    for command in entry["commands"]:
        module, *words = shlex.split(command)[2:]
        if module == "vrnn_lab.run":
            check(compose([word for word in words if not word.startswith("hydra.")]))


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_every_command_runs_and_leaves_its_picture(entry, tmp_path):
    for needed in entry.get("before", []):
        name = needed.split()[-1]
        if name in FETCHED and not (cache_folder() / FETCHED[name]).is_file():
            pytest.skip(f"{needed} has not been run")
    for command in entry["commands"]:
        module, *words = shlex.split(command)[2:]
        if module == "vrnn_lab.run":
            words = [word for word in words if not word.startswith("trainer.max_time=")] + QUICK
            config = compose([word for word in words if not word.startswith("hydra.")])
            words += [
                f"data.{split}=20" for split in ("train", "val", "test") if isinstance(config.data.get(split), int)
            ]
        elif module == "vrnn_lab.auto":
            words = [word for word in words if not word.startswith(("budget=", "models="))]
            words += ["budget=45", "models=linear_sde", "trainer=cpu"]
        done = subprocess.run([sys.executable, "-m", module, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / entry["picture"]).is_file()
