"""Damaged files are named with the cure; no number that they would give is printed as if it were right."""

import errno
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from helpers.commands import called, command
from helpers.small import IN_PROCESS, RUN, trained
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import (
    PART,
    DamagedError,
    UnwritableError,
    clean,
    read_json,
    read_yaml,
    replacing,
    write_bytes,
    write_json,
    write_yaml,
)
from vrnn_lab.evaluation.recalibration import load
from vrnn_lab.figures import model_figures
from vrnn_lab.runs import checkpoints, provenance
from vrnn_lab.runs.build import load_parts
from vrnn_lab.runs.folder import config_of, metrics_of, run_lock
from vrnn_lab.training import fit

pytestmark = IN_PROCESS


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


READ = {
    "checkpoints/best.ckpt": load_parts,
    "checkpoints/last.ckpt": lambda folder: checkpoints.read(folder / "checkpoints" / "last.ckpt"),
    ".hydra/config.yaml": config_of,
    ".hydra/origin.json": lambda folder: provenance.changes(folder, config_of(folder)),
    "metrics.json": metrics_of,
    "recalibration.json": lambda folder: load(folder, ("x",)),
    "checkpoints/fit.json": lambda folder: read_json(folder / "checkpoints" / "fit.json", ""),
    "calibration.json": lambda folder: read_json(folder / "calibration.json", ""),
}


def spoiled(content: bytes) -> dict[str, bytes]:
    """What may become of a file on its way."""
    place = len(content) // 2
    return {
        "empty": b"",
        "half": content[:place],
        "shifted": content[1:],
        "zeros": bytes(len(content)),
        "foreign": b"PK\x03\x04 this is no such file",
        "not text": b"\xff\xfe" + content,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("how", list(spoiled(b"")))
def test_a_truncated_empty_or_foreign_file_is_named_with_a_cure(name, how, folder, finished):
    READ[name](folder)
    (folder / name).write_bytes(spoiled((finished / name).read_bytes())[how])
    with pytest.raises((DamagedError, ConfigError), match=Path(name).name) as refused:
        READ[name](folder)
    assert not isinstance(refused.value, UnicodeError)


def meaning(name: str, folder: Path):
    """What a file says: everything that a later number depends on."""
    if name.endswith(".ckpt"):
        found = checkpoints.read(folder / name)
        return {key: value.tolist() for key, value in found["state_dict"].items()}, found["global_step"]
    if name.endswith(".yaml"):
        return read_yaml(folder / name, "")
    return read_json(folder / name, "")


@pytest.mark.parametrize("name", READ)
def test_a_flipped_bit_is_noticed_or_changes_nothing(name, folder, finished, bits=40):
    """Bits all over the file, every one alone: the reader refuses the file, or reads what was written."""
    content, right = (finished / name).read_bytes(), meaning(name, finished)
    noticed = 0
    for i in range(bits):
        place, bit = (len(content) - 1) * i // (bits - 1), i % 8
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        (folder / name).write_bytes(flipped)
        try:
            assert meaning(name, folder) == right, (place, bit)
        except DamagedError:
            noticed += 1
    assert noticed > bits // 2


@pytest.mark.parametrize("name", [name for name in READ if name.endswith(".ckpt")])
def test_a_record_of_another_size_is_noticed(name, folder, finished):
    """torch leaves the rest of a tensor as the memory was, and zipfile verifies the checksum only at the end."""
    content = (finished / name).read_bytes()
    starts = [found.start() for found in re.finditer(rb"PK\x01\x02", content)]
    assert len(starts) > 10
    for start in starts:
        for field in (start + 20, start + 24):  # of the directory at the end: compressed size, size
            damaged = bytearray(content)
            damaged[field : field + 4] = bytes(4)
            (folder / name).write_bytes(damaged)
            with pytest.raises(DamagedError, match="damaged"):
                checkpoints.read(folder / name)


def test_no_flipped_bit_of_a_record_in_the_directory_of_a_checkpoint_changes_a_number(folder, finished):
    """Every bit of one entry, where torch and zipfile read sizes, flags and places."""
    file = folder / "checkpoints" / "best.ckpt"
    content, right = file.read_bytes(), meaning("checkpoints/best.ckpt", finished)
    starts = [found.start() for found in re.finditer(rb"PK\x01\x02", content)]
    for place in range(starts[5], starts[6]):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            try:
                assert meaning("checkpoints/best.ckpt", folder) == right, (place - starts[5], bit)
            except DamagedError:
                continue


@pytest.mark.stress
@pytest.mark.parametrize("name", READ)
def test_no_flipped_bit_of_thousands_changes_a_number(name, folder, finished):
    test_a_flipped_bit_is_noticed_or_changes_nothing(name, folder, finished, bits=5000)


def test_what_holds_no_checksum_is_read_as_it_is(tmp_path):
    """As runs of earlier versions wrote it."""
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "a.yaml").write_text("a: 1e-3\n")
    assert read_json(tmp_path / "a.json", "") == {"a": 1} and read_yaml(tmp_path / "a.yaml", "") == {"a": 0.001}


