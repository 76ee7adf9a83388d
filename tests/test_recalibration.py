"""Recalibration: a spread that is wrong by a known factor is put right, everything else stays."""

from dataclasses import replace

import pytest
import torch

from helpers.oracle import QUESTIONS, Oracle, small_data
from helpers.small import MODELS, asked, batch_of, model_of, scale_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core import run_files
from vrnn_lab.core.series import series_of
from vrnn_lab.core.tasks import Interpolate
from vrnn_lab.evaluation.evaluate import held_out_scores
from vrnn_lab.evaluation.recalibration import Beyond, Recalibration, ahead, fit, load

INSIDE, AFTER = torch.tensor([1.5, 0.4]).double(), torch.tensor([0.7, 3.0]).double()
FITTED = Recalibration(("a", "b"), INSIDE, AFTER)


@pytest.fixture(scope="module")
def data():
    return small_data(val=600, test=400)


@pytest.fixture(scope="module")
def right(data):
    return fit(Oracle(data), data, QUESTIONS, seed=0)


def test_a_model_that_is_right_is_left_alone(right):
    assert right.interpolation.item() == pytest.approx(1, abs=0.04)
    assert right.forecast.item() == pytest.approx(1, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [0.5, 1.6])
def test_a_spread_wrong_by_a_factor_is_put_right(data, right, wide):
    model = Oracle(data, wide)
    found = fit(model, data, QUESTIONS, seed=0)
    rel = 0.02  # a factor below 1 weighs all series alike, one above 1 all values
    assert wide * found.interpolation.item() == pytest.approx(right.interpolation.item(), rel=rel)
    assert wide * found.forecast.item() == pytest.approx(right.forecast.item(), rel=rel)
    before = held_out_scores(model, data, "test", QUESTIONS, 0)
    after = held_out_scores(model, data, "test", QUESTIONS, 0, found.apply)
    best = held_out_scores(Oracle(data), data, "test", QUESTIONS, 0)
    for question in ("interpolation", "forecast"):
        assert abs(before[f"test/{question}/coverage_90"] - 0.9) > 0.06
        assert after[f"test/{question}/coverage_90"] == pytest.approx(0.9, abs=0.02)
        for score in ("nll", "crps"):
            name = f"test/{question}/{score}"
            assert after[name] == pytest.approx(best[name], rel=0.01) and after[name] < before[name]
        assert after[f"test/{question}/mse"] == pytest.approx(before[f"test/{question}/mse"])


def test_each_place_has_its_own_factor(data):
    class Uneven(Oracle):
        def predict(self, batch, samples):
            found = super().predict(batch, samples)
            wide = torch.where(ahead(batch)[..., None], 2.0, 0.5).double()
            paths = found.mean + wide * (found.paths - found.mean)
            return replace(found, paths=paths)

    found = fit(Uneven(data), data, QUESTIONS, seed=0)
    assert found.interpolation.item() == pytest.approx(2, rel=0.05)
    assert found.forecast.item() == pytest.approx(0.5, rel=0.05)


def test_ahead_is_what_comes_after_the_last_seen_value_of_a_row():
    nan = torch.nan
    batch = series_of(
        [[0.0, 1.0, 2.0, 3.0, 3.0, 4.0]] * 2,
        [[[nan, nan], [1.0, nan], [nan, nan], [nan, 2.0], [nan, nan], [nan, nan]], [[nan, nan]] * 6],
    )
    assert ahead(batch).tolist() == [[False] * 5 + [True], [False] * 6]


def test_a_row_without_observations_keeps_the_models_own_spread():
    nan, two = torch.nan, torch.full((1,), 2.0).double()
    beyond = Beyond(end=1.0, longest=1.0, starts=(0.0,), factors=torch.full((1, 1), 5.0).double())
    batch = series_of([[0.0, 0.5, 9.0]] * 2, [[[1.0], [nan], [nan]], [[nan]] * 3])
    factors = Recalibration(("a",), two, two, beyond=beyond).factors(replace(batch, seen=batch.known))
    assert factors[..., 0].tolist() == [[1, 2, 5], [1, 1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if "poisson" not in name])
def test_paths_and_densities_move_alike_and_what_is_seen_stays(name):
    batch, model = asked(batch_of()), model_of(name, double=True)
    with model.fixed_noise(0):
        before = model.predict(batch, 50)
    after = FITTED.apply(before, batch)
    factor = torch.where(ahead(batch)[..., None], AFTER, INSIDE)
    held = batch.scored & ~batch.seen
    torch.testing.assert_close(after.mean, before.mean)
    wide = factor * (before.paths - before.mean)
    torch.testing.assert_close((after.paths - after.mean)[:, held], wide[:, held])
    assert torch.equal(after.paths[:, batch.seen], before.paths[:, batch.seen])
    moved = before.mean + (batch.values - before.mean) / factor  # p(x) = q(m + (x - m) / a) / a
    truth = before.density.log_prob_each(moved) - factor.log()
    torch.testing.assert_close(after.density.log_prob_each(batch.values)[:, held], truth[:, held])


@pytest.mark.parametrize("head", ["laplace", "gmm model.head.covariance=full"])
def test_every_density_of_real_values_can_be_widened(head):
    test_paths_and_densities_move_alike_and_what_is_seen_stays(f"rnn model/head={head}")


def test_the_draws_of_a_widened_prediction_are_draws_of_its_density():
    batch, model = asked(batch_of()), model_of("rnn_gmm", double=True)
    with model.fixed_noise(0):
        found = FITTED.apply(model.predict(batch, 4000), batch)
    held = batch.scored & ~batch.seen
    second = found.density.std.square().mean(0) + found.density.mean.var(0)
    torch.testing.assert_close(found.paths.std(0)[held], second.sqrt()[held], rtol=0.1, atol=0)


def test_values_that_were_never_asked_for_leave_the_factor_at_one(data):
    inside = replace(QUESTIONS, forecast=Interpolate(1.0, scored="held_out"), interpolation=Interpolate(1.0))
    inside = replace(inside, interpolation=inside.forecast)
    found = fit(Oracle(data, 0.5), data, inside, seed=0)
    assert found.interpolation.item() == found.forecast.item() == 1


def test_zeros_and_ones_are_refused(data):
    model = model_of("rnn model/head=bernoulli", scale_of(support="binary"))
    with pytest.raises(ConfigError, match="predictions have no spread that could be recalibrated"):
        fit(model, data, QUESTIONS, seed=0)


def test_a_single_draw_tells_no_spread(data):
    with pytest.raises(ConfigError, match="a single draw has no spread"):
        fit(model_of("rnn", scale_of()), data, replace(QUESTIONS, draws=1), seed=0)


def test_it_is_read_back_as_it_was_written(tmp_path):
    file = FITTED.save(tmp_path)
    assert file.name == run_files.RECALIBRATION and [p.name for p in tmp_path.iterdir()] == [file.name]
    found = load(tmp_path, ("a", "b"))
    assert torch.equal(found.interpolation, INSIDE) and torch.equal(found.forecast, AFTER)


def test_what_is_missing_or_of_other_channels_is_said_with_the_cure(tmp_path):
    with pytest.raises(ConfigError, match="recalibrate=true"):
        load(tmp_path, ("a", "b"))
    FITTED.save(tmp_path)
    with pytest.raises(ConfigError, match="other channels than a, c"):
        load(tmp_path, ("a", "c"))
