"""The labelled sets of the UEA archive, on small .ts files of the true format."""

import numpy as np
import pytest

from vrnn_lab import fetch
from vrnn_lab.core.tasks import DensityTask
from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.datasets.uea import PROBLEMS, UEA

HEADER = """#A UCI Archive dataset. Paper: 11--13
@problemName {title}
@timeStamps false
@missing false
@univariate false
@dimensions {dims}
@classLabel true {classes}
@data
"""


def rows_of(name: str, each: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """(values (time, dim), class): `each` series a class, of 7 to 12 points."""
    rng, problem = np.random.default_rng(seed), PROBLEMS[name]
    draw = lambda: rng.normal(size=(rng.integers(7, 13), len(problem.channels))).round(6)
    return [(draw(), label) for label in problem.classes for _ in range(each)]


def written(name: str, rows) -> str:
    problem = PROBLEMS[name]
    line = lambda values, label: ":".join([*(",".join(map(repr, column.tolist())) for column in values.T), label])
    header = HEADER.format(title=problem.title, dims=len(problem.channels), classes=" ".join(problem.classes))
    return header + "".join(line(*row) + "\n" for row in rows)


@pytest.fixture(params=["speech", "motion"])
def files(request, tmp_path):
    """(name, folder, training rows, test rows)"""
    name = request.param
    train, test = rows_of(name, 10, 0), rows_of(name, 3, 1)
    title = PROBLEMS[name].title
    (tmp_path / f"{title}_TRAIN.ts").write_text(written(name, train))
    (tmp_path / f"{title}_TEST.ts").write_text(written(name, test))
    return name, tmp_path, train, test


@pytest.fixture
def speech(tmp_path):
    """Writes the training file of speech, its lines behind @data changed; gives the data set's arguments."""
    (tmp_path / "JapaneseVowels_TEST.ts").write_text(written("speech", rows_of("speech", 1, 1)))

    def write(change) -> dict:
        lines = written("speech", rows_of("speech", 2, 0)).splitlines()
        (tmp_path / "JapaneseVowels_TRAIN.ts").write_text("\n".join(change(lines)) + "\n")
        return {"name": "speech", "path": str(tmp_path)}

    return write


def test_the_test_file_is_the_test_split_as_it_is_written(files):
    name, folder, _, rows = files
    test = UEA(name, path=str(folder)).splits["test"]
    lengths = [len(values) for values, _ in rows]
    np.testing.assert_array_equal(np.diff(test.offsets), lengths)
    np.testing.assert_array_equal(test.values, np.concatenate([values for values, _ in rows]))
    np.testing.assert_array_equal(test.times, np.concatenate([np.arange(n) for n in lengths]))
    np.testing.assert_array_equal(test.windows, [[0, n - 1] for n in lengths])
    assert [PROBLEMS[name].classes[i] for i in test.labels] == [label for _, label in rows]


def test_the_training_file_is_dealt_by_the_seed_the_same_share_of_each_class(files):
    name, folder, rows, _ = files
    splits = [UEA(name, path=str(folder), val=0.3, seed=seed).splits for seed in (0, 0, 1)]
    count = len(PROBLEMS[name].classes)
    for made in splits:
        assert np.bincount(made["train"].labels).tolist() == [7] * count
        assert np.bincount(made["val"].labels).tolist() == [3] * count
        ids = np.concatenate([made[split].ids for split in SPLITS])
        assert len(set(ids.tolist())) == len(ids) == 13 * count
    held = [made["val"].names for made in splits]
    assert held[0] == held[1] != held[2]
    first = {part.tobytes() for part in np.split(splits[0]["train"].values, splits[0]["train"].offsets[1:-1])}
    first |= {part.tobytes() for part in np.split(splits[0]["val"].values, splits[0]["val"].offsets[1:-1])}
    assert first == {values.tobytes() for values, _ in rows}


def test_a_batch_carries_the_class_of_each_series_and_the_scale_their_names(files):
    name, folder, _, rows = files
    data = UEA(name, path=str(folder), batch_size=5)
    batch = next(iter(data.batches("test", DensityTask()))).check()
    assert [data.scale.classes[i] for i in batch.labels] == [label for _, label in rows[:5]]
    assert batch.values.shape[2] == len(data.channels)
    np.testing.assert_array_equal(batch.counts.sum(1), [len(values) for values, _ in rows[:5]])


def test_the_files_lie_in_the_cache_unless_a_folder_is_named(files, monkeypatch):
    name, folder, *_ = files
    monkeypatch.setenv("VRNN_LAB_CACHE", str(folder))
    np.testing.assert_array_equal(UEA(name).splits["val"].ids, UEA(name, path=str(folder)).splits["val"].ids)


@pytest.mark.parametrize("name", ["speech", "motion"])
def test_missing_files_name_the_command_that_brings_them_and_it_brings_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=rf"_TRAIN.ts does not exist.*python -m vrnn_lab\.fetch {name}"):
        _ = UEA(name).splits
    title = PROBLEMS[name].title
    brought = [file.rsplit("/", 1)[1] for file in fetch.SOURCES[name].files]
    assert brought == [f"{title}_TRAIN.ts", f"{title}_TEST.ts"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2:3,4:1", "line 27: it has 2 channels; expected 12"),
        (":".join(["1,2"] * 12), "line 27: it has 11 channels; expected 12"),
        (":".join(["1,2"] * 12 + ["10"]), "line 27: its class is '10'; expected one of 1, 2"),
        (":".join(["1,2"] * 11 + ["1", "9"]), "line 27: its channels have 1 to 2 values"),
        (":".join(["1,?"] * 12 + ["9"]), r"line 27: could not convert string to float: '\?'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_what_was_expected(speech, line, message):
    arguments = speech(lambda lines: [*lines, line])
    with pytest.raises(ValueError, match=rf"JapaneseVowels_TRAIN.ts, {message}.*vrnn_lab\.fetch speech"):
        _ = UEA(**arguments).splits


@pytest.mark.parametrize("change", [lambda lines: lines[:8], lambda lines: lines[:7] + lines[8:], lambda lines: []])
def test_a_file_without_series_is_refused(speech, change):
    arguments = speech(change)
    with pytest.raises(ValueError, match=r"JapaneseVowels_TRAIN\.ts has no series after a line '@data'"):
        _ = UEA(**arguments).splits


def test_empty_lines_and_other_line_ends_change_nothing(speech, tmp_path):
    plain = UEA(**speech(lambda lines: lines), val=0.5).splits["train"]
    other = UEA(**speech(lambda lines: ["", *(f"{line}\r" for line in lines), ""]), val=0.5).splits["train"]
    np.testing.assert_array_equal(plain.values, other.values)


def test_a_share_that_leaves_a_split_empty_is_refused(speech):
    arguments = speech(lambda lines: lines)
    with pytest.raises(ValueError, match="the val split has no series"):
        _ = UEA(**arguments, val=0.1).splits
