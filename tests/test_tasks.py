"""What every task shows and what it asks for."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from vrnn_lab.core.tasks import DensityTask, Forecast, Interpolate, Mixed, Own, Shared, Task, Within
from vrnn_lab.data.base import Batches, Ragged, generator

TIMES = np.linspace(10, 20, 41)  # a quarter apart; the window is wider than the points
WINDOW = np.array([5.0, 25.0])
KNOWN = np.ones((41, 3), bool)
GAPPY = np.random.default_rng(0).random((41, 3)) < 0.4


def ask(task: Task, known=KNOWN, seed: int = 0, times=TIMES, window=WINDOW):
    before = known.copy()
    seen, scored = task(times, known, window, np.random.default_rng(seed))
    assert (known == before).all()
    assert seen.shape == scored.shape == known.shape
    assert seen.dtype == scored.dtype == bool
    assert not ((seen | scored) & ~known).any()  # what was not observed is neither seen nor scored
    return seen, scored


def count(mask) -> int:
    """Points of which something is marked."""
    return int(mask.any(1).sum())


EVERY = {
    "density": DensityTask(),
    "interpolate": Interpolate([0.1, 0.9]),
    "values": Interpolate([0.1, 0.9], unit="value"),
    "forecast": Forecast([0.2, 0.8], seen=[0.3, 1.0]),
    "numbers": Forecast(7, seen=3),
    "mixed": Mixed([DensityTask(), Interpolate(0.5), Forecast(0.5)]),
    "within": Within(Interpolate(0.5), 0.6),
}


@pytest.mark.parametrize("task", EVERY.values(), ids=EVERY)
def test_a_task_is_a_function_of_its_generator(task):
    one, two = ask(task, GAPPY, 5), ask(task, GAPPY, 5)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("task", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("length", [0, 1])
def test_a_task_takes_a_series_of_one_point_or_none(task, length):
    ask(task, KNOWN[:length], times=TIMES[:length])


@pytest.mark.parametrize("known", [KNOWN, GAPPY], ids=["all", "gappy"])
def test_density_shows_and_scores_all_that_is_known(known):
    seen, scored = ask(DensityTask(), known)
    assert (seen == known).all() and (scored == known).all()


@pytest.mark.parametrize("known", [KNOWN, GAPPY], ids=["all", "gappy"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_interpolation_shows_its_share_of_the_points_and_scores_all(known, share):
    seen, scored = ask(Interpolate(share), known)
    assert count(seen) == round(share * count(known))
    assert (scored == known).all()
    shown = seen.any(1)
    assert (seen[shown] == known[shown]).all()  # a point is seen with all of its channels


@pytest.mark.parametrize("wanted, found", [(0, 0), (1, 1), (10, 10), (41, 41), (99, 41)])
def test_interpolation_shows_its_number_of_points(wanted, found):
    assert count(ask(Interpolate(wanted))[0]) == found


def test_a_share_of_one_is_all_and_a_number_of_one_is_one():
    assert count(ask(Interpolate(1.0))[0]) == 41
    assert count(ask(Interpolate(1))[0]) == 1


def test_a_range_of_shares_is_drawn_from_evenly():
    task = Interpolate([0.2, 0.6])
    counts = np.array([count(ask(task, seed=i)[0]) for i in range(1000)])
    assert (counts.min(), counts.max()) == (round(0.2 * 41), round(0.6 * 41))
    assert counts.mean() == pytest.approx(0.4 * 41, abs=4 * (0.4 / 12**0.5 * 41) / 1000**0.5 + 0.05)


def test_interpolation_of_values_counts_values_and_splits_points():
    seen, scored = ask(Interpolate(0.5, unit="value"), GAPPY)
    assert seen.sum() == round(0.5 * GAPPY.sum())
    assert (scored == GAPPY).all()
    whole = ask(Interpolate(0.5, unit="value"))[0].sum(1)
    assert ((whole > 0) & (whole < 3)).any()


@pytest.mark.parametrize("unit", ["point", "value"])
def test_every_place_is_seen_as_often_as_any_other(unit):
    seen = np.mean([ask(Interpolate(0.3, unit=unit), seed=i)[0] for i in range(800)], 0)
    assert np.abs(seen - 0.3).max() < 5 * (0.3 * 0.7 / 800) ** 0.5


@pytest.mark.parametrize("unit", ["point", "value"])
def test_held_out_scores_what_is_known_and_not_seen(unit):
    seen, scored = ask(Interpolate(0.5, unit=unit, scored="held_out"), GAPPY)
    assert (scored == (GAPPY & ~seen)).all()
    assert scored.any()


def test_a_forecast_shows_the_window_up_to_a_share_of_its_length():
    seen, scored = ask(Forecast(0.5), GAPPY)
    assert (seen == (GAPPY & (TIMES <= 15)[:, None])).all()
    assert (scored == GAPPY).all()
    assert count(ask(Forecast(0.2))[0]) == 0  # the window starts before the points


@pytest.mark.parametrize("number", [0, 1, 7, 30, 99])
def test_a_forecast_after_a_number_of_points_counts_those_observed(number):
    seen, _ = ask(Forecast(number), GAPPY)
    observed = np.flatnonzero(GAPPY.any(1))
    assert np.flatnonzero(seen.any(1)).tolist() == observed[:number].tolist()


def test_a_forecast_of_a_range_starts_anywhere_in_it():
    last = [TIMES[ask(Forecast([0.3, 0.7]), seed=i)[0].any(1)].max() for i in range(300)]
    assert 11 - 0.25 <= min(last) <= 11.25
    assert 19 - 0.5 <= max(last) <= 19


def test_held_out_of_a_forecast_is_what_lies_ahead():
    seen, scored = ask(Forecast(0.5, scored="held_out"), GAPPY)
    assert (scored == (GAPPY & (TIMES > 15)[:, None])).all()
    assert not (seen & scored).any()


@pytest.mark.parametrize("thin", [0.5, 4, [0.2, 0.6]])
def test_a_thinned_past_is_seen_in_part_and_is_no_forecast(thin):
    seen, scored = ask(Forecast(0.5, seen=thin, scored="held_out"))
    past = TIMES <= 15
    assert 0 < count(seen) < past.sum()
    assert not seen[~past].any()
    assert (scored == (KNOWN & ~past[:, None])).all()
    assert (ask(Forecast(0.5, seen=thin))[1] == KNOWN).all()


def test_within_neither_shows_nor_scores_what_lies_later():
    seen, scored = ask(Within(Interpolate(0.5), 0.6), GAPPY)
    early = GAPPY & (TIMES <= 17)[:, None]
    assert (scored == early).all()
    assert count(seen) == round(0.5 * count(early))
    seen, scored = ask(Within(DensityTask(), 9), GAPPY)
    assert count(seen) == 9
    assert (seen == scored).all()


def test_mixed_draws_each_of_its_tasks_as_often():
    task = Mixed([DensityTask(), Interpolate(0.5), Forecast(0.5)])
    shown = [ask(task, seed=i)[0].any(1) for i in range(600)]
    names = ["density" if s.all() else "forecast" if (s == (TIMES <= 15)).all() else "interpolate" for s in shown]
    for name in ("density", "forecast", "interpolate"):
        assert names.count(name) == pytest.approx(200, abs=4 * (600 * 2 / 9) ** 0.5)


def test_mixed_of_nothing_is_refused():
    with pytest.raises(ValueError, match="name at least one"):
        Mixed([])


# ---- patterns of a data set ------------------------------------------------------------------------------

ROWS, TIME = 12, 40


def series() -> Ragged:
    times = np.tile(np.arange(TIME, dtype=float), (ROWS, 1))
    return Ragged.of(times, np.ones((ROWS, TIME, 1)), first_id=70)


def patterns(batches: Batches) -> dict[int, np.ndarray]:
    """What is seen of each series, by its id."""
    return {
        int(name): seen[:, 0].numpy() for batch in batches for name, seen in zip(batch.ids, batch.seen, strict=True)
    }


def same(one: dict, two: dict) -> list[bool]:
    assert one.keys() == two.keys()
    return [bool((one[k] == two[k]).all()) for k in one]


def different_from_one_another(found: dict) -> bool:
    return len({pattern.tobytes() for pattern in found.values()}) == len(found)


def test_at_evaluation_what_is_seen_is_a_function_of_seed_and_id():
    data, task = series(), Interpolate(0.5)
    found = patterns(Batches(data, task, 5, seed=1))
    assert different_from_one_another(found)
    again = Batches(data, task, 5, seed=1)
    assert all(same(patterns(again), found)) and all(same(patterns(again), found))  # in every epoch
    assert all(same(patterns(Batches(data, task, 3, seed=1)), found))
    backwards = data.part(np.arange(ROWS)[::-1])
    assert all(same(patterns(Batches(backwards, task, 5, seed=1)), found))
    alone = patterns(Batches(data.part([4]), task, 5, seed=1))
    assert (alone[74] == found[74]).all()
    assert not any(same(patterns(Batches(data, task, 5, seed=2)), found))


def test_in_training_what_is_seen_differs_between_series_and_epochs():
    data, task = series(), Interpolate(0.5)
    loader = Batches(data, task, 5, seed=1, training=True)
    one, two = patterns(loader), patterns(loader)
    assert different_from_one_another(one) and different_from_one_another(two)
    assert not any(same(one, two))
    again = Batches(data, task, 5, seed=1, training=True)
    assert all(same(patterns(again), one)) and all(same(patterns(again), two))


def test_in_training_the_order_differs_between_epochs_and_misses_nobody():
    loader = Batches(series(), DensityTask(), 5, seed=1, training=True)
    orders = [[int(i) for batch in loader for i in batch.ids] for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(70, 70 + ROWS)) for order in orders)


@dataclass
class Listener(Task):
    """Keeps the first number each series draws."""

    heard: list

    def __call__(self, times, known, window, rng):
        self.heard.append(rng.random())
        return known, known


def test_the_draws_of_training_are_not_those_of_evaluation():
    """No two of (shuffle, batch of an epoch, series at evaluation) may share a stream."""
    data, listener = series().part(np.arange(6)), Listener([])
    data = replace(data, ids=np.arange(6))
    loader = Batches(data, listener, 2, seed=1, training=True)
    for _ in range(6):
        list(loader)
    list(Batches(data, listener, 2, seed=1))
    assert len(listener.heard) == 6 * 6 + 6
    assert len(set(listener.heard)) == len(listener.heard)


# ---- all rows of a batch at once ---------------------------------------------------------------------------


def padded(rows: int, seed: int):
    """(times, known, windows, lengths) of random series, padded behind their lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, rows)
    real = np.arange(30) < lengths[:, None]
    times = np.sort(rng.uniform(0, 10, (rows, 30)), 1)
    times = np.where(real, times, np.take_along_axis(times, np.maximum(lengths - 1, 0)[:, None], 1))
    known = real[..., None] & (rng.random((rows, 30, 2)) < 0.7)
    return times, known, np.tile([0.0, 10.0], (rows, 1)), lengths


