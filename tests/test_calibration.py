"""Where values fall in what was said of them, scores by distance, and the energy score of joint draws."""

from math import pi, sqrt

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.oracle import QUESTIONS, Oracle, small_data
from helpers.small import asked, batch_of, with_empty_points
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.series import series_of
from vrnn_lab.core.tasks import Forecast, Interpolate
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.evaluation import evaluate as metrics
from vrnn_lab.evaluation import scores
from vrnn_lab.evaluation.baselines import references
from vrnn_lab.evaluation.calibration import (
    PIT_BINS,
    CalibrationAccumulator,
    bins,
    edges,
    gap,
    histogram,
    horizon,
    parted,
    pit,
    plain_pit,
    stretch,
)
from vrnn_lab.evaluation.evaluate import evaluate, held_out_scores
from vrnn_lab.evaluation.scores import energy, fair_crps

ONE = torch.ones(1).double()


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# ---- the energy score --------------------------------------------------------------------------------------


def test_the_energy_score_is_the_mean_over_pairs_of_scored_values_in_training_stds():
    paths, values, std = normals(5, 2, 3, 2), normals(2, 3, 2, seed=1), torch.tensor([2.0, 0.5]).double()
    scored = torch.tensor([[[1, 1], [0, 1], [0, 0]], [[1, 0], [1, 1], [1, 1]]], dtype=torch.bool)
    for row, found in enumerate(energy(paths, values, scored, std)):
        draws, truth = (paths[:, row] / std)[:, scored[row]], (values[row] / std)[scored[row]]
        near = sum((draw - truth).norm() for draw in draws) / 5
        pairs = sum((a - b).norm() for a in draws for b in draws) / (5 * 4)
        assert found.item() == pytest.approx(((near - pairs / 2) / sqrt(scored[row].sum())).item())


def test_of_a_single_value_it_is_the_crps():
    paths, value = normals(7, 4, 1, 1), normals(4, 1, 1, seed=1)
    found = energy(paths, value, torch.ones_like(value, dtype=torch.bool), 2 * ONE)
    torch.testing.assert_close(found, fair_crps(paths.sort(0).values, value).flatten() / 2)


def test_series_without_a_scored_value_have_none():
    nothing = torch.zeros(3, 4, 1, dtype=torch.bool)
    assert energy(normals(7, 3, 4, 1), normals(3, 4, 1), nothing, ONE).shape == (0,)


@pytest.mark.slow
def test_of_many_gaussian_draws_it_is_the_closed_form():
    """Of N(0, I) in the plane: E |X - x| is the mean of a Rice distribution, E |X - X'| = sqrt(pi)."""
    paths, value = normals(20_000, 1, 2, 1), torch.tensor([0.8, -1.1]).double().view(1, 2, 1)
    truth = stats.rice.mean(value.norm().item()) - sqrt(pi) / 2
    found = energy(paths, value, torch.ones_like(value, dtype=torch.bool), ONE)
    assert found.item() == pytest.approx(truth / sqrt(2), abs=5e-3)


def test_how_many_draws_are_taken_at_once_changes_nothing(monkeypatch):
    given = (
        normals(50, 2, 3, 2),
        normals(2, 3, 2, seed=1),
        torch.ones(2, 3, 2, dtype=torch.bool),
        torch.ones(2).double(),
    )
    whole = energy(*given)
    monkeypatch.setattr(scores, "DRAWS_AT_ONCE", 7)
    torch.testing.assert_close(energy(*given), whole)


def walks(rows: int, seed: int, turn: float = 1.0) -> torch.Tensor:
    """(rows, time, 1): neighbours hang together, by 0.9 each; `turn` = 0 takes that away and keeps each margin."""
    noise, now = normals(rows, 12, seed=seed), normals(rows, seed=seed + 50)
    steps = []
    for i in range(12):
        now = turn * 0.9 * now + sqrt(1 - (turn * 0.9) ** 2) * noise[:, i]
        steps.append(now)
    return torch.stack(steps, 1)[..., None]


def test_it_sees_broken_dependence_that_the_crps_does_not():
    values, count = walks(4000, seed=1), 20
    scored = torch.ones_like(values, dtype=torch.bool)
    found = {}
    for name, turn in {"true": 1.0, "apart": 0.0, "mirrored": -1.0}.items():
        paths = walks(4000 * count, seed=7, turn=turn).view(count, 4000, 12, 1)
        crps = fair_crps(paths.sort(0).values, values).mean((1, 2))
        found[name] = energy(paths, values, scored, ONE), crps
    for name in ("apart", "mirrored"):
        joint, margins = (found[name][i] - found["true"][i] for i in (0, 1))
        error = lambda x: x.std().item() / sqrt(len(x))
        assert joint.mean().item() > 6 * error(joint)
        assert abs(margins.mean().item()) < 4 * error(margins)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda x: 1.3 * x, lambda x: 0.7 * x, lambda x: x + 0.3])
