"""The protocol: scores against closed forms, integrals and simulation; baselines against hand-computed values."""

from dataclasses import replace
from math import log, pi, sqrt

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from helpers.oracle import QUESTIONS, Oracle, small_data
from helpers.small import asked, batch_of, with_empty_points
from vrnn_lab.core.densities import Gaussian
from vrnn_lab.core.series import series_of
from vrnn_lab.core.tasks import DensityTask, Interpolate
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.evaluation import evaluate as metrics
from vrnn_lab.evaluation.baselines import REFERENCES, references
from vrnn_lab.evaluation.evaluate import evaluate
from vrnn_lab.evaluation.scores import ScoreAccumulator, central, fair_crps, plain_scores, sample_scores
from vrnn_lab.models.base import Prediction
from vrnn_lab.models.recipe import IWAE

VALUES = [-3.0, -0.4, 0.7, 1.9, 6.0]
MEAN, STD = 0.7, 1.6


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integral_crps(value: float) -> float:
    """The integral of (F(y) - 1{value <= y})^2."""
    cdf = stats.norm(MEAN, STD).cdf
    below = integrate.quad(lambda y: cdf(y) ** 2, MEAN - 12 * STD, value)[0]
    return below + integrate.quad(lambda y: (1 - cdf(y)) ** 2, value, MEAN + 12 * STD)[0]


CRPS = [integral_crps(value) for value in VALUES]


def values(*numbers: float) -> torch.Tensor:
    """(1, time, 1)."""
    return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1)


def density_at(count: int) -> Gaussian:
    return Gaussian(torch.full((1, count, 1), MEAN).double(), torch.full((1, count, 1), STD).double())


# ---- scores ----------------------------------------------------------------------------------------------


def test_the_crps_of_a_gaussian_is_the_integral_that_defines_it():
    assert plain_scores(density_at(5), values(*VALUES))["crps"].flatten().tolist() == pytest.approx(CRPS, abs=1e-7)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_fair_crps_of_few_draws_is_right_on_average(count):
    repeats = 40_000
    paths = (MEAN + STD * normals(count, repeats, 1, 1)).sort(0).values
    for value, truth in zip(VALUES, CRPS, strict=True):
        found = fair_crps(paths, torch.full((repeats, 1, 1), value, dtype=torch.float64))
        assert abs(found.mean().item() - truth) < 4 * found.std().item() / sqrt(repeats)


def test_the_fair_crps_of_few_draws_is_the_mean_over_pairs():
    paths, value = normals(7, 2, 3, 2), normals(2, 3, 2, seed=1)
    pairs = (paths[:, None] - paths[None]).abs().sum((0, 1)) / (7 * 6)
    truth = (paths - value).abs().mean(0) - pairs / 2
    torch.testing.assert_close(fair_crps(paths.sort(0).values, value), truth)


def test_the_crps_of_a_single_draw_is_its_absolute_error():
    path, value = normals(1, 2, 3, 1), normals(2, 3, 1, seed=1)
    torch.testing.assert_close(fair_crps(path, value), (path[0] - value).abs())


def test_the_fair_crps_of_many_draws_is_the_closed_form():
    paths = (MEAN + STD * normals(100_000, 1, 1, 1)).sort(0).values
    found = [fair_crps(paths, values(value)).item() for value in VALUES]
    assert found == pytest.approx(CRPS, abs=0.02)


def test_the_other_scores_of_a_gaussian_are_those_of_scipy():
    found = plain_scores(density_at(5), values(*VALUES))
    truth = stats.norm(MEAN, STD)
    assert found["nll"].flatten().tolist() == pytest.approx((-truth.logpdf(VALUES)).tolist())
    assert found["mse"].flatten().tolist() == pytest.approx([(v - MEAN) ** 2 for v in VALUES])
    for share in (50, 90):
        low, high = truth.interval(share / 100)
        edge = values(low - 1e-4, low + 1e-4, high - 1e-4, high + 1e-4)
        inside = plain_scores(density_at(4), edge)[f"coverage_{share}"]
        assert inside.flatten().tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("count, share", [(99, 50), (99, 90), (19, 50), (19, 90), (3, 50)])
