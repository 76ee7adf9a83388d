"""Tests of the summary of a table before training, and of the scores by channel after it."""

import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from helpers.commands import command
from vrnn_lab.data.table.dataset import Table


def table_of(tmp_path, frame: pd.DataFrame, **keys) -> Table:
    frame.to_csv(tmp_path / "t.csv", index=False)
    return Table(str(tmp_path / "t.csv"), **keys)


def several(count: int = 12, points: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    number = count * points
    frame = pd.DataFrame({"id": np.repeat(np.arange(count), points), "time": np.tile(np.arange(points), count)})
    return frame.assign(a=rng.normal(20, 2, number), b=rng.uniform(1, 100, number))


def test_the_summary_counts_and_gives_the_range_of_every_channel(tmp_path):
    frame = several()
    frame.loc[:8, "b"] = np.nan
    table = table_of(tmp_path, frame, dequantise=False)
    text, odd = table.describe()
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith(
        "rows: 72 read, 72 used\n"
        "data: 12 series of 72 points, split as whole series by a hash of their names (data.seed=0)"
    )
    for split in ("train", "val", "test"):
        names = table.splits[split].names
        mine = frame[frame["id"].astype(str).isin(names)]
        counts = [len(names), len(names), len(mine), int(mine[["a", "b"]].notna().sum().sum())]
        assert [split, *map(str, counts)] in lines
    b = frame["b"]
    assert ["b", f"{b.min():.4g}", f"{b.median():.4g}", f"{b.max():.4g}", "12.5%"] in lines
    assert not odd


def test_the_summary_says_how_series_were_split_and_which_covariates_there_are(tmp_path):
    text, _ = table_of(tmp_path, several(3, 120).assign(dose=1.0), known=["dose"]).describe()
    assert "each split in time" in text and "covariates: dose" in text
    marked = several().assign(split=np.repeat(["train", "val", "test"], 24))
    assert "split by the column 'split'" in table_of(tmp_path, marked).describe()[0]


def test_the_summary_says_what_became_of_the_rows_of_the_file(tmp_path):
    frame = several()
    frame.loc[:2, ["a", "b"]] = np.nan
    text, _ = table_of(tmp_path, pd.concat([frame, frame.loc[10:14]])).describe()
    assert text.startswith("rows: 77 read, 69 used; 5 repeat an earlier row; 3 have no value\n")
    long = frame.melt(["id", "time"], var_name="channel")
    text, _ = table_of(tmp_path, long, channel="channel", value="value", values=["a"]).describe()
    assert text.startswith(
        "rows: 144 read, 69 used; 6 have no value; 69 are of channels that data.values leaves out\n"
    )


@pytest.mark.parametrize("value", [-9999, -99, 99999, 1e30])
def test_numbers_that_stand_for_missing_values_are_named(tmp_path, value):
    frame = several()
    frame.loc[[3, 40], "a"] = value
    _, (sentence,) = table_of(tmp_path, frame).describe()
    assert f"'a' holds {value:g} in 2 values, first in series '0' at 3" in sentence


def test_such_numbers_within_the_range_of_the_others_are_values(tmp_path):
    frame = several()
    frame["a"] = np.linspace(-1200, 1200, len(frame)).round()
    frame.loc[5, "a"] = -999
    assert not table_of(tmp_path, frame).describe()[1]


def test_a_slipped_decimal_point_and_a_constant_channel_are_named(tmp_path):
    frame = several().assign(c=3.5)
    frame.loc[20, "a"] *= 1000
    slip, constant = table_of(tmp_path, frame).describe()[1]
    assert "'a' has 1 values hundreds of times" in slip and "series '3' at 2" in slip
    assert "'c' is 3.5 in all of its 72 values" in constant


@pytest.mark.slow
def test_a_run_prints_the_summary_and_scores_by_channel_and_keeps_them_in_its_log(tmp_path):
    several().to_csv(tmp_path / "t.csv", index=False)
    keys = ("model=rnn", "data=table", "data.path=t.csv", "trainer.max_steps=4", "hydra.run.dir=run")
    done = command("run", *keys, folder=tmp_path)
    assert "data: 12 series of 72 points" in done.stderr and "channel  minimum" in done.stderr
    assert "by channel, in its own unit" in done.stdout and "each channel in its training std" in done.stdout
    assert "forecast: 2 series, " in done.stdout
    log = (tmp_path / "run" / "run.log").read_text()
    assert "by channel, in its own unit" in log and "inside   the share" in log and "12 series" in log


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    several().to_csv(tmp_path / "t.csv", index=False)
    keys = ["model=rnn", "data=table", "data.path=t.csv", "trainer.max_steps=100000", "stop=off", "hydra.run.dir=run"]
    keys += ["trainer.check_val_every_n_epoch=1"]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in a shell's background ignores it
    with subprocess.Popen(
        [sys.executable, "-m", "vrnn_lab.run", *keys],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=heed,
    ) as process:
        last, until = tmp_path / "run" / "checkpoints" / "last.ckpt", time.monotonic() + 120
        while not last.exists() and time.monotonic() < until:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, error
    assert "python -m vrnn_lab.run resume=" in error.decode().splitlines()[-1]
