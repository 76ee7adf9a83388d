"""The commands end to end, small: train, read again, cut short, go on."""

import json
import os
import shutil
import signal
import tempfile
import time
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import vrnn_lab
from helpers.commands import CUT, CUTS, FAST, command, metrics, steps_of
from vrnn_lab.config.compose import compose
from vrnn_lab.core import run_files
from vrnn_lab.runs import build
from vrnn_lab.training import fit


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    command("run", *FAST, "hydra.run.dir=run", folder=folder, figures=True)
    return folder / "run"


def test_a_run_folder_holds_all_that_is_promised(whole):
    for name in (".hydra/config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "run.log", "metrics.json"):
        assert (whole / name).stat().st_size > 0
    assert list(whole.glob("events*")) and len(list((whole / "figures").glob("*.png"))) >= 2
    places = [str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()]
    assert not [place for place in places if not any(fnmatch(place, file.place) for file in run_files.FILES)]


def test_the_documentation_lists_every_file_of_a_run_folder():
    text = (Path(__file__).parents[1] / "docs" / "run-folder.md").read_text()
    assert run_files.table() in text
    for file in run_files.FILES:
        assert find_spec(f"vrnn_lab.{file.writer}") is not None


def test_tensorboard_gets_the_choices_the_curves_and_few_final_numbers(whole):
    chosen = yaml.safe_load((whole / ".hydra" / "choices.yaml").read_text())
    assert chosen["model"] == "latent_ode" and chosen["model/head"] and not [g for g in chosen if "hydra" in g]
    curves = steps_of(whole)
    assert curves["train/loss"][-1] == 24 and len(curves["val/loss"]) == 3 and len(curves) < 20
    assert {t.split("/")[0] for t in curves} == {"best", "fit", "model", "train", "val"}
    assert not (whole / "hparams.yaml").exists()


def test_the_metrics_have_the_promised_keys(whole):
    found = json.loads((whole / "metrics.json").read_text())
    scores = ("nll", "mse", "nmse", "crps", "coverage_50", "coverage_90", "mse_clean")
    for split in ("val", "test"):
        assert {f"{split}/loss", f"{split}/nll"} <= set(found)
        assert {f"{split}/{q}/{s}" for q in ("interpolation", "forecast") for s in scores} <= set(found)
    for row in ("constant", "last", "linear", "blend"):
        assert {f"reference/{row}/{q}/{s}" for q in ("interpolation", "forecast") for s in scores} <= set(found)
    assert found["status"] == "completed" and found["test/nll_samples"] == 5
    assert found["noise_floor"] == pytest.approx(0.01**2 / 12)
    assert found["fit/epochs"] == 6 and found["fit/steps"] == 24 and found["fit/seconds"] > 0
    assert found["model/parameters"] > 100


@pytest.mark.slow
def test_evaluate_prints_the_same_table_from_the_folder_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    done = command("evaluate", f"run={whole}", folder=whole.parent)
    for key in ("test/nll", "test/interpolation/mse", "test/forecast/crps", "reference/linear/forecast/nll"):
        assert f"{metrics(whole)[key]:.4g}" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


def test_load_gives_the_fitted_model_and_its_data(whole):
    model, data = vrnn_lab.load(whole)
    batch = next(iter(data.test_dataloader()))
    assert not model.training and model.predict(batch, 3).paths.shape == (3, 10, 12, 1)
    stored = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(v, stored[k]) for k, v in model.state_dict().items())


SPIRALS = [*(each for each in FAST if each != "data=periodic"), "trainer.max_epochs=2", "data.points=20"]


@pytest.fixture(scope="module")
def spirals(tmp_path_factory):
    """A run of the demo's kind, and what it printed."""
    folder = tmp_path_factory.mktemp("spirals")
    return folder / "run", command("run", *SPIRALS, "hydra.run.dir=run", folder=folder, figures=True).stdout