def test_the_central_interval_of_draws_holds_a_new_one_as_often_as_it_says(count, share):
    """Whatever the distribution: here a skewed one."""
    repeats = 20_000
    rng = torch.Generator().manual_seed(count)
    draws = torch.empty(count + 1, repeats, 1, 1, dtype=torch.float64).exponential_(generator=rng)
    low, high = central(draws[:-1].sort(0).values, share)
    inside = ((low <= draws[-1]) & (draws[-1] <= high)).double().mean().item()
    assert inside == pytest.approx(share / 100, abs=4 * sqrt(0.25 / repeats))


def test_the_ends_of_a_central_interval_are_order_statistics():
    draws = torch.arange(1, 100, dtype=torch.float64).view(99, 1, 1, 1)
    assert [end.item() for end in central(draws, 90)] == pytest.approx([5, 95])
    assert [end.item() for end in central(draws, 50)] == pytest.approx([25, 75])
    few = torch.tensor([1.0, 5.0]).double().view(2, 1, 1, 1)
    assert [end.item() for end in central(few, 90)] == [1, 5]
    assert [end.item() for end in central(few[:1], 50)] == [1, 1]


def test_scores_of_a_mixture_are_those_of_its_density_and_draws():
    mean, std, value = normals(9, 2, 4, 2), normals(9, 2, 4, 2, seed=1).exp(), normals(2, 4, 2, seed=2)
    paths = mean + std * normals(9, 2, 4, 2, seed=3)
    found = sample_scores(Prediction(paths, Gaussian(mean, std)), value)
    likelihood = stats.norm(mean.numpy(), std.numpy()).pdf(value.numpy()).mean(0)
    np.testing.assert_allclose(found["nll"], -np.log(likelihood))
    np.testing.assert_allclose(found["mse"], (mean.mean(0) - value) ** 2)  # of the densities' means, not of draws
    torch.testing.assert_close(found["crps"], fair_crps(paths.sort(0).values, value))


# ---- sums and one division -------------------------------------------------------------------------------


def test_a_tally_sums_over_scored_values_and_divides_once():
    tally = ScoreAccumulator(("a", "b"), torch.tensor([2.0, 10.0], dtype=torch.float64))
    errors, scored = [], []
    for seed, rows in ((0, 1), (1, 6), (2, 3)):
        each, mask = normals(rows, 4, 2, seed=seed), normals(rows, 4, 2, seed=seed + 9) > 0.3
        tally.add({"mse": each, "crps": 3 * each, "nll": torch.where(mask, each, torch.nan)}, mask)
        errors.append(each), scored.append(mask)
    each, mask = torch.cat(errors), torch.cat(scored)
    found = tally.result("test/x")
    mean = each[mask].mean().item()
    by_channel = [each[..., i][mask[..., i]].mean().item() for i in range(2)]
    scaled = (each / torch.tensor([4.0, 100.0]))[mask].mean().item()
    assert found == pytest.approx(
        {
            "test/x/mse": mean,
            "test/x/crps": 3 * mean,
            "test/x/nll": mean,
            "test/x/nmse": scaled,
            "test/x/ncrps": (3 * each / torch.tensor([2.0, 10.0]))[mask].mean().item(),
            **{f"test/x/channel/{c}/mse": by_channel[i] for i, c in enumerate("ab")},
            **{f"test/x/channel/{c}/crps": 3 * by_channel[i] for i, c in enumerate("ab")},
            **{f"test/x/channel/{c}/nll": by_channel[i] for i, c in enumerate("ab")},
            **{
                f"test/x/channel/{c}/ncrps": 3 * by_channel[i] / std
                for i, (c, std) in enumerate((("a", 2), ("b", 10)))
            },
            **{
                f"test/x/channel/{c}/nmse": by_channel[i] / std**2 for i, (c, std) in enumerate((("a", 2), ("b", 10)))
            },
        }
    )


def test_a_channel_that_is_never_scored_has_no_row_and_no_say():
    tally = ScoreAccumulator(("a", "b"), torch.ones(2).double())
    mask = torch.tensor([[[True, False], [True, False]]])
    tally.add({"mse": torch.full((1, 2, 2), 5.0), "crps": torch.full((1, 2, 2), 5.0)}, mask)
    assert tally.result("p") == {
        "p/mse": 5,
        "p/crps": 5,
        "p/nmse": 5,
        "p/channel/a/mse": 5,
        "p/channel/a/crps": 5,
        "p/channel/a/nmse": 5,
        "p/ncrps": 5,
        "p/channel/a/ncrps": 5,
    }


