"""The group logger: what each member records of a run, also of one that was interrupted, and what is refused."""

import csv
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from omegaconf import DictConfig

from helpers.commands import CUT, TINY, command, metrics
from vrnn_lab.config.compose import compose, job_id
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.reports.curves import curve
from vrnn_lab.training.loggers import base
from vrnn_lab.training.loggers.csv_logger import CSVFile
from vrnn_lab.training.loggers.of_run import loggers_of
from vrnn_lab.training.loggers.tensorboard import TensorBoard

BEYOND = CUT.format(module="vrnn_lab.models.rnn", owner="RNN", name="training_step", call=4, signal="KILL")

# Without the account of whoever runs the tests.
ALONE = "import os; os.environ.pop('WANDB_API_KEY', None); os.environ['HOME'] = os.getcwd()"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_grows_and_loses_what_a_resumed_run_does_again(tmp_path):
    first = CSVFile(tmp_path)
    first.begin()
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": 10.0 - step, "epoch": 0}, step)
    first.log_metrics({"val/loss": 5.0}, 3)
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2", "3", "3"] and "epoch" not in rows_of(tmp_path)[0]
    second = CSVFile(tmp_path)
    second.begin(2)
    second.log_metrics({"train/loss": 6.5}, 3)
    second.end({"status": "completed", "val/loss": 5.5, "fit/steps": 3, "fit/seconds": 1.0})
    assert [(row["step"], row["train/loss"]) for row in rows_of(tmp_path)[:3]] == [
        ("1", "9.0"),
        ("2", "8.0"),
        ("3", "6.5"),
    ]
    assert rows_of(tmp_path)[-1]["best/score"] == "5.5"
    assert curve(tmp_path, "train/loss") == [(1, 9.0), (2, 8.0), (3, 6.5)]
    again = CSVFile(tmp_path)  # scored again, without a fit
    again.begin(3)
    again.end({"status": "completed", "val/loss": 5.5, "fit/steps": 3})
    assert len(rows_of(tmp_path)) == 5


def test_a_csv_file_of_a_killed_process_is_found_again(tmp_path):
    (tmp_path / ".metrics.csv.earlier").write_text("step,train/loss\n1,2.0\n")  # as left while it was copied
    (tmp_path / "metrics.csv").write_text("step,train/loss\n")
    CSVFile(tmp_path).begin(5)
    assert rows_of(tmp_path) == [{"step": "1", "train/loss": "2.0"}]


@pytest.mark.parametrize("torn", ["2,1.", "2,", "x", "2,1.0,3,4", "\x00"])
def test_a_row_that_was_cut_short_keeps_no_run_from_resuming(torn, tmp_path):
    (tmp_path / "metrics.csv").write_text(f"step,train/loss\n1,2.0\n{torn}")
    CSVFile(tmp_path).begin(5)
    assert rows_of(tmp_path)[0] == {"step": "1", "train/loss": "2.0"} and len(rows_of(tmp_path)) <= 2


def test_a_run_without_the_key_has_tensorboard_and_none_has_nothing(tmp_path):
    config = compose(["model=rnn", "data=ou"])
    assert [type(each) for each in loggers_of(config, tmp_path)] == [TensorBoard]
    config = DictConfig({key: value for key, value in config.items() if key != "logger"})
    assert [type(each) for each in loggers_of(config, tmp_path)] == [TensorBoard]
    assert loggers_of(compose(["model=rnn", "data=ou", "logger=none"]), tmp_path) == []
    both = loggers_of(compose(["model=rnn", "data=ou", "logger=[csv,tensorboard]"]), tmp_path)
    assert [type(each) for each in both] == [CSVFile, TensorBoard]


