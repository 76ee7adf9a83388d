"""Several processes fit one model: to the numbers of one, each on its shard of the data, and they end together."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.commands import FAST, command, metrics
from helpers.small import MODELS, batch_of, from_loader, held_out, model_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.validate import check
from vrnn_lab.core.shard import Shard
from vrnn_lab.models.losses import LossTerms
from vrnn_lab.runs.folder import metrics_of


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [1, 2, 7, 10])
def test_shares_are_every_row_once(total, processes):
    shards = [Shard.of(total, rank, processes) for rank in range(processes)]
    rows = [torch.arange(total) if shard.rows is None else shard.rows for shard in shards if shard.weight]
    assert torch.cat(rows).sort().values.tolist() == list(range(total))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert all(shard.part(batch_of(rows=total)).ids.numel() for shard in shards)


def gradients(name: str, batch, rank: int, processes: int, monkeypatch) -> list[torch.Tensor]:
    model = model_of(name, double=True)
    monkeypatch.setattr(type(model), "_position", (3, 100))
    monkeypatch.setattr(type(model), "global_step", 3)
    monkeypatch.setattr(type(model), "global_rank", rank)
    monkeypatch.setattr(type(model), "trainer", SimpleNamespace(world_size=processes))
    model.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in model.parameters())  # of one without, DDP would wait for ever
    return [p.grad for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("rows", "processes"), [(5, 2), (1, 2)])
def test_the_mean_gradient_of_the_processes_is_that_of_one(name, rows, processes, monkeypatch):
    batch = from_loader(held_out(batch_of(rows=rows)))
    one = gradients(name, batch, 0, 1, monkeypatch)
    many = [gradients(name, batch, rank, processes, monkeypatch) for rank in range(processes)]
    for whole, *parts in zip(one, *many, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole)


@pytest.mark.parametrize("labels", [[0, 1, -1, 1, 0], [-1, -1, -1, -1, -1]])
def test_the_loss_of_labels_is_shared_too(labels):
    model = model_of("rnn", double=True)
    model.classifier = lambda states, counts: states.mean(2)
    batch = replace(batch_of(rows=5), labels=torch.tensor(labels))
    states = torch.randn(3, 5, 8, 2, dtype=torch.float64)

    def label_loss(shard):
        part = states if shard.rows is None else states[:, shard.rows]
        nats = torch.zeros(part.shape[1])
        terms = LossTerms(nats, nats, states=part)
        return model._label_loss(terms, batch, shard)

    parts = [label_loss(Shard.of(5, rank, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), label_loss(Shard()))


# What each process sees, and how it may fail: on which, at which step.
WATCHED = """
import os
from pathlib import Path
from vrnn_lab.models.latent_ode import LatentODE

class Watched(LatentODE):
    def loss_terms(self, batch):
        if self.training:
            with open(f"seen-{self.trainer.world_size}-{self.global_rank}", "a") as file:
                print(self.global_step, *batch.ids.tolist(), file=file)
            if (self.global_step, self.global_rank) == (1, 1) and Path("raise").exists():
                raise ArithmeticError("out of luck")
            if (self.global_step, self.global_rank) == (12, 1) and Path("kill").exists():
                os.kill(os.getpid(), 9)
        return super().loss_terms(batch)
"""
# Of 41 series in batches of 10 the last batch has but one: nothing is left for the second process.
WATCH = [*FAST, "model._target_=watched.Watched", "data.train=41", "data.val=11", "trainer.max_epochs=4"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=4"]
TWO += ["trainer.check_val_every_n_epoch=2", "hydra.run.dir=two"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run by one process; and by two, of which one is killed, and the run gone on with."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "watched.py").write_text(WATCHED)
    command("run", *WATCH, "hydra.run.dir=one", folder=folder, fresh=True, figures=True)
    (folder / "kill").touch()
    killed = command("run", *WATCH, *TWO, folder=folder, check=False, fresh=True, figures=True)
    recorded = (folder / "two" / "metrics.json").read_text()
    (folder / "kill").unlink()
    return (
        folder,
        killed,
        recorded,
        command("run", "resume=two", "trust=watched", folder=folder, fresh=True, figures=True),
    )


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run(runs):
    _, killed, recorded, _ = runs
    assert killed.returncode == 1 and "killed by SIGKILL" in killed.stderr and "resume=" in killed.stderr
    assert json.loads(recorded)["status"] == "failed"


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_killed_in_between_or_not(runs):
    one, two = (metrics(runs[0] / name) for name in ("one", "two"))
    assert one == {k: pytest.approx(v, rel=1e-4, abs=1e-6) if k != "status" else v for k, v in two.items()}


def seen(file) -> dict[int, list[int]]:
    lines = (list(map(int, line.split())) for line in file.read_text().splitlines())
    return {step: ids for step, *ids in lines}


@pytest.mark.slow
def test_each_process_sees_its_share_of_every_batch(runs):
    one, *two = (seen(runs[0] / f"seen-{name}") for name in ("1-0", "2-0", "2-1"))
    assert len(one) == 20 and all(each.keys() == one.keys() for each in two)
    for step, ids in one.items():
        if len(ids) > 1:
            assert sorted(two[0][step] + two[1][step]) == sorted(ids) and len(two[0][step]) == len(ids) / 2


@pytest.mark.slow
def test_the_first_process_alone_writes_and_prints(runs):
    folder, _, _, done = runs
    rows = [line for line in done.stdout.splitlines() if line.strip().startswith("this model")]
    assert len(rows) == 2  # interpolation and forecast, once each
    assert done.stderr.count("\n") == 2 and done.stderr.count("training:") == done.stderr.count("resuming from") == 1
    written = lambda name: {
        str(p.relative_to(folder / name)) for p in (folder / name).rglob("*") if "event" not in p.name
    }
    assert written("one") == written("two")


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_its_reason(tmp_path):
    (tmp_path / "watched.py").write_text(WATCHED)
    (tmp_path / "raise").touch()
    done = command("run", *WATCH, *TWO, folder=tmp_path, check=False, fresh=True, figures=True)
    assert done.returncode == 1 and "out of luck" in done.stderr and "Traceback" not in done.stderr
    failed = {"status": "failed", "error": "ArithmeticError: out of luck"}
    assert metrics_of(tmp_path / "two") == failed


WRONG = {
    "trainer.devices=2": "add trainer=ddp",
    "trainer.devices=[0,1]": "add trainer=ddp",
    "trainer.devices=auto": "add trainer=ddp",
    "trainer=cpu trainer.devices=[0]": "trainer.devices=2",
    "trainer=ddp trainer.devices=0": "a whole number from 1",
    "trainer=ddp trainer.devices=[0,0]": "a list of GPUs",
    "trainer=ddp trainer.strategy=fsdp": "expected one of auto, ddp",
    "trainer=ddp trainer.num_nodes=0": "a whole number from 1",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_devices_that_cannot_work_are_refused(overrides):
    with pytest.raises(ConfigError) as error:
        check(compose(overrides.split()))
    assert WRONG[overrides] in str(error.value)


@pytest.mark.parametrize("overrides", ["trainer=ddp", "trainer=ddp trainer.devices=[1,3]", "trainer.devices=[1]"])
def test_devices_that_may_work_are_not(overrides):
    check(compose(overrides.split()))
