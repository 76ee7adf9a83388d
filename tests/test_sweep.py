"""Sweeps end to end: each job in its folder, whatever becomes of the others, of the launcher, or of the machine."""

import errno
import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest
from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from helpers.commands import CUT, CUTS, FAST, command, last_of_each, metrics
from vrnn_lab.cli.terminal import Terminal
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.files import DamagedError, read_json, write_json, write_whole
from vrnn_lab.models.base import SequenceModel
from vrnn_lab.reports import runs
from vrnn_lab.run import check_beforehand, job_of_sweep
from vrnn_lab.runs import provenance
from vrnn_lab.runs.folder import (
    choices_of,
    command_of,
    config_of,
    metrics_of,
    record_failure,
    record_start,
    run_lock,
    status,
    with_absolute_paths,
)
from vrnn_lab.sweeps.sweep import Job, Sweeper, _table, folders, plan
from vrnn_lab.training.fit import _check_same_run

SHORT = [*FAST, "trainer.max_epochs=2"]


def jobs_in(folder: Path) -> dict[str, Path]:
    """The job folders of a sweep by the readable part of their names."""
    return {path.name.rpartition("-")[0]: path for path in folder.iterdir() if path.is_dir()}


# ---- the plan


def test_a_job_keeps_its_folder_when_values_are_added_or_reordered_or_said_outright(tmp_path):
    before = folders(plan(("optim=adam,sgd", "seed=0,1")), tmp_path)
    for folder in before.values():
        folder.mkdir()
    assert {p.name.rpartition("-")[0] for p in before.values()} == {
        f"optim={o},seed={s}" for o in ("adam", "sgd") for s in (0, 1)
    }
    more = plan(("seed=1,2,0", "optim=rmsprop,sgd,adam", "model.width=64", "sweep=x", "trainer.accelerator=cpu"))
    after = {job.id: folder for job, folder in folders(more, tmp_path).items()}
    assert len(after) == 9
    assert all(after[job.id] == folder for job, folder in before.items())


def test_equal_jobs_are_one_and_it_says_so(caplog):
    with caplog.at_level("INFO"):
        assert len(plan(("optim.lr=1e-3,0.001", "seed=0"))) == 1
    assert "of 2 combinations, 1 make the same config as another" in caplog.text


def test_names_of_folders_are_plain_and_short(tmp_path):
    jobs = plan(("trick=none,[big_batch,wide]", "model.decoder_width=" + ",".join(map(str, range(1, 60)))))
    names = [folder.name for folder in folders(jobs, tmp_path).values()]
    assert len(set(names)) == 118 and max(map(len, names)) <= 140
    assert any(name.startswith("trick=big_batch+wide,model.decoder_width=7-") for name in names)
    assert not set("".join(names)) & set("[]'\" /\\$")


def test_its_table_shows_tricks_in_their_brackets(capsys):
    Terminal(width=80).print(_table("best", ("", ""), [("seed=0,trick=[big_batch,wide]", "0.1")]))
    assert "seed=0,trick=[big_batch,wide]" in capsys.readouterr().out


def test_names_of_folders_are_short_in_bytes_too(tmp_path):
    jobs = plan(("data=table", f"data.path='{'漢' * 200}.csv','b.csv'"))
    for folder in folders(jobs, tmp_path).values():
        folder.mkdir()


@pytest.mark.parametrize(
    "asked", ["sweep=a,b", "retry=failed,null", "hydra.sweep.subdir=mine", "hydra/launcher=basic,joblib"]
)
def test_what_a_sweep_cannot_be_told_is_refused_not_ignored(asked):
    with pytest.raises(ConfigError, match=re.escape(asked)):
        plan(("seed=0,1", asked))


def test_how_to_go_on_names_the_whole_sweep(tmp_path, capsys):
    jobs = plan(("seed=0,1",))
    sweeper = sweeper_of(tmp_path / "a" / "b", jobs)
    sweeper.name = "a/b c"
    sweeper._conclude(jobs)
    assert "sweep='a/b c' resumes the sweep" in capsys.readouterr().out


