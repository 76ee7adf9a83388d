"""Test first crossing times against paths made by hand and against the true process of `ou`."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from helpers.commands import call
from helpers.linear_sdes import of_process, set_to
from helpers.pools import pool_of
from helpers.predictions import KEYS, LEVELS, Decay, parts_of, table
from helpers.small import asked, batch_of, model_of, scale_of
from vrnn_lab import predict
from vrnn_lab.data.datasets.ou import OU
from vrnn_lab.data.table.reader import TableSchema
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.forecasting.crossings import Level, crossings
from vrnn_lab.forecasting.forecast import Forecasts, Query
from vrnn_lab.forecasting.queries import SeriesWindow
from vrnn_lab.forecasting.summary import PredictiveSummary, path_names
from vrnn_lab.models.linear_state import SLOWEST


def window(name: str, last: float) -> SeriesWindow:
    """Make a window with one observed value per channel, at time 1, and three queried times."""
    times = np.array([1.0, 2, 3, 4])
    values = np.full((4, 2), np.nan)
    values[0] = last, 100.0
    return SeriesWindow(name, 0, times, values, np.isnan(values), np.zeros((4, 0)), np.zeros((4, 2)), (1.0, 4.0))


def made(last: float) -> PredictiveSummary:
    """Make a summary with four draws of channel 0; no draw of channel 1 lies below 50."""
    draws = np.array([[0.0, 6, 0], [5, 0, 0], [0, 0, 0], [0, 0, 7]])
    each = np.stack([draws, np.full_like(draws, 50.0)], 2).reshape(4, 6)
    times, channel = np.repeat([2.0, 3, 4], 2), np.tile([0, 1], 3)
    return PredictiveSummary(
        [window("x", last)], np.zeros(6, int), times, channel, dict(zip(path_names(4), each, strict=True))
    )


def test_the_first_crossing_of_each_draw_is_counted():
    numbers = crossings(made(0.0), Level(5.0, True), 0, 4).numbers
    assert numbers["crossed"].tolist() == [0.25, 0.5, 0.75]
    assert numbers["never"].tolist() == [0.25] * 3 and not numbers["already"].any()
    assert [numbers[name][0] for name in LEVELS] == pytest.approx([2, 2, 3, 4, np.nan], nan_ok=True)
    below = crossings(made(1.0), Level(0.0, False), 0, 4).numbers
    assert below["crossed"].tolist() == [0.75, 1, 1]
    other = crossings(made(0.0), Level(50.0, True), 1, 4)
    assert other.numbers["already"].all() and other.channel.tolist() == [1] * 3


def test_a_series_already_past_the_level_crossed_at_its_last_seen_value():
    numbers = crossings(made(5.0), Level(5.0, True), 0, 4).numbers
    assert numbers["already"].all() and (numbers["crossed"] == 1).all() and not numbers["never"].any()
    assert all((numbers[name] == 1.0).all() for name in LEVELS)


READ = {
    ">=5": (5.0, True, None),
    "<=-1.5e3": (-1500.0, False, None),
    "a b >= 2": (2.0, True, "a b"),
    "x>=y<=1": (1.0, False, "x>=y"),
}


@pytest.mark.parametrize("text", READ)
def test_levels_are_read_as_they_are_typed(text):
    assert Level.of(text) == Level(*READ[text])


@pytest.mark.parametrize("text", ["5", ">5", "=5", ">=", ">=high", ">=nan", ">=inf", "", "a>=5 6"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"expected >=<number> or <=<number>"):
        Level.of(text)


# ---- the true process ---------------------------------------------------------------------------------------

SERIES, STEP, HORIZON, DRAWS = 1000, 0.25, 4.0, 199


def true_model():
    """Return the data set `ou` and a model with its true parameters."""
    data = OU(train=400, val=2, test=2)
    model, std, mean, clock = of_process(data, "model.ou=1 model.matern=0 model.oscillators=0")
    set_to(model, dynamics__log_decay=data.theta * clock - SLOWEST, readout__middle=(data.mean - mean) / std)
    set_to(model, readout__parts__0__log_std=data.variance**0.5 / std, head__log_std=data.noise / std)
    return data, model


@pytest.fixture(scope="module")
def known():
    """Return the draws of a model with the true parameters after 12 values of 1000 series, and the true values."""
    data, model = true_model()
    rng = np.random.default_rng(0)
    seen = np.sort(rng.uniform(0, 5, (SERIES, 12)), 1)
    ahead = seen[:, -1:] + STEP * np.arange(1, round(HORIZON / STEP) + 1)
    times = np.concatenate([seen, ahead], 1)
    values = data._path(times, rng) + data.noise * rng.standard_normal(times.shape)
    names = np.repeat([f"{number:04d}" for number in range(SERIES)], 12)
    frame = pd.DataFrame({"id": names, "time": seen.ravel(), "x": values[:, :12].ravel()})
    asked = Query(None, HORIZON, STEP, draws=DRAWS, paths=DRAWS)
    return data, [*Forecasts.of(parts_of(model), frame, asked, TableSchema()).summaries(True)], values[:, 12:]


def crossed(answers: list[PredictiveSummary], level: Level) -> pd.DataFrame:
    told = []
    for found in answers:
        turned = crossings(found, level, 0, DRAWS)
        names = np.array([window.name for window in turned.windows])[turned.owner]
        told.append(pd.DataFrame({"id": names, **turned.numbers}))
    return pd.concat(told)


def pit_of(told: pd.DataFrame, after: np.ndarray, level: Level) -> np.ndarray:
    """Return the randomised PIT of the true first crossing times, uniform if the predicted distribution is true."""
    rng, levels = np.random.default_rng(1), []
    for (_, rows), truth in zip(told.groupby("id"), after, strict=True):
        if rows["already"].iloc[0]:
            continue
        past = np.append(level.past(truth), True)  # the last: never
        steps = np.concatenate([[0], rows["crossed"], [1]])
        place = int(past.argmax())
        levels.append(steps[place] + rng.random() * (steps[place + 1] - steps[place]))
    return np.array(levels)


@pytest.mark.slow
@pytest.mark.parametrize("above", [True, False])
def test_crossing_times_of_ou_have_a_uniform_pit(known, above):
    data, answers, after = known
    level = Level(data.mean + (0.8 if above else -0.5) * data.variance**0.5, above)
    told = crossed(answers, level)
    levels = pit_of(told, after, level)
    assert SERIES / 2 < len(levels) < SERIES and kstest(levels, "uniform").pvalue > 0.01
    never = told.groupby("id")["never"].first()[~told.groupby("id")["already"].first().astype(bool)]
    assert 0.05 < never.mean() < 0.6


@pytest.mark.slow
def test_draws_that_do_not_hang_together_are_found_out(known):
    """Shuffle the draws of each time: the margins stay, but paths that are not joint cross too early."""
    data, answers, after = known
    level, rng = Level(data.mean + 0.8 * data.variance**0.5, True), np.random.default_rng(2)
    names = path_names(DRAWS)
    mixed = [
        replace(found, numbers=dict(zip(names, rng.permuted([found.numbers[n] for n in names], axis=0), strict=True)))
        for found in answers
    ]
    assert kstest(pit_of(crossed(mixed, level), after, level), "uniform").pvalue < 1e-6


# ---- the signal in continuous time ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_between(known):
    """Return data set, model, observed values of 1000 series, and their true signal ahead at 80 times as many points.

    Each series is one path of the true process, which is observed with noise at 12 times and unobserved after them.
    """
    data, model = known[0], true_model()[1]
    rng, fine = np.random.default_rng(5), 80
    seen = np.sort(rng.uniform(0, 5, (SERIES, 12)), 1)
    ahead = seen[:, -1:] + STEP / fine * np.arange(0, fine * round(HORIZON / STEP) + 1)
    times = np.concatenate([seen[:, :-1], ahead], 1)
    clean = data._path(times, rng)
    values = clean[:, :12] + data.noise * rng.standard_normal((SERIES, 12))
    names = np.repeat([f"{number:04d}" for number in range(SERIES)], 12)
    frame = pd.DataFrame({"id": names, "time": seen.ravel(), "x": values.ravel()})
    return data, model, frame, clean[:, 11:].reshape(SERIES, -1), fine


def of_signal(model, frame, level: Level, horizon: float = HORIZON, every: float = STEP) -> pd.DataFrame:
    query = Query(None, horizon, every, draws=DRAWS, when=replace(level, signal=True))
    found = Forecasts.of(parts_of(model), frame, query, TableSchema())
    return pd.concat([found.frame(answer) for answer in found.summaries(True)], ignore_index=True)


@pytest.mark.slow
@pytest.mark.parametrize("above", [True, False])
def test_crossing_times_of_the_signal_have_a_uniform_pit(in_between, above):
    """The fine path crosses between the queried times; a model that looks only at these comes too late."""
    data, model, frame, clean, fine = in_between
    level = Level(data.mean + (0.8 if above else -0.5) * data.variance**0.5, above)
    found = of_signal(model, frame, level)
    past = level.past(clean)
    # Whether the signal has crossed within each interval, its ends included.
    after = np.stack([past[:, k * fine : (k + 1) * fine + 1].any(1) for k in range(round(HORIZON / STEP))], 1)
    truth = np.where(after, level.value, level.value - 1e-6 if above else level.value + 1e-6)
    assert not found["already"].any()
    levels = pit_of(found, truth, level)
    assert len(levels) == SERIES and kstest(levels, "uniform").pvalue > 0.01
    only_ends = np.stack([past[:, (k + 1) * fine] for k in range(round(HORIZON / STEP))], 1)
    assert np.logical_or.accumulate(after, 1).mean() > np.logical_or.accumulate(only_ends, 1).mean() + 0.05


@pytest.mark.slow
def test_more_queried_times_hardly_change_when_the_signal_crosses(in_between):
    data, model, frame, *_ = in_between
    level, few = Level(data.mean + 0.8 * data.variance**0.5, True), frame[frame["id"] < "0200"]
    coarse, fine = (of_signal(model, few, level, every=every) for every in (0.5, 0.125))
    last = lambda found: found.groupby("id")["crossed"].last().mean()
    assert abs(last(coarse) - last(fine)) < 0.015


def test_the_extremes_of_a_signal_lie_beyond_its_ends():
    model = model_of("linear_sde model.components=2", scale_of(), double=True)
    batch = asked(batch_of())
    with model.fixed_noise(0):
        high, low = (model.predict_extremes(batch, 50, highest).paths for highest in (True, False))
    later = batch.counts.clone()
    later[:, 0] = False
    assert (high >= low)[:, batch.scored].all() and (high > low)[:, batch.scored & later[..., None]].all()


@pytest.mark.parametrize("name", ["rnn", "latent_ode", "linear_sde model.decoder_depth=1"])
def test_other_models_refuse_a_question_about_their_signal(name):
    with pytest.raises(ValueError, match=r"does not know how high its signal rises.*signal=false"):
        of_signal(
            model_of(name, scale_of(1)), pd.DataFrame({"id": ["a"], "time": [1.0], "x": [0.0]}), Level(1.0, True)
        )


def test_signal_without_a_level_is_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("id,time,x\na,1,2\n")
    assert call(predict, "run=run input=mine.csv output=out.csv horizon=2 signal=true", monkeypatch, tmp_path) == 2
    assert "give when= too" in capsys.readouterr().err


# ---- commands -----------------------------------------------------------------------------------------------


def when(model, frame, level: Level, **asked) -> pd.DataFrame:
    found = Forecasts.of(parts_of(model), frame, Query(when=level, **asked), TableSchema())
    return pd.concat([found.frame(answer) for answer in found.summaries(True)], ignore_index=True)


def test_the_answer_is_that_of_the_paths_of_predict():
    model, asked = Decay(scale_of()), {"horizon": 3.0, "every": 1.0, "draws": 50}
    found = when(model, table(), Level(-6.0, True, "b"), **asked)
    plain = Forecasts.of(parts_of(model), table(), Query(**asked, paths=50), TableSchema())
    paths = pd.concat([plain.frame(answer) for answer in plain.summaries(True)])
    paths = paths[paths["channel"] == "b"].set_index("id").filter(like="path_")
    for name, rows in found.groupby("id"):
        share = np.logical_or.accumulate(paths.loc[name] >= -6.0, 0).mean(axis=1)
        if not rows["already"].any():
            np.testing.assert_allclose(rows["crossed"], share)
    assert found["already"].dtype == bool and 0 < found["already"].mean() < 1


def test_a_pool_of_models_is_asked_like_one():
    pool, asked = pool_of("rnn", "linear_sde"), {"horizon": 3.0, "every": 1.0}
    found = when(pool, table(), Level(-3.0, True, "a"), **asked, draws=400)
    alone = [
        when(each, table(), Level(-3.0, True, "a"), **asked, draws=200, seed=2**32 * i) for i, each in enumerate(pool)
    ]
    np.testing.assert_allclose(found["crossed"], (alone[0]["crossed"] + alone[1]["crossed"]) / 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    top, frame = tmp_path_factory.mktemp("when"), table(40)
    frame["time"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["time"] - 100, "D")
    forecaster = Forecaster(*KEYS, "out_of_time=false", folder=top / "run").fit(frame)
    mine = frame[frame["id"] < "s2"]
    mine.to_csv(top / "mine.csv", index=False)
    return top, forecaster, mine


@pytest.mark.slow
def test_the_command_and_the_forecaster_say_the_same(run, monkeypatch, capsys):
    top, forecaster, frame = run
    question = "run=run input=mine.csv output=when.csv horizon=2 every=0.5 when=b<=-7"
    assert call(predict, question, monkeypatch, top) == 0
    written = pd.read_csv(top / "when.csv")
    assert list(written) == ["id", "time", "channel", "crossed", "already", "never", *LEVELS]
    found = forecaster.when(frame, below=-7, channel="b", within=2, every=0.5)
    assert np.issubdtype(found["q50"].dtype, np.datetime64) and found["q95"].isna().any()
    for name in ("time", *LEVELS):
        written[name] = pd.to_datetime(written[name], format="ISO8601")
    pd.testing.assert_frame_equal(written, found, check_dtype=False)
    assert (found["channel"] == "b").all() and len(found) == 4 * frame["id"].nunique()


WRONG = {
    "when=5 horizon=1": "when=5: expected >=<number> or <=<number>",
    "when=>=5 horizon=1": "the level 5 names no channel, and the model has several: a, b",
    "when=c>=5 horizon=1": "no channel 'c' that could cross 5; it has a, b",
    "when=a>=5 fill=true": "expected horizon=<H> (and every=<E>) with it, not at= or fill=",
    "when=a>=5 at=mine.csv": "expected horizon=<H> (and every=<E>) with it, not at= or fill=",
    "when=a>=5": "the query is missing or not unique",
    "when=a>=5 horizon=1 figures=2": "figures= belongs to a table of predictions",
    "when=a>=5 horizon=1 paths=3": "paths= belongs to a table of predictions",
}


@pytest.mark.slow
@pytest.mark.parametrize("given", WRONG)
def test_what_cannot_work_is_refused_and_nothing_written(given, run, monkeypatch, capsys):
    top, _, _ = run
    assert call(predict, f"run=run input=mine.csv output=none.csv {given}", monkeypatch, top) == 2
    assert WRONG[given] in capsys.readouterr().err and not (top / "none.csv").exists()


@pytest.mark.slow
def test_the_forecaster_refuses_what_does_not_go_together(run):
    _, forecaster, frame = run
    for keys, said in (
        ({"within": 1}, "expected exactly one of the two"),
        ({"above": 1, "below": 2, "within": 1}, "expected exactly one of the two"),
        ({"above": 1}, "within is missing"),
        ({"above": float("nan"), "within": 1}, "a level of nan"),
        ({"above": 1, "within": 1, "channel": "z"}, "no channel 'z'"),
    ):
        with pytest.raises(ValueError, match=said):
            forecaster.when(frame, **keys)
