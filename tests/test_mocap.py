"""Motion capture, on small MATLAB files of the true format."""

import numpy as np
import pytest

from helpers.walks import WALKS, walks_in
from vrnn_lab.core.tasks import Forecast
from vrnn_lab.data.datasets.mocap import MotionCapture


@pytest.fixture
def file(tmp_path):
    return lambda **changed: walks_in(tmp_path, **changed)


@pytest.mark.parametrize(("setup", "frames"), [(1, 300), (2, 200)])
def test_a_setup_says_how_many_frames_of_the_training_walks_are_used(file, setup, frames):
    splits = MotionCapture(file(), setup=setup).splits
    for split, name, length in (("train", "Xtr", frames), ("val", "Xval", 300), ("test", "Xtest", 300)):
        walks = np.random.default_rng(WALKS[name]).normal(size=(WALKS[name], 300, 50))[:, :length]
        walks[..., 7] = 0
        np.testing.assert_array_equal(splits[split].values, walks.reshape(-1, 50))
        np.testing.assert_array_equal(np.diff(splits[split].offsets), [length] * WALKS[name])
    assert len({int(i) for split in splits.values() for i in split.ids}) == 10


def test_a_channel_that_does_not_move_has_an_error_of_its_own_size(file):
    scale = MotionCapture(file()).scale
    assert scale.std[7] == 1 and scale.mean[7] == 0
    assert ((scale.std[:7] > 0.9) & (scale.std[:7] < 1.1)).all()


def test_the_question_of_a_setup_asks_all_frames_after_those_seen(file):
    batch = next(iter(MotionCapture(file(), setup=1).batches("test", Forecast(until=3, scored="held_out")))).check()
    assert batch.seen.all(-1).sum(1).tolist() == [3] * 3
    assert (batch.scored & ~batch.seen).all(-1).sum(1).tolist() == [297] * 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"Xtr": np.zeros((5, 300, 49))}, r"Xtr has the shape \(5, 300, 49\); expected mocap35.mat"),
        ({"Xval": np.zeros((2, 100, 50))}, "Xval has the shape"),
        ({"Xtest": np.full((3, 300, 50), np.nan)}, "Xtest holds values that are not finite"),
        ({"Xtest": None}, "lacks Xtest"),
        ({"Xtr": np.array("words")}, "Xtr has the shape"),
    ],
)
def test_a_file_of_another_format_is_refused(file, changed, message):
    with pytest.raises(ValueError, match=message):
        _ = MotionCapture(file(**changed)).splits


def test_a_file_that_is_missing_or_is_not_matlab_is_named(tmp_path):
    (tmp_path / "broken.mat").write_text("no")
    for name, message in (("none.mat", "does not exist"), ("broken.mat", "cannot be read as a MATLAB file")):
        with pytest.raises(ValueError, match=message):
            _ = MotionCapture(str(tmp_path / name)).splits


def test_the_key_setup_does_not_hide_the_hook_of_that_name(file):
    assert callable(MotionCapture(file()).setup)  # called by Lightning's Trainer