def test_devices_are_looked_for_where_the_jobs_will_run(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = ["-m", "trainer.accelerator=gpu", "seed=0,1"]
    with pytest.raises(ConfigError, match="no GPU"):
        check_beforehand(asked)
    check_beforehand([*asked, "hydra/launcher=submitit_slurm"])


def test_status_is_new_running_interrupted_and_how_it_ended(tmp_path):
    assert status(tmp_path) == "new"
    with run_lock(tmp_path, wait=False):
        assert status(tmp_path) == "running"
    record_start(tmp_path, compose([]), [], {})
    assert status(tmp_path) == "interrupted"
    record_failure(tmp_path, RuntimeError("why"))
    assert status(tmp_path) == "failed" and "why" in (tmp_path / "metrics.json").read_text()


def test_a_disk_that_knows_no_flock_has_locks_too(tmp_path, monkeypatch):
    """Lustre, for one, as it is often mounted."""

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="flock not supported"):
        with run_lock(tmp_path, wait=False):
            assert status(tmp_path) == "running"
        assert status(tmp_path) == "new"


def test_a_run_that_ends_while_it_is_looked_at_was_not_interrupted(tmp_path, monkeypatch):
    record_start(tmp_path, compose([]), [], {})

    def ends(folder):
        record_failure(folder, RuntimeError("why"))
        return False

    monkeypatch.setattr("vrnn_lab.runs.folder.is_running", ends)
    monkeypatch.setattr("vrnn_lab.reports.runs.is_locked", ends)
    assert status(tmp_path) == "failed"
    (tmp_path / "metrics.json").unlink()
    assert runs.read(tmp_path).status == "failed"