def test_what_is_written_is_read_again(tmp_path):
    content = {"a": [1, 2.5, float("inf")], "b": None, "ü": "é\n"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", "") == content and "sha256" in json.loads((tmp_path / "a.json").read_text())
    write_yaml(tmp_path / "a.yaml", "a: ${b}\nb: 1\n")
    assert read_yaml(tmp_path / "a.yaml", "") == {"a": "${b}", "b": 1}
    with pytest.raises(DamagedError, match="remove that line"):
        (tmp_path / "a.yaml").write_text((tmp_path / "a.yaml").read_text().replace("b: 1", "b: 2"))
        read_yaml(tmp_path / "a.yaml", "")


@pytest.mark.slow
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_and_the_numbers_are_the_same(folder, finished, caplog):
    for name in ("metrics.json", "checkpoints/fit.json"):
        (folder / name).unlink()
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "vrnn_lab"):
        found = fit.run(config_of(folder), folder, resuming=True)
    assert found is not None and "The run resumes from the checkpoint before it" in caplog.text
    seconds = lambda key: "second" in key
    right = metrics_of(finished)
    assert {k: v for k, v in found.items() if not seconds(k)} == {k: v for k, v in right.items() if not seconds(k)}


def test_without_a_whole_checkpoint_a_run_does_not_go_on(folder):
    for name in ("metrics.json", "checkpoints/fit.json", "checkpoints/before_last.ckpt"):
        (folder / name).unlink()
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"last\.ckpt is damaged.*resume="):
        fit.run(config_of(folder), folder, resuming=True)
    assert metrics_of(folder)["status"] == "failed"


def test_a_checkpoint_of_something_else_is_refused(folder):
    torch.save({"weights": torch.zeros(3)}, folder / "checkpoints" / "best.ckpt")
    with pytest.raises(DamagedError, match="is not a checkpoint of a run"):
        load_parts(folder)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state["state_dict"].pop(next(k for k in state["state_dict"] if "data_" not in k))
    torch.save(state, folder / "checkpoints" / "best.ckpt")
    with pytest.raises(DamagedError, match="does not fit the model"):
        load_parts(folder)


# ---- writing ------------------------------------------------------------------------------------------------------


def full(*_args, **_keys):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write_bytes", "fsync", "replace"])
def test_a_full_disk_is_named_and_leaves_what_was_there(call, tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_bytes(file, b"before")
    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(UnwritableError, match=r"file cannot be written \(No space left on device\); free disk space"):
        write_bytes(file, b"after")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_bytes() == b"before"


def test_other_errors_within_are_not_taken_for_those_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "file"):
        (tmp_path / "elsewhere" / "x").read_bytes()
    assert not list(tmp_path.iterdir())


def test_fsync_comes_before_and_after_a_rename(tmp_path, monkeypatch):
    done, sync, move = [], os.fsync, Path.replace
    kind = lambda descriptor: "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(kind(descriptor)) or sync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda self, to: done.append("rename") or move(self, to))
    write_bytes(tmp_path / "file", b"x")
    assert done == ["file", "rename", "folder"]


