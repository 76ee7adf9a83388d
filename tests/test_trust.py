"""A run folder from somebody else runs no code, and neither reads nor writes anything outside itself."""

import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from helpers.commands import called
from helpers.small import IN_PROCESS
from vrnn_lab import Forecaster, evaluate, predict, run, sample
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import DamagedError
from vrnn_lab.runs import checkpoints, dataset_cache
from vrnn_lab.runs.build import load_parts
from vrnn_lab.runs.folder import config_of, config_to_build
from vrnn_lab.runs.trust import known_targets, trust_of
from vrnn_lab.training import fit

pytestmark = IN_PROCESS


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a run, and the working folder beside it, as on the machine of whoever received it."""
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "in.csv").write_text("id,time,x\na,0,1\na,1,2\n")
    return tmp_path / "run"


def change(folder, change) -> None:
    """Write config.yaml as somebody who means harm would: with a checksum that matches, or without any."""
    file = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))


def readers(folder: Path):
    """Every way to have a run folder read."""
    ask = [f"input={folder.parent / 'in.csv'}", f"output={folder.parent / 'out.csv'}", "horizon=1"]
    return {
        "load": lambda: load_parts(folder),
        "Forecaster.load": lambda: Forecaster.load(folder),
        "evaluate": lambda: called(evaluate, f"run={folder}"),
        "predict": lambda: called(predict, f"run={folder}", *ask),
        "sample": lambda: called(sample, f"run={folder}"),
        "resume": lambda: called(run, f"resume={folder}"),
    }


TARGETS = [
    "os.system",
    "subprocess.Popen",
    "vrnn_lab.training.ddp._start",
    "vrnn_lab.fetch.download",
    "vrnn_lab.core.files.write_whole",
    "vrnn_lab.forecasting.writer.writing",
    "vrnn_lab.data.cache.own_folder",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.OnExceptionCheckpoint",
    "lightning.pytorch.loggers.CSVLogger",
    "torch.optim.swa_utils.AveragedModel",
    "torch.hub.load",
    "evil.Model",
    "evil",
    "",
    ["os.system"],
    {"_target_": "os.system"},
    17,
]


PLACES = ["data", "model.head", "stop", "evaluate", "task", "trainer", "new"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "place"),
    [*((target, "model") for target in TARGETS), *(("evil.Model", place) for place in PLACES)],
    ids=str,
)
def test_a_config_constructs_nothing_that_conf_does_not_name(target, place, folder, tmp_path, monkeypatch):
    """The module of the target lies in the working folder and in the run folder, and would leave a trace."""
    for where in (tmp_path, folder):
        (where / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(config):
        *path, last = place.split(".")
        node = config
        for key in path:
            node = node[key]
        if not isinstance(node.get(last), dict):
            node[last] = {}
        node[last]["_target_"] = target

    change(folder, put)
    before = set(sys.modules)
    for way, read in readers(folder).items():
        with pytest.raises(ConfigError, match="_target_"):
            read()
        assert not (tmp_path / "ran").exists(), way
    assert "evil" not in set(sys.modules) - before


@pytest.mark.slow
def test_a_class_of_ones_own_is_read_when_its_module_is_named_or_imported(folder, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from vrnn_lab.models.rnn import RNN\nclass Mine(RNN): pass\nclass Other: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    change(folder, lambda config: config["model"].update(_target_="mine.Mine"))
    with pytest.raises(ConfigError, match="trust=mine"):
        load_parts(folder)
    assert "mine" not in sys.modules
    assert type(load_parts(folder, trust=("mine",)).model).__name__ == "Mine"
    assert type(Forecaster.load(folder).parts.model).__name__ == "Mine"  # imported by now
    change(folder, lambda config: config["model"].update(_target_="mine.Other"))
    for trust in ((), ("mine",), True):
        with pytest.raises(ConfigError):
            load_parts(folder, trust=trust)
    monkeypatch.delitem(sys.modules, "mine")


def test_what_trust_may_say():
    assert (trust_of(""), trust_of("false"), trust_of("true")) == (False, False, True)
    assert trust_of("my_model,lab.models") == ("my_model", "lab.models")
    for text in ("my model", "a,,b", "../x", "a.py:b"):
        with pytest.raises(ConfigError, match="trust="):
            trust_of(text)


def test_all_that_conf_names_is_known_and_every_run_of_ours_may_be_read():
    assert {
        "vrnn_lab.models.vrnn.VRNN",
        "torch.optim.AdamW",
        "vrnn_lab.training.compile_step.trainer",
    } <= known_targets()
    assert not any("callbacks.Model" in target or "_start" in target for target in known_targets())


# ---- paths in checkpoints, links, interpolations ------------------------------------------------------------------


@pytest.mark.slow
def test_paths_in_a_checkpoint_remove_nothing_outside_the_folder(folder, tmp_path):
    """`best_model_path` and its like name what Lightning removes when a better checkpoint comes."""
    precious = tmp_path / "precious"
    (precious / "inner").mkdir(parents=True)
    (precious / "inner" / "file").write_text("kept")
    file = folder / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    (key,) = [k for k in state["callbacks"] if k.startswith("Checkpoints")]
    for name in ("best_model_path", "kth_best_model_path", "last_model_path", "dirpath"):
        state["callbacks"][key][name] = str(precious)
    state["callbacks"][key]["best_k_models"] = {
        str(precious): torch.tensor(1e9),
        str(precious / "inner"): torch.tensor(2e9),
    }
    torch.save(state, file)
    for name in ("fit.json", "best.ckpt"):
        (folder / "checkpoints" / name).unlink()
    (folder / "metrics.json").unlink()
    change(folder, lambda config: config["trainer"].update(max_epochs=6))
    fit.run(config_of(folder), folder, resuming=True)
    assert (precious / "inner" / "file").read_text() == "kept"
    assert (folder / "checkpoints" / "best.ckpt").is_file()


def test_removing_a_checkpoint_removes_a_file_alone(tmp_path):
    (tmp_path / "checkpoints" / "inner").mkdir(parents=True)
    with pytest.raises(OSError):
        checkpoints.CheckpointFiles().remove_checkpoint(tmp_path / "checkpoints" / "inner")
    assert (tmp_path / "checkpoints" / "inner").is_dir()


LINKED = ["run.log", "metrics.json", ".lock", ".hydra/config.yaml", ".hydra", "checkpoints", "figures", "new.txt"]


@pytest.mark.parametrize("name", LINKED)
def test_links_inside_a_folder_are_not_followed(name, folder, tmp_path):
    outside = tmp_path / "outside"
    place = folder / name
    if place.is_dir():
        place.rename(outside)
    else:
        outside.write_bytes(place.read_bytes() if place.exists() else b"kept")
        place.unlink(missing_ok=True)
    place.symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else sorted(outside.rglob("*"))
    for read in readers(folder).values():
        with pytest.raises(ConfigError, match="is a link to"):
            read()
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.rglob("*")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_a_folder_keeps_nobody_waiting(folder):
    (folder / "metrics.json").unlink()
    os.mkfifo(folder / "metrics.json")
    with pytest.raises(ConfigError, match="a pipe"):
        load_parts(folder)


def test_a_link_to_the_whole_folder_is_the_users_own(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    assert load_parts(tmp_path / "latest").model.scale.dim == 1
    (folder / "notes.txt").symlink_to(tmp_path)
    assert load_parts(folder, trust=True).model.scale.dim == 1


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "a ${oc.env:HOME}", "\\${oc.env:HOME}", "${seed}", "${oc.decode:1}", "${", "\\\\${seed}"],
)
def test_what_looks_like_an_interpolation_is_text(text, folder, tmp_path):
    change(folder, lambda config: config.update(note=text, deep={"list": [text]}))
    config = config_to_build(folder)
    assert config.note == config.deep.list[0] == text
    fit._check_same_run(config, folder, resuming=False)  # and is so when it is written and read once more
    assert config_of(folder).note == text


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "model: !!python/object/apply:os.system [true]",
        "[" * 20_000,
        "- a\n- b\n",
        "\x00",
        "a: [",
        "",
        "a: 1\na: 2",
    ],
    ids=["aliases", "tag", "depth", "list", "nul", "open", "empty", "twice"],
)
def test_a_config_that_is_none_is_one_message(text, folder):
    (folder / ".hydra" / "config.yaml").write_text(text)
    for read in readers(folder).values():
        with pytest.raises((ConfigError, DamagedError), match=r"config\.yaml"):
            read()


# ---- the cache ----------------------------------------------------------------------------------------------------


def test_nothing_in_the_cache_is_a_pickle_and_nobody_else_may_write_there(tmp_path, monkeypatch):
    import pickle

    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_cache, "_held", {})
    monkeypatch.setattr(dataset_cache, "LONG", 0.0)
    config = compose(["data=ou", "data.train=5", "data.val=5", "data.test=5"])
    place = tmp_path / "cache" / "built"
    place.mkdir(parents=True)
    place.chmod(0o777)
    trap = pickle.dumps(Trap(str(tmp_path / "ran")))
    for name in (f"{dataset_cache._key(config)}.pickle", f"{dataset_cache._key(config)}.npz"):
        (place / name).write_bytes(trap)
    assert len(dataset_cache.data_of(config).splits["train"]) == 5
    assert not (tmp_path / "ran").exists() and place.stat().st_mode & 0o777 == 0o700
    assert [file.suffix for file in place.iterdir() if file.suffix != ".lock"] == [".npz"]


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