def test_one_channel_needs_no_rows_of_its_own():
    tally = ScoreAccumulator(("a",), torch.ones(1).double())
    tally.add({"mse": torch.ones(1, 2, 1), "crps": torch.ones(1, 2, 1)}, torch.ones(1, 2, 1, dtype=torch.bool))
    assert set(tally.result("p")) == {"p/mse", "p/crps", "p/nmse", "p/ncrps"}


def test_nothing_scored_gives_no_numbers():
    tally = ScoreAccumulator(("a",), torch.ones(1).double())
    tally.add({"mse": torch.ones(1, 2, 1)}, torch.zeros(1, 2, 1, dtype=torch.bool))
    assert tally.result("p") == {}


# ---- baselines -------------------------------------------------------------------------------------------

TRAINING_MEAN = torch.tensor([10.0], dtype=torch.float64)


def seen_at(times, seen: dict[int, float]):
    """One row of one channel, seen at some places; far-off numbers stand where it is not."""
    mask = torch.tensor([i in seen for i in range(len(times))]).view(1, -1, 1)
    numbers = [seen.get(i, 999.0) for i in range(len(times))]
    return series_of([times], values(*numbers), seen=mask, scored=~mask)


BY_HAND = {
    "between and beyond": (
        ([0, 1, 2, 4, 8], {1: 2.0, 3: 6.0}),
        {
            "constant": [4, 4, 4, 4, 4],
            "last": [4, 2, 2, 6, 6],
            "linear": [2, 2, 2 + 4 / 3, 6, 6],
            "blend": [5, 4, 4, 6, 6],  # the row's mean shrunk: (2 + 6 + 10) / 3 = 6
        },
    ),
    "nothing seen": (
        ([0, 1, 2], {}),
        {"constant": [10] * 3, "last": [10] * 3, "linear": [10] * 3, "blend": [10] * 3},
    ),
    "one point seen": (
        ([0, 1, 2], {1: 4.0}),
        {"constant": [4] * 3, "last": [4] * 3, "linear": [4] * 3, "blend": [5.5] * 3},
    ),
    "two values at one time": (
        ([0, 1, 1, 1, 2, 3], {0: 0.0, 1: 2.0, 3: 6.0, 5: 8.0}),
        {
            "constant": [4] * 6,
            "last": [0, 2, 2, 6, 6, 8],
            "linear": [0, 2, 2, 6, 7, 8],
            "blend": [x / 2 + 2.6 for x in (0, 2, 2, 6, 6, 8)],
        },
    ),
}


@pytest.mark.parametrize("row", REFERENCES)
@pytest.mark.parametrize("case", BY_HAND)
def test_baselines_have_their_hand_computed_values(row, case):
    series, truth = BY_HAND[case]
    assert REFERENCES[row](seen_at(*series), TRAINING_MEAN).flatten().tolist() == pytest.approx(truth[row])


def test_linear_between_two_times_lies_on_their_line():
    series = seen_at([0.0, 1.7e9, 1.7e9 + 0.25, 1.7e9 + 1], {1: -3.0, 3: 5.0})
    assert REFERENCES["linear"](series, TRAINING_MEAN)[0, 2, 0].item() == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("row", REFERENCES)
def test_plain_rows_go_channel_by_channel(row):
    batch, mean = asked(batch_of()), torch.tensor([3.0, -8.0], dtype=torch.float64)
    together = REFERENCES[row](batch, mean)
    for i in range(2):
        cut = {name: getattr(batch, name)[..., i : i + 1] for name in ("values", "seen", "scored")}
        torch.testing.assert_close(REFERENCES[row](replace(batch, **cut), mean[i : i + 1]), together[..., i : i + 1])