def test_a_job_that_failed_before_it_had_a_folder_may_be_tried_again(tmp_path, monkeypatch):
    """Its config is there as the job itself would have written it, with the whole path of its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("my.csv", "'~/my.csv'"):
        job = tmp_path / path.strip("'")[0]
        config = compose(["data=table", f"data.path={path}"])
        record_failure(job, RuntimeError("why"), config)
        _check_same_run(with_absolute_paths(config), job, resuming=False)
        assert config_of(job).data.path == str(tmp_path / "my.csv")


def test_a_broken_result_is_named_with_its_cure(tmp_path):
    (tmp_path / "metrics.json").write_text('{"status": "comp')
    with pytest.raises(DamagedError, match=r"metrics\.json is damaged.*Remove the file"):
        status(tmp_path)


def test_what_changed_since_a_run_began_is_known(tmp_path, monkeypatch):
    (tmp_path / "my.csv").write_text("id,time,x\na,0,1\n")
    config = compose(["data=table", f"data.path={tmp_path / 'my.csv'}"])
    provenance.write(tmp_path, config)
    assert provenance.changes(tmp_path, config) == []
    time.sleep(0.01)
    (tmp_path / "my.csv").write_text("id,time,x\na,0,2\n")
    assert provenance.changes(tmp_path, config) == ["the data file changed"]
    folder = compose(["data=speech", f"data.path={tmp_path}"])  # a folder that holds the files
    before = provenance.of(folder)
    time.sleep(0.01)
    (tmp_path / "my.csv").write_text("id,time,x\na,0,3\n")
    assert provenance.of(folder) != before
    monkeypatch.setattr(provenance, "_code", lambda foreign: "other")
    assert provenance.changes(tmp_path, config) == ["the code changed", "the data file changed"]


@pytest.mark.slow
def test_the_code_of_a_run_is_what_its_fit_goes_through_and_nothing_else(tmp_path):
    reached = {file.name for file in provenance._reached()}
    known = {"build.py", "fit.py", "latent_ode.py", "ou.py", "ode.py", "densities.py", "evaluate.py"}
    assert known <= reached
    assert not {"run.py", "sweep.py", "describe.py", "report.py"} & reached
    own = tmp_path / "own.py"
    codes = []
    for text in ("x = 1\n", "# why\nx = 1\n", '"""What."""\nx = 1\n', "x = 2\n"):
        own.write_text(text)
        provenance._code.cache_clear()
        codes.append(provenance._code(frozenset([own])))
    assert codes[0] == codes[1] == codes[2] != codes[3]


def test_the_hash_of_the_code_is_read_from_the_cache_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "own.py"
    own.write_text("x = 1\n")
    parsed = []
    monkeypatch.setattr(provenance, "_reached", lambda: parsed.append(1) or {})

    def code() -> str:
        provenance._code.cache_clear()
        return provenance._code(frozenset([own]))

    first = code()
    assert code() == first and len(parsed) == 1
    own.write_text("x = 20\n")
    assert code() != first and len(parsed) == 2
    (tmp_path / "cache" / "code.json").write_text("{")
    assert code() != first and len(parsed) == 3


def test_the_hash_of_the_code_is_neither_read_from_nor_written_to_a_cache_of_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(provenance, "_reached", dict)
    provenance._code.cache_clear()
    code = provenance._code(frozenset())
    file = tmp_path / "code.json"
    write_json(file, {"dates": read_json(file, "")["dates"], "code": "another"})
    provenance._code.cache_clear()
    assert provenance._code(frozenset()) == "another"
    planted = file.read_bytes()
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    provenance._code.cache_clear()
    assert provenance._code(frozenset()) == code and file.read_bytes() == planted
    provenance._code.cache_clear()  # the next test has its own cache


# ---- jobs that fail


def raised() -> JobReturn:
    """What a launcher returns of a job that raised."""
    found = JobReturn(status=JobStatus.FAILED)
    found.return_value = RuntimeError("what came of it by way of the launcher")
    return found


def sweeper_of(root: Path, jobs: list[Job], retry: bool = False) -> Sweeper:
    """One whose launcher runs nothing: every job has raised."""
    found = Sweeper()
    found.root, found.retry, found.name, found.all_at_once = root, retry, root.name, False
    found.folders = folders(jobs, root)
    found.run_all = lambda calls, initial_job_idx: [raised() for _ in calls]
    return found


def test_what_a_job_itself_recorded_of_its_failure_stands(tmp_path):
    one, other = jobs = plan(("seed=0,1",))
    sweeper = sweeper_of(tmp_path, jobs, retry=True)
    record_failure(sweeper.folders[one], ValueError("why"), one.config)
    sweeper._launch(jobs)
    said = [metrics_of(sweeper.folders[job])["error"] for job in (one, other)]
    assert said == ["ValueError: why", "RuntimeError: what came of it by way of the launcher"]


def test_the_best_come_first_and_a_score_that_is_no_number_last(tmp_path, capsys):
    jobs = plan(("seed=0,1,2,3",))
    sweeper = sweeper_of(tmp_path, jobs)
    for job, score in zip(jobs, (3.0, float("nan"), 1.0, 2.0), strict=True):
        found = {"status": "completed", "val/loss": score, "fit/seconds": 1}
        write_whole(sweeper.folders[job] / "metrics.json", json.dumps(found))
    sweeper._conclude(jobs)
    assert re.findall(r"seed=\d", capsys.readouterr().out) == ["seed=2", "seed=3", "seed=0", "seed=1"]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Three jobs: one that works, one whose loss is no number, one whose parts do not fit; and the command again."""
    folder = tmp_path_factory.mktemp("failed")
    sweep = [*SHORT, "-m", "sweep=f", "optim=sgd", "trainer.gradient_clip_val=null", "trainer.max_epochs=4"]
    sweep += ["optim.lr=1e-5,1e9", "model/head=gaussian"]
    first = command("run", *sweep, folder=folder, check=False)
    misfit = [*SHORT, "-m", "sweep=f", "model/head=gaussian,bernoulli"]
    return folder, sweep, first, command("run", *misfit, folder=folder, check=False)


