"""A data set is built once, whoever uses it, and anew when anything about it changed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import open_dict

from vrnn_lab.config.compose import compose
from vrnn_lab.data.datasets.periodic import Periodic
from vrnn_lab.runs import dataset_cache
from vrnn_lab.runs.dataset_cache import data_of

SMALL = ["data=periodic", "data.train=30", "data.val=5", "data.test=5"]


@pytest.fixture(autouse=True)
def counted(tmp_path, monkeypatch) -> list[int]:
    """An empty cache for each test, and how often a data set was made."""
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_cache, "_held", {})
    calls, make = [], Periodic.make
    monkeypatch.setattr(Periodic, "make", lambda self: calls.append(1) or make(self))
    return calls


@pytest.mark.slow
def test_jobs_of_one_process_share_it_whatever_their_batch_size_and_model(counted):
    one = data_of(compose([*SMALL, "data.batch_size=7"]))
    two = data_of(compose([*SMALL, "data.batch_size=9", "model=rnn", "seed=3"]))
    assert (one.batch_size, two.batch_size) == (7, 9) and one.splits is two.splits and len(counted) == 1
    data_of(compose([*SMALL, "data.seed=1"]))
    assert len(counted) == 2


def test_a_data_set_of_ones_own_need_not_name_its_batch_size(counted):
    config = compose(SMALL)
    with open_dict(config):
        del config.data["batch_size"]
    assert data_of(config).batch_size == 50


def test_what_took_long_is_read_from_disk_by_the_next_process(counted, monkeypatch):
    monkeypatch.setattr(dataset_cache, "LONG", 0.0)
    one = data_of(compose(SMALL))
    monkeypatch.setattr(dataset_cache, "_held", {})
    two = data_of(compose(SMALL))
    assert len(counted) == 1
    for split in ("train", "val", "test"):
        assert np.array_equal(one.splits[split].values, two.splits[split].values)
    assert one.scale.channels == two.scale.channels and one.scale.mean == two.scale.mean


def test_a_broken_or_forgotten_file_is_built_again(counted, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset_cache, "LONG", 0.0)
    monkeypatch.setattr(dataset_cache, "KEPT", 2)
    for seed in range(4):
        data_of(compose([*SMALL, f"data.seed={seed}"]))
    files = list((tmp_path / "cache" / "built").glob("*.npz"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(b"half a file")
    monkeypatch.setattr(dataset_cache, "_held", {})
    data_of(compose([*SMALL, "data.seed=3"]))
    assert len(counted) == 5


def test_another_file_under_the_same_name_is_another_data_set(tmp_path):
    file = tmp_path / "my.csv"
    keys = ["data=table", f"data.path={file}", "data.dequantise=false"]
    for value in (1.5, 2.5):
        file.write_text("id,time,x\n" + "".join(f"{i},{t},{value + i / 7}\n" for i in range(20) for t in range(3)))
        assert data_of(compose(keys)).splits["train"].values.min() >= value


def test_without_a_place_for_it_the_run_goes_on(counted, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(data_of(compose(SMALL)).splits["train"]) == 30 and len(counted) == 1


@pytest.mark.slow
def test_processes_that_want_it_at_once_build_it_once(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom vrnn_lab.data.datasets.periodic import Periodic\n"
        "class Slow(Periodic):\n    def make(self):\n"
        "        print('made', flush=True)\n        time.sleep(2)\n        return super().make()\n"
    )
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "from vrnn_lab.runs.dataset_cache import data_of\nfrom vrnn_lab.config.compose import compose\n"
        "data_of(compose(['data=periodic', 'data._target_=slow.Slow']))"
    )
    start = lambda: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = [process.communicate()[0] for process in [start(), start()]]
    assert sorted(said) == ["", "made\n"]