@pytest.mark.slow
def test_the_demo_prints_the_error_beyond_the_window_beside_the_baselines(spirals):
    folder, printed = spirals
    found = json.loads((folder / "metrics.json").read_text())
    for question in ("before", "after"):
        block = printed.split(f"{question} the window")[1].splitlines()
        assert block[1].split()[:2] == ["this", "model"]
        prefixes = ("test", "recalibrated/test", "reference/constant", "reference/last")
        for line, prefix in enumerate(prefixes, 1):
            for score in ("mse", "mse_clean", "crps"):
                assert f"{found[f'{prefix}/{question}/{score}']:.4g}" in block[line]
        assert {f"val/{question}/mse", f"reference/linear/{question}/mse_clean"} <= set(found)


@pytest.mark.slow
def test_a_checkpoint_keeps_whether_series_share_a_time_axis_and_an_old_one_means_no(spirals, tmp_path):
    folder, _ = spirals
    model, _ = vrnn_lab.load(folder)
    assert model.scale.common_time and model.origin == "middle"
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    file, config = old / "checkpoints" / "best.ckpt", OmegaConf.load(old / ".hydra" / "config.yaml")
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["common_time"]
    torch.save(checkpoint, file)
    for key in ("model.origin", "model.head.speed"):
        group, _, leaf = key.rpartition(".")
        del OmegaConf.select(config, group)[leaf]
    OmegaConf.save(config, old / ".hydra" / "config.yaml")
    model, _ = vrnn_lab.load(old)
    assert not model.scale.common_time and model.origin == "row" and model.head.speed == 1


@pytest.mark.slow
def test_the_same_command_again_gives_the_same_numbers(whole, tmp_path):
    command("run", *FAST, "hydra.run.dir=run", folder=tmp_path)
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.slow
@pytest.mark.parametrize("place", CUTS)
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(place, whole, tmp_path):
    cut = CUT.format(**CUTS[place], signal="KILL")
    done = command("run", *FAST, "hydra.run.dir=run", folder=tmp_path, before=cut, check=False)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "run" / "metrics.json").exists()
    command("run", f"resume={tmp_path / 'run'}", folder=tmp_path)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert steps_of(tmp_path / "run") == steps_of(whole)


@pytest.mark.slow
def test_a_run_folder_may_be_moved_before_it_goes_on(whole, tmp_path):
    cut = CUT.format(**CUTS["in validation"], signal="KILL")
    command("run", *FAST, "hydra.run.dir=run", folder=tmp_path, before=cut, check=False)
    (tmp_path / "run").rename(tmp_path / "moved")
    command("run", "resume=moved", folder=tmp_path)
    assert metrics(tmp_path / "moved") == metrics(whole)


@pytest.mark.slow
def test_sigterm_is_no_success_and_the_run_goes_on(whole, tmp_path):
    cut = CUT.format(**CUTS["in the middle of an epoch"], signal="TERM")
    done = command("run", *FAST, "hydra.run.dir=run", folder=tmp_path, before=cut, check=False)
    assert done.returncode == 143 and not (tmp_path / "run" / "metrics.json").exists()
    command("run", f"resume={tmp_path / 'run'}", folder=tmp_path)
    assert metrics(tmp_path / "run") == metrics(whole)