@pytest.mark.slow
def test_a_job_that_fails_is_recorded_and_the_others_run(failed):
    folder, _, first, misfit = failed
    found = jobs_in(folder / "outputs" / "f")
    assert {name: status(path) for name, path in found.items()} == {
        "optim.lr=1e-05": "completed",
        "optim.lr=1000000000.0": "failed",
        "model_head=gaussian": "completed",
        "model_head=bernoulli": "failed",
    }
    assert first.returncode == misfit.returncode == 1
    for done, reason in ((first, "the training loss at step"), (misfit, "bernoulli")):
        assert "without a result" in done.stdout and reason in " ".join(done.stdout.split())
        assert "1 completed, 1 failed" in done.stdout and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == "error: 1 of 2 jobs of this sweep have no result."
    assert "Traceback" in (found["optim.lr=1000000000.0"] / "run.log").read_text()


@pytest.mark.slow
def test_what_failed_is_tried_again_only_when_asked(failed):
    folder, sweep, *_ = failed
    found = jobs_in(folder / "outputs" / "f")
    stamp = lambda name: (found[name] / "metrics.json").stat().st_mtime_ns
    before = stamp("optim.lr=1000000000.0"), stamp("optim.lr=1e-05")
    again = command("run", *sweep, folder=folder, check=False)
    assert again.returncode == 1 and "retry=failed" in again.stderr
    assert (stamp("optim.lr=1000000000.0"), stamp("optim.lr=1e-05")) == before
    retried = command("run", *sweep, "retry=failed", folder=folder, check=False)
    assert (
        retried.returncode == 1
        and stamp("optim.lr=1000000000.0") > before[0]
        and stamp("optim.lr=1e-05") == before[1]
    )


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_process_none_of_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vrnn_lab"), "propagate", False)  # pytest would keep the traceback
    config = compose([*SHORT, "optim=sgd", "optim.lr=1e9", "trainer.gradient_clip_val=null", "trainer.max_epochs=4"])
    models = lambda: sum(issubclass(type(each), SequenceModel) for each in gc.get_objects())
    gc.collect()
    before = models()
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="the training loss"):
            job_of_sweep(config, tmp_path, [], {})
        assert models() == before
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_job_that_failed_before_it_trained_begins_anew_with_the_code_of_now(tmp_path, monkeypatch):
    config = compose([*SHORT, "trainer.max_epochs=1"])
    record_failure(tmp_path, RuntimeError("its worker never began"), config)
    monkeypatch.setattr(provenance, "_code", lambda foreign: "before")
    provenance.write(tmp_path, config)
    monkeypatch.setattr(provenance, "_code", lambda foreign: "now")
    job_of_sweep(config, tmp_path, ["seed=0"], {"model": "latent_ode"})
    assert provenance.changes(tmp_path, config) == []
    assert choices_of(tmp_path) == {"model": "latent_ode"} and "seed=0" in command_of(tmp_path)


# ---- killed at any moment


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("undisturbed")
    command("run", *FAST, "-m", "sweep=s", "seed=0,1", folder=folder)
    return {name: metrics(path) for name, path in jobs_in(folder / "outputs" / "s").items()}


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(undisturbed, tmp_path):
    cut = CUT.format(**{**CUTS["in the middle of an epoch"], "call": 24 + 15}, signal="KILL")
    sweep = [*FAST, "-m", "sweep=s", "seed=0,1"]
    assert command("run", *sweep, folder=tmp_path, before=cut, check=False).returncode == -signal.SIGKILL
    found = jobs_in(tmp_path / "outputs" / "s")
    assert {name: status(path) for name, path in found.items()} == {"seed=0": "completed", "seed=1": "interrupted"}
    again = command("run", *sweep, folder=tmp_path)
    assert "1 completed, 1 interrupted" in again.stderr
    assert {name: metrics(path) for name, path in found.items()} == undisturbed


