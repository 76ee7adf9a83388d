"""Test the comparison of rows on validation: paired errors in closed form, and the printed lines."""

import re
from math import sqrt

import numpy as np
import pytest
import torch

from helpers.oracle import QUESTIONS, Oracle, small_data
from vrnn_lab.core.series import series_of
from vrnn_lab.evaluation.baselines import REFERENCES, fitted, references
from vrnn_lab.evaluation.calibration import parted
from vrnn_lab.evaluation.evaluate import evaluate
from vrnn_lab.evaluation.scores import SeriesSums, plain_scores
from vrnn_lab.reports.run_table import facts, validation_comparison


def sums_of(values: list[list[float]], ids=None) -> SeriesSums:
    """Make scores of series of different lengths; one more value, far off, is not scored."""
    made = SeriesSums()
    for i, row in enumerate(values):
        each = torch.tensor([*row, 1e9], dtype=torch.float64).view(1, -1, 1)
        scored = torch.ones_like(each, dtype=torch.bool)
        scored[:, -1] = False
        times = torch.arange(each.shape[1], dtype=torch.float64)[None]
        name = torch.tensor([i if ids is None else ids[i]])
        made.add(each, series_of(times, each, seen=torch.zeros_like(scored), scored=scored, ids=name))
    return made


def test_of_series_of_one_length_the_error_is_that_of_the_mean_of_paired_differences():
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 12, 5)) + np.array([1.0, 0.0])[:, None, None]
    mean, error = sums_of(ours.tolist()).above(sums_of(theirs.tolist()))
    apart = (ours - theirs).mean(1)
    assert mean == pytest.approx(apart.mean())
    assert error == pytest.approx(apart.std(ddof=1) / sqrt(12))


def test_of_series_of_other_lengths_it_is_that_of_a_ratio_of_sums():
    rng = np.random.default_rng(1)
    lengths = [1, 4, 9, 2, 0]
    ours, theirs = ([rng.standard_normal(n).tolist() for n in lengths] for _ in range(2))
    mean, error = sums_of(ours).above(sums_of(theirs))
    apart = np.array([sum(a) - sum(b) for a, b in zip(ours, theirs, strict=True)])[:4]
    truth = apart.sum() / 16
    assert mean == pytest.approx(truth)
    rest = apart - truth * np.array(lengths[:4])
    assert error == pytest.approx(sqrt(4 / 3 * (rest**2).sum()) / 16)


def test_series_are_matched_by_their_ids_and_one_has_no_error():
    ours, theirs = sums_of([[1.0], [5.0]], ids=[7, 3]), sums_of([[5.0], [0.0]], ids=[3, 7])
    assert ours.above(theirs) == pytest.approx((0.5, 0.5))
    assert sums_of([[1.0], [2.0]], ids=[4, 4]).above(sums_of([[0.0, 1.0]], ids=[4])) == (1.0, None)
    assert SeriesSums().above(SeriesSums()) == (0.0, None)
    with pytest.raises(ValueError, match="2 values of 2 series, the other 1 values of 1 series; expected the same"):
        ours.above(sums_of([[1.0]], ids=[3]))


@pytest.fixture(scope="module")
def data():
    return small_data()


def scored(data, wide: float):
    crps: dict[str, SeriesSums] = {}
    found = evaluate(Oracle(data, wide), data, "val", QUESTIONS, 0, crps=crps)
    return found | references(data, QUESTIONS, crps=crps)


@pytest.fixture(scope="module")
def known(data):
    """Score a model that knows the true process."""
    return scored(data, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("row", REFERENCES)
@pytest.mark.parametrize("question", ["interpolation", "forecast"])
def test_a_rows_numbers_are_those_of_validation(data, known, row, question):
    found, task = known, QUESTIONS.questions[question]
    (batch,) = data.batches("val", task, 1000)
    answer = fitted([batch], REFERENCES[row], data.scale, data.scale.mean)
    crps = plain_scores(answer(batch), batch.values)["crps"][batch.scored].mean().item()
    at = f"reference/{row}/{question}/val"
    assert found[f"{at}_crps"] == pytest.approx(crps)
    assert found[f"{at}_ncrps"] == pytest.approx(crps / data.scale.std.item())
    assert found[f"{at}_ncrps_above"] == pytest.approx(found[f"val/{question}/ncrps"] - found[f"{at}_ncrps"])
    assert found[f"{at}_ncrps_above"] + 2 * found[f"{at}_ncrps_above_se"] < 0  # the model knows the process


@pytest.mark.slow
def test_the_numbers_are_among_the_metrics_and_test_scores_stay_what_they_are(data, known):
    plain = references(data, QUESTIONS)
    assert "reference/analog/forecast/val_ncrps" in parted(known)[0]
    assert {key: known[key] for key in plain} == plain
    assert not any("/val_" in key for key in plain)


@pytest.mark.slow
def test_the_lines_of_a_model_that_knows_the_process_and_of_one_that_does_not(data, known):
    ahead, gaps = validation_comparison(known)
    for line, start in ((ahead, "ahead    "), (gaps, "gaps     ")):
        assert line.startswith(f"{start}on validation, this model") and "'linear process'" in line
        assert "are level by CRPS" in line or "is the best method by CRPS" in line
    found = scored(data, 12.0)
    line = validation_comparison(found)[0]
    ours, theirs = found["val/forecast/crps"], found["reference/linear process/forecast/val_crps"]
    assert f"the best method by CRPS is 'linear process' ({theirs:.4g}); this model has {ours:.4g}: " in line
    percent = re.search(r"(\d+) % worse\. Use 'linear process', try another model, or train longer", line)
    assert percent and float(percent[1]) == pytest.approx(100 * (ours / theirs - 1), abs=0.6)


def keys(above: float, error: float | None, channels: bool = False) -> dict[str, float]:
    found = {"val/forecast/crps": 10 + 10 * above, "val/forecast/ncrps": 1 + above}
    found |= {"reference/last/forecast/val_crps": 10.0, "reference/last/forecast/val_ncrps": 1.0}
    found |= {"reference/last/forecast/val_ncrps_above": above, "reference/drift/forecast/val_ncrps": 1.5}
    found |= {} if error is None else {"reference/last/forecast/val_ncrps_above_se": error}
    return found | ({"val/forecast/channel/a/crps": 1.0} if channels else {})


def test_the_line_by_hand():
    start = "ahead    on validation, "
    cure = "Use 'last value', try another model, or train longer"
    assert validation_comparison(keys(0.14, 0.02)) == [
        f"{start}the best method by CRPS is 'last value' (10); this model has 11.4: 14 % worse. {cure}"
    ]
    assert validation_comparison(keys(-0.2, 0.02, channels=True)) == [
        f"{start}this model is the best method by CRPS in training stds (0.8); the best baseline, 'last value', has "
        "1: this model is 20 % better"
    ]
    assert validation_comparison(keys(0.03, 0.02)) == [
        f"{start}this model (10.3) and the best baseline, 'last value' (10), are level by CRPS: the difference of "
        "3 % is within two standard errors"
    ]
    alone = "(there is one series, so no standard error)"
    assert validation_comparison(keys(0.03, None)) == [
        f"{start}the best method by CRPS is 'last value' (10); this model has 10.3: 3 % worse. {cure} {alone}"
    ]
    assert validation_comparison({"val/forecast/crps": 1.0, "reference/last/forecast/crps": 2.0}) == []


def test_the_line_stands_right_under_the_table():
    assert facts({**keys(0.14, 0.02), "test/nll_samples": 1.0}, "test").startswith(
        "ahead    on validation, the best method"
    )