@pytest.mark.slow
def test_a_run_on_a_full_disk_fails_with_its_reason_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    folder, save, calls = tmp_path / "run", checkpoints.write_bytes, []

    def later_full(path, content):
        calls.append(path)
        if len(calls) > 2:
            with replacing(path) as beside:
                beside.write_bytes(content[:1000])
                full()
        save(path, content)

    monkeypatch.setattr(checkpoints, "write_bytes", later_full)
    monkeypatch.setattr(model_figures, "figures", lambda *a, **k: {})
    with pytest.raises(UnwritableError, match=r"\.ckpt cannot be written"):
        trained(folder)
    found = metrics_of(folder)
    assert found["status"] == "failed" and "No space left" in found["error"]
    assert not list(folder.rglob(f"*{PART}")) and checkpoints.read(folder / "checkpoints" / "last.ckpt")
    monkeypatch.undo()
    assert fit.run(compose(RUN), folder, resuming=True)["status"] == "completed"


def test_what_a_killed_process_left_is_removed_when_the_folder_is_taken_again(tmp_path):
    left = [tmp_path / f".metrics.json.123{PART}", tmp_path / "checkpoints" / f".last.ckpt.7{PART}"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    (tmp_path / ".hidden").write_text("kept")
    with run_lock(tmp_path, wait=False):
        assert not any(file.exists() for file in left)
    clean(tmp_path)
    assert (tmp_path / ".hidden").exists()


@pytest.mark.slow
def test_a_folder_removed_while_the_run_is_at_work_is_one_message(tmp_path, monkeypatch):
    folder, save = tmp_path / "run", checkpoints.CheckpointFiles.save_checkpoint

    def removing(self, checkpoint, path, storage_options=None):
        while folder.exists():  # TensorBoard writes meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(checkpoints.CheckpointFiles, "save_checkpoint", removing)
    with pytest.raises(checkpoints.RemovedError, match="was removed, or moved"):
        trained(folder)
    assert not folder.exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_thread_that_finds_the_folder_removed_prints_nothing_beside_the_message(there, tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    folder = tmp_path if there else tmp_path / "removed"

    def write():  # as TensorBoard's writer does
        (tmp_path / "removed" / "events").write_bytes(b"")

    with fit._without_tracebacks_of_threads(folder):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(printed) == there


@pytest.mark.slow
def test_evaluate_says_that_the_data_file_changed(tmp_path, monkeypatch, caplog):
    from vrnn_lab import evaluate

    file = tmp_path / "my.csv"
    rows = [f"{i},{t},{(i * t) % 7 + 0.25 * i}" for i in range(20) for t in range(12)]
    file.write_text("\n".join(["id,time,x", *rows]) + "\n")
    monkeypatch.setattr("helpers.small.RUN", [o for o in RUN if not o.startswith("data")])
    monkeypatch.setattr(model_figures, "figures", lambda *_args, **_keys: {})
    folder = trained(tmp_path / "run", "data=table", f"data.path={file}", "out_of_time=false")
    with caplog.at_level(logging.WARNING, "vrnn_lab"):
        called(evaluate, f"run={folder}")
        assert "has changed since" not in caplog.text
        file.write_text("\n".join(["id,time,x", *rows]).replace("19,11,", "19,11,1") + "\n")
        called(evaluate, f"run={folder}")
    assert "has changed since" in caplog.text


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of so many kB, which can be made larger; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kilobytes: int, again: bool = False) -> Path:
        options = f"{'remount,' if again else ''}size={kilobytes}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("a disk cannot be mounted here")
        return place

    yield size
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [32, 60, 200])
def test_a_run_on_a_disk_that_is_too_small_ends_with_one_message_and_resumes_where_there_is_room(
    kilobytes, small_disk
):
    """The disk is full at the first checkpoint, at a later one, or at TensorBoard's events."""
    folder = small_disk(kilobytes) / "run"
    failed = command("run", *RUN, f"hydra.run.dir={folder}", folder=folder.parent.parent, check=False, figures=True)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{folder}" in errors[0] and "(No space left on device); free disk space" in errors[0]
    assert not list(folder.rglob(f"*{PART}"))
    small_disk(50_000, again=True)
    command("run", f"resume={folder}", folder=folder.parent.parent, figures=True)
    assert metrics_of(folder)["status"] == "completed"
