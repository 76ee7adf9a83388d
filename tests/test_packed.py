"""A packed run answers as its folder does, and a file from somebody else can do nothing but that."""

import shutil
import stat
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers.commands import call, command
from vrnn_lab import pack, predict
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.example import RUN, TABLE
from vrnn_lab.core.files import DamagedError
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.runs import packed


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """The run that comes with the package, as a folder."""
    folder = tmp_path_factory.mktemp("example") / "run"
    packed.unpack(RUN, folder)
    return folder


def with_member(target: Path, name: str, content: bytes = b"x", kind: int = 0) -> Path:
    """A packed run with a further member."""
    shutil.copy(RUN, target)
    with zipfile.ZipFile(target, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = kind << 16
        archive.writestr(member, content)
    return target


def frame_for(forecaster: Forecaster) -> pd.DataFrame:
    channel = forecaster.parts.model.scale.channels[0]
    return pd.DataFrame({"id": "a", "time": range(6), channel: [0.1, 0.2, 0.0, 0.3, 0.1, 0.2]})


def test_the_example_forecasts_its_table_by_one_command(tmp_path, monkeypatch, capsys):
    assert call(predict, "run=example input=example horizon=1y", monkeypatch, tmp_path) == 0
    made = pd.read_csv(tmp_path / "forecast.csv")
    assert len(made) == 52 and made["mean"].between(365, 380).all() and (made["q05"] < made["q95"]).all()
    assert call(predict, "run=example input=example horizon=1y", monkeypatch, tmp_path) == 2
    assert "forecast.csv exists already; name the file to write" in capsys.readouterr().err
    assert RUN.stat().st_size + TABLE.stat().st_size < 300_000


def test_the_example_can_be_scored_and_drawn_from_and_stays_as_it_is(tmp_path):
    scored = command("evaluate", "run=example", "evaluate.samples=2", "evaluate.draws=9", folder=tmp_path)
    assert "this model" in scored.stdout
    command("sample", "run=example", "n=2", "points=5", folder=tmp_path)
    assert len(pd.read_csv(tmp_path / "samples.csv")) == 10
    refused = command("evaluate", "run=example", "recalibrate=true", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "which stays as it is" in refused.stderr


def test_a_packed_run_answers_as_its_folder(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    assert call(pack, "run=run output=a.zip", monkeypatch, tmp_path) == 0
    assert call(pack, "run=run output=b.zip", monkeypatch, tmp_path) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {*archive.namelist()} <= {*packed.KEPT}
    places = (tmp_path / "run", packed.unpacked(tmp_path / "a.zip"))
    before, after = (torch.load(place / "checkpoints/best.ckpt", weights_only=True) for place in places)
    assert "optimizer_states" in before and "optimizer_states" not in after
    one, two = (Forecaster.load(tmp_path / name) for name in ("run", "a.zip"))
    frame = frame_for(one)
    pd.testing.assert_frame_equal(one.predict(frame, horizon=2, every=1), two.predict(frame, horizon=2, every=1))


def test_a_packed_run_can_be_unpacked_and_starts_a_fit(example, tmp_path, monkeypatch, capsys):
    assert call(pack, "run=example output=here", monkeypatch, tmp_path) == 0
    assert (tmp_path / "here/checkpoints/best.ckpt").read_bytes() == (example / "checkpoints/best.ckpt").read_bytes()
    assert call(pack, "run=example output=here", monkeypatch, tmp_path) == 2
    assert "here exists; name a new folder" in capsys.readouterr().err
    refused = {"run=example": "name the new folder", "run=nowhere": "not exist", "run=here output=a.tar": "in .zip"}
    for words, cure in refused.items():
        assert call(pack, words, monkeypatch, tmp_path) == 2 and cure in capsys.readouterr().err
    (tmp_path / "here/checkpoints/best.ckpt").unlink()
    assert call(pack, "run=here", monkeypatch, tmp_path) == 2
    assert "here cannot be packed: checkpoints/best.ckpt does not exist" in capsys.readouterr().err


def test_a_mixture_is_packed_with_its_runs_and_a_baseline_by_its_run(finished, tmp_path):
    from vrnn_lab.evaluation.baseline_model import Spread
    from vrnn_lab.forecasting.ensemble import Weights
    from vrnn_lab.forecasting.mixture_folder import Mixture
    from vrnn_lab.runs import baseline_folder

    top = tmp_path / "found"
    shutil.copytree(finished, top / "one")
    spread = Spread(torch.tensor([1.0]).double(), torch.tensor([0.1]).double(), 100.0)
    baseline_folder.save(top / "drift", "last", top / "one", spread, spread)
    Mixture((top / "one", top / "drift"), Weights((1.0, 0.0), (0.5, 0.5))).save(top)
    names = packed.pack(top, tmp_path / "found.zip")
    assert {"mixture.json", "one/checkpoints/best.ckpt", "drift/baseline.json"} <= {*names}
    both = [Forecaster.load(run) for run in (top, tmp_path / "found.zip")]
    answers = [forecaster.predict(frame_for(forecaster), horizon=2, every=1) for forecaster in both]
    pd.testing.assert_frame_equal(*answers)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "//metrics.json",
        "//.hydra/config.yaml",
        ".. /metrics.json",
        ". /metrics.json",
        "/metrics.json",
        "a /metrics.json",
        "/etc/outside",
        "checkpoints/../../outside",
        "a/../checkpoints/best.ckpt",
        "..\\outside",
        "C:outside",
        "checkpoints/other.ckpt",
        "run.py",
        "a/b/checkpoints/best.ckpt",
        "../checkpoints/best.ckpt",
        "./metrics.json",
        "checkpoints/",
        "metrics.json",
    ],
)
def test_a_name_that_no_packed_run_has_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name") if name == "metrics.json" else nullcontext():
        file = with_member(tmp_path / "a.zip", name)
    with pytest.raises(DamagedError, match=r"is no packed run: it holds .* and was not unpacked"):
        packed.unpack(file, tmp_path / "here")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR])
