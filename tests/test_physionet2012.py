"""Stays in intensive care, on small folders and archives of the true format."""

import sys
import tarfile
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.stays import COUNT, died, files_of, record
from vrnn_lab.core.tasks import DensityTask, Forecast
from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.datasets import physionet2012
from vrnn_lab.data.datasets.physionet2012 import PARAMETERS, SERIES, Physionet2012

FORECAST = Forecast(0.5, 1.0, "held_out")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(physionet2012, "STAYS", COUNT)

    def write(**changed):
        for name, text in files_of(**changed).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return str(tmp_path)

    return write


def stay(data: Physionet2012, name: str):
    """(times, values, label) of the series of that name, in whichever split."""
    for series in data.splits.values():
        if name in series.names:
            i = series.names.index(name)
            points = slice(series.first[i], series.end[i])
            return series.points.times[points], series.points.values[points], series.labels[i]
    raise KeyError(name)


LINES = [
    *("00:07,HR,73", "00:07,HR,74", "00:07,HR,78"),  # a minute's mean
    *("01:30,Urine,0", "01:30,,2.9", "03:00,GCS,15"),  # nothing happened is a value; a parameter without a name
    *("02:00,Temp,-17.8", "02:00,SysABP,0", "02:00,NIDiasABP,-1", "02:00,pH,735", "02:00,Weight,-1"),
    *("03:00,pH,7.35", "03:00,pH,7350", "48:00,HR,80"),
]


def test_a_record_is_read_as_it_was_observed(folder):
    data = Physionet2012(folder(**{"set-a/132539.txt": record(132539, LINES)}), dequantise=False)
    times, values, label = stay(data, "132539")
    assert times.tolist() == [0.0, 7 / 60, 1.5, 3.0, 48.0]
    at = {
        name: values[:, data.channels.index(name)]
        for name in ("Weight", "HR", "Urine", "GCS", "pH", "Temp", "SysABP")
    }
    nan = np.nan
    np.testing.assert_array_equal(at["Weight"], [80.6, nan, nan, nan, nan])
    np.testing.assert_array_equal(at["HR"], [nan, 75, nan, nan, 80])
    np.testing.assert_array_equal(at["Urine"], [nan, nan, 0, nan, nan])
    np.testing.assert_array_equal(at["GCS"], [nan, nan, nan, 15, nan])
    np.testing.assert_array_equal(at["pH"], [nan, nan, nan, 7.35, nan])
    assert np.isnan(at["Temp"]).all() and np.isnan(at["SysABP"]).all()
    assert np.isfinite(values).sum() == 6 and label == died(132539)


def test_the_papers_protocols_keep_what_was_written_and_say_so(folder, caplog):
    path = folder(**{"set-a/132539.txt": record(132539, LINES)})
    for protocol, ticks in (("tpatchgnn", 60), ("rubanova", 62.5)):
        data = Physionet2012(path, protocol=protocol)
        times, values, _ = stay(data, "132539")
        assert data.channels == PARAMETERS and f"data.protocol={protocol}" in caplog.text
        assert np.allclose(times * ticks, np.rint(times * ticks)) and times.max() == 48
        at = {name: values[:, PARAMETERS.index(name)] for name in ("Height", "Age", "pH", "Weight", "Temp")}
        assert at["Height"][0] == -1 and at["Age"][0] == 54 and np.isnan(at["Age"][1:]).all()
        assert np.nanmin(at["Weight"]) == -1 and np.nanmin(at["Temp"]) == -17.8
        assert np.nanmax(at["pH"]) == (7.35 + 7350) / 2
    labels = np.concatenate([series.labels for series in data.splits.values()])
    assert len(labels) == 2 * COUNT and (labels >= 0).sum() == COUNT  # of set a alone


def test_a_stay_lies_in_one_split_the_same_whatever_the_order_or_the_other_sets(folder):
    path = folder()
    data, other = Physionet2012(path), Physionet2012(path, seed=1)
    names = {split: set(series.names) for split, series in data.splits.items()}
    assert [len(names[split]) for split in SPLITS] == [18, 6, 6]
    assert len(set.union(*names.values())) == 30
    assert names["train"] != set(other.splits["train"].names)
    again = Physionet2012(path, sets=["c", "a", "b"])
    assert {split: set(series.names) for split, series in again.splits.items()} == names


def test_every_stay_keeps_one_clock_and_the_scale_is_of_training_alone(folder):
    data = Physionet2012(folder(), dequantise=False)
    for series in data.splits.values():
        np.testing.assert_array_equal(series.windows, np.tile([0.0, 48.0], (len(series), 1)))
    alone = next(iter(data.batches("test", DensityTask(), 1)))
    together = next(iter(data.batches("test", DensityTask(), 6)))
    row = together.ids.tolist().index(alone.ids[0].item())
    there = alone.counts[0]
    assert torch.equal(alone.times[0][there], together.times[row][: len(there)][there])
    train = data.splits["train"].values
    np.testing.assert_allclose(data.scale.mean, np.nanmean(train, 0))
    assert data.scale.clock == 48 and data.scale.std[SERIES.index("MechVent")] == 1