def test_a_checkpoint_in_the_middle_of_an_epoch_goes_on_there(tmp_path):
    """The loader knows its place: from a mid-epoch checkpoint the weights are those of the whole run."""
    import lightning.pytorch as pl

    from vrnn_lab.runs.checkpoints import Checkpoints

    def trained(folder, **keys):
        model, data = vrnn_lab.build([a for a in FAST if not a.startswith("trainer")])
        saver = Checkpoints(folder, every_n_train_steps=7, save_top_k=-1, filename="{step}")
        trainer = pl.Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[saver], logger=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(model, datamodule=data, **keys)
        return model.state_dict()

    one = trained(tmp_path / "one")
    (tmp_path / "one" / "step=7.ckpt").rename(tmp_path / "middle.ckpt")
    two = trained(tmp_path / "two", ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_checkpoint_that_is_cut_short_leaves_the_one_before_it(tmp_path, monkeypatch):
    """Also where the temporary folder is on another disk, from which a file would be copied, not renamed."""
    parts = build.assemble(compose(FAST))
    saver = fit.trainer_of(parts, tmp_path).strategy.checkpoint_io
    file = tmp_path / "checkpoints" / "last.ckpt"
    saver.save_checkpoint({"step": 1}, file)

    def full(path, content):
        path.write_text("half")
        os.stat(tmp_path / "not there")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileNotFoundError):
        saver.save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1} and not list(file.parent.glob(".*"))
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    saver.save_checkpoint({"step": 3}, file)
    assert torch.load(file, weights_only=True) == {"step": 3}


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(whole):
    before = (whole / "metrics.json").stat().st_mtime_ns
    started = time.monotonic()
    command("run", f"resume={whole}", folder=whole.parent)
    assert (whole / "metrics.json").stat().st_mtime_ns == before and time.monotonic() - started < 60


@pytest.mark.slow
def test_a_folder_holds_one_run_and_refuses_another(whole):
    done = command("run", *FAST, "model.width=9", f"hydra.run.dir={whole}", folder=whole.parent, check=False)
    assert done.returncode == 2 and "model.width is 8 instead of 9" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("length", ["trainer.max_epochs=1", "trainer.max_epochs=3", "trainer.max_steps=2"])
def test_however_short_a_fit_it_ends_with_a_checkpoint_of_its_end(length, tmp_path):
    command("run", *FAST, length, "hydra.run.dir=run", folder=tmp_path)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == metrics(tmp_path / "run")["fit/steps"]


@pytest.mark.slow
def test_beside_resume_only_the_trainer_may_change(whole):
    done = command("run", f"resume={whole}", "optim.lr=1", folder=whole.parent, check=False)
    assert done.returncode == 2 and "trainer.*" in done.stderr


@pytest.mark.slow
def test_a_loss_that_is_no_number_fails_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    spoil = """
import torch
from vrnn_lab.models.latent_ode import LatentODE as owner
kept, calls = owner.training_step, [0]
def spoiled(self, *a, **k):
    calls[0] += 1
    return kept(self, *a, **k) if calls[0] < 11 else self._spoil(kept(self, *a, **k))
def spoil(self, loss):
    self._held[-1] = self._held[-1] * float('nan')
    return loss * float('nan')
owner.training_step, owner._spoil = spoiled, spoil
"""
    done = command("run", *FAST, "hydra.run.dir=run", folder=tmp_path, before=spoil, check=False)
    assert done.returncode == 1 and "step 11" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "failed"
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(w.isfinite().all() for w in weights.values())


@pytest.mark.slow
def test_a_sweep_gives_every_job_a_folder_of_its_own_and_the_same_again(tmp_path):
    sweep = [*FAST, "-m", "sweep=s", "model.width=4,6", "trainer.max_epochs=1"]
    command("run", *sweep, folder=tmp_path)
    folders = sorted(p.parent for p in (tmp_path / "outputs" / "s").glob("*/metrics.json"))
    widths = {OmegaConf.load(f / ".hydra" / "config.yaml").model.width for f in folders}
    assert widths == {4, 6}
    files = [p for f in folders for p in f.rglob("*") if p.name != ".lock"]
    before = [p.stat().st_mtime_ns for p in files]
    wider = [*FAST, "-m", "sweep=s", "model.width=8,6,4", "trainer.max_epochs=1"]
    command("run", *wider, folder=tmp_path)
    assert [p.stat().st_mtime_ns for p in files] == before  # folders too: there is no further events file
    assert len(list((tmp_path / "outputs" / "s").glob("*/metrics.json"))) == 3