def test_it_is_least_under_the_true_law(change):
    values, paths = walks(4000, seed=1), walks(4000 * 20, seed=7).view(20, 4000, 12, 1)
    scored = torch.ones_like(values, dtype=torch.bool)
    worse = energy(change(paths), values, scored, ONE) - energy(paths, values, scored, ONE)
    assert worse.mean().item() > 4 * worse.std().item() / sqrt(len(worse))


# ---- the PIT -----------------------------------------------------------------------------------------------


def shares(found) -> list[float]:
    return [found[f"pit/{i + 1}"].mean().item() for i in range(PIT_BINS)]


@pytest.mark.parametrize("count", [1, 4, 9, 99])
def test_the_pit_of_a_true_prediction_is_uniform_however_few_the_draws(count):
    draws = normals(count + 1, 40_000, 1, 1).exp()
    found = shares(pit(draws[1:], draws[0], uniforms(40_000, 1, 1)))
    assert found == pytest.approx([1 / PIT_BINS] * PIT_BINS, abs=4 * sqrt(0.09 / 40_000))


def test_the_pit_of_values_with_ties_is_uniform():
    draws = normals(10, 40_000, 1, 1).round()  # mostly -1, 0 and 1
    found = shares(pit(draws[1:], draws[0], uniforms(40_000, 1, 1)))
    assert found == pytest.approx([1 / PIT_BINS] * PIT_BINS, abs=4 * sqrt(0.09 / 40_000))


def test_the_pit_is_the_rank_among_the_draws():
    draws = torch.arange(9.0).double().view(9, 1, 1, 1)
    for rank in range(10):
        value = torch.tensor(rank - 0.5).double().view(1, 1, 1)
        assert pit(draws, value, torch.full_like(value, 0.5))[f"pit/{rank + 1}"].item() == 1


def test_the_pit_of_a_baseline_is_its_distribution_function():
    density = Gaussian(torch.full((1, 5, 1), 0.7).double(), torch.full((1, 5, 1), 1.6).double())
    values = [-3.0, -0.4, 0.7, 1.9, 9.0]
    found = plain_pit(density, torch.tensor(values).double().view(1, 5, 1))
    for i, level in enumerate(stats.norm(0.7, 1.6).cdf(values)):
        assert found[f"pit/{min(int(level * 10), 9) + 1}"][0, i, 0] == 1


def test_each_level_falls_into_one_bin():
    found = torch.stack(list(histogram(torch.tensor([[[0.0], [0.1], [0.999], [1.0]]]).double()).values()))
    assert found.sum(0).flatten().tolist() == [1, 1, 1, 1]
    assert found.argmax(0).flatten().tolist() == [0, 1, 9, 9]


# ---- distances ---------------------------------------------------------------------------------------------


def by_hand(batch):
    """The distances of every value, by loops."""
    near, since = torch.full(batch.seen.shape, np.inf).double(), torch.full(batch.seen.shape, np.inf).double()
    for b, i, d in np.ndindex(*batch.seen.shape):
        now = batch.times[b, i]
        own = batch.times[b, batch.seen[b, :, d]]
        past = batch.times[b, : i + 1][batch.seen[b, : i + 1].any(-1)]
        near[b, i, d] = (own - now).abs().min() if len(own) else np.inf
        since[b, i, d] = now - past.max() if len(past) else np.inf
    return near, since


def test_distances_are_to_the_nearest_seen_of_the_channel_and_since_the_last_seen_of_the_row():
    batch = asked(batch_of(rows=7, time=9))
    near, since = by_hand(batch)
    torch.testing.assert_close(gap(batch), near)
    torch.testing.assert_close(horizon(batch), since)
    nothing = series_of([[0.0, 1.0]], [[[1.0], [2.0]]], seen=torch.zeros(1, 2, 1, dtype=torch.bool))
    assert gap(nothing).isinf().all() and horizon(nothing).isinf().all()


def test_padding_changes_no_distance():
    batch = asked(batch_of())
    wider, place = with_empty_points(batch)
    torch.testing.assert_close(gap(wider)[:, place], gap(batch))
    torch.testing.assert_close(horizon(wider)[:, place], horizon(batch))


def test_bins_hold_even_shares_of_validation_and_no_more_than_there_are_distances():
    data = small_data(val=400)
    task = QUESTIONS.interpolation
    parts = edges(data, "interpolation", task)
    batch = next(iter(data.batches("val", task, 1000)))
    held = gap(batch)[batch.scored]
    count = torch.bincount(torch.bucketize(held[held.isfinite()], parts), minlength=5)
    assert len(parts) == 4 and (count / count.sum() - 0.2).abs().max() < 0.02

    class Regular(SeriesData):
        channels = ("x",)
        start, step = 0.0, 1.0

        def make(self):
            times = self.start + np.arange(9)[:, None] + self.step * np.arange(6.0)
            series = Ragged.of(times, np.random.default_rng(0).standard_normal((9, 6, 1)))
            return {"train": series, "val": series, "test": series}

    ahead = edges(Regular(), "forecast", Forecast(0.5, scored="held_out"))
    assert ahead.tolist() == [1.0, 2.0]  # of horizons 1, 2 and 3
    Regular.start, Regular.step = 19_000.0, 1 / 24  # differences of rounded times
    ahead = edges(Regular(), "forecast", Forecast(0.5, scored="held_out"))
    assert ahead.tolist() == pytest.approx([1 / 24, 2 / 24])


