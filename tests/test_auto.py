"""vrnn_lab.auto: guesses about a table, weights of candidates, the budget, and the command as a whole."""

import json
import logging
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import vrnn_lab
from helpers.commands import CUT, call, command
from vrnn_lab import auto, evaluate, predict, report
from vrnn_lab.automatic import study as study_module
from vrnn_lab.automatic.budget import Budget
from vrnn_lab.automatic.budget_display import BudgetDisplay, Once
from vrnn_lab.automatic.column_guess import guess
from vrnn_lab.automatic.period_guess import periods
from vrnn_lab.automatic.study import Study, Watch, _limit, train
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.training.fit import Pruned


def frame_of(series: int = 30, points: int = 12, seed: int = 0) -> pd.DataFrame:
    """Series of an Ornstein-Uhlenbeck process, each at its own times and about its own level."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(series):
        times = np.sort(rng.uniform(0, 6, points)).round(3)
        level, x, values = rng.normal(20, 3), 0.0, []
        for gap in np.diff(times, prepend=times[0]):
            decay = np.exp(-gap)
            x = decay * x + np.sqrt(1 - decay**2) * rng.normal()
            values.append(level + x + 0.1 * rng.normal())
        frames.append(pd.DataFrame({"subject": f"p{number}", "week": times, "dose": number % 4, "level": values}))
    return pd.concat(frames, ignore_index=True)


# ---- columns ------------------------------------------------------------------------------------------------


def test_columns_of_a_panel_are_guessed_by_name_and_content(tmp_path):
    frame_of().to_csv(tmp_path / "a.csv", index=False)
    found = guess(tmp_path / "a.csv", {})
    assert (found.id, found.time, found.values, found.static) == ("subject", "week", ("level",), ("dose",))
    assert found.guessed == ("id", "time")


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_long_form_and_other_names_are_understood(shuffled, tmp_path):
    rng = np.random.default_rng(0)
    rows = [(u, d, kind, rng.normal()) for u in ("x", "y", "z") for d in range(20) for kind in ("hr", "bp")]
    frame = pd.DataFrame(rows, columns=["unique_id", "ds", "kind", "y"])
    frame["ds"] = (pd.Timestamp("2020-01-01") + pd.to_timedelta(frame["ds"], "D")).dt.strftime("%Y-%m-%d")
    frame = frame.sample(frac=1, random_state=0) if shuffled else frame
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = guess(tmp_path / "a.csv", {})
    assert (found.id, found.time, found.channel, found.value) == ("unique_id", "ds", "kind", "y")


def test_a_date_is_the_time_although_a_column_of_numbers_would_do_too(tmp_path):
    rng = np.random.default_rng(0)
    day = pd.Timestamp("2023-03-01")
    rows = [(f"p{s}", day + pd.Timedelta(hours=7 * k), item, rng.normal())
            for s in range(9) for k in range(10) for item in ("hr", "bp")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["patient", "charttime", "item", "value"])
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "a.parquet", index=False)
    found = guess(tmp_path / "a.parquet", {})
    assert (found.id, found.time, found.channel, found.value) == ("patient", "charttime", "item", "value")


def test_a_row_counter_is_the_time_where_nothing_else_increases(tmp_path):
    values = np.random.default_rng(0).normal(size=50)
    pd.DataFrame({"x": range(50), "y": values}).to_csv(tmp_path / "a.csv", index=False)
    assert guess(tmp_path / "a.csv", {}).time == "x"


def test_one_record_has_no_series_column_and_row_numbers_are_no_times(tmp_path):
    frame = pd.DataFrame({"rownames": range(1, 51), "co2": np.random.default_rng(0).normal(size=50)})
    frame["date"] = pd.date_range("2020-01-01", periods=50).strftime("%Y-%m-%d")
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = guess(tmp_path / "a.csv", {})
    assert (found.id, found.time, found.channel, found.static) == (None, "date", None, ())


def test_what_the_user_names_is_kept(tmp_path):
    frame_of().assign(run=lambda f: f.index % 3).to_csv(tmp_path / "a.csv", index=False)
    found = guess(tmp_path / "a.csv", {"id": "subject", "static": ["dose"], "values": ["level"]})
    assert (found.id, found.values, found.static, found.guessed) == ("subject", ("level",), ("dose",), ("time",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n", "has no rows, only the columns a, b"),
        ("a,b\nx,y\nz,w\n", "no column holds a time in every row"),
        ("t,v\n" + "1,2\n1,3\n2,4\n2,5\n" * 5, "a series has two rows at one time"),
        ("year,temp\n" + "".join(f"{2000 + i // 24},{i * 7 % 11}\n" for i in range(96)), "Name the columns"),
    ],
)
def test_a_table_that_cannot_be_guessed_is_refused_with_the_cure(content, said, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ConfigError, match=said):
        guess(tmp_path / "a.csv", {})


# ---- periods ------------------------------------------------------------------------------------------------


def record(period: float, noise: float = 0.5, slope: float = 0.3, span: float = 60.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, span, 400))
    wave = np.sin(2 * np.pi * times / period) if period else np.zeros(400)
    return [times], [(wave + slope * times + noise * rng.normal(size=400))[:, None]]


@pytest.mark.parametrize("period", [2.5, 7.3, 11.0])
def test_a_period_is_found_at_irregular_times_under_a_slope(period):
    (found, share), *_ = periods(*record(period), dates=False)
    assert found == pytest.approx(period, rel=0.01) and 0.3 < share < 1


def test_noise_a_slope_and_a_constant_have_no_period():
    assert periods(*record(0), dates=False) == []
    times, values = record(0)
    assert periods(times, [np.ones_like(values[0])], dates=False) == []
    walk = np.cumsum(np.random.default_rng(1).normal(size=(400, 1)), 0)
    assert len(periods(times, [walk], dates=False)) <= 1


def test_a_period_of_dates_that_is_nearly_a_year_is_a_year():
    times, values = record(366.0, span=3000.0, slope=0.0)
    assert periods(times, values, dates=True)[0][0] == 365.2425


@pytest.mark.slow
def test_long_records_are_searched_in_little_memory_at_both_ends():
    times = np.arange(40_000.0) / 24  # hourly
    rng = np.random.default_rng(0)
    day = np.sin(2 * np.pi * times)[:, None] + 0.5 * rng.normal(size=(40_000, 1))
    assert periods([times], [day], dates=True)[0][0] == 1.0
    year = np.sin(2 * np.pi * times / 365.2425)[:, None] + 0.5 * rng.normal(size=(40_000, 1))
    assert periods([times], [year], dates=True)[0][0] == pytest.approx(365.2425, rel=0.02)


# ---- the budget ---------------------------------------------------------------------------------------------


def test_the_time_of_earlier_attempts_counts(tmp_path):
    first = Budget.of(tmp_path, 100.0, monotonic())
    first.before = 40.0
    first.limits["rnn"] = 12.0
    first.save(arguments=["input=a.csv"])
    second = Budget.of(tmp_path, 100.0, monotonic())
    assert 40 <= second.used < 45 and second.limits == {"rnn": 12.0}
    assert json.loads((tmp_path / "auto.json").read_text())["arguments"] == ["input=a.csv"]


def test_limits_leave_time_for_the_other_candidates_and_the_scores(tmp_path):
    budget = Budget.of(tmp_path, 100.0, monotonic())
    models = ["linear_sde", "rnn", "latent_ode"]
    limits = []
    for place in range(3):
        limits.append(_limit(budget, models[place:], [2.0] * place))
        budget.before += limits[-1] + 2.0
    assert all(limit > 5 for limit in limits) and sum(limits) + 3 * 2 < 95
    assert _limit(Budget.of(tmp_path, 100.0, monotonic()), models, [30.0]) < 3


def test_the_first_candidate_is_trained_however_small_the_budget(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        study_module, "_run", lambda study, model, budget, *rest: trained.append(budget.limits[model])
    )
    study = Study(tmp_path, (), "both", None, (), 0)
    display = BudgetDisplay(12.0)
    with pytest.raises(ConfigError, match="no candidate was trained within the budget of 12 s"):
        train(study, ["linear_sde", "rnn", "latent_ode"], False, Budget.of(tmp_path, 12.0, monotonic()), display)
    assert trained[0] == 3.0


@pytest.mark.parametrize(("seconds", "more"), [(300.0, 3), (24.0, 0)])
def test_what_is_left_of_the_budget_goes_to_further_fits_of_the_best_candidate(tmp_path, monkeypatch, seconds, more):
    losses = {"linear_sde": 2.0, "rnn": 1.0}

    def run(study, name, budget, *rest):
        budget.before += 8.0
        loss = losses.get(name, 1.5)
        crps = {"val/interpolation/ncrps": loss, "val/forecast/ncrps": loss}
        return {"val/loss": 3 - loss, "fit/seconds": 5.0, "score/seconds": 3.0, "fit/steps": 7.0, **crps}

    monkeypatch.setattr(study_module, "_run", run)
    study = Study(tmp_path, (), "both", None, ("linear_sde", "rnn"), 0)
    budget = Budget.of(tmp_path, seconds, monotonic())
    done = train(study, study.candidates, False, budget, BudgetDisplay(seconds))
    assert done == ["linear_sde", "rnn", *(f"rnn-{number}" for number in range(2, 2 + more))]
    assert {"model=rnn", "seed=1"} <= set(study.overrides("rnn-2", 6.5, False))
    assert {"model=rnn", "seed=0"} <= set(study.overrides("rnn", 6.5, False))
    assert not more or budget.limits["rnn-2"] == 6.5  # somewhat longer than the first one took


def test_a_candidate_that_is_clearly_behind_is_given_up_late_in_its_fit(tmp_path):
    watch = Watch(Budget.of(tmp_path, 100.0, monotonic()), best=1.0, show=lambda used: None)
    trainer = SimpleNamespace(
        global_step=0, estimated_stepping_batches=1.0, lightning_module=SimpleNamespace(time_used=0.5),
        callback_metrics={"val/loss": 9.0},
    )  # fmt: skip
    watch.on_validation_end(trainer, None)
    trainer.lightning_module.time_used = 0.7
    with pytest.raises(Pruned, match="above the best candidate's, 1"):
        watch.on_validation_end(trainer, None)
    watch.least = 2.5  # its best checkpoint is not far behind, however bad its loss is by now
    watch.on_validation_end(trainer, None)


# ---- the command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("budget=60", "input=<file> is missing"),
        ("input=a.csv budget=soon", "budget=soon is no length of time"),
        ("input=a.csv question=what", "question=what: expected fill, ahead or both"),
        ("input=a.csv question=fill horizon=3", "leave one of them out"),
        ("input=a.csv model=rnn", "'model=rnn' is not understood"),
        ("input=a.csv trainer.max_time=3", "vrnn_lab.auto sets this key itself"),
        ("input=none.csv", "input=none.csv does not exist"),
        ("input=a.csv time=when", "has no column 'when'"),
        ("input=a.csv modells=rnn", "did you mean 'models'?"),
        ("input=a.csv models=rnnn", "rnnn"),
        ("input=a.csv data.perid=3", "perid"),
        ("input=a.csv optim.lr=fast budget=60", "optim.lr"),
        ("input=a.csv data.id=subject", "give it as id=<column>"),
        ("input=a.csv horizon=-5", "expected a positive length of time"),
        ("input=a.csv future=a.csv", "give horizon=<H> too"),
        ("input=a.csv horizon=1 future=a.csv", "does not say which columns these are"),
        ("input=a.csv horizon=1 future=a.csv data.known=[wave]", "has no column 'wave', which data.known names"),
        ("input=a.csv horizon=1 future=b.csv", "b.csv"),
        ("input=a.csv horizon=1h", "numbers without a known unit"),
    ],
)
def test_a_wrong_call_is_one_message_and_leaves_nothing(given, said, tmp_path, monkeypatch, capsys):
    frame_of().to_csv(tmp_path / "a.csv", index=False)
    assert call(auto, given, monkeypatch, tmp_path) == 2
    assert said.lower() in capsys.readouterr().err.lower()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    top = tmp_path_factory.mktemp("auto")
    frame_of().to_csv(top / "a.csv", index=False)
    done = command("auto", "input=a.csv", "models=linear_sde,rnn", "trainer=cpu", "evaluate.draws=19", "budget=40",
                   "output=found", folder=top, figures=True)  # fmt: skip
    return top, done


@pytest.mark.slow
def test_the_command_says_what_it_saw_and_what_to_use(study):
    top, done = study
    shown = done.stdout
    assert "id=subject, time=week (guessed: id, time); channels level; static covariates dose" in shown
    assert "30 of 12 to 12 points" in shown and "candidates linear_sde, rnn" in shown
    assert "For gaps use" in shown and "For forecasts use" in shown and "baseline: " in shown
    assert {"interpolation.png", "forecast.png"} == {path.name for path in (top / "found/figures").iterdir()}
    known = json.loads((top / "found/auto.json").read_text())
    # A fast machine has budget left and fits the best candidate again (rnn-2 and so on).
    assert known["used"] < 60 and set(known["limits"]) >= {"linear_sde", "rnn"}
    for run in ("linear_sde", "rnn"):  # forecasts are judged beyond the times of training
        assert (top / "found" / run / "out_of_time.npz").is_file()


@pytest.mark.slow
def test_all_commands_take_the_folder(study, monkeypatch, capsys):
    top, _ = study
    assert call(predict, "run=found input=a.csv output=out.csv horizon=2 every=1", monkeypatch, top) == 0
    assert len(pd.read_csv(top / "out.csv")) == 60
    assert call(evaluate, "run=found evaluate.samples=2", monkeypatch, top) == 0
    assert call(evaluate, "run=found backtest=true backtest.horizon=1 backtest.folds=1", monkeypatch, top) == 0
    assert call(report, "found", monkeypatch, top) == 0
    assert "linear_sde" in capsys.readouterr().out


@pytest.mark.slow
def test_a_repeated_command_trains_nothing_again_and_another_one_is_refused(study, monkeypatch, capsys):
    top, _ = study
    before = (top / "found/rnn/checkpoints/best.ckpt").read_bytes()
    same = "input=a.csv models=linear_sde,rnn trainer=cpu evaluate.draws=19 budget=40 output=found"
    assert call(auto, same, monkeypatch, top) == 0
    assert "resumed  found" in capsys.readouterr().out
    assert (top / "found/rnn/checkpoints/best.ckpt").read_bytes() == before
    kept = (top / "a.csv").read_text()
    (top / "a.csv").write_text(f"{kept}p0,9.5,0,20.0\n")
    assert call(auto, same, monkeypatch, top) == 2
    assert "the table has changed since" in capsys.readouterr().err
    (top / "a.csv").write_text(kept)
    assert call(auto, f"{same} seed=1", monkeypatch, top) == 2
    assert "holds a study of other arguments" in capsys.readouterr().err
    command("run", "resume=found", folder=top)
    refused = command("run", "resume=found", "trainer.max_epochs=3", folder=top, check=False)
    assert refused.returncode == 2 and "only budget= may change" in refused.stderr


@pytest.mark.slow
def test_killed_in_a_fit_the_same_command_goes_on(tmp_path):
    frame_of().to_csv(tmp_path / "a.csv", index=False)
    words = ["input=a.csv", "models=rnn", "trainer=cpu", "evaluate.draws=19", "budget=30", "output=found"]
    cut = CUT.format(module="vrnn_lab.models.rnn", owner="RNN", name="training_step", call=120, signal="KILL")
    ended = command("auto", *words, folder=tmp_path, before=cut, check=False)
    assert ended.returncode == -9
    used = json.loads((tmp_path / "found/auto.json").read_text())
    again = command("auto", *words, folder=tmp_path)
    assert "resumed  found" in again.stdout and "For gaps use " in again.stdout
    after = json.loads((tmp_path / "found/auto.json").read_text())
    # Limits that were set are kept. A fast machine adds further fits (rnn-2 and so on).
    assert after["used"] > used["used"] and after["limits"].items() >= used["limits"].items()


@pytest.mark.slow
def test_from_python_it_returns_a_forecaster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = frame_of()
    found = vrnn_lab.auto(
        frame, horizon=2.0, budget=20, folder="here", models=["linear_sde"], overrides=["trainer=cpu"]
    )
    assert isinstance(found, Forecaster)
    assert len(found.predict(frame, horizon=1.0, every=0.5)) == 60
    written = pd.read_csv(tmp_path / "here/forecast.csv")
    assert set(written["id"]) == set(frame["subject"])
    with pytest.raises(ValueError, match="another frame"):
        vrnn_lab.auto(frame.head(100), folder="here")
    with pytest.raises(TypeError, match="no argument 'idd'"):
        vrnn_lab.auto(frame, idd="subject")
    with pytest.raises(TypeError, match="source is a list; expected a data frame"):
        vrnn_lab.auto([1, 2])


@pytest.mark.slow
def test_covariates_ahead_come_from_a_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = frame_of().drop(columns="dose").assign(wave=lambda x: np.sin(x["week"]))
    ends = frame.groupby("subject", as_index=False)["week"].max()
    future = pd.concat(
        [ends.assign(week=ends["week"] + step, wave=np.sin(ends["week"] + step)) for step in (0.5, 1.5)]
    )
    more = {"models": ["linear_sde"], "overrides": ["trainer=cpu", "data.known=[wave]"], "budget": 20, "horizon": 2.0}
    vrnn_lab.auto(frame, future=future, folder="here", **more)
    written = pd.read_csv("here/forecast.csv")
    assert len(written) == len(future) and set(written["id"]) == set(frame["subject"])
    with pytest.raises(TypeError, match="name a file of covariates too"):
        vrnn_lab.auto("here/data.csv", future=future, **more)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), [("counts", "poisson"), ("binary", "bernoulli"), ("positive", "gamma")])
def test_other_values_than_real_ones_are_studied_too(kind, head, tmp_path):
    frame = frame_of()
    values = {
        "counts": frame["level"].round(),
        "binary": (frame["level"] > 20).astype(int),
        "positive": frame["level"],
    }
    frame.assign(level=values[kind]).to_csv(tmp_path / "a.csv", index=False)
    words = [f"data.support={kind}", f"model/head={head}", "models=rnn", "trainer=cpu", "evaluate.draws=19"]
    done = command("auto", "input=a.csv", *words, "budget=15", "output=found", folder=tmp_path)
    assert "For gaps use " in done.stdout and "For forecasts use " in done.stdout


def test_a_log_line_that_repeats_is_shown_once():
    once, record = Once(), logging.LogRecord("vrnn_lab", logging.INFO, "", 0, "the same", None, None)
    assert once.filter(record) and not once.filter(record)
