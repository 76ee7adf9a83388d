"""The batch of series, and ragged series in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.small import asked, batch_of, held_out, told
from vrnn_lab.core.series import compact, front_first, gaps, pick, put_back, series_of
from vrnn_lab.core.tasks import DensityTask, Forecast, Own
from vrnn_lab.data.base import Ragged, pieces, places

NAN = float("nan")


def marks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_compacting_moves_the_marked_points_to_the_front_in_order():
    mask = torch.tensor([[False, True, False, True], [True, True, False, False], [False, False, False, False]])
    assert front_first(mask).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_compacted_series_has_the_points_of_the_old_one():
    batch, mask = told(held_out(batch_of())), marks(5, 8)
    moved, _ = compact(batch, mask)
    for row in range(5):
        count = int(mask[row].sum())
        for name in ("times", "values", "seen", "scored", "covariates", "error"):
            assert torch.equal(getattr(moved, name)[row, :count], getattr(batch, name)[row][mask[row]])
            assert torch.equal(getattr(moved, name)[row, count:], getattr(batch, name)[row][~mask[row]])
    assert torch.equal(moved.ids, batch.ids) and torch.equal(moved.window, batch.window)


def test_putting_back_undoes_compacting():
    batch = held_out(batch_of())
    moved, index = compact(batch, marks(5, 8))
    for name in ("times", "values", "seen", "scored"):
        assert torch.equal(put_back(getattr(moved, name), index), getattr(batch, name))


@pytest.mark.parametrize("shape, dim", [((5, 8), 1), ((5, 8, 3), 1), ((4, 5, 8), 2), ((4, 5, 8, 3), 2)])
def test_picking_is_each_rows_own_choice_and_putting_back_its_inverse(shape, dim):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    index = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i)) for i in range(5)])
    rows = tensor.transpose(0, dim - 1)  # batch first
    found = pick(tensor, index, dim).transpose(0, dim - 1)
    for row in range(5):
        truth = rows[row].index_select(dim - 1, index[row])
        assert torch.equal(found[row], truth)
    assert torch.equal(put_back(pick(tensor, index, dim), index, dim), tensor)


def test_picking_may_repeat_and_leave_out():
    tensor = torch.arange(12).view(2, 6)
    assert pick(tensor, torch.tensor([[5, 5], [0, 3]])).tolist() == [[5, 5], [6, 9]]


def test_gaps_are_times_since_the_last_point_that_counts():
    series = series_of([[0.0, 1.0, 3.0, 7.0], [2.0, 2.0, 2.5, 4.0]], torch.zeros(2, 4, 1))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    moved, index = compact(series, mask)
    inside = pick(mask, index)
    assert gaps(moved.times, inside).tolist() == [[0, 3, 4, 0], [0, 0.5, 0, 0]]


def test_seconds_since_1970_keep_their_gaps():
    step = 2.0**-10
    times = 1.7e9 + step * torch.arange(6, dtype=torch.float64).expand(1, 6)
    series = series_of(times, torch.zeros(1, 6, 1))
    assert series.times.dtype == torch.float64
    found = gaps(series.times, torch.ones(1, 6, dtype=torch.bool))
    assert found.tolist() == [[0.0] + [step] * 5]


def test_what_is_given_hides_all_that_is_not_seen():
    batch = replace(asked(batch_of()), clean=torch.ones(5, 8, 2).double(), labels=torch.ones(5).long())
    given = batch.given()
    assert torch.equal(given.values, torch.where(batch.seen, batch.values, 0))
    assert torch.equal(given.seen, batch.seen)
    assert given.clean is None and given.labels is None
    assert torch.equal(given.counts, batch.counts)  # where a query stands is known
    other = replace(batch, values=torch.where(batch.seen, batch.values, 1e9))
    assert torch.equal(other.given().values, given.values)


def test_what_is_given_does_not_tell_which_channel_of_a_query_is_scored():
    batch = asked(batch_of())
    assert (batch.scored.any(-1) != batch.scored.all(-1)).any()
    given = batch.given()
    assert torch.equal(given.scored.any(-1), given.scored.all(-1))
    assert torch.equal(given.scored.any(-1), batch.scored.any(-1))


def test_covariates_and_error_bars_are_given_of_a_query_too():
    batch = told(asked(batch_of()))
    given = batch.given()
    assert torch.equal(given.covariates, batch.covariates) and torch.equal(given.error, batch.error)


def test_what_stands_beside_values_must_be_finite_where_a_point_counts():
    make = lambda **beside: series_of([[0.0, 1.0]], [[[2.0], [NAN]]], scored=[[[False], [True]]], **beside)
    with pytest.raises(ValueError, match="covariates must be finite at every point that is known or queried"):
        make(covariates=[[[1.0], [NAN]]])
    for wrong in (NAN, -1.0):
        with pytest.raises(ValueError, match="the error of a known value must be finite and not negative"):
            make(error=[[[wrong], [1.0]]])
    assert make(error=[[[0.5], [NAN]]]).error.tolist() == [[[0.5], [0.0]]]  # of a query none, unless it is said
    padded = series_of([[0.0, 1.0]], [[[2.0], [NAN]]], covariates=[[[1.0], [NAN]]])
    assert padded.counts.tolist() == [[True, False]]


def test_known_is_seen_or_scored_and_padding_is_neither():
    seen = torch.tensor([[[True, False], [False, False], [False, False]]])
    scored = torch.tensor([[[False, False], [False, True], [False, False]]])
    batch = series_of([[0.0, 1.0, 2.0]], torch.ones(1, 3, 2), seen, scored)
    assert batch.known.tolist() == [[[True, False], [False, True], [False, False]]]
    assert batch.counts.tolist() == [[True, True, False]]


def test_rows_of_a_batch_take_every_tensor_along():
    batch = replace(held_out(batch_of()), clean=torch.randn(5, 8, 2).double(), most_seen=6)
    for index in ([3, 0], slice(1, 4), torch.tensor([4])):
        some = batch.rows(index)
        for name in ("times", "values", "seen", "scored", "window", "ids", "clean"):
            assert torch.equal(getattr(some, name), getattr(batch, name)[index])
        assert some.most_seen == 6


def test_a_batch_goes_to_a_device_with_all_its_tensors():
    moved = replace(batch_of(), clean=torch.zeros(5, 8, 2).double()).to("meta")
    assert {
        getattr(moved, n).device.type for n in ("times", "values", "seen", "scored", "window", "ids", "clean")
    } == {"meta"}


# ---- at the door -----------------------------------------------------------------------------------------


def test_a_series_of_lists_is_seen_where_it_was_observed():
    batch = series_of([[3, 5, 9]], [[[1.0, NAN], [NAN, NAN], [2.0, 4.0]]])
    assert batch.seen.tolist() == [[[True, False], [False, False], [True, True]]]
    assert batch.values.tolist() == [[[1, 0], [0, 0], [2, 4]]]
    assert not batch.scored.any()
    assert batch.window.tolist() == [[3, 9]] and batch.ids.tolist() == [0]


def test_a_query_needs_no_value():
    batch = series_of([[0.0, 1.0]], [[[1.0], [NAN]]], scored=[[[False], [True]]])
    assert batch.counts.all() and batch.values[0, 1, 0] == 0


def test_a_value_that_was_not_observed_cannot_be_marked_seen():
    with pytest.raises(ValueError, match="seen"):
        series_of([[0.0, 1.0]], [[[1.0], [NAN]]], seen=[[[True], [True]]])


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), NAN])
def test_times_must_be_finite(bad):
    with pytest.raises(ValueError, match="times must be finite"):
        series_of([[0.0, bad]], torch.zeros(1, 2, 1))


def test_times_must_not_fall_and_the_row_is_named():
    series_of([[0.0, 1.0, 1.0]], torch.zeros(1, 3, 1))
    with pytest.raises(ValueError, match="those of row 1 do"):
        series_of([[0.0, 1.0], [1.0, 0.5]], torch.zeros(2, 2, 1))


@pytest.mark.parametrize("bad", [float("inf"), -float("inf")])
def test_values_must_be_finite(bad):
    with pytest.raises(ValueError, match="known values must be finite"):
        series_of([[0.0, 1.0]], [[[1.0], [bad]]])


def test_known_values_of_a_batch_must_be_finite():
    batch = series_of([[0.0, 1.0]], torch.ones(1, 2, 1))
    broken = replace(batch, values=torch.tensor([[[1.0], [NAN]]]).double())
    with pytest.raises(ValueError, match="known values must be finite"):
        broken.check()
    unknown = torch.tensor([[[True], [False]]])
    assert replace(broken, seen=unknown).check().seen.sum() == 1


@pytest.mark.parametrize("shape, seen", [((1, 3, 1), (1, 3, 1)), ((2, 2, 1), (2, 2, 1)), ((1, 2, 1), (1, 2, 2))])
def test_shapes_must_fit(shape, seen):
    with pytest.raises((ValueError, TypeError)):
        series_of([[0.0, 1.0]], torch.zeros(shape), torch.ones(seen, dtype=torch.bool))


# ---- ragged series ---------------------------------------------------------------------------------------


def ragged(**changes) -> Ragged:
    """Four series of 3, 0, 1 and 4 points, two channels, each on its own clock."""
    times = np.array([0.0, 1.0, 3.0, 50.0, 7.0, 7.5, 8.0, 8.0])
    values = np.array([[1, 10], [2, NAN], [3, 30], [NAN, NAN], [4, 40], [5, NAN], [6, 60], [7, 70]], dtype=float)
    made = {
        "times": times,
        "values": values,
        "offsets": np.array([0, 3, 3, 4, 8]),
        "windows": np.array([[0.0, 3.0], [5.0, 9.0], [50.0, 50.0], [6.0, 8.0]]),
        "ids": np.array([11, 12, 13, 14]),
        "clean": values + 0.5,
        "names": ("a", "b", "c", "d"),
    }
    return Ragged.joined(**{**made, **changes})


def batch(series: Ragged, index=(0, 1, 2, 3), task=None):
    draws = Own(np.random.default_rng, range(len(index)))
    return series.batch(np.asarray(index), task or DensityTask(), draws).check()


def test_a_batch_holds_each_series_and_padding_behind_it():
    found = batch(ragged())
    assert found.times.tolist() == [[0, 1, 3, 3], [5] * 4, [50] * 4, [7, 7.5, 8, 8]]
    assert found.counts.tolist() == [[True] * 3 + [False], [False] * 4, [False] * 4, [True] * 4]
    assert found.values[0].tolist() == [[1, 10], [2, 0], [3, 30], [0, 0]]
    assert found.known[0].tolist() == [[True, True], [True, False], [True, True], [False, False]]
    assert torch.equal(found.seen, found.scored)
    assert found.window.tolist() == [[0, 3], [5, 9], [50, 50], [6, 8]]
    assert found.ids.tolist() == [11, 12, 13, 14]
    assert found.clean[3].tolist()[:1] == [[4.5, 40.5]]
    assert found.most_seen == 4


def test_a_batch_in_another_order_is_the_same_rows():
    one, two = batch(ragged()), batch(ragged(), (3, 1, 0))
    assert torch.equal(two.values, one.values[[3, 1, 0]])
    assert torch.equal(two.times, one.times[[3, 1, 0]])
    assert torch.equal(two.ids, one.ids[[3, 1, 0]])


@pytest.mark.parametrize("index", [(1,), (2,), (1, 1)])
def test_a_batch_of_series_without_points_has_nothing_known(index):
    found = batch(ragged(), index)
    assert found.times.shape == (len(index), 1)
    assert not found.known.any()
    assert found.most_seen == 0


def test_the_last_series_may_be_empty():
    series = ragged().part([3, 1])
    found = batch(series, (1, 0))
    assert found.times[0].tolist() == [5] * 4
    assert not found.known[0].any() and found.known[1].any()


def test_series_none_of_which_has_a_point_still_make_a_batch():
    found = batch(ragged().part([1]), (0,))
    assert found.times.tolist() == [[5]] and not found.known.any()


def test_a_task_sees_only_a_series_own_points():
    found = batch(ragged(), task=Forecast(2, scored="held_out"))
    assert found.seen.any(-1).sum(1).tolist() == [2, 0, 0, 2]
    assert found.scored.any(-1).sum(1).tolist() == [1, 0, 0, 2]
    assert found.most_seen == 2
    assert (found.values[~found.known] == 0).all()


def test_a_part_is_some_of_the_series_in_the_order_asked():
    some = ragged().part([3, 0, 1])
    assert some.offsets.tolist() == [0, 4, 7, 7]
    assert some.times.tolist() == [7, 7.5, 8, 8, 0, 1, 3]
    assert some.ids.tolist() == [14, 11, 12] and some.names == ("d", "a", "b")
    assert some.windows.tolist() == [[6, 8], [0, 3], [5, 9]]
    np.testing.assert_array_equal(some.clean, some.values + 0.5)


@pytest.mark.parametrize("index", [[], np.arange(0)], ids=["list", "array"])
def test_a_part_may_be_empty(index):
    nothing = ragged().part(index)
    assert len(nothing) == 0 and len(nothing.times) == 0 and nothing.offsets.tolist() == [0]


def test_parts_and_their_parts_share_the_points():
    whole = ragged()
    some = whole.part([3, 0, 1]).part([1, 0])
    assert some.points is whole.points and np.shares_memory(whole.times, whole.points.times)
    assert some.times.tolist() == [0, 1, 3, 7, 7.5, 8, 8] and some.offsets.tolist() == [0, 3, 7]
    assert torch.equal(batch(some, (0, 1)).values, batch(whole, (0, 3)).values)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pieces_of_stretches_are_the_stretches(size):
    some = ragged().part([3, 1, 0, 3])
    whole = np.arange(8)[places(some.first, some.end)]
    cut = list(pieces(some.first, some.end, size))
    np.testing.assert_array_equal(np.concatenate([np.arange(8)[places(a, b)] for _, a, b in cut]), whole)
    assert max((b - a).sum() for _, a, b in cut) <= size
    owner = np.concatenate([np.repeat(owner, b - a) for owner, a, b in cut])
    np.testing.assert_array_equal(owner, np.repeat(np.arange(4), some.lengths))


def test_equal_series_are_laid_end_to_end():
    times = np.array([[0.0, 1.0, 4.0], [2.0, 3.0, 9.0]])
    values = np.arange(12.0).reshape(2, 3, 2)
    made = Ragged.of(times, values, first_id=5, clean=values + 1)
    assert made.windows.tolist() == [[0, 4], [2, 9]] and made.ids.tolist() == [5, 6]
    found = batch(made, (0, 1))
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.clean, values + 1)
    np.testing.assert_array_equal(found.times, times)
    assert Ragged.of(times, values, window=(0, 10)).windows.tolist() == [[0, 10]] * 2


# ---- the training scale ----------------------------------------------------------------------------------


def test_the_scale_is_that_of_the_observed_values_and_of_each_series_own_clock():
    scale = ragged().scale(("u", "v"), "real")
    first, second = np.array([1, 2, 3, 4, 5, 6, 7.0]), np.array([10, 30, 40, 60, 70.0])
    assert scale.mean.tolist() == pytest.approx([first.mean(), second.mean()])
    assert scale.std.tolist() == pytest.approx([first.std(), second.std()])
    assert scale.clock.item() == np.median([3, 4, 2])  # the span of one point is no length
    assert scale.gap.item() == np.median([1, 2, 0.5, 0.5])  # within series, and no point is a gap from its twin
    assert scale.longest.item() == 4 and scale.start.item() == 0 and scale.reach.item() == 50
    assert scale.dim == 2 and scale.channels == ("u", "v")


def test_the_scale_does_not_depend_on_the_order_of_the_series():
    one, two = ragged().scale(("u", "v"), "real"), ragged().part([2, 3, 1, 0]).scale(("u", "v"), "real")
    for name in ("mean", "std", "clock", "gap", "longest", "start", "reach"):
        assert getattr(one, name).tolist() == pytest.approx(getattr(two, name).tolist())


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -3e-9])
def test_a_channel_that_never_changes_has_the_unit_as_its_spread(value):
    values = ragged().values.copy()
    values[:, 1] = value
    scale = ragged(values=values).scale(("u", "v"), "real")
    assert scale.std[1].item() == 1 and scale.mean[1].item() == pytest.approx(value)


@pytest.mark.parametrize("factor", [1e-15, 1e-9, 1e12])
def test_a_channel_of_any_unit_keeps_its_spread(factor):
    scale, plain = (
        ragged(values=factor * ragged().values).scale(("u", "v"), "real"),
        ragged().scale(("u", "v"), "real"),
    )
    assert scale.std.tolist() == pytest.approx([factor * s for s in plain.std.tolist()], rel=1e-9, abs=0)


def test_a_channel_without_values_in_training_is_an_error_with_its_name():
    values = ragged().values.copy()
    values[:, 1] = NAN
    with pytest.raises(ValueError, match="channel 'v' has no observed value"):
        ragged(values=values).scale(("u", "v"), "real")


def test_the_scale_of_covariates_is_theirs_and_that_of_a_constant_one_the_unit():
    covariates = np.stack([np.arange(8.0), np.full(8, 1e6 + 0.1)], 1)
    scale = ragged(covariates=covariates).scale(("u", "v"), "real", covariates=("w", "c"))
    assert scale.covariates == ("w", "c") and not scale.errors
    assert scale.covariate_mean.tolist() == pytest.approx([3.5, 1e6 + 0.1])
    assert scale.covariate_std.tolist() == pytest.approx([np.arange(8).std(), 1])
    assert ragged(error=np.ones((8, 2))).scale(("u", "v"), "real").errors


def test_equal_series_keep_what_stands_beside_their_values():
    times, values = np.zeros((2, 3)), np.zeros((2, 3, 1))
    covariates, error = np.arange(12.0).reshape(2, 3, 2), np.arange(6.0).reshape(2, 3, 1)
    found = batch(Ragged.of(times, values, covariates=covariates, error=error), (1, 0))
    np.testing.assert_array_equal(found.covariates, covariates[::-1])
    np.testing.assert_array_equal(found.error, error[::-1])


def test_binary_values_are_not_rescaled():
    scale = ragged().scale(("u", "v"), "binary")
    assert scale.mean.tolist() == [0, 0] and scale.std.tolist() == [1, 1]


def test_a_training_set_of_single_points_has_a_clock_nevertheless():
    series = ragged().part([2, 2])
    series = replace(series, points=replace(series.points, values=np.tile([[1.0, 2.0]], (8, 1))))
    scale = series.scale(("u", "v"), "real")
    assert scale.clock.item() == 1 and scale.gap.item() == 1 and scale.longest.item() == 0


def test_the_clock_of_seconds_since_1970_is_that_of_small_times():
    plain, late = ragged(), ragged(times=ragged().times + 1.7e9, windows=ragged().windows + 1.7e9)
    one, two = plain.scale(("u", "v"), "real"), late.scale(("u", "v"), "real")
    for name in ("clock", "gap", "longest", "reach"):
        assert getattr(one, name) == getattr(two, name)
    assert two.start == one.start + 1.7e9
