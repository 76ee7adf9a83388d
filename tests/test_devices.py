"""Jobs of one machine spread over its devices, and a dead job's place is free again."""

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack

import pytest

from vrnn_lab.sweeps.gpu_slots import device_for

HOLD = """
import pathlib, sys
from vrnn_lab.sweeps.gpu_slots import device_for
with device_for(2, pathlib.Path(sys.argv[1])) as device:
    print(device, flush=True)
    sys.stdin.read()
"""


def job(folder) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def jobs(tmp_path):
    """Four processes that chose at once, each until its input ends."""
    made = [job(tmp_path) for _ in range(4)]
    yield [(int(each.stdout.readline()), each) for each in made]
    for each in made:
        each.communicate()


def test_jobs_spread_evenly_and_the_place_of_one_that_was_killed_is_taken_first(jobs, tmp_path):
    assert Counter(device for device, _ in jobs) == {0: 2, 1: 2}
    for device, process in jobs:
        if device == 1:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    with device_for(2, tmp_path) as one, device_for(2, tmp_path) as two, device_for(2, tmp_path) as three:
        assert (one, two) == (1, 1) and three == 0


def test_the_device_with_the_fewest_jobs_is_chosen_whichever_left_before(tmp_path):
    with ExitStack() as stays, ExitStack() as leaves:
        chosen = [(stays if i in (2, 4) else leaves).enter_context(device_for(2, tmp_path)) for i in range(5)]
        assert chosen == [0, 1, 0, 1, 0]
        leaves.close()
        assert [stays.enter_context(device_for(2, tmp_path)) for _ in range(3)] == [1, 1, 0]


def test_devices_are_known_by_what_the_machine_calls_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with device_for(2, tmp_path) as first:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
        with device_for(2, tmp_path) as second:
            assert (first, second) == (0, 0)  # 2, then 3


def test_no_device_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="0 devices"), device_for(0, tmp_path):
        pass