def test_a_member_that_is_no_plain_file_is_refused(kind, tmp_path):
    file = with_member(tmp_path / "a.zip", "a/metrics.json", b"/etc/passwd", kind)
    with pytest.raises(DamagedError, match="is no packed run"):
        packed.unpack(file, tmp_path / "here")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "LARGEST", 1000)
    with pytest.raises(DamagedError, match=r"would unpack to .* bytes; a packed run has at most 1,000"):
        packed.unpack(RUN, tmp_path / "here")


def test_a_file_that_is_packed_again_is_read_again(example, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(example, folder)
    packed.pack(folder, tmp_path / "a.zip")
    first = packed.unpacked(tmp_path / "a.zip")
    (folder / "recalibration.json").unlink()
    packed.pack(folder, tmp_path / "a.zip")
    second = packed.unpacked(tmp_path / "a.zip")
    assert (first / "recalibration.json").exists() and not (second / "recalibration.json").exists()


def test_no_link_and_no_logger_is_packed(example, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(example, folder)
    for name, old, new in (
        ("config", "logger:", "logger:\n  mlflow:\n    tracking_uri: https://me:secret@server\n    x:"),
        ("overrides", "- model=", "- logger.mlflow.tracking_uri=https://me:secret@server\n- model="),
    ):
        file = folder / f".hydra/{name}.yaml"
        text = "".join(file.read_text().splitlines(keepends=True)[1:])  # without its checksum
        file.write_text(text.replace(old, new, 1) if old in text else f"{new}\n{text}")
    assert "secret" in "".join(path.read_text() for path in (folder / ".hydra").glob("*.yaml"))
    packed.pack(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert not [name for name in archive.namelist() if b"secret" in archive.read(name)]
    assert Forecaster.load(tmp_path / "a.zip")
    (folder / "calibration.json").unlink()
    (folder / "calibration.json").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="is a link to /etc/passwd"):
        packed.pack(folder, tmp_path / "b.zip")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_file_is_named_with_a_cure(place, tmp_path, monkeypatch, capsys):
    content = bytearray(RUN.read_bytes())
    at = int(place * len(content))
    content[at : at + 40] = bytes(40)
    (tmp_path / "a.zip").write_bytes(content)
    assert call(predict, "run=a.zip input=example horizon=1y", monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "a.zip" in said and said.count("error") == 1
    assert not (tmp_path / "forecast.csv").exists()


def test_what_is_no_archive_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.zip").write_text("text")
    assert call(predict, "run=a.zip input=example horizon=1y", monkeypatch, tmp_path) == 2
    assert "a.zip is no packed run, or is damaged" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    with pytest.raises(DamagedError, match="it is empty"):
        packed.unpack(tmp_path / "b.zip", tmp_path / "here")


def test_a_packed_config_constructs_no_class_that_conf_does_not_name(example, tmp_path):
    shutil.copytree(example, tmp_path / "run")
    file = tmp_path / "run/.hydra/config.yaml"
    text = "".join(file.read_text().splitlines(keepends=True)[1:])  # without its checksum
    file.write_text(text.replace("vrnn_lab.models.linear_sde.LinearSDE", "os.system"))
    packed.pack(tmp_path / "run", tmp_path / "a.zip")
    with pytest.raises(ConfigError, match=r"model\._target_=os\.system is not among the classes"):
        Forecaster.load(tmp_path / "a.zip")


@pytest.mark.slow
def test_a_run_that_resumes_is_recorded_nowhere_that_its_folder_names(tmp_path):
    from helpers.commands import CUT, TINY

    cut = CUT.format(module="vrnn_lab.models.rnn", owner="RNN", name="training_step", call=4, signal="KILL")
    words = [*TINY, "logger=mlflow", "logger.mlflow.tracking_uri=sqlite:///mine.db", "hydra.run.dir=here"]
    command("run", *words, folder=tmp_path, before=cut, check=False)
    refused = command("run", "resume=here", folder=tmp_path, check=False)
    assert (
        refused.returncode == 2 and "logger.mlflow.tracking_uri=sqlite:///mine.db, which its config" in refused.stderr
    )
    command("run", "resume=here", "logger=csv", folder=tmp_path)
    assert (tmp_path / "here/metrics.csv").exists()
