"""predict surprise=true: the tail probability of every value given all others, uniform where the model is right."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest, laplace, norm

from helpers.oracle import Oracle
from helpers.predictions import ask, parts_of, table
from helpers.small import model_of, scale_of
from vrnn_lab.core.densities import Bernoulli, Gaussian, Laplace, Mixture, Stacked
from vrnn_lab.data.datasets.ou import OU
from vrnn_lab.data.table.reader import TableSchema
from vrnn_lab.forecasting.forecast import Forecasts, Query

POINTS = 9
F64 = torch.float64


@pytest.fixture(scope="module")
def ou():
    return OU(train=20, val=5, test=400, points=[POINTS, POINTS], seed=3)


def frame_of(data: OU) -> pd.DataFrame:
    series = data.splits["test"]
    owner = np.repeat([f"s{i:03d}" for i in range(len(series))], series.lengths)
    return pd.DataFrame({"id": owner, "time": series.times, data.channels[0]: np.asarray(series.values)[:, 0]})


def surprises(model, frame: pd.DataFrame, **more) -> pd.DataFrame:
    asked = Forecasts.of(parts_of(model), frame, Query(surprise=True, **more), TableSchema())
    return pd.concat([asked.frame(summary) for summary in asked.summaries(True)], ignore_index=True)


def test_it_is_the_tail_of_the_density_given_all_other_values(ou):
    frame = frame_of(ou).iloc[: 3 * POINTS]
    found = surprises(Oracle(ou), frame, draws=3)
    assert found["value"].tolist() == frame.iloc[:, 2].tolist() and found["time"].tolist() == frame["time"].tolist()
    for name, rows in frame.groupby("id"):
        times, values = rows["time"].to_numpy(), rows.iloc[:, 2].to_numpy() - ou.mean
        cov = ou.variance * np.exp(-ou.theta * np.abs(times[:, None] - times)) + ou.noise**2 * np.eye(len(times))
        for place, surprise in enumerate(found.loc[found["id"] == name, "surprise"]):
            rest = np.arange(len(times)) != place
            gain = np.linalg.solve(cov[rest][:, rest], cov[rest, place])
            std = np.sqrt(cov[place, place] - cov[place, rest] @ gain)
            assert surprise == pytest.approx(2 * norm.sf(abs(values[place] - values[rest] @ gain) / std), rel=1e-5)


@pytest.mark.slow
def test_it_is_uniform_where_nothing_is_planted_and_finds_what_is(ou):
    frame = frame_of(ou)
    found = surprises(Oracle(ou), frame, draws=2)
    one = found.groupby("id").nth(4)["surprise"]  # of independent series
    assert kstest(one, "uniform").pvalue > 0.01
    planted = frame.copy()
    rows = np.arange(4, len(frame), POINTS)[:50]
    planted.iloc[rows, 2] += 6 * np.sqrt(ou.variance)
    answers = surprises(Oracle(ou), planted.iloc[: 50 * POINTS], draws=2)
    least = answers.loc[answers.groupby("id")["surprise"].idxmin()]
    assert (answers["surprise"].iloc[rows] < 1e-3).mean() > 0.9
    # The neighbours of an outlier are unlikely too, given the outlier.
    assert (least["time"].to_numpy() == planted["time"].iloc[rows].to_numpy()).mean() > 0.8


@pytest.mark.parametrize("name", ["rnn", "linear_sde", "latent_ode", "rnn_gmm"])
def test_every_model_answers_for_each_observed_value(name):
    frame = table(2)
    found = surprises(model_of(name, replace(scale_of(), dates=False), double=True), frame, draws=9)
    assert len(found) == int(frame[["a", "b"]].notna().sum().sum())
    assert found["surprise"].between(0, 1).all() and found["std"].gt(0).all()
    values = frame.melt(["id", "time"], ["a", "b"], "channel", "value").dropna()
    both = found.merge(values, on=["id", "time", "channel"])
    np.testing.assert_array_equal(both["value_x"], both["value_y"])


def test_tails_of_densities_are_those_of_scipy():
    x, loc = torch.linspace(-4, 5, 19, dtype=F64)[:, None], torch.tensor([[0.3]], dtype=F64)
    scale = torch.tensor([[1.7]], dtype=F64)
    np.testing.assert_allclose(Gaussian(loc, scale).cdf_each(x), norm.cdf(x, 0.3, 1.7), rtol=1e-12)
    np.testing.assert_allclose(Laplace(loc, scale).cdf_each(x), laplace.cdf(x, 0.3, 1.7), rtol=1e-12)
    weight, stds = torch.tensor([[0.2, 0.8]], dtype=F64).log(), torch.tensor([[[1.0], [0.5]]], dtype=F64)
    mixture = Mixture(weight, torch.tensor([[[0.0], [2.0]]], dtype=F64), stds, torch.zeros(1, 2, dtype=F64))
    np.testing.assert_allclose(mixture.cdf_each(x), 0.2 * norm.cdf(x, 0, 1) + 0.8 * norm.cdf(x, 2, 0.5), rtol=1e-12)
    both = Stacked((Gaussian(loc, scale), Laplace(loc, scale))).cdf_each(torch.zeros(1, 1, dtype=F64))
    np.testing.assert_allclose(both[:, 0], [norm.cdf(0, 0.3, 1.7), laplace.cdf(0, 0.3, 1.7)], rtol=1e-12)
    with pytest.raises(ValueError, match="no density of real values"):
        Bernoulli(loc).cdf_each(x)


def test_it_is_a_question_of_its_own():
    with pytest.raises(ValueError, match="expected one of four"):
        Query(surprise=True, fill=True)
    with pytest.raises(ValueError, match=r"surprise=true: the values of this run are binary"):
        ask(table(2), model_of("rnn model/head=bernoulli", scale_of(support="binary"), double=True), surprise=True)
