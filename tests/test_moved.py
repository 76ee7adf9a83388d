"""Run folders of earlier versions: their classes are found by today's names, and their numbers stay."""

import logging
import shutil
from pathlib import Path

import pytest

from helpers.commands import command
from vrnn_lab import predict, report
from vrnn_lab.cli.arguments import run_command
from vrnn_lab.config.compose import compose, job_id
from vrnn_lab.config.moved import current, first
from vrnn_lab.config.validate import target
from vrnn_lab.core.files import read_json
from vrnn_lab.runs.build import load_parts, score
from vrnn_lab.runs.folder import config_of, finished
from vrnn_lab.runs.trust import known_targets

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = {"0_1_0": "latent_ode", "0_2_0": "vrnn"}  # the model of each version's folder
JOBS = {"0_1_0": "596f8a4c4b89", "0_2_0": "172023b66592"}  # what that version said of the run in fixtures
NAMES = (FIXTURES / "targets_of_0_1_0.txt").read_text().split()
LATER = (FIXTURES / "targets_of_0_2_0.txt").read_text().split()


@pytest.fixture(params=VERSIONS)
def version(request):
    """An earlier version."""
    return request.param


@pytest.fixture
def old(tmp_path, version):
    """A copy of a run folder of that version: a model of four units after two epochs on data=ou."""
    return Path(shutil.copytree(FIXTURES / f"run_of_{version}", tmp_path / "old"))


@pytest.fixture
def called(monkeypatch, capsys):
    """Calls a command in this process, and returns its exit code and what it printed."""

    def call(command, *words):
        monkeypatch.setattr("sys.argv", ["vrnn_lab", *map(str, words)])
        code = run_command(command.main)
        return code, capsys.readouterr()

    return call


@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_an_earlier_version_is_found_by_its_name_of_today(name):
    now = current({"part": [{"_target_": name}]})["part"][0]["_target_"]
    assert target(now, "part") and now in known_targets()
    assert first({"_target_": now}) == {"_target_": name}


@pytest.mark.parametrize("name", LATER)
def test_a_class_of_version_0_2_0_is_found(name):
    now = current({"part": [{"_target_": name}]})["part"][0]["_target_"]
    assert target(now, "part") and now in known_targets()


def test_the_job_of_a_sweep_keeps_its_name(old, version):
    assert job_id(config_of(old)) == JOBS[version]


def test_a_config_of_ones_own_with_a_name_of_before_is_composed_with_a_notice(tmp_path, caplog):
    (tmp_path / "model" / "head").mkdir(parents=True)
    (tmp_path / "model" / "head" / "own.yaml").write_text("_target_: vrnn_lab.likelihoods.LaplaceHead\n")
    with caplog.at_level(logging.WARNING, logger="vrnn_lab"):
        config = compose(["model=rnn", "model/head=own"], (str(tmp_path),))
    assert config.model.head._target_ == "vrnn_lab.models.heads.LaplaceHead"
    assert (
        "model.head._target_=vrnn_lab.likelihoods.LaplaceHead was renamed to vrnn_lab.models.heads.LaplaceHead"
        in caplog.text
    )


def test_a_run_of_an_earlier_version_has_the_scores_that_it_recorded(old):
    before, now = read_json(old / "metrics.json", ""), score(load_parts(old))
    keys = [key for key in now if key.startswith(("val/", "test/")) and isinstance(before.get(key), float)]
    assert len(keys) > 100
    assert [now[key] for key in keys] == pytest.approx([before[key] for key in keys], rel=1e-4, abs=1e-5)


def test_a_report_reads_a_run_of_an_earlier_version(old, called, version):
    code, printed = called(report, old, f"output={old.parent / 'r.csv'}")
    assert code == 0 and f"model={VERSIONS[version]}" in printed.out and "left out" not in printed.out + printed.err


def test_predict_answers_by_a_run_of_an_earlier_version(old, called):
    (old.parent / "q.csv").write_text("id,time,x\na,0.0,0.1\na,0.5,0.3\n")
    words = [f"run={old}", f"input={old.parent / 'q.csv'}", "horizon=1", f"output={old.parent / 'a.csv'}"]
    code, printed = called(predict, *words)
    assert code == 0, printed.err
    assert (old.parent / "a.csv").read_text().count("\n") > 1


def test_a_run_of_an_earlier_version_that_was_stopped_resumes(tmp_path, version):
    """It was stopped by SIGTERM after 4 of 16 steps."""
    folder = Path(shutil.copytree(FIXTURES / f"cut_run_of_{version}", tmp_path / "cut"))
    done = command("run", f"resume={folder}", folder=tmp_path)
    assert finished(folder) and "8 epochs, 16 steps" in done.stdout