@pytest.mark.parametrize("task", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_draw_each_on_their_own_get_what_they_get_alone(task, seed):
    times, known, windows, lengths = padded(40, seed)
    seen, scored = task.together(times, known, windows, lengths, Own(np.random.default_rng, range(40)))
    for row, n in enumerate(lengths):
        one = task(times[row, :n], known[row, :n], windows[row], np.random.default_rng(row))
        assert (seen[row, :n] == one[0]).all() and (scored[row, :n] == one[1]).all()
        assert not seen[row, n:].any() and not scored[row, n:].any()


@pytest.mark.parametrize("task", EVERY.values(), ids=EVERY)
def test_rows_that_share_a_generator_are_seen_as_often_as_those_alone(task):
    """Point by point and in number: 3000 rows of one series against 3000 with a generator each."""
    rows = 3000
    batch = [np.repeat(x[None], rows, 0) for x in (TIMES, GAPPY, WINDOW)]
    lengths = np.full(rows, len(TIMES))
    shared = task.together(*batch, lengths, Shared(np.random.default_rng(0), rows))
    alone = task.together(*batch, lengths, Own(np.random.default_rng, range(rows)))
    for a, b in zip(shared, alone, strict=True):
        p = (a.mean(0) + b.mean(0)) / 2
        assert (np.abs(a.mean(0) - b.mean(0)) <= 5.5 * np.sqrt(2 * p * (1 - p) / rows) + 1e-12).all()
        one, two = a.any(2).sum(1), b.any(2).sum(1)
        assert {*one} == {*two} or len({*two}) > 9
        assert abs(one.mean() - two.mean()) <= 5 * np.sqrt((one.var() + two.var()) / rows) + 1e-12
        assert abs(one.std() - two.std()) <= 0.1 * two.std() + 1e-12


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_a_shared_subset_has_the_size_asked_for_and_differs_between_rows(count):
    candidates = np.random.default_rng(1).random((200, 30)) < 0.5
    chosen = Shared(np.random.default_rng(0), 200).subset(candidates, np.full(200, count))
    assert (chosen.sum(1) == np.minimum(count, candidates.sum(1))).all() and not (chosen & ~candidates).any()
    assert count in (0, 40) or len({row.tobytes() for row in chosen}) > 20


class Halved(Interpolate):
    """A user's own: the built-in task, and then every other point."""

    def __call__(self, times, known, window, rng):
        seen, scored = super().__call__(times, known, window, rng)
        seen[::2] = False
        return seen, scored


def test_a_task_that_a_user_writes_for_one_series_is_asked_row_by_row():
    times, known, windows, lengths = padded(20, 0)
    for task in (Halved(0.8), Mixed([Halved(0.8)]), Within(Halved(0.8), 0.9)):
        for draws in (Shared(np.random.default_rng(0), 20), Own(np.random.default_rng, range(20))):
            seen, _ = task.together(times, known, windows, lengths, draws)
            assert seen.any() and not seen[:, ::2].any()


# ---- series of like length ---------------------------------------------------------------------------------


def uneven(count: int = 1500, seed: int = 0) -> Ragged:
    """Lengths log-uniform from 10 to 500; ids count from 0."""
    lengths = np.exp(np.random.default_rng(seed).uniform(np.log(10), np.log(500), count)).astype(int)
    times = np.concatenate([np.arange(n, dtype=float) for n in lengths])
    windows = np.stack([0 * lengths, lengths], 1).astype(float)
    return Ragged.joined(times, times[:, None], np.append(0, np.cumsum(lengths)), windows, np.arange(count))


def ids_of(batches: Batches) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


@pytest.mark.parametrize("options", [{"training": True}, {"alike": True}], ids=str)
@pytest.mark.parametrize("count", [1500, 137])
def test_batches_of_uneven_series_hold_little_padding_and_each_series_once(options, count):
    data = uneven(count)
    size = 50 if count > 1000 else 10
    batches = list(Batches(data, DensityTask(), size, seed=1, **options))
    assert sorted(int(i) for batch in batches for i in batch.ids) == list(range(count))
    assert [len(batch.ids) == size for batch in batches].count(False) == (count % size > 0)
    empty = sum(int((~batch.counts).sum()) for batch in batches)
    assert empty < 0.2 * sum(batch.counts.numel() for batch in batches)


def test_uneven_series_meet_others_in_every_epoch_and_batches_come_in_any_order():
    data = uneven()
    loader = Batches(data, DensityTask(), 50, seed=1, training=True)
    one, two = ids_of(loader), ids_of(loader)
    assert ids_of(Batches(data, DensityTask(), 50, seed=1, training=True)) == one
    together = lambda batches: {(a, b) for batch in batches for a in batch for b in batch if a < b}
    assert len(together(one) & together(two)) < 0.5 * len(together(one))
    lengths = [np.mean(data.lengths[batch]) for batch in one]
    assert lengths != sorted(lengths) and lengths != sorted(lengths)[::-1]


def test_uneven_training_that_was_cut_goes_on_where_it_stopped():
    loader = Batches(uneven(300), Interpolate([0.1, 0.9]), 20, seed=1, training=True)
    expected = [(batch.ids, batch.seen) for batch in loader][4:]
    resumed = Batches(uneven(300), Interpolate([0.1, 0.9]), 20, seed=1, training=True)
    resumed.now = lambda: (0, 4)
    for batch, (ids, seen) in zip(resumed, expected, strict=True):
        assert (batch.ids == ids).all() and (batch.seen == seen).all()


def test_the_order_of_series_of_one_length_is_a_plain_shuffle():
    found = ids_of(Batches(series(), DensityTask(), 5, seed=1, training=True))
    order = 70 + generator(101, 1, 0).permutation(ROWS)
    assert [i for batch in found for i in batch] == order.tolist()
    assert ids_of(Batches(series(), DensityTask(), 5, seed=1, alike=True)) == ids_of(
        Batches(series(), DensityTask(), 5, seed=1)
    )


def test_what_is_seen_at_evaluation_does_not_depend_on_the_order():
    data, task = uneven(60), Interpolate(0.5)
    kept = lambda batches: {
        int(i): s[: data.lengths[i], 0].numpy() for b in batches for i, s in zip(b.ids, b.seen, strict=True)
    }
    assert all(same(kept(Batches(data, task, 7, 1)), kept(Batches(data, task, 9, 1, alike=True))))
