"""Test the baseline `analog`: cases computed by hand, and that it reads no held-out value."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.oracle import QUESTIONS
from helpers.small import asked, batch_of, with_empty_points
from vrnn_lab.core.series import series_of
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.evaluation import baselines as module
from vrnn_lab.evaluation.analog import CHANGES, COMPARED, VALUES, Analog, _compared, _places, _weights, records_of
from vrnn_lab.evaluation.baselines import ANALOG, baselines, fitted, linear

MEAN = torch.tensor([7.0], dtype=torch.float64)
TIMES = np.arange(9.0)


def column(values) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


def analog_of(*curves, most: int = 8, times=TIMES) -> Analog:
    """Make an analog of one channel, of which each curve is a training record."""
    return Analog([(times, column(curve(times))) for curve in curves], np.ones(1), linear, most)


def question(times, values, seen, window=None):
    times = np.asarray(times, dtype=float)
    seen = np.asarray(seen, dtype=bool)[None, :, None]
    window = None if window is None else [window]
    return series_of(times[None], column(values)[None], seen=seen, scored=~seen, window=window)


CURVES = lambda t: t**2, lambda t: 20 - 3 * t, lambda t: np.full_like(t, 11.0)
AT = np.array([1.0, 2.5, 3.0, 4.5, 6.0, 7.5])  # none but 3 and 6 is a time of a record
READ = lambda curve: np.interp(AT, TIMES, curve(TIMES))


@pytest.mark.parametrize("seen", [AT < 4, (AT < 3) | (AT > 7)])
@pytest.mark.parametrize("curve", CURVES)
def test_a_copy_of_a_record_is_answered_by_what_that_record_did_ahead_and_in_gaps(curve, seen):
    series = question(AT, READ(curve), seen, window=(0.0, 8.0))
    for kind in analog_of(*CURVES).candidates(series, MEAN):
        assert kind[0, :, 0].numpy() == pytest.approx(
            READ(curve) * ~seen + linear(series, MEAN)[0, :, 0].numpy() * seen
        )


def test_changes_follow_a_record_at_any_level_and_values_do_not():
    seen = AT < 4
    series = question(AT, READ(CURVES[0]) + 100, seen, window=(0.0, 8.0))
    found = analog_of(*CURVES).candidates(series, MEAN)[:, 0, ~seen, 0].numpy()
    assert found[CHANGES] == pytest.approx(READ(CURVES[0])[~seen] + 100)
    assert found[VALUES].max() < 65
    assert analog_of(*CURVES)(series, MEAN)[0, ~seen, 0].numpy() == pytest.approx(found[CHANGES])


def test_the_answer_is_the_mean_by_weights_of_distance():
    levels = 0.0, 3.0, 5.0
    records = [lambda t, level=level: np.full_like(t, level) for level in levels]
    series = question([0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [True, True, False], window=(0.0, 8.0))
    weight = np.exp(-0.5 * (np.array([1.0, 4.0, 16.0]) - 1))
    found = analog_of(*records, most=3).candidates(series, MEAN)[:, 0, 2, 0]
    assert found[VALUES].item() == pytest.approx(np.dot(weight, levels) / weight.sum())
    assert found[CHANGES].item() == pytest.approx(1.0)  # none of them moves


def test_a_record_is_read_at_other_places_than_a_series_own():
    """A wave of which a window shows another phase than the beginning of the record."""
    times = np.linspace(0, 200, 2001)
    wave = lambda t: np.sin(t)
    at = np.linspace(0, 4, 21)
    series = question(at, np.sin(at + 2), at < 2.5)
    found = analog_of(wave, most=400, times=times)(series, MEAN)[0, :, 0].numpy()
    assert found[at >= 2.5] == pytest.approx(np.sin(at + 2)[at >= 2.5], abs=0.1)
    same = analog_of(wave, most=1, times=times)(series, MEAN)[0, :, 0].numpy()
    assert np.abs(same - np.sin(at + 2))[at >= 2.5].max() > 0.5


def test_stretches_are_spread_over_records_by_their_length():
    record, place = _places(np.array([1.0, 3.0]), 10)
    assert record.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert place[[1, 2]].tolist() == [0.25, 0.75] and np.isnan(place[[0, 3]]).all()
    assert len(_places(np.zeros(3), 10)[0]) == 3


def test_compared_are_the_points_nearest_to_what_is_asked():
    count = 2 * COMPARED
    times = torch.arange(count + 2.0, dtype=torch.float64)[None]
    seen = torch.ones(1, count + 2, 1, dtype=torch.bool)
    ahead, gap = seen.clone(), seen.clone()
    ahead[0, -2:] = False
    gap[0, COMPARED] = False
    near = _compared(times, ahead, ~ahead)[0, :, 0].nonzero()[:, 0].tolist()
    assert near == list(range(count - COMPARED, count))
    both = _compared(times, gap, ~gap)[0, :, 0].nonzero()[:, 0]
    assert len(both) == COMPARED and (both - COMPARED).abs().max() == COMPARED // 2


def test_weights_of_a_match_and_of_what_covers_too_little():
    found = _weights(np.array([[0.0, 1.0, np.inf], [2.0, 4.0, np.inf], [np.inf, np.inf, np.inf]]))
    assert found[1].tolist() == pytest.approx([1, np.exp(-0.5), 0]) and found[2].tolist() == [0, 0, 0]
    assert found[0].tolist() == pytest.approx([1, 0, 0])


def test_a_record_that_ends_before_what_is_asked_gives_way_to_one_that_goes_on():
    """Find the series itself nearest, as far as it was seen."""
    short, long = (TIMES[:4], column(TIMES[:4])), (TIMES, column(2 * TIMES))
    series = question(TIMES, TIMES, TIMES < 4)
    found = Analog([short, long], np.ones(1), linear, 2)(series, MEAN)[0, :, 0].numpy()
    assert found[5:] == pytest.approx(3 + 2 * (TIMES[5:] - 3))
    alone = Analog([short], np.ones(1), linear, 1)(series, MEAN)
    torch.testing.assert_close(alone, linear(series, MEAN))


def test_a_channel_leads_to_the_right_record_where_the_other_was_not_seen():
    """Compare by the first of two channels: the second is not seen, and the first record lacks a value of it."""
    up, down = np.stack([TIMES, TIMES + 5], 1), np.stack([-TIMES, -TIMES], 1)
    up[3, 1] = np.nan
    both = Analog([(TIMES, up), (TIMES, down)], np.ones(2), linear, 4)
    values = np.stack([TIMES, np.full(9, np.nan)], 1)
    scored = np.zeros((9, 2), dtype=bool)
    scored[5:] = True
    seen = ~np.isnan(values) & ~scored
    series = series_of(TIMES[None], np.nan_to_num(values)[None], seen=seen[None], scored=scored[None])
    found = both.candidates(series, torch.zeros(2).double())
    assert found[VALUES, 0, 5:].numpy() == pytest.approx(up[5:])
    assert found[CHANGES, 0, 5:, 0].numpy() == pytest.approx(TIMES[5:])
    assert found[CHANGES, 0, 5:, 1].tolist() == [0.0] * 4  # no last value to add changes to: the mean


def random_analog() -> Analog:
    batch = batch_of(rows=6, seed=9)
    known = torch.where(batch.known, batch.values, torch.nan)
    records = [(t.numpy(), v.numpy()) for t, v in zip(batch.times, known, strict=True)]
    return Analog(records, np.array([3.0, 6.0]), linear, 20)


def test_nothing_unseen_is_read_padding_changes_nothing_nor_do_other_series():
    similar, batch, mean = random_analog(), asked(batch_of()), torch.tensor([-7.0, -6.0]).double()
    truth = similar.candidates(batch, mean)
    assert not torch.equal(truth[0], truth[1]) and not torch.equal(truth[0], linear(batch, mean))
    other = replace(batch, values=torch.where(batch.seen, batch.values, 1e5))
    assert torch.equal(similar.candidates(other, mean), truth)
    wider, place = with_empty_points(batch)
    torch.testing.assert_close(similar.candidates(wider, mean)[:, :, place], truth)
    torch.testing.assert_close(similar.candidates(batch.rows([3]), mean), truth[:, [3]])


def test_without_seen_values_or_records_the_line_answers():
    series = question(TIMES, TIMES, TIMES < 0)
    assert analog_of(*CURVES)(series, MEAN).unique().tolist() == [7.0]
    series = question(TIMES, TIMES, TIMES < 4)
    none = Analog([(TIMES, np.full((9, 1), np.nan))], np.ones(1), linear, 4)
    torch.testing.assert_close(none(series, MEAN), linear(series, MEAN))
    torch.testing.assert_close(Analog([], np.ones(1), linear, 4)(series, MEAN), linear(series, MEAN))


def test_windows_of_one_series_are_one_record_and_records_are_chosen_evenly():
    times, values = np.arange(12.0), np.arange(12.0)[:, None]
    part = Ragged.joined(times, values, np.array([0, 4, 8, 12]), np.zeros((3, 2)), np.arange(3))
    lengths = lambda series, most=10: [len(t) for t, _ in records_of(series, most)]
    assert lengths(part) == [4, 4, 4]
    assert lengths(replace(part, names=("a", "a", "b"))) == [8, 4]
    overlapping = replace(part, first=np.array([0, 3, 9]), end=np.array([6, 8, 12]), names=("a", "a", "a"))
    assert lengths(overlapping) == [8, 3]  # between the second and the third a point is missing
    assert [t[0] for t, _ in records_of(part, 2)] == [0, 8]


class Levels(SeriesData):
    """Straight lines of one slope: the first channel at a level of its own, the second always at the same."""

    channels = ("own", "same")

    def make(self):
        rng = np.random.default_rng(0)
        times = np.tile(np.arange(12.0), (30, 1))
        values = np.stack([times + 50 * rng.standard_normal((30, 1)), times % 5], 2)
        values += 0.1 * rng.standard_normal(values.shape) + np.array([0.0, 1.0]) * rng.standard_normal((30, 12, 2))
        cut = lambda part: Ragged.of(times[part], values[part], first_id=part.start)
        return {"train": cut(slice(0, 20)), "val": cut(slice(20, 25)), "test": cut(slice(25, 30))}


def test_each_channel_has_the_kind_of_the_smaller_error_on_validation():
    data, task = Levels(), QUESTIONS.forecast
    similar, level = baselines(data, data.scale)[ANALOG], data.scale.mean
    batches = lambda split: data.batches(split, task, 100)
    (val,), (test,) = batches("val"), batches("test")
    error = ((similar.candidates(val.given(), level) - val.values) ** 2 * val.scored).sum((1, 2)) / val.scored.sum(
        (0, 1)
    )
    assert error.argmin(0).tolist() == [CHANGES, VALUES]
    answer = fitted(batches("val"), similar, data.scale, level)(test)
    kinds = similar.candidates(replace(test.given(), scored=test.scored), level)
    for channel, kind in enumerate((CHANGES, VALUES)):
        torch.testing.assert_close(answer.mean[..., channel], kinds[kind, ..., channel])
        assert answer.std[0, 0, channel].item() == pytest.approx(error[kind, channel].sqrt().item())


def test_what_would_take_long_is_left_out_and_the_reason_is_logged(monkeypatch, caplog):
    caplog.set_level("DEBUG", "vrnn_lab")
    monkeypatch.setattr(module, "MOST_VALUES", 100)
    assert ANALOG not in baselines(Levels(), Levels().scale)
    assert "the analog baseline is left out" in caplog.text and "120 values" in caplog.text
    monkeypatch.setattr(module, "MOST_VALUES", 120)
    assert ANALOG in baselines(Levels(), Levels().scale)
    binary = replace(Levels().scale, support="binary")
    assert ANALOG not in baselines(Levels(), binary)