def test_a_forecast_sees_a_day_and_is_scored_on_the_next_where_something_was_observed(folder):
    data = Physionet2012(folder())
    for batch in data.batches("test", FORECAST, 4):
        hours = batch.times[..., None].expand_as(batch.values)
        assert (hours[batch.seen] <= 24).all() and (hours[batch.scored] > 24).all()
        series = data.splits["test"]
        for row, known in enumerate(batch.known):
            i = series.ids.tolist().index(batch.ids[row].item())
            observed = ~np.isnan(series.points.values[series.first[i] : series.end[i]])
            assert known.sum() == observed.sum()  # what was never observed is no zero error


def test_rounded_values_get_noise_that_is_the_series_own(folder):
    path = folder()
    plain, noisy = Physionet2012(path, dequantise=False), Physionet2012(path)
    difference = stay(noisy, "132541")[1] - stay(plain, "132541")[1]
    rate, temperature = difference[:, SERIES.index("HR")], difference[:, SERIES.index("Temp")]
    assert np.nanmax(np.abs(rate)) <= 0.5 and np.nanmax(np.abs(temperature)) <= 0.05 and np.nanstd(rate) > 0.1
    np.testing.assert_array_equal(stay(noisy, "132541")[1], stay(Physionet2012(path, sets=["a"]), "132541")[1])


def test_means_of_a_minute_do_not_hide_that_values_are_rounded(folder):
    lines = [f"{h:02d}:00,HR,{60 + h}" for h in range(1, 40)] + ["05:00,HR,70"]
    path = folder(**{f"set-a/{n}.txt": record(n, lines) for n in range(132539, 132549)})
    noisy, plain = Physionet2012(path), Physionet2012(path, dequantise=False)
    difference = (stay(noisy, "132540")[1] - stay(plain, "132540")[1])[:, SERIES.index("HR")]
    assert 0.2 < np.nanmax(np.abs(difference)) <= 0.5


def test_what_is_told_at_admission_is_a_covariate_of_every_point(folder):
    tall = record(132540).replace("Height,-1", "Height,182").replace("Gender,0", "Gender,-1")
    data = Physionet2012(folder(**{"set-a/132540.txt": tall}))
    for series in data.splits.values():
        for name, first, end in zip(series.names, series.first, series.end, strict=True):
            height = [182, 1] if name == "132540" else [170, 0]
            gender = 0.5 if name == "132540" else int(name) % 2
            unit = [float(int(name) % 4 == i) for i in range(4)]
            np.testing.assert_array_equal(
                series.points.covariates[first:end], np.tile([54, gender, *height, *unit], (end - first, 1))
            )
    assert len(data.scale.covariates) == 8 and data.channels == SERIES
    as_channels = Physionet2012(str(data.path), descriptors="channels")
    assert as_channels.channels == PARAMETERS and as_channels.covariates == ()
    assert np.nanmin(stay(as_channels, "132541")[1][:, PARAMETERS.index("Age")]) == 54
    assert np.isnan(stay(as_channels, "132541")[1][:, PARAMETERS.index("Height")]).all()


def test_stays_without_a_value_are_left_out_and_named(folder, caplog):
    empty = record(132540, []).replace("00:00,Weight,80.6", "00:00,Weight,-1")
    path = folder(**{"set-a/132540.txt": empty})
    with pytest.raises(KeyError):
        stay(Physionet2012(path), "132540")
    assert "1 stays have no value and are left out: 132540" in caplog.text
    assert stay(Physionet2012(path, protocol="tpatchgnn"), "132540")[0].tolist() == [0.0]


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz a set", "zip a set", "windows"])
def test_archives_hold_the_same_stays_as_folders(folder, tmp_path, kind):
    expected = Physionet2012(folder()).splits
    files = files_of()
    place = tmp_path / "packed"
    place.mkdir()
    if kind == "tar.xz":
        with tarfile.open(place / "all.tar.xz", "w:xz") as archive:
            for name in files:
                archive.add(tmp_path / name, name)
        place /= "all.tar.xz"
    elif kind == "windows":
        for name, text in files.items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(text.replace("\n", "\r\n").encode())
    else:
        for s in "abc":
            (place / f"Outcomes-{s}.txt").write_text(files[f"Outcomes-{s}.txt"])
            if kind == "tar.gz a set":
                with tarfile.open(place / f"set-{s}.tar.gz", "w:gz") as archive:
                    archive.add(tmp_path / f"set-{s}", f"set-{s}")
            else:
                with zipfile.ZipFile(place / f"set-{s}.zip", "w") as archive:
                    for name in files:
                        if name.startswith(f"set-{s}"):
                            archive.write(tmp_path / name, name)
    found = Physionet2012(str(place)).splits
    for split in SPLITS:
        assert set(found[split].names) == set(expected[split].names)
        np.testing.assert_array_equal(found[split].values, expected[split].values)