@pytest.mark.parametrize("row", REFERENCES)
def test_plain_rows_do_not_read_what_is_not_seen(row):
    batch, mean = asked(batch_of()), torch.zeros(2).double()
    other = replace(batch, values=torch.where(batch.seen, batch.values, 1e5))
    assert torch.equal(REFERENCES[row](other, mean), REFERENCES[row](batch, mean))


@pytest.mark.parametrize("row", REFERENCES)
def test_padding_changes_no_plain_row(row):
    batch, mean = asked(batch_of()), torch.zeros(2).double()
    wider, place = with_empty_points(batch)
    torch.testing.assert_close(REFERENCES[row](wider, mean)[:, place], REFERENCES[row](batch, mean))


# ---- a whole evaluation, of a model that knows the process ------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module")
def plain(data):
    return references(data, QUESTIONS)


@pytest.fixture(scope="module")
def found(data):
    return evaluate(Oracle(data), data, "test", QUESTIONS, seed=0)


@pytest.mark.slow
def test_the_exact_model_has_the_exact_likelihood(found, plain):
    assert found["test/nll"] == pytest.approx(plain["reference/exact/nll"])
    assert found["test/loss"] == pytest.approx(plain["reference/exact/nll"])
    assert found["test/nll_above_exact"] == pytest.approx(0, abs=1e-9)
    assert found["test/nll_above_exact_se"] == pytest.approx(0, abs=1e-9)
    assert found["test/nll_samples"] == 4


@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_the_exact_model_scores_as_the_exact_row(found, plain, question):
    for name in ("nll", "mse", "nmse", "mse_clean"):
        assert found[f"test/{question}/{name}"] == pytest.approx(plain[f"reference/exact/{question}/{name}"])
    crps = plain[f"reference/exact/{question}/crps"]
    assert found[f"test/{question}/crps"] == pytest.approx(crps, rel=0.01)
    assert found[f"test/{question}/on_floor"] == 0


@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_the_exact_model_is_calibrated(found, plain, question):
    for scores in (found, {k.replace("reference/exact", "test"): v for k, v in plain.items()}):
        assert scores[f"test/{question}/coverage_50"] == pytest.approx(0.5, abs=0.05)
        assert scores[f"test/{question}/coverage_90"] == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_no_plain_row_beats_the_exact_one(plain, question):
    for row in REFERENCES:
        for name in ("nll", "mse", "crps"):
            assert plain[f"reference/{row}/{question}/{name}"] > plain[f"reference/exact/{question}/{name}"]


def test_spreads_too_wide_cover_more_and_score_worse(data, found):
    wide = evaluate(Oracle(data, 2.0), data, "test", QUESTIONS, seed=0)
    level = 2 * stats.norm.cdf(2 * stats.norm.ppf(0.75)) - 1
    assert wide["test/forecast/coverage_50"] == pytest.approx(level, abs=0.05)
    # E of -log N(x; m, 2s) less that of -log N(x; m, s)
    assert wide["test/forecast/nll"] - found["test/forecast/nll"] == pytest.approx(log(2) - 3 / 8, abs=0.06)
    assert wide["test/forecast/mse"] == pytest.approx(found["test/forecast/mse"])


@pytest.mark.slow
def test_how_many_rows_are_scored_at_once_changes_no_score(data, found, monkeypatch):
    monkeypatch.setattr(metrics, "POINTS_AT_ONCE", 20_000)
    assert evaluate(Oracle(data), data, "test", QUESTIONS, seed=0) == pytest.approx(found, abs=1e-12)


def test_the_samples_of_an_objective_count_among_the_points_at_once(data, monkeypatch):
    model, most = Oracle(data), []
    model.recipe = replace(model.recipe, objective=IWAE(64))
    rows = metrics.rows_at_once
    count = lambda data, split, task, samples: most.append(samples) or rows(data, split, task, 1)
    monkeypatch.setattr(metrics, "rows_at_once", count)
    metrics._nll(model, data, "test", QUESTIONS)
    assert most == [64, QUESTIONS.samples]


def test_the_loss_is_that_of_the_training_task_and_the_nll_that_of_density(data, found):
    other = small_data()
    other.task = Interpolate(0.5, scored="held_out")
    scores = evaluate(Oracle(other), other, "test", QUESTIONS, seed=0)
    assert scores["test/nll"] == pytest.approx(found["test/nll"])
    assert scores["test/loss"] > found["test/loss"]


