"""The hopper's trajectories, by a small model of the same joints where the true one is not fetched; no network."""

import sys

import numpy as np
import pytest

from vrnn_lab import fetch
from vrnn_lab.data.base import SPLITS, generator
from vrnn_lab.data.cache import cache_folder
from vrnn_lab.data.datasets import hopper
from vrnn_lab.data.datasets.hopper import JOINTS, MODEL, PARTS, Hopper, Simulator, starts

LINK = '<body pos="0 0 -.2"><joint name="{}" axis="0 1 0"/><geom size=".05"/>'
ROOT = '<joint name="rootx" type="slide" axis="1 0 0"/><joint name="rootz" type="slide" axis="0 0 1"/>'
SMALL = (
    '<mujoco><include file="./common/skybox.xml"/><include file="./common/visual.xml"/>'
    '<include file="./common/materials.xml"/><option timestep="0.005"/><worldbody>'
    f'<body>{ROOT}<joint name="rooty" axis="0 1 0"/><geom size=".1"/>'
    + "".join(LINK.format(name) for name in JOINTS[3:])
    + "</body>" * 5
    + "</worldbody></mujoco>"
)
FEW = {"train": 5, "val": 3, "test": 4}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Holds a small model in the true one's place."""
    pytest.importorskip("mujoco")
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    (tmp_path / MODEL).write_text(SMALL)
    for name in PARTS:
        (tmp_path / name).write_text("<mujoco><statistic/></mujoco>")
    return tmp_path


def values_of(data: Hopper, split: str) -> np.ndarray:
    return data.splits[split].values.reshape(-1, data.points, 14)


def test_a_trajectory_follows_the_equations_of_motion(cache):
    """Without contact: semi-implicit Euler, the place moves by the new velocity, and the whole falls freely."""
    simulator = Simulator()
    states = simulator.trajectory(*starts(generator(0)))
    place, velocity = states[:, :7], states[:, 7:]
    np.testing.assert_allclose(np.diff(place, axis=0), simulator.step * velocity[1:], atol=1e-12)
    still = simulator.trajectory(np.zeros(7), np.zeros(7))  # nothing turns: all of it falls as one
    np.testing.assert_allclose(still[:, 8], -9.81 * simulator.step * np.arange(200), rtol=1e-9, atol=1e-12)


def test_starts_lie_where_the_paper_says():
    drawn = [starts(generator(i)) for i in range(300)]
    place, velocity = (np.stack(part) for part in zip(*drawn, strict=True))
    for part, low, high in ((place[:, :2], 0, 0.5), (place[:, 2:], -2, 2), (velocity, -5, 5)):
        assert low <= part.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < part.max() <= high


def test_a_window_of_a_trajectory_stands_at_its_own_times(cache):
    whole, part = Hopper(**FEW, points=200), Hopper(**FEW, points=60)
    for split in SPLITS:
        times, own = (data.splits[split].times.reshape(-1, data.points) for data in (whole, part))
        np.testing.assert_allclose(times, np.tile(0.005 * np.arange(200), (FEW[split], 1)))
        start = np.rint(own[:, 0] / 0.005).astype(int)
        assert len(set(start)) > 1 and start.min() >= 0 and start.max() <= 140
        for row, first in enumerate(start):
            np.testing.assert_array_equal(
                values_of(part, split)[row], values_of(whole, split)[row, first : first + 60]
            )
        np.testing.assert_array_equal(part.splits[split].windows, own[:, [0, -1]])


def test_a_trajectory_is_a_function_of_seed_split_and_number(cache):
    few, more, other = Hopper(**FEW), Hopper(train=9, val=3, test=6), Hopper(**FEW, seed=1)
    for split in SPLITS:
        ours, same = values_of(few, split), values_of(more, split)[: FEW[split]]
        np.testing.assert_array_equal(ours, same)
        assert (ours != values_of(other, split)).all((1, 2)).any()
        np.testing.assert_array_equal(few.splits[split].ids, more.splits[split].ids[: FEW[split]])
    ids = np.concatenate([few.splits[split].ids for split in SPLITS])
    firsts = np.concatenate([values_of(few, split)[:, 0, 0] for split in SPLITS])
    assert len(set(ids)) == len(ids) == len(set(firsts)) == 12


def test_channels_have_names_and_units():
    data = Hopper()
    assert data.channels[:2] == ("rootx", "rootz") and data.channels[7:9] == ("rootx_velocity", "rootz_velocity")
    assert len(data.channels) == len(data.units) == 14
    assert dict(zip(data.channels, data.units, strict=True))["knee_velocity"] == "rad/s"


@pytest.mark.parametrize("points", [1, 201])
def test_more_points_than_a_trajectory_has_are_refused(points):
    with pytest.raises(ValueError, match=rf"data.points={points}; expected 2 to 200"):
        Hopper(points=points)


def test_a_missing_model_names_the_command_that_brings_it_and_it_brings_it(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(hopper.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"hopper.xml and the files that it includes.*python -m vrnn_lab\.fetch hopper"
    ):
        _ = Hopper(**FEW).splits
    assert {file.rsplit("/", 1)[1] for file in fetch.SOURCES["hopper"].files} == {MODEL, *PARTS}


def test_an_installed_dm_control_is_used_where_nothing_was_fetched(cache, monkeypatch):
    installed = cache / "site" / "dm_control"
    (installed / "suite" / "common").mkdir(parents=True)
    (installed / "__init__.py").write_text("raise RuntimeError('imported')")
    (cache / MODEL).rename(installed / "suite" / MODEL)
    for name in PARTS:
        (cache / name).rename(installed / "suite" / "common" / name)
    monkeypatch.syspath_prepend(cache / "site")
    assert values_of(Hopper(**FEW), "train").shape == (5, 100, 14)


def test_a_model_of_other_joints_is_refused(cache):
    (cache / MODEL).write_text(SMALL.replace('"knee"', '"elbow"'))
    with pytest.raises(ValueError, match=r"has the joints rootx, .*elbow.*; expected rootx.*knee"):
        _ = Hopper(**FEW).splits


def test_without_mujoco_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ValueError, match=r"pip install 'vrnn_lab\[hopper\]'"):
        _ = Hopper(**FEW).splits


@pytest.mark.skipif(not (cache_folder() / MODEL).is_file(), reason="python -m vrnn_lab.fetch hopper brings the model")
def test_the_true_model_falls_onto_the_floor_and_stays_above_it():
    pytest.importorskip("mujoco")
    values = values_of(Hopper(train=20, val=1, test=1, points=200), "train")
    assert np.isfinite(values).all() and values[:, 0, 1].min() >= 0
    assert values[:, -1, 1].min() > -1.2 and np.abs(values[:, 1:, 9]).max() > 5  # it lies there, and was turned
