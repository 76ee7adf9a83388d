"""Every command of the gallery runs as shown, shortened, and leaves the picture of its page."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.piano_rolls import rolls_in
from helpers.stays import files_of
from helpers.walks import walks_in
from vrnn_lab.config.compose import compose
from vrnn_lab.config.validate import check
from vrnn_lab.data.cache import cache_folder

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
ENTRIES = yaml.safe_load((FOLDER / "entries.yaml").read_text())
FETCHED = {"paleoclimate": "EPICA_Dome_C_CO2.csv", "light_curves": "lc_1.3444.614.tar.bz2",
           "speech": "JapaneseVowels_TRAIN.ts", "motion": "BasicMotions_TRAIN.ts"}  # fmt: skip
STAYS = 4000  # records of each set of the challenge, which its reader counts


def stays_in(folder: Path, name: str) -> None:
    for file, text in files_of(STAYS).items():
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text(text)


def visits_in(folder: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    visits = [
        (i, day, bili) for i in range(60) for day, bili in zip((0, 190, 360), rng.uniform(1, 9, 3), strict=True)
    ]
    lines = [f"{i},{day},{bili:.1f},3.5,{200 + i},{10.5 + bili / 10:.1f}" for i, day, bili in visits]
    (folder / name).write_text("\n".join(["id,day,bili,albumin,platelet,protime", *lines]) + "\n")


STAND_INS = {  # small files in the format of those that a reader brings
    "physionet2012": stays_in,
    "pbcseq.csv": visits_in,
    "JSB_Chorales.mat": rolls_in,
    "mocap35.mat": lambda folder, name: walks_in(folder),
}
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
    for name in entry.get("files", []):
        STAND_INS[name](tmp_path, name)
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