def test_validation_has_the_twin_of_every_key(data, found):
    val = evaluate(Oracle(data), data, "val", QUESTIONS, seed=0)
    assert {k.replace("val/", "test/", 1) for k in val} == set(found)
    assert val["val/nll"] != found["test/nll"]


def test_the_standard_error_above_the_exact_likelihood_is_that_of_the_mean(data):
    class Worse(Oracle):
        def log_weights(self, batch, samples):
            return super().log_weights(batch, samples) - (batch.ids % 7).double()

    scores = evaluate(Worse(data), data, "test", QUESTIONS, seed=0)
    above = torch.from_numpy(data.splits["test"].ids % 7).double()
    count = len(data.splits["test"].times)
    assert scores["test/nll_above_exact"] == pytest.approx(above.sum().item() / count)
    assert scores["test/nll_above_exact_se"] == pytest.approx(above.std().item() * sqrt(len(above)) / count)


def test_a_split_of_one_series_can_be_scored():
    data = small_data(test=1)
    assert evaluate(Oracle(data), data, "test", QUESTIONS, seed=0)["test/nll_above_exact"] == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize("row", REFERENCES)
def test_a_plain_row_is_a_gaussian_whose_spread_is_that_of_its_errors_on_validation(data, plain, row):
    def errors(split: str) -> np.ndarray:
        batch = next(iter(data.batches(split, QUESTIONS.forecast, 1000)))
        return (REFERENCES[row](batch, data.scale.mean) - batch.values)[batch.scored].numpy()

    spread, missed = sqrt((errors("val") ** 2).mean()), errors("test")
    prefix = f"reference/{row}/forecast"
    assert plain[f"{prefix}/mse"] == pytest.approx((missed**2).mean())
    assert plain[f"{prefix}/nmse"] == pytest.approx((missed**2).mean() / data.scale.std.item() ** 2)
    nll = 0.5 * (missed**2).mean() / spread**2 + log(spread) + 0.5 * log(2 * pi)
    assert plain[f"{prefix}/nll"] == pytest.approx(nll)
    assert plain[f"{prefix}/coverage_90"] == pytest.approx((abs(missed) < spread * stats.norm.ppf(0.95)).mean())


class Uneven(SeriesData):
    """Two channels, the second of which is never observed in validation."""

    channels = ("a", "b")

    def make(self):
        times = np.tile(np.arange(6.0), (4, 1))
        series = Ragged.of(times, 5.0 * np.random.default_rng(0).standard_normal((4, 6, 2)))
        hidden = replace(series, points=replace(series.points, values=series.points.values * [1, np.nan]))
        return {"train": series, "val": hidden, "test": series}


@pytest.mark.slow
@pytest.mark.parametrize("row", REFERENCES)
def test_a_channel_without_validation_values_has_the_spread_of_training(row):
    data = Uneven()
    batch = next(iter(data.batches("test", QUESTIONS.forecast)))
    val = next(iter(data.batches("val", QUESTIONS.forecast)))
    error = REFERENCES[row](val, data.scale.mean)[..., 0] - val.values[..., 0]
    spread = torch.stack([error[val.scored[..., 0]].square().mean().sqrt(), data.scale.std[1]])
    density = torch.distributions.Normal(REFERENCES[row](batch, data.scale.mean), spread)
    truth = -density.log_prob(batch.values)[batch.scored].mean().item()
    assert references(data, QUESTIONS)[f"reference/{row}/forecast/nll"] == pytest.approx(truth)


def test_the_score_against_the_clean_curve_is_smaller_by_the_noise(data, plain):
    for question in ("interpolation", "forecast"):
        noisy, clean = (plain[f"reference/exact/{question}/{name}"] for name in ("mse", "mse_clean"))
        assert noisy - clean == pytest.approx(data.noise_std**2, abs=0.03)


def test_the_nll_of_a_density_row_is_over_all_values(data, plain):
    batch = next(iter(data.batches("test", DensityTask(), 1000)))
    truth = -data.exact(batch)[0].sum().item() / batch.scored.sum().item()
    assert plain["reference/exact/nll"] == pytest.approx(truth)