def test_a_logger_names_no_job(tmp_path):
    same = [job_id(compose(["model=rnn", "data=ou", *more])) for more in ([], ["logger=csv"], ["logger=none"])]
    assert len({*same}) == 1


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_cure(name, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(
        ConfigError, match=rf"package {name}, which is not installed: pip install 'vrnn_lab\[{name}\]'"
    ):
        loggers_of(compose(["model=rnn", "data=ou", f"logger={name}"]), tmp_path)


@pytest.fixture
def gone(tmp_path):
    """A logger of one's own, one file and one YAML, whose service is gone once the fit has begun."""
    (tmp_path / "gone.py").write_text(
        "from lightning.pytorch.loggers.logger import DummyLogger\n"
        "from vrnn_lab.training.loggers.base import RunLogger\n\n\n"
        "class Gone(RunLogger, DummyLogger):\n    remote = True\n\n"
        "    def __init__(self, folder, word: str = 'a'):\n        super().__init__()\n\n"
        "    def begin(self, step=0):\n        pass\n\n"
        "    def add_figure(self, name, figure, step):\n        self.fail()\n\n"
        "    def end(self, metrics):\n        self.fail()\n\n"
        "    def fail(self):\n        self.attempt(lambda: 1 / 0)\n"
    )
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / "gone.yaml").write_text("# @package logger.gone\n_target_: gone.Gone\nword: b\n")


@pytest.mark.slow
def test_a_service_that_fails_later_ends_no_run(tmp_path, gone):
    words = [*TINY, "logger=[gone,csv]", "hydra.run.dir=here", "--config-dir", "."]
    done = command("run", *words, folder=tmp_path, figures=True, before="import sys; sys.path.insert(0, '')")
    assert (done.stdout + done.stderr).count("Gone did not take a record (ZeroDivisionError: division by zero)") == 1
    assert metrics(tmp_path / "here")["status"] == "completed" and rows_of(tmp_path / "here")


@pytest.mark.slow
def test_a_run_resumes_with_a_logger_of_ones_own(tmp_path, gone):
    words = [*TINY, "logger=csv", "hydra.run.dir=here", "trainer.max_epochs=3"]
    assert command("run", *words, folder=tmp_path, before=BEYOND, check=False).returncode == -9
    refused = command("run", "resume=here", "--confg-dir", ".", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "--confg-dir cannot be given with resume=" in refused.stderr
    again = ["resume=here", "logger=[csv,gone]", "--config-dir", "."]
    done = command("run", *again, folder=tmp_path, figures=True, before="import sys; sys.path.insert(0, '')")
    assert "Gone did not take a record" in done.stdout + done.stderr
    assert metrics(tmp_path / "here")["status"] == "completed"


@pytest.mark.slow
def test_the_report_shows_the_curve_of_a_run_with_csv_alone(tmp_path):
    command("run", *TINY, "logger=csv", "hydra.run.dir=a", folder=tmp_path)
    assert not list((tmp_path / "a").glob("events*"))
    assert [step for step, _ in curve(tmp_path / "a", "val/loss")] == [1, 3]
    assert len(curve(tmp_path / "a", "best/score")) == 1


@pytest.mark.slow
def test_mlflow_has_a_run_with_all_of_it_also_after_a_kill(tmp_path):
    from mlflow import MlflowClient

    words = [*TINY, "logger=[mlflow,tensorboard]", "hydra.run.dir=here", "trainer.max_epochs=3"]
    killed = command("run", *words, folder=tmp_path, before=BEYOND, check=False)
    assert killed.returncode == -9
    again = command("run", "resume=here", "trainer.max_epochs=4", folder=tmp_path, figures=True)
    assert "did not take a record" not in again.stdout + again.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy will remove
        client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("vrnn_lab").experiment_id])
    final = metrics(tmp_path / "here")
    assert run.info.status == "FINISHED" and run.info.run_name.endswith("/here")
    assert run.data.metrics["best/score"] == pytest.approx(final["val/loss"])
    assert run.data.params["model.width"] == "4" and "logger=[mlflow" in run.data.tags["command"]
    assert {"config.yaml", "figures", "metrics.json"} <= {
        file.path for file in client.list_artifacts(run.info.run_id)
    }
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert {f"figures/{file.name}" for file in (tmp_path / "here/figures").glob("*.png")} <= pictures
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == sorted(steps) and max(steps) == final["fit/steps"] - 1
    words = [*TINY, "logger=mlflow", "logger.mlflow.tracking_uri=file:///nowhere/at/all", "hydra.run.dir=b"]
    refused = command("run", *words, folder=tmp_path, check=False)
    if refused.returncode:  # releases from 2026 on
        assert refused.returncode == 2 and "error: logger" in refused.stderr and "cannot use file:" in refused.stderr
        assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_run_goes_on_where_mlflow_is_gone_and_is_recorded_anew_where_its_database_is(tmp_path):
    gone = (
        "from mlflow.tracking import MlflowClient as Client\nkept, calls = Client.log_batch, [0]\n"
        "def log_batch(*a, **k):\n    calls[0] += 1\n    if calls[0] > 1:\n"
        "        raise ConnectionError('gone')\n    return kept(*a, **k)\nClient.log_batch = log_batch\n"
        "Client.set_terminated = Client.log_metric = log_batch"
    )
    done = command("run", *TINY, "logger=mlflow", "hydra.run.dir=here", folder=tmp_path, before=gone)
    said = done.stdout + done.stderr
    assert 1 <= said.count("MLflow did not take a record (ConnectionError: gone)") <= 2
    assert metrics(tmp_path / "here")["status"] == "completed"
    (tmp_path / "here/metrics.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    again = command("run", f"resume={tmp_path}/here", folder=tmp_path / "elsewhere")
    assert "it is recorded anew" in again.stdout + again.stderr
    assert (tmp_path / "elsewhere/outputs/mlflow.db").exists()


@pytest.mark.slow
def test_processes_that_make_the_database_of_mlflow_at_once_share_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vrnn_lab.training.loggers.mlflow_logger import MLflow; "
        "MLflow(Path(sys.argv[1])).connect()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, stderr=subprocess.PIPE) for name in "abc"
    ]
    assert [(process.communicate()[1], process.returncode)[1] for process in started] == [0, 0, 0]