def started(*arguments: str, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    call = [sys.executable, "-m", "vrnn_lab.run", *last_of_each(arguments)]
    null = subprocess.DEVNULL
    return subprocess.Popen(call, cwd=folder, env=environment, stdout=null, stderr=null, start_new_session=True)


@pytest.mark.slow
def test_workers_that_outlive_a_killed_launcher_and_a_second_launcher_do_not_disturb_each_other(
    undisturbed, tmp_path
):
    sweep = [*FAST, "-m", "sweep=s", "hydra/launcher=joblib", "seed=0,1"]
    first = started(*sweep, folder=tmp_path)
    try:
        while first.poll() is None and not list(tmp_path.glob("outputs/s/*/checkpoints/last.ckpt")):
            time.sleep(0.05)
    finally:
        first.kill()
    try:
        assert first.wait() == -signal.SIGKILL
        command("run", *sweep, folder=tmp_path, fresh=True)
        assert {name: metrics(path) for name, path in jobs_in(tmp_path / "outputs" / "s").items()} == undisturbed
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)  # workers wait for a launcher that is gone


@pytest.mark.slow
def test_a_job_whose_process_is_killed_again_and_again_is_given_up_and_the_others_run(tmp_path):
    """As when it needs more memory than there is: joblib then breaks off all it has."""
    (tmp_path / "deadly.py").write_text(
        "import os\nfrom vrnn_lab.data.datasets.periodic import Periodic\n"
        "class Deadly(Periodic):\n    def make(self):\n"
        "        os.kill(os.getpid(), 9 * (self.seed == 1))\n        return super().make()\n"
    )
    sweep = [*SHORT, "-m", "sweep=s", "hydra/launcher=joblib", "data._target_=deadly.Deadly", "data.seed=0,1,2"]
    path = f"import sys, os; sys.path.insert(0, {str(tmp_path)!r}); os.environ['PYTHONPATH'] = {str(tmp_path)!r}"
    done = command("run", *sweep, folder=tmp_path, before=path, check=False, fresh=True)
    found = {name: status(path) for name, path in jobs_in(tmp_path / "outputs" / "s").items()}
    assert found == {"data.seed=0": "completed", "data.seed=1": "failed", "data.seed=2": "completed"}
    assert done.returncode == 1 and "its process was killed" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_killed_process_may_hold_its_lock_when_the_launcher_hears_of_it(tmp_path):
    (job,) = jobs = plan(("seed=0",))
    sweeper = sweeper_of(tmp_path, jobs)
    record_start(sweeper.folders[job], job.config, [], {})
    lock = FileLock(sweeper.folders[job] / ".lock", thread_local=False)

    def breaks(calls, initial_job_idx):
        lock.acquire()
        Timer(0.2, lock.release).start()
        raise OSError("a worker died")

    sweeper.run_all = breaks
    sweeper._launch(jobs)
    assert "killed twice" in metrics_of(sweeper.folders[job])["error"]


# ---- launchers


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_runs_two_jobs_to_the_same_numbers(launcher, undisturbed, tmp_path):
    done = command(
        "run", *FAST, "-m", "sweep=s", "seed=0,1", f"hydra/launcher={launcher}", folder=tmp_path, fresh=True
    )
    found = jobs_in(tmp_path / "outputs" / "s")
    found.pop("", None)  # the launcher's own files
    assert {name: metrics(path) for name, path in found.items()} == undisturbed
    assert "2 completed" in done.stdout
    assert OmegaConf.load(found["seed=1"] / ".hydra" / "config.yaml").seed == 1
    assert json.loads((found["seed=1"] / "metrics.json").read_text())["fit/epochs"] == 6
