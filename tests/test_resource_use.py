"""Long use: many jobs, and many epochs, hold no more than few; equal seeds give equal results."""

import sys

import pytest

from helpers.commands import TINY, command, metrics
from helpers.resource_use import growth, measured
from helpers.small import trained
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
JOB, EPOCH = 0.1, 0.005  # MB that a job and an epoch may add: 1000 jobs 100 MB, 10 000 epochs 50 MB


EPOCHS = [*TINY, "trainer.check_val_every_n_epoch=20", "stop=off"]


@pytest.mark.slow
def test_a_few_jobs_leave_no_files_and_no_threads_open(tmp_path):
    memory, files, threads = growth(measured("jobs", 8, tmp_path, TINY), 1, 0.4)
    assert files <= 0 and threads <= 0 and memory < 5


@pytest.mark.slow
def test_some_epochs_of_a_fit_leave_no_files_and_no_threads_open(tmp_path):
    memory, files, threads = growth(measured("epochs", 100, tmp_path / "run", EPOCHS), 10, 0.4)
    assert files <= 0 and threads <= 0 and memory < 0.5


@pytest.mark.stress
def test_300_jobs_of_a_process_hold_no_more_than_60(tmp_path):
    seen = measured("jobs", 300, tmp_path, TINY)
    memory, files, threads = growth(seen, 1, 0.2)
    print(
        f"300 jobs: {seen[60].memory:.0f} MB after 60, {seen[-1].memory:.0f} after 300, {memory * 1000:.1f} kB a job;"
    )
    print(f"open files {files:+d}, threads {threads:+d}")
    assert files <= 0 and threads <= 0 and memory < JOB


@pytest.mark.stress
def test_2000_epochs_of_a_fit_hold_no_more_than_400(tmp_path):
    seen = measured("epochs", 2000, tmp_path / "run", EPOCHS)
    memory, files, threads = growth(seen, 10, 0.2)
    print(
        f"2000 epochs: {seen[40].memory:.0f} MB after 400, {seen[-1].memory:.0f} after 2000, open files {files:+d},"
    )
    print(f"threads {threads:+d}, {memory * 1000:.2f} kB an epoch")
    assert len(seen) == 200 and files <= 0 and threads <= 0 and memory < EPOCH


# ---- equal seeds, equal results

EQUAL = [*TINY, "model=vrnn", "model.width=4", "trainer.deterministic=true"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_in_every_process(tmp_path):
    alone = [command("run", *EQUAL, f"hydra.run.dir={name}", folder=tmp_path) for name in ("one", "two")]
    assert len(alone) == 2 and metrics(tmp_path / "one") == metrics(tmp_path / "two")
    sweep = ["-m", "seed=0,1", "sweep=s", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command("run", *EQUAL, *sweep, folder=tmp_path, fresh=True)
    (job,) = (tmp_path / "outputs" / "s").glob("*seed=0*")
    assert metrics(job) == metrics(tmp_path / "one")  # two jobs at once, each in a process of its own


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["auto", "cpu", "ddp", "debug", "gpu"])
def test_deterministic_is_a_key_of_every_trainer_and_is_checked(trainer):
    config = compose([f"trainer={trainer}"])
    assert config.trainer.deterministic is None
    check(compose([f"trainer={trainer}", "trainer.deterministic=true"]))
    with pytest.raises(ConfigError, match=r"trainer\.deterministic"):
        check(compose([f"trainer={trainer}", "trainer.deterministic=maybe"]))


@pytest.mark.slow
def test_deterministic_reaches_torch(tmp_path):
    import torch

    try:
        trained(tmp_path / "run", "trainer.max_epochs=1", "trainer.deterministic=true")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
