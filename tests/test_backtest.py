"""Rolling origins: what is seen and scored at each, against questions made by hand and exact answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

from helpers.oracle import QUESTIONS, Oracle, small_data
from helpers.small import model_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.series import series_of
from vrnn_lab.data.table.dataset import Table
from vrnn_lab.evaluation import baselines
from vrnn_lab.evaluation.gaussian_process import SharedProcess
from vrnn_lab.evaluation.scores import LEVELS
from vrnn_lab.forecasting.backtest import BacktestPlan, backtest, folds, run
from vrnn_lab.forecasting.context_window import choose_window
from vrnn_lab.runs.build import Parts


def parts_of(model, data) -> Parts:
    return Parts(DictConfig({"seed": 0}), model, data, QUESTIONS)


ORIGINS = {
    "the last ends with the series": (BacktestPlan(3.0, 2.0, 3), np.arange(11.0), 0.0, [3, 5, 7]),
    "every horizon, unless told": (BacktestPlan(2.0, folds=3), np.arange(11.0), 0.0, [4, 6, 8]),
    "none before the first point": (BacktestPlan(3.0, 4.0, 3), np.arange(11.0), 0.0, [np.nan, 3, 7]),
    "the split's own part alone is scored": (BacktestPlan(2.0, 2.0, 4), np.arange(11.0), 6.0, [np.nan, np.nan, 6, 8]),
    "from the last point before it": (BacktestPlan(2.0, 1.0, 5), np.arange(11.0), 6.0, [np.nan, 5, 6, 7, 8]),
    "longer than the series": (BacktestPlan(20.0), np.arange(11.0), 0.0, [np.nan] * 5),
}


@pytest.mark.parametrize("case", ORIGINS)
def test_origins_roll_back_from_the_end(case):
    plan, times, start, truth = ORIGINS[case]
    np.testing.assert_allclose(plan.of(times, start), truth)


# ---- many series whose process is known -------------------------------------------------------------------

PLAN = BacktestPlan(2.0, 1.5, 3)


@pytest.fixture(scope="module")
def ou():
    return small_data(test=300)


@pytest.fixture(scope="module")
def known(ou):
    return run(parts_of(Oracle(ou), ou), PLAN)


def test_what_lies_up_to_an_origin_is_seen_and_the_horizon_after_it_scored(ou):
    found = folds(ou, "test", PLAN, longest=100.0)
    asked = {}
    for batch, index in found.batches(1):
        for row, i in enumerate(index):
            held = lambda mask, row=row, batch=batch: batch.times[row, mask[row, :, 0]].tolist()
            asked[int(batch.ids[row]), found.origin[i]] = held(batch.seen), held(batch.scored)
    count = 0
    for i, id in enumerate(ou.splits["test"].ids):
        times = ou.splits["test"].part([i]).times
        for origin in times[-1] - 2 - 1.5 * np.arange(3):
            if origin >= times[0] and ((times > origin) & (times <= origin + 2)).any():
                seen, scored = asked[int(id), origin]
                assert seen == times[times <= origin].tolist()
                assert scored == times[(times > origin) & (times <= origin + 2 + 1e-9)].tolist()
                count += 1
    assert count == len(asked) > 300


@pytest.mark.slow
def test_a_model_that_knows_the_process_gives_its_exact_answers(ou, known):
    values = known[1].sample(40, random_state=0)
    for line in values.itertuples():
        part = ou.splits["test"].part(np.flatnonzero(ou.splits["test"].ids == int(line.id)))
        past = part.times <= line.origin
        times = np.append(part.times[past], line.time)[None]
        numbers = torch.tensor(np.append(part.values[past, 0], np.nan)).view(1, -1, 1)
        exact = ou.exact(series_of(times, numbers))[1]
        assert line.mean == pytest.approx(exact.mean[0, -1, 0].item())
        assert line.std == pytest.approx(exact.std[0, -1, 0].item())
        assert line.value == part.values[part.times == line.time, 0][0]


@pytest.mark.slow
def test_its_scores_are_those_of_the_exact_row_and_no_baseline_is_better(known):
    found, values = known
    for score in ("nll", "mse"):
        assert found[f"this model/all/{score}"] == pytest.approx(found[f"exact/all/{score}"])
        for row in ("constant", "last", "blend", "linear", "analog", "linear process"):
            assert found[f"{row}/all/{score}"] > found[f"exact/all/{score}"]
    assert found["this model/all/coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert found["this model/all/energy"] < found["last/all/energy"]
    assert found["this model/all/mse"] == pytest.approx(((values["value"] - values["mean"]) ** 2).mean())
    near, far = (found[f"this model/to {t}/mse"] for t in ("0.4", "2"))
    assert near < far
    inside = values["time"] - values["origin"] <= 0.4
    truth = ((values["value"] - values["mean"]) ** 2)[inside].mean()
    assert near == pytest.approx(truth)
    assert {f"this model/origin {k}/energy" for k in (1, 2, 3)} <= found.keys()


def test_quantiles_are_those_of_the_draws(known):
    values = known[1]
    levels = [(values["value"] <= values[name]).mean() for name in LEVELS]
    assert levels == pytest.approx(list(LEVELS.values()), abs=0.04)


# ---- one long series ----------------------------------------------------------------------------------------


def long_series() -> pd.DataFrame:
    rng, times = np.random.default_rng(0), np.cumsum(np.random.default_rng(1).uniform(0.5, 1.5, 400))
    values = np.sin(times / 4)[:, None] + 0.3 * rng.standard_normal((400, 2))
    frame = pd.DataFrame({"time": times, "a": values[:, 0], "b": 40 * values[:, 1]})
    return frame.mask(rng.random(frame.shape) < [0.0, 0.1, 0.4])


def table(tmp_path, frame: pd.DataFrame) -> Table:
    frame.to_csv(tmp_path / "one.csv", index=False)
    return Table(str(tmp_path / "one.csv"), id=None, window=20, dequantise=False)


@pytest.fixture
def data(tmp_path):
    return table(tmp_path, long_series())


LONG = BacktestPlan(9.0, 13.0, 4)


def model_for(data, name="rnn"):
    return model_of(name, data.scale, double=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn", "latent_ode"])
def test_a_forecast_is_the_one_asked_for_by_hand(data, name):
    model = model_for(data, name)
    found = backtest(parts_of(model, data), 9.0, 13.0, 4)
    whole = data.whole()
    times, values, longest = whole.times, whole.values, data.scale.longest.item()
    start = data.splits["test"].windows[0, 0]
    assert found["origin"].nunique() == 4 and found["origin"].min() > start
    for origin, rows in found.groupby("origin"):
        begin, end = choose_window(origin, origin + 9, times[0], origin, longest)
        here = (times >= begin) & (times <= origin + 9 + 1e-8)
        known = torch.tensor(values[here])[None]
        past = torch.tensor(times[here] <= origin + 1e-8)[None, :, None]
        observed = ~known.isnan()
        batch = series_of(times[here][None], known, observed & past, observed & ~past, [[begin, end]], whole.ids)
        with model.fixed_noise(0):
            said = model.predict(batch, QUESTIONS.draws)
        place = batch.scored[0].nonzero(as_tuple=True)
        np.testing.assert_allclose(rows["time"], batch.times[0, place[0]])
        np.testing.assert_allclose(rows["value"], batch.values[0][place])
        np.testing.assert_allclose(rows["mean"], said.mean[0][place], rtol=1e-6)
        np.testing.assert_allclose(rows["std"], said.std[0][place], rtol=1e-6)
        assert list(rows["channel"]) == [data.channels[i] for i in place[1]]


def test_what_is_seen_reaches_back_into_what_was_trained_on(data):
    first = data.splits["test"].windows[0, 0]
    found = folds(data, "test", BacktestPlan(5.0, 5.0, 100), data.scale.longest.item())
    batch, _ = next(found.batches(1))
    held = batch.times[0, batch.seen[0].any(-1)]
    assert (held < first).sum() > 5 and held.max() <= found.origin[0]
    assert all((batch.times[i, batch.scored[i].any(-1)] >= first).all() for i in range(len(batch.ids)))


@pytest.mark.slow
def test_what_comes_after_an_origin_changes_no_forecast_from_it(data, tmp_path):
    model, before = model_for(data), None
    for change in (0.0, 100.0):
        frame = long_series()
        origin = LONG.of(data.whole().times, data.splits["test"].windows[0, 0])[-1]
        later = frame["time"] > origin
        frame.loc[later, ["a", "b"]] += change
        found = backtest(parts_of(model, table(tmp_path, frame)), 9.0, 13.0, 4)
        found = found[found["origin"] == origin].drop(columns=["value", "nll", "crps"])
        assert len(found) > 5
        if before is not None:
            pd.testing.assert_frame_equal(found, before, rtol=1e-9)
        before = found


@pytest.mark.parametrize("horizon, every, folds", [(0.0, 1.0, 1), (1.0, -1.0, 1), (1.0, None, 0), (np.nan, None, 1)])
def test_a_plan_that_cannot_work_is_refused_by_name(horizon, every, folds):
    with pytest.raises(ConfigError, match=r"backtest\.(horizon|every|folds)=.*above 0"):
        BacktestPlan(horizon, every, folds)


def test_a_horizon_longer_than_any_series_is_refused(data):
    with pytest.raises(ConfigError, match="none of the 1 test series is long enough"):
        folds(data, "test", BacktestPlan(1000.0), data.scale.longest.item())


def test_where_validation_is_too_short_baselines_have_the_spread_of_training(tmp_path):
    marks = np.repeat(["train", "val", "test"], [300, 5, 95])
    data = table(tmp_path, long_series().assign(split=marks))
    found, values = run(parts_of(model_for(data), data), BacktestPlan(40.0, folds=1))
    spread = data.scale.std.numpy()
    shares = [(values["channel"] == name).mean() for name in data.channels]
    squares = [found[f"last/all/channel/{name}/mse"] for name in data.channels]
    truth = sum(
        p * (np.log(s) + 0.5 * np.log(2 * np.pi) + m / s**2 / 2)
        for p, s, m in zip(shares, spread, squares, strict=True)
    )
    assert found["last/all/nll"] == pytest.approx(truth)


@pytest.mark.slow
def test_how_many_rows_are_asked_at_once_changes_nothing(data, monkeypatch):
    model = model_for(data)
    whole = backtest(parts_of(model, data), 9.0, 13.0, 4)
    monkeypatch.setattr("vrnn_lab.forecasting.backtest.POINTS_AT_ONCE", 1)
    pd.testing.assert_frame_equal(backtest(parts_of(model, data), 9.0, 13.0, 4), whole)


def test_a_gaussian_process_stands_among_the_rows_where_it_is_quick(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    data = table(tmp_path, long_series()[["time", "a"]])
    parts, scale = parts_of(model_of("rnn", data.scale), data), data.scale
    found = run(parts, LONG)[0]
    process = SharedProcess(baselines._in_random_order(data, scale), scale.mean.numpy(), scale.std.numpy())
    asked = folds(data, "test", LONG, scale.longest.item()).batches(1)
    wrong = [(process(batch)[0] - batch.values)[batch.scored] for batch, _ in asked]
    assert found["gaussian process/all/mse"] == pytest.approx(torch.cat(wrong).square().mean().item())
    monkeypatch.setattr(baselines, "MOST_SEEN", 5)
    assert not any(key.startswith("gaussian process") for key in run(parts, LONG)[0])
