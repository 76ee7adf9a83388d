"""Tags on moving people, on small files of the true format."""

import numpy as np
import pytest

from vrnn_lab.core.tasks import DensityTask
from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.datasets import human_activity
from vrnn_lab.data.datasets.human_activity import CLASSES, SECOND, TAGS, HumanActivity

START = 633790226051280329
NAMES = [f"{person}0{i}" for person in "ABCDE" for i in range(1, 6)]
COUNT = 240  # lines a recording
ACTIVITIES = [name for names in CLASSES.values() for name in names]


def line(name: str, tag: int, ticks: int, position, activity: str) -> str:
    place = ",".join(f"{x:.6f}" for x in position)
    return f"{name},{list(TAGS)[tag]},{START + ticks},27.05.2009 14:03:25:127,{place},{activity}"


def recording(name: str) -> list[str]:
    """A reading every 27 ms, of tags in turn; what the person does changes every 2 s."""
    rng = np.random.default_rng(NAMES.index(name))
    step = 270_000
    return [
        line(name, i % 4, step * i, rng.normal(size=3), ACTIVITIES[i * step // (2 * SECOND) % 11])
        for i in range(COUNT)
    ]


@pytest.fixture
def file(tmp_path, monkeypatch):
    def write(lines=None, expected: int | None = None) -> str:
        lines = lines or [line for name in NAMES for line in recording(name)]
        monkeypatch.setattr(human_activity, "ROWS", len(lines) if expected is None else expected)
        path = tmp_path / "ConfLongDemo_JSI.txt"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def points_of(data: HumanActivity, split: str):
    """(times, values, labels) of every series of a split."""
    series = data.splits[split]
    for first, end in zip(series.first, series.end, strict=True):
        part = slice(first, end)
        yield series.points.times[part], series.points.values[part], series.labels[part]


def test_readings_of_a_tenth_of_a_second_are_one_point(file):
    lines = [
        line("A01", 0, 0, (1, 2, 3), "walking"),
        line("A01", 0, 400_000, (3, 4, 5), "falling"),  # 40 ms later: the same point
        line("A01", 2, 300_000, (7, 8, 9), "walking"),  # earlier than the line before
        line("A01", 3, 1_000_000, (1, 1, 1), "standing up from sit on grnd"),
        *(line("A01", 1, 2_000_000 + i * 1_000_000, (i, 0, 0), "lying down") for i in range(8)),
        *(line for name in NAMES[1:] for line in recording(name)),
    ]
    data = HumanActivity(file(lines), window=10)
    series = human_activity.in_points(human_activity.read(data.path), 0.1, data.channels)
    points = slice(series.first[0], series.end[0])
    assert series.names[0] == "A01" and series.points.times[points].tolist() == pytest.approx(np.arange(10) / 10)
    first = dict(zip(data.channels, series.points.values[0], strict=True))
    assert [first[f"ankle_left_{axis}"] for axis in "xyz"] == [2, 3, 4]
    assert [first[f"chest_{axis}"] for axis in "xyz"] == [7, 8, 9]
    assert all(np.isnan(first[f"belt_{axis}"]) for axis in "xyz")
    assert [data.classes[i] for i in series.labels[:3]] == ["walking", "standing up", "lying"]


def test_recordings_lie_in_one_split_and_windows_share_no_point(file):
    path = file()
    data, other = HumanActivity(path, window=20), HumanActivity(path, window=20, seed=1)
    names = {split: set(series.names) for split, series in data.splits.items()}
    assert [len(names[split]) for split in SPLITS] == [15, 5, 5] and len(set.union(*names.values())) == 25
    assert names["train"] != set(other.splits["train"].names)
    for series in data.splits.values():
        taken = np.concatenate([np.arange(a, b) for a, b in zip(series.first, series.end, strict=True)])
        assert len(set(taken.tolist())) == len(taken) and series.lengths.max() == 20
    ids = np.concatenate([series.ids for series in data.splits.values()])
    assert len(set(ids.tolist())) == len(ids)


def test_every_point_has_the_class_of_what_was_done_then(file):
    data = HumanActivity(file(), window=20)
    assert data.classes == tuple(CLASSES) and data.splits["test"].labels_of_points
    number = {name: i for i, names in enumerate(CLASSES.values()) for name in names}
    for split in SPLITS:
        for times, _, labels in points_of(data, split):
            inside = np.abs(times % 2 - 1) < 0.9  # away from where it changes
            expected = [number[ACTIVITIES[int(t // 2) % 11]] for t in times]
            np.testing.assert_array_equal(labels[inside], np.array(expected)[inside])
    batch = next(iter(data.batches("test", DensityTask(), 4)))
    assert batch.check().labels.shape == batch.times.shape


def test_public_codes_windows_overlap_and_a_notice_says_so(file, caplog):
    data = HumanActivity(file(), protocol="rubanova")
    splits = data.splits
    assert "windows of different splits share points" in caplog.text
    assert {len(times) for times, _, _ in points_of(data, "train")} == {50}
    first = np.concatenate([splits[split].first for split in SPLITS])
    # 240 points of 10 ms a recording: windows begin at 0, 25, ... 175
    assert len(first) == 25 * 8 and set((first % COUNT).tolist()) == set(range(0, 200, 25))
    assert [len(splits[split]) for split in SPLITS] == [140, 20, 40]
    assert len(set(np.concatenate([splits[split].ids for split in SPLITS]).tolist())) == 200


GOOD = [line for name in NAMES for line in recording(name)]
BROKEN = [
    (GOOD[:-1], len(GOOD), f"has {len(GOOD) - 1} lines of 25 recordings; expected {len(GOOD)} lines of 25"),
    (GOOD[:COUNT], COUNT, "lines of 1 recordings"),
    (["<html>", *GOOD[1:]], None, "ConfLongDemo_JSI.txt"),
    ([GOOD[0].replace("010-", "999-"), *GOOD[1:]], None, "column tag holds '999-000-024-033'; expected one of"),
    ([GOOD[0].replace("walking", "flying"), *GOOD[1:]], None, "column activity holds 'flying'; expected one of"),
    ([*GOOD[:-1], GOOD[-1][:60]], None, "is not the expected file|expected"),
    ([GOOD[0].replace("27.05.2009", "a,b"), *GOOD[1:]], None, "is not the expected file"),
]


@pytest.mark.parametrize(("lines", "expected", "message"), BROKEN)
def test_a_file_that_is_not_whole_is_refused_with_where_to_get_it(file, lines, expected, message):
    with pytest.raises(ValueError, match=f"(?s)({message}).*archive.ics.uci.edu"):
        _ = HumanActivity(file(lines, expected)).splits


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*archive\.ics\.uci\.edu"):
        _ = HumanActivity(str(tmp_path / "none.txt")).splits