WHERE = "physionet.org/content/challenge-2012"
BROKEN = [
    ({"set-b/142676.txt": None}, f"set-b has 9 records, expected 10.*{WHERE}"),
    ({"Outcomes-c.txt": None}, f"has no Outcomes-c.txt.*{WHERE}"),
    ({"Outcomes-a.txt": "<html>"}, "Outcomes-a.txt is not a list of outcomes"),
    ({"Outcomes-a.txt": "RecordID,In-hospital_death\n132539,1\n"}, "Outcomes-a.txt has the outcomes of 1 records"),
    ({"set-a/132541.txt": record(132542)}, f"132541.txt begins .*expected .*RecordID,132541.*{WHERE}"),
    ({"set-a/132541.txt": ""}, "132541.txt begins ''"),
    ({"set-a/132541.txt": record(132541)[:-2]}, "132541.txt ends .* in the middle of a line"),
    ({"set-a/132541.txt": record(132541, ["07:00,HR"])}, "132541.txt, line 8: '07:00,HR' is not of the form"),
    ({"set-a/132541.txt": record(132541, ["07:00,HR,1,2"])}, "132541.txt, line 8"),
    ({"set-a/132541.txt": record(132541, ["07:00,HR,many"])}, "132541.txt, line 8"),
    ({"set-a/132541.txt": record(132541, ["07:00,HR,nan"])}, "132541.txt, line 8"),
    ({"set-a/132541.txt": record(132541, ["49:00,HR,70"])}, "132541.txt, line 8.*not a time from 00:00 to 48:00"),
    ({"set-a/132541.txt": record(132541, ["07:00,Mood,70"])}, "132541.txt, line 8"),
]


@pytest.mark.parametrize(("changed", "message"), BROKEN)
def test_what_is_not_whole_is_named_with_what_was_expected(folder, changed, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        _ = Physionet2012(folder(**changed)).splits


def test_a_missing_folder_and_a_broken_archive_say_what_to_do(folder, tmp_path):
    with pytest.raises(ValueError, match=f"does not exist.*{WHERE}"):
        _ = Physionet2012(str(tmp_path / "none")).splits
    folder()
    (tmp_path / "mine.zip").write_bytes(b"nobody asked for this one")
    assert len(Physionet2012(str(tmp_path)).splits["test"]) == 6
    with pytest.raises(ValueError, match=r"Outcomes-a\.txt is not a complete archive"):
        _ = Physionet2012(str(tmp_path / "Outcomes-a.txt")).splits
    with tarfile.open(tmp_path / "set-a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set-a", "set-a")
    whole = (tmp_path / "set-a.tar.gz").read_bytes()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "set-a.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"set-a\.tar\.gz is not a complete archive.*download it again"):
        _ = Physionet2012(str(tmp_path / "broken")).splits


def test_sets_that_are_none_are_refused(folder):
    for sets in ([], ["d"], ["a", "a"]):
        with pytest.raises(ValueError, match="expected some of a, b and c"):
            Physionet2012(folder(), sets=sets)


def test_the_tables_metric_is_the_papers(folder, monkeypatch):
    """Scaled by the range over training and validation, averaged within a channel, then over channels that occur."""
    place = Path(__file__).parents[1] / "docs" / "physionet.py"
    spec = spec_from_file_location("docs_physionet", place)
    table = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, table)
    spec.loader.exec_module(table)
    path = folder()
    data, ranges = Physionet2012(path, protocol="tpatchgnn"), table.Ranges.of(path, 0)
    seen = np.concatenate([data.splits[split].values for split in ("train", "val")])
    test, scaled, raw = data.splits["test"], [], {}
    for i, name in enumerate(data.channels):
        there = (test.times >= 24) & ~np.isnan(test.values[:, i])
        raw[f"x/channel/{name}/mse"] = float(np.mean((test.values[there, i] - 1) ** 2)) if there.any() else np.nan
        low, high = np.nanmin(seen[:, i]), np.nanmax(seen[:, i])
        if there.any():
            scaled.append(np.mean(((test.values[there, i] - 1) / (high - low if high > low else 1)) ** 2))
    assert 2 < len(scaled) < 37  # those that do not occur count for nothing
    assert ranges.score(raw, "x") == pytest.approx(1000 * np.mean(scaled))
    assert ranges.score(ranges.mean, "mean") > 0
