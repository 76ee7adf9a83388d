"""Weights of the candidates of vrnn_lab.auto, from the scores of single validation values."""

import numpy as np
import pytest

from vrnn_lab.automatic import stacking
from vrnn_lab.core.files import DamagedError
from vrnn_lab.evaluation.value_scores import ValueScores, common


def scores_of(*nll: np.ndarray) -> list[ValueScores]:
    count = len(nll[0])
    series, time = np.repeat(np.arange(count // 10), 10), np.arange(count, dtype=float)
    place = series, np.zeros(count), time, np.zeros(count, np.int64)
    return [ValueScores(*place, each, np.abs(each)) for each in nll]


def normal_nll(x: np.ndarray, mean: float, std: float = 1.0) -> np.ndarray:
    return 0.5 * ((x - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)


def test_weights_are_those_of_the_mixture_that_made_the_values():
    rng = np.random.default_rng(0)
    x = np.where(rng.random(6000) < 0.3, rng.normal(-2, 1, 6000), rng.normal(2, 1, 6000))
    found = stacking.choose(scores_of(normal_nll(x, -2), normal_nll(x, 2), normal_nll(x, 40)))
    assert found.mixed and found.gain > 0 and sum(found.weights) == pytest.approx(1)
    assert found.weights[0] == pytest.approx(0.3, abs=0.03) and found.weights[2] == 0


def test_a_model_that_is_right_is_taken_alone():
    x = np.random.default_rng(0).normal(size=2000)
    found = stacking.choose(scores_of(normal_nll(x, 0), normal_nll(x, 1), normal_nll(x, 0, 3)))
    assert found.weights[0] > 0.9
    assert stacking.choose(scores_of(normal_nll(x, 0))).weights == (1.0,)


def test_few_values_give_weights_near_equal_ones_however_often_they_are_scored():
    x = np.random.default_rng(0).normal(size=20)
    near, far = scores_of(normal_nll(x, 0), normal_nll(x, 0.1)), scores_of(normal_nll(x, 0), normal_nll(x, 30))
    for repeated in (1, 5):
        found = stacking.choose([ValueScores.of_patterns([one] * repeated) for one in near])
        assert found.mixed and found.values == 20 and 0.3 < found.weights[0] < 0.7
        assert stacking.choose([ValueScores.of_patterns([one] * repeated) for one in far]).weights == (1.0, 0.0)
    assert stacking.choose(near[:1]).weights == (1.0,)


def test_scores_of_several_patterns_are_kept_apart(tmp_path):
    one, two = scores_of(np.arange(40.0), np.arange(40.0) + 1)
    both = ValueScores.of_patterns([one, two])
    assert both.distinct == 40 and len(common([both, both])[0].nll) == 80
    both.save(tmp_path / "scores.npz")
    np.testing.assert_array_equal(ValueScores.load(tmp_path / "scores.npz").pattern, np.repeat([0, 1], 40))
    one.save(tmp_path / "scores.npz")
    assert ValueScores.load(tmp_path / "scores.npz").pattern is None


def test_only_values_that_all_models_were_asked_for_count():
    rng = np.random.default_rng(0)
    one, two = scores_of(rng.normal(size=40), rng.normal(size=40))
    order = rng.permutation(40)[:30]
    fewer = ValueScores(*(each[order] for each in vars(two).values() if each is not None))
    left, right = common([one, fewer])
    assert len(left.nll) == 30 and np.array_equal(left.time, right.time)
    np.testing.assert_array_equal(left.nll, one.nll[left.time.astype(int)])
    np.testing.assert_array_equal(right.nll, two.nll[left.time.astype(int)])
    with pytest.raises(ValueError, match="no value that could be scored"):
        stacking.choose(scores_of(np.zeros(0), np.zeros(0)))


def test_scores_of_values_are_kept_in_a_file_and_another_file_is_refused(tmp_path):
    (scores,) = scores_of(np.arange(20.0))
    scores.save(tmp_path / "a.npz")
    found = ValueScores.load(tmp_path / "a.npz")
    assert all(np.array_equal(getattr(found, name), each) for name, each in vars(scores).items())
    for content in (b"", b"text", (tmp_path / "a.npz").read_bytes()[:200]):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(DamagedError, match="holds no scores of values"):
            ValueScores.load(tmp_path / "b.npz")


def test_the_error_of_a_mean_is_that_of_independent_series():
    rng = np.random.default_rng(0)
    each = rng.normal(size=50)
    mean, error = stacking.mean_and_error(each, np.arange(50))
    assert mean == pytest.approx(each.mean()) and error == pytest.approx(each.std(ddof=1) / np.sqrt(50))
    alike = np.repeat(each, 4)  # four values of a series that are equal are worth one
    assert stacking.mean_and_error(alike, np.repeat(np.arange(50), 4)) == pytest.approx((mean, error))
    assert stacking.mean_and_error(each, np.zeros(50, np.int64))[1] > 0