@pytest.mark.slow
def test_tricks_sweep_as_lists(tmp_path):
    few = [*FAST, "-m", "sweep=t", "trick=none,[clip],[clip,early_stop]", "trainer.max_epochs=1"]
    command("run", *few, folder=tmp_path)
    configs = [OmegaConf.load(p) for p in (tmp_path / "outputs" / "t").glob("*/.hydra/config.yaml")]
    assert sorted(len(c.tricks) for c in configs) == [0, 1, 2]


@pytest.mark.slow
def test_an_experiment_that_sweeps_by_itself_needs_only_m(tmp_path):
    small = ["data.points=30", "data.starts=1", "trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    command("run", "-m", "sweep=t", "experiment=tricks_batch", "seed=3", "data.batch_time=5", *small, folder=tmp_path)
    configs = [OmegaConf.load(p) for p in (tmp_path / "outputs" / "t").glob("*/.hydra/config.yaml")]
    assert sorted((c.seed, c.data.batch_time, c.data.batch_size) for c in configs) == [
        (3, 5, s) for s in (20, 40, 80)
    ]
    found = [metrics(p.parent) for p in (tmp_path / "outputs" / "t").glob("*/metrics.json")]
    assert [run["fit/steps"] for run in found] == [2, 2, 2]
    # The loss is twice the mean |error|: no constant, and nothing of the first point.
    assert all(run["test/loss"] == pytest.approx(run["test/forecast/nll"], rel=1e-5) for run in found)
    assert all(run["fit/last_loss"] == pytest.approx(run["val/loss"], rel=1e-5) for run in found)


@pytest.mark.slow
def test_a_users_own_table_trains_and_is_read_again(tmp_path):
    """Two features seen at different times, unequal lengths, seconds since 1970, rows in any order."""
    rows = [
        f"{name},{1.7e9 + 3600 * i + 7 * ord(name)},{i % 5 if i % 3 else ''},{20.5 + i / 2 if i % 2 else ''}"
        for name in "abcdefghijklmnopqrst"
        for i in range(6 + ord(name) % 5)
    ]
    (tmp_path / "my.csv").write_text("name,second,level,temperature\n" + "\n".join(reversed(rows)))
    keys = ["data=table", "data.path=my.csv", "data.id=name", "data.time=second", "model=rnn", "model.width=8"]
    keys += [k for k in FAST if k.startswith(("evaluate", "trainer"))]
    command("run", *keys, "hydra.run.dir=run", folder=tmp_path)
    found = metrics(tmp_path / "run")
    assert found["status"] == "completed" and "test/forecast/channel/temperature/mse" in found
    done = command("evaluate", "run=run", folder=tmp_path)
    assert f"{found['test/nll']:.4g}" in done.stdout


BAD = {
    "text in a number column": ["data=table", "data.path=bad.csv"],
    "a missing file": ["data=table", "data.path=none.csv"],
    "a folder that cannot be made": ["hydra.run.dir=bad.csv/run"],
    "a model that does not know its keys": ["model.widht=3"],
    "a run that is none": ["resume=nowhere"],
    "a sweep with one job that cannot work": ["-m", "model.width=4,-4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_leaves_nothing_behind(case, tmp_path):
    (tmp_path / "bad.csv").write_text("id,time,x\na,0,1\na,1,much\nb,0,1\n")
    done = command("run", *FAST[:5], "model=latent_ode", *BAD[case], folder=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("metrics.json")) and not list(tmp_path.rglob("config.yaml"))


def test_a_refused_run_leaves_no_folder_but_those_of_the_user(tmp_path):
    words = ["model=rnn", "data=table", "data.path=nowhere.csv"]
    (tmp_path / "mine").mkdir()
    for more in ([], ["hydra.run.dir=mine/run"]):
        refused = command("run", *words, *more, folder=tmp_path, check=False)
        assert refused.returncode == 2 and "nowhere.csv does not exist" in refused.stderr
        assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    (tmp_path / "outputs" / "2001-01-01" / "old").mkdir(parents=True)
    command("run", *words, folder=tmp_path, check=False)
    assert [path.name for path in (tmp_path / "outputs").rglob("*")] == ["2001-01-01", "old"]