# ---- a whole evaluation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return small_data(test=400)


@pytest.fixture(scope="module")
def found(data):
    return evaluate(Oracle(data), data, "test", QUESTIONS, seed=0)


@pytest.fixture(scope="module")
def plain(data):
    return references(data, QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_the_pit_of_a_model_that_knows_the_process_is_flat(data, found, plain, question):
    for prefix, given in (("test", found), ("reference/exact", plain)):
        levels = [given[f"{prefix}/{question}/pit/{i + 1}"] for i in range(PIT_BINS)]
        assert sum(levels) == pytest.approx(1)
        assert levels == pytest.approx([0.1] * PIT_BINS, abs=0.03)
    wide = held_out_scores(Oracle(data, 2.0), data, "test", QUESTIONS, 0)
    assert wide[f"test/{question}/pit/1"] < 0.05 < 0.13 < wide[f"test/{question}/pit/5"]


@pytest.mark.slow
@pytest.mark.parametrize("question, name, of", [("interpolation", "gap", gap), ("forecast", "horizon", horizon)])
def test_scores_by_distance_are_those_of_the_values_at_that_distance(data, found, plain, question, name, of):
    batch = next(iter(data.batches("test", QUESTIONS.questions[question], 1000)))
    distance, scored, exact = of(batch), batch.scored, data.exact(batch)[1]
    parts = edges(data, question, QUESTIONS.questions[question]).tolist()
    error = (exact.mean - batch.values) ** 2
    bins = list(zip([0.0, *parts], [*parts, np.inf], strict=True))
    for i, (low, high) in enumerate(bins):
        here = scored & ((distance > low) | (i == 0)) & (distance <= high) & distance.isfinite()
        for prefix, given in (("test", found), ("reference/exact", plain)):
            place = f"{prefix}/{question}/{name}/{i + 1}"
            assert given[f"{place}/from"] == pytest.approx(low)
            assert given[f"{place}/share"] == pytest.approx((here.sum() / scored.sum()).item())
            assert given[f"{place}/mse"] == pytest.approx(error[here].mean().item())
            assert given[f"{place}/coverage_90"] == pytest.approx(0.9, abs=0.07)
    first, last = (found[f"test/{question}/{name}/{i}/crps"] for i in (1, len(bins)))
    assert first < last  # the further, the harder


def test_a_bin_ends_where_the_next_one_begins_though_that_one_is_empty(data):
    account = CalibrationAccumulator(data, "forecast", QUESTIONS.questions["forecast"], torch.ones(1).double())
    begin, end = account.edges[:2].tolist()
    near = series_of([[0.0, begin / 2, end + 1e-6]], [[[0.0]] * 3], seen=[[[1], [0], [0]]], scored=[[[0], [1], [1]]])
    account.add({"mse": torch.ones(1, 3, 1).double()}, near)
    found = account.result("test")
    assert bins(found, "test/horizon") == ["test/horizon/1", "test/horizon/3"]
    assert stretch(found, "test/horizon/1") == f"0 to {begin:.3g}"


def test_what_nothing_was_seen_for_stands_apart(data):
    never = {"interpolation": Interpolate(0, scored="held_out"), "forecast": Forecast(0, scored="held_out")}
    nothing = metrics.EvaluationProtocol(**never, samples=4, draws=9)
    given = held_out_scores(Oracle(data), data, "test", nothing, 0)
    assert given["test/forecast/horizon/none/share"] == given["test/interpolation/gap/none/share"] == 1
    assert given["test/forecast/horizon/none/mse"] == given["test/forecast/mse"]


@pytest.mark.slow
@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_no_baseline_has_a_lower_energy_score_than_draws_of_the_process(found, plain, question):
    """Though the oracle's draws do not hang together, as they should."""
    for row in ("constant", "last", "linear", "blend"):
        assert plain[f"reference/{row}/{question}/energy"] > found[f"test/{question}/energy"]


def test_metrics_hold_what_runs_are_told_by_and_the_details_the_rest(found, plain):
    kept, details = parted(found | plain)
    assert kept.keys() | details.keys() == (found | plain).keys() and not kept.keys() & details.keys()
    assert "test/forecast/horizon/2/mse" in kept and "test/forecast/energy" in kept
    assert "reference/last/forecast/horizon/2/mse" in details and "test/forecast/pit/3" in details
    assert set(parted({"test/forecast/gap/none/channel/a/mse": 1.0})[1]) == {"test/forecast/gap/none/channel/a/mse"}
