"""The light curves of MACHO, on small archives of the true format; no network."""

import io
import tarfile

import numpy as np
import pytest

from vrnn_lab import fetch
from vrnn_lab.core.tasks import DensityTask, Interpolate
from vrnn_lab.data.base import SPLITS
from vrnn_lab.data.datasets.light_curves import STARS, LightCurves

HEAD = "#Field Tile Seq RA(hour) Dec(deg) Filter mean_Mag\n#1 3444 614 5.02878 -69.171 {} -5.912\n#MJD Mag Err\n"


def text_of(band: str, table) -> bytes:
    return (HEAD.format(band) + "".join(f"{t:.6f} {m:.3f} {e:.3f}\n" for t, m, e in table)).encode()


def write(folder, star: str, bands: dict) -> None:
    with tarfile.open(folder / f"lc_{star}.tar.bz2", "w:bz2") as archive:
        for band, table in bands.items():
            content = table if isinstance(table, bytes) else text_of(band, table)
            member = tarfile.TarInfo(f"lc_{star}.{band}.mjd")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def curve(points: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    times = (48800 + np.cumsum(rng.exponential(2, points))).round(6)
    return np.stack([times, rng.normal(-6, 1, points).round(3), rng.uniform(0.01, 0.1, points).round(3)], 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Ten stars: in blue every point, in red all but every fourth; the fifth in red alone, the ninth short."""
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    for i, star in enumerate(STARS):
        table = curve(12 if i == 8 else 90 + i, i)
        red = np.arange(len(table)) % 4 != 3
        write(tmp_path, star, {"R": table} if i == 4 else {"B": table, "R": (table + np.array([0, 0.3, 0.01]))[red]})
    return tmp_path


def test_a_point_is_a_moment_and_a_band_that_was_not_measured_is_nan(cache):
    table = curve(90, 0)
    series = LightCurves().whole().part([0])
    np.testing.assert_allclose(series.times, table[:, 0])
    np.testing.assert_allclose(series.values[:, 0], table[:, 1])
    missing = np.arange(90) % 4 == 3
    np.testing.assert_array_equal(np.isnan(series.values[:, 1]), missing)
    np.testing.assert_allclose(series.values[~missing, 1], table[~missing, 1] + 0.3)
    assert series.points.error is not None
    np.testing.assert_allclose(series.points.error[:90][~missing, 1], table[~missing, 2] + 0.01)


def test_a_star_that_was_seen_in_one_band_has_the_other_nowhere(cache):
    values = LightCurves().whole().part([4]).values
    assert np.isnan(values[:, 0]).all() and not np.isnan(values[:, 1]).any()


@pytest.mark.parametrize("bad", [(-99.0, 0.1), (-6.0, -99.0), (-6.0, 0.0), (-6.0, 0.6), (99.999, 9.999)])
def test_values_that_say_nothing_are_left_out(cache, bad):
    table = curve(90, 0)
    table[7, 1:] = bad
    write(cache, STARS[0], {"B": table, "R": table[:5]})
    series = LightCurves().whole().part([0])
    np.testing.assert_allclose(series.times, np.delete(table[:, 0], 7))
    assert len(LightCurves(max_error=0.05).whole().times) < len(LightCurves().whole().times)


def test_error_bars_reach_the_batch_as_known_noise(cache):
    data = LightCurves(window=10)
    batch = next(iter(data.batches("test", Interpolate(0.5)))).check()
    assert data.scale.errors and batch.error is not None
    assert (batch.error[batch.known] > 0).all() and (batch.error[~batch.known] == 0).all()
    assert batch.error.max() < 0.12


def test_every_star_is_dealt_and_windows_of_different_splits_share_no_point(cache):
    splits = LightCurves(window=10, stride=3).splits
    keys = [set(zip(splits[s].times, splits[s].values.sum(1), strict=True)) for s in SPLITS]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    for split in SPLITS:
        assert set(splits[split].names) == {*STARS} - ({STARS[8]} if split != "train" else set())
    again, other = LightCurves(window=10, stride=3), LightCurves(window=10, stride=3, seed=1)
    np.testing.assert_array_equal(again.splits["test"].times, splits["test"].times)
    assert not np.array_equal(other.splits["test"].times, splits["test"].times)
    first, second = (splits["test"].part(np.flatnonzero([n == s for n in splits["test"].names])) for s in STARS[:2])
    assert len(first) == len(second) == 1  # each star by a deal of its own


def test_units_and_names(cache):
    data = LightCurves()
    assert (data.channels, data.units, data.time_unit) == (("B", "R"), ("mag", "mag"), "day")
    assert next(iter(LightCurves(window=10).batches("val", DensityTask()))).values.shape[2] == 2


def test_a_missing_file_names_the_command_that_brings_it_and_it_brings_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VRNN_LAB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not exist; run: python -m vrnn_lab\.fetch light_curves"):
        _ = LightCurves().splits
    brought = {file.rsplit("/", 1)[1] for file in fetch.SOURCES["light_curves"].files}
    assert brought == {f"lc_{star}.tar.bz2" for star in STARS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#MJD Mag\n48823.4 -6.0\n", "2 columns; expected time, magnitude and error"),
        (b"a b c\n", "cannot be read as"),
    ],
)
def test_a_curve_of_another_format_is_refused_by_name(cache, content, message):
    write(cache, STARS[2], {"B": content})
    with pytest.raises(ValueError, match=message):
        _ = LightCurves().splits


def test_a_damaged_archive_is_refused_by_name(cache):
    (cache / f"lc_{STARS[0]}.tar.bz2").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"cannot be read as the light curves of MACHO 1\.3444\.614"):
        _ = LightCurves().splits