@pytest.mark.slow
def test_of_several_processes_the_first_says_why_a_logger_does_not_start(tmp_path):
    words = [
        *TINY,
        "logger=wandb",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "hydra.run.dir=here",
    ]
    done = command("run", *words, folder=tmp_path, before=ALONE, check=False)
    assert done.returncode and "logger=wandb cannot start a run" in done.stderr


@pytest.mark.slow
def test_wandb_offline_has_numbers_figures_and_the_end(tmp_path):
    words = ["-m", *TINY, "logger=wandb", "logger.wandb.offline=true", "seed=0,1", "sweep=two"]
    command("run", *words, folder=tmp_path, figures=True, before=ALONE)
    kept = sorted((tmp_path / "outputs/wandb").glob("offline-run-*"))
    assert len(kept) == 2
    for folder in kept:
        (records,) = folder.glob("*.wandb")
        content = records.read_bytes()
        for text in (b"val/loss", b"best/score", b"model.width", b"python -m vrnn_lab.run"):
            assert text in content
        pictures = {
            file.name.rpartition("_")[0].rpartition("_")[0] for file in (folder / "files/media").rglob("*.png")
        }
        assert {"forecast", "interpolation"} <= pictures
    # Commands refuse a run folder with links, which the package's own folder has.
    assert not [path for path in (tmp_path / "outputs/two").rglob("*") if path.is_symlink()]


@pytest.mark.slow
def test_wandb_without_a_key_is_refused_before_anything_is_written(tmp_path):
    words = [*TINY, "logger=wandb", "hydra.run.dir=here"]
    done = command("run", *words, folder=tmp_path, before=ALONE, check=False)
    assert done.returncode == 2 and "error: logger=wandb cannot start a run" in done.stderr
    assert "logger.wandb.offline=true" in done.stderr and not (tmp_path / "here").exists()
