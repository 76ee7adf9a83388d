"""The table of first answers: what is held out stays out, spreads come from training, scores equal closed forms."""

import json
import lzma
import pickle
from dataclasses import replace
from pathlib import Path

import cheap_baselines
import first_answers
import numpy as np
import pandas as pd
import pytest
import real_sets
from cheap_baselines import SharedProcess, rules, training_moments, with_spread
from first_answers import Job, OptionError, Options
from held_out import (
    Cell,
    Query,
    blocks_of,
    cells,
    channels_of,
    coverage_error,
    gaussian_crps,
    hidden_points,
    hidden_stretches,
    hold_out,
    last_third,
    numbers,
    origins_of,
    path_crps,
    practice,
    score_gaussians,
    score_tables,
)
from real_sets import RealSet
from scipy.integrate import quad
from scipy.stats import norm

from vrnn_lab.config.compose import compose

UNREAD = pd.DataFrame
PANEL = RealSet("panel", "m", UNREAD, "made up", static=("age",))
RECORD = RealSet("record", "m", UNREAD, "made up", None, (), 12.0, 40, 10, 4, 5)
PAIR = replace(RECORD, name="pair", id="id")
SETS = (PANEL, RECORD, PAIR)


def made(real: RealSet) -> pd.DataFrame:
    """A table of the set's form; every value occurs once, so that each tells where it comes from."""
    rng = np.random.default_rng(3)
    lengths = [rng.integers(1, 15) for _ in range(8)] if real.panel else [200, 60][: 1 + (real.id is not None)]
    found = []
    for number, length in enumerate(lengths):
        times = np.sort(rng.choice(400, length, replace=False)).astype(float)
        rows = pd.DataFrame(
            {"id": f"s{number}", "time": times, "a": rng.normal(size=length), "b": rng.normal(size=length)}
        )
        rows["age"] = float(number)
        rows.loc[rng.random(length) < 0.2, "b"] = np.nan
        found.append(rows)
    table = pd.concat(found, ignore_index=True)
    return table.drop(columns=[*(["id"] if real.id is None else []), *(["age"] if not real.static else [])])


@pytest.mark.parametrize("kind", ["forecast", "gaps"])
@pytest.mark.parametrize("real", SETS, ids=lambda real: real.name)
def test_no_value_that_is_asked_lies_in_what_is_given_or_seen(real, kind):
    table = made(real)
    task = hold_out(real, table, kind)
    assert sum(len(query.queried) for query in task.queries) > 0
    for query in task.queries:
        for channel in ("a", "b"):
            held_out = set(query.queried[channel].dropna())
            assert not held_out & set(task.given[channel]) and not held_out & set(query.seen[channel])
    everything = pd.concat([task.given, *(query.queried for query in task.queries)])
    assert set(everything["a"]) <= set(table["a"])
    if kind == "gaps" or real.panel:
        assert len(everything) == len(table)


@pytest.mark.parametrize("real", SETS, ids=lambda real: real.name)
def test_a_forecast_asks_only_of_later_times(real):
    task = hold_out(real, made(real), "forecast")
    for query in task.queries:
        for name, rows in query.queried.groupby("id") if real.id else [("", query.queried)]:
            of = lambda table, name=name: table[table["id"] == name] if real.id else table
            assert rows["time"].min() > of(query.seen)["time"].max() >= of(task.given)["time"].max()


def test_the_program_is_given_nothing_of_a_held_out_row_but_series_and_time():
    calls = []

    class Forecaster:
        def predict(self, seen, at, paths):
            calls.append((seen, at))
            return pd.DataFrame()

    query = hold_out(PANEL, made(PANEL), "forecast").queries[0]
    first_answers.predict(PANEL, Forecaster(), query)
    (seen, at) = calls[0]
    assert list(at.columns) == ["id", "time"] and len(at) == len(query.queried)
    assert not set(query.queried["a"]) & set(seen["a"])


@pytest.mark.parametrize("kind", ["forecast", "gaps"])
@pytest.mark.parametrize("real", SETS, ids=lambda real: real.name)
def test_practice_questions_come_out_of_what_is_given(real, kind):
    given = hold_out(real, made(real), kind).given
    practised = practice(real, given, kind)
    for query in practised.queries:
        assert len(query.queried) and set(query.queried["a"]) | set(query.seen["a"]) <= set(given["a"])


@pytest.mark.parametrize("kind", ["forecast", "gaps"])
@pytest.mark.parametrize("real", SETS, ids=lambda real: real.name)
def test_spreads_do_not_change_with_the_values_that_are_held_out(real, kind):
    table = made(real)
    task = hold_out(real, table, kind)
    held = pd.concat([query.queried for query in task.queries]).index.difference(task.given.index)
    other = table.copy()
    other.loc[held, ["a", "b"]] *= 1000
    again = hold_out(real, other, kind)
    pd.testing.assert_frame_equal(task.given, again.given)
    for rule in rules(real).values():
        spreads = []
        for each in (task, again):
            moments = training_moments(real, each.given, ["a", "b"])
            answer = with_spread(real, rule, each.given, kind, moments)
            spreads.append([answer(cell)[1][0] for cell in cells(real, task.queries[0])])
        assert spreads[0] == spreads[1] and min(spreads[0]) > 0


def test_the_same_seed_holds_out_the_same_and_another_does_not():
    first, same, other = (hold_out(PANEL, made(PANEL), "gaps", seed).given for seed in (0, 0, 1))
    assert first.equals(same) and not first.equals(other)


def test_how_much_is_held_out():
    assert [last_third(count) for count in (1, 2, 3, 6, 7, 12)] == [1, 2, 2, 4, 5, 8]
    rng = np.random.default_rng(0)
    hidden = hidden_points(20, rng)
    assert hidden.sum() == 6 and not hidden[0] and not hidden[-1]
    assert not hidden_points(2, rng).any() and not hidden_points(1, rng).any()
    hidden = hidden_stretches(500, 20, rng)
    edges = np.flatnonzero(np.diff(hidden.astype(int)))
    assert len(edges) == 2 * 7 and (np.diff(edges)[::2] == 20).all() and not hidden[0] and not hidden[-1]
    assert hidden_stretches(5000, 20, rng).sum() == 11 * 20
    assert not hidden_stretches(10, 20, rng).any()
    assert origins_of(200, 10, 4).tolist() == [160, 170, 180, 190]
    assert origins_of(20, 10, 4).tolist() == [10]


def test_scores_equal_their_definitions():
    for mean, std, truth in ((0.0, 1.0, 0.3), (2.0, 0.5, -1.0)):
        step = lambda x, mean=mean, std=std, truth=truth: (norm.cdf(x, mean, std) - (x >= truth)) ** 2
        exact = quad(step, -20, truth)[0] + quad(step, truth, 20)[0]
        assert gaussian_crps(mean, std, truth) == pytest.approx(exact, rel=1e-6)
    draws = np.random.default_rng(0).normal(2, 0.5, (1, 20_000))
    assert path_crps(draws, np.array([-1.0]))[0] == pytest.approx(gaussian_crps(2, 0.5, -1.0), rel=0.01)
    few = np.array([[3.0, 1.0, 4.0]])
    pairs = np.abs(few[0][:, None] - few[0]).sum() / 6 / 2
    assert path_crps(few, np.array([2.0]))[0] == pytest.approx(np.abs(few - 2).mean() - pairs)


def test_a_table_of_answers_is_scored_where_a_value_is_known_whatever_its_order():
    rows = pd.DataFrame(
        {"id": ["x", "y"], "time": ["2024-01-01T06:00:00Z", "2024-01-02"], "a": [1.0, np.nan], "b": [4.0, 5.0]}
    )
    said = pd.DataFrame(
        {
            "id": ["y", "y", "x", "x"],
            "time": ["2024-01-02", "2024-01-02", "2024-01-01 06:00:00", "2024-01-01 06:00:00"],
            "channel": ["a", "b", "b", "a"],
            "mean": [9.0, 5.5, 4.0, 3.0],
        }
    )
    said = said.assign(q05=said["mean"] - 1, q95=said["mean"] + 1, path_1=said["mean"] - 1, path_2=said["mean"] + 1)
    query = Query(rows, rows)
    scores = score_tables(PANEL, (query,), lambda _: said)
    blocks = {"x": [0, 1]}
    assert scores["a"] == {"values": 1, "crps": pytest.approx(2 - 1), "mse": 4.0, "coverage": 0.0, "blocks": blocks}
    assert scores["b"]["blocks"] == {"x": [1, 1], "y": [1, 1]}
    assert scores["b"]["values"] == 2 and scores["b"]["mse"] == 0.125 and scores["b"]["coverage"] == 1.0
    with pytest.raises(ValueError, match="no finite prediction for b of y"):
        score_tables(PANEL, (query,), lambda _: said.iloc[2:])


def test_blocks_are_series_of_a_panel_and_origins_or_gaps_of_a_record():
    panel = hold_out(PANEL, made(PANEL), "gaps").queries[0]
    assert blocks_of(PANEL, panel, 0).tolist() == panel.queried["id"].astype(str).tolist()
    forecast, gaps = (hold_out(RECORD, made(RECORD), kind).queries for kind in ("forecast", "gaps"))
    found = [set(blocks_of(RECORD, query, i)) for i, query in enumerate(forecast)]
    assert found == [{f"origin {i}"} for i in range(len(forecast))]
    table, blocks = made(RECORD), blocks_of(RECORD, gaps[0], 0)
    hidden = table["time"].isin(gaps[0].queried["time"])
    stretch = (hidden & ~hidden.shift(fill_value=False)).cumsum()[hidden]
    assert stretch.nunique() >= 2
    assert [each == blocks[0] for each in blocks] == (stretch == 1).tolist()
    assert len(set(blocks)) == stretch.nunique()


def test_the_error_of_a_coverage_is_that_of_blocks_drawn_anew():
    """Blocks whose values are all inside or all outside: the spread of coverages over many draws of the blocks."""
    rng, count, size = np.random.default_rng(0), 20, 15
    draw = lambda: [{str(i): [size * int(x), size] for i, x in enumerate(rng.random(count) < 0.9)}]
    drawn = [draw() for _ in range(2000)]
    shares = [sum(x for x, _ in blocks[0].values()) / (size * count) for blocks in drawn]
    errors = [coverage_error(blocks) for blocks in drawn]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(shares), rel=0.05)
    assert np.isnan(coverage_error([{"one": [3, 4]}]))


def test_times_are_days_where_they_are_dates():
    assert numbers(pd.Series(["1970-01-02", "1970-01-03"])).tolist() == [1.0, 2.0]
    assert numbers(pd.Series(["1970-01-02T12:00:00Z"])).tolist() == [1.5]
    assert numbers(pd.Series([1.0, 2.5])).tolist() == [1.0, 2.5]


def test_rules_follow_a_line_and_a_season_exactly():
    times = np.arange(60.0)
    wave = np.sin(2 * np.pi * times / 12)
    line = Cell("", "a", times, 2 * times, np.array([65.0, 70.0]), np.zeros(2), np.array(["", ""]))
    assert cheap_baselines.drift(line, 0, None) == pytest.approx([130, 140])
    assert cheap_baselines.last(line, 0, None).tolist() == [118, 118]
    assert cheap_baselines.half(line, 59, None) == pytest.approx([(118 + 59) / 2] * 2)
    season = replace(line, values=wave, at=np.array([60.0, 63.0, 80.0]))
    assert cheap_baselines.seasonal(season, 0, 12.0) == pytest.approx(np.sin(2 * np.pi * season.at / 12))
    both = replace(season, values=wave + 2 * times)
    rising = cheap_baselines.seasonal_drift(both, 0, 12.0) - np.sin(2 * np.pi * season.at / 12)
    assert rising == pytest.approx(2 * season.at, rel=0.02)
    gap = np.r_[0:20, 25:60]
    inside = replace(season, times=times[gap], values=(wave + 2 * times)[gap], at=np.array([22.0]))
    assert cheap_baselines.seasonal(inside, 0, 12.0) == pytest.approx([wave[22] + 44])
    assert cheap_baselines.linear(replace(inside, values=2 * times[gap]), 0, None) == pytest.approx([44])


def test_a_series_of_which_nothing_is_seen_gets_the_training_mean():
    nothing = Cell("x", "a", np.zeros(0), np.zeros(0), np.array([1.0, 2.0]), np.zeros(2), np.array(["", ""]))
    for rule in (*cheap_baselines.RULES.values(), *cheap_baselines.SEASONAL.values()):
        assert rule(nothing, 7.0, 12.0) == pytest.approx([7.0, 7.0])


@pytest.mark.parametrize("real", [PANEL, PAIR], ids=lambda real: real.name)
def test_the_gaussian_process_beats_the_mean_on_smooth_series_and_its_intervals_hold(real):
    table = made(real)
    phase = table["id"].str[1:].astype(float)
    smooth = np.sin(2 * np.pi * table["time"] / (12 if real.period else 150) + phase)
    table["a"] = smooth + np.random.default_rng(0).normal(0, 0.1, len(table))
    table = table.drop(columns="b")
    task = hold_out(real, table, "gaps")
    moments = training_moments(real, task.given, channels_of(real, table))
    found = score_gaussians(real, task.queries, SharedProcess(real, task.given, moments))["a"]
    plain = with_spread(real, cheap_baselines.mean, task.given, "gaps", moments)
    assert found["crps"] < 0.7 * score_gaussians(real, task.queries, plain)["a"]["crps"]
    assert found["coverage"] > 0.7


def test_a_pickled_frame_is_read_without_what_its_pickle_names(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    with pytest.raises(pickle.UnpicklingError, match="the pickle names"):
        real_sets.read_frame(lzma.compress(pickle.dumps(Harm())))
    assert not list(tmp_path.iterdir())


def test_options_are_read_and_wrong_ones_are_refused_by_name(capsys):
    found = first_answers.parsed(["sets=co2,pbcseq", "models=rnn", "seeds=0,2", "jobs=2", "overrides=a=1;b=[1,2]"])
    assert found == Options(("co2", "pbcseq"), ("rnn",), seeds=(0, 2), jobs=2, overrides=("a=1", "b=[1,2]"))
    for wrong in ("sets=co3", "models=lstm", "questions=why", "seeds=x", "jobs=0", "jobs=1,2", "colour=red", "co2"):
        with pytest.raises(OptionError, match=wrong.partition("=")[0]):
            first_answers.parsed([wrong])
        assert first_answers.main([wrong]) == 2
        assert wrong in capsys.readouterr().err
    assert first_answers.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "The protocol" in shown and all(name in shown for name in real_sets.SETS)


def test_the_program_gets_its_default_settings():
    typed = first_answers.overrides_of(RECORD, Job("record", "gaps", "rnn", seed=3), ["optim.lr=0.1"])
    assert typed[:3] == ["model=rnn", "seed=3", "data.window=40"] and typed[-1] == "optim.lr=0.1"
    assert set(typed[3:-1]) <= {"data.period=12"}
    assert first_answers.overrides_of(PANEL, Job("panel", "gaps", "vrnn"), []) == ["model=vrnn", "seed=0"]


def test_an_extra_row_is_there_where_the_program_takes_its_key(monkeypatch):
    monkeypatch.setattr(first_answers, "SETS", {"record": replace(RECORD, extra=("data.stride=5", "data.unheard=1"))})
    labels = {job.label for job in first_answers.jobs_of(Options(("record",), ("gp", "rnn"), ("gaps",)))}
    assert labels == {"gp", "rnn", "rnn stride=5"}


@pytest.mark.slow
@pytest.mark.parametrize("real", real_sets.SETS.values(), ids=lambda real: real.name)
def test_the_keys_of_every_set_are_known_to_the_program(real):
    for extra in ("", *real.extra):
        compose(
            [
                "data=table",
                "data.path=my.csv",
                *first_answers.overrides_of(real, Job(real.name, "gaps", "rnn", 0, extra), []),
            ]
        )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of results whose sets are made up."""
    monkeypatch.setattr(first_answers, "SETS", {real.name: real for real in SETS})
    (tmp_path / "data").mkdir()
    for real in SETS:
        made(real).to_csv(tmp_path / "data" / f"{real.name}.csv", index=False)
    return tmp_path


def test_what_is_there_is_not_done_again_and_the_table_shows_it(folder, capsys, monkeypatch):
    options = Options(tuple(real.name for real in SETS), ("baselines",), folder=folder)
    jobs = first_answers.jobs_of(options)
    assert len(jobs) == 6
    for job in jobs:
        first_answers.run_job(job, folder, ())
    monkeypatch.setattr(first_answers, "_apart", lambda *_: pytest.fail("done again"))
    assert first_answers.run_all(options) == 0
    assert first_answers.report(options) == 0
    text = (folder / "table.md").read_text()
    assert "| record | forecast | seasonal |" in text and "| panel (stds) |" in text
    found = json.loads((folder / "results" / "panel-forecast-last-0.json").read_text())
    rows = pd.read_csv(folder / "report.csv").query("set == 'panel' and question == 'forecast' and model == 'last'")
    expected = np.mean([each["crps"] / each["std"] for each in found["channels"].values()])
    shown = next(line for line in text.splitlines() if line.startswith("| panel | forecast | last |"))
    assert float(shown.split("|")[4]) == pytest.approx(expected, rel=1e-3)
    assert int(shown.split("|")[7]) == rows["values"].sum()


@pytest.mark.slow
def test_a_failing_job_is_printed_and_counted(folder, capsys):
    first_answers.run_job(Job("record", "gaps", "baselines"), folder, ())
    options = Options(("panel", "record"), ("baselines",), ("gaps",), folder=folder)
    assert first_answers.run_all(options) == 1  # a process of its own does not know the set that is made up
    assert "1/1 panel gaps baselines seed 0" in (shown := capsys.readouterr().out)
    assert "FAILED (exit code 1): KeyError: 'panel'" in shown


def test_a_job_that_takes_too_long_is_given_up(folder, capsys):
    options = Options(("panel",), ("baselines",), ("gaps",), folder=folder, timeout=0)
    assert first_answers.run_all(options) == 1
    assert "FAILED (no end after 0 s)" in capsys.readouterr().out


def test_results_of_other_overrides_are_not_mixed_in(folder):
    (folder / "results").mkdir()
    (folder / "results" / "panel-gaps-rnn-0.json").write_text(json.dumps({"overrides": ["optim.lr=1"]}))
    with pytest.raises(OptionError, match=r"overrides=optim\.lr=1; choose another folder"):
        first_answers.run_all(Options(("panel",), ("rnn",), folder=folder))


@pytest.mark.slow
def test_a_model_answers_by_the_whole_chain(folder):
    job = Job("panel", "gaps", "rnn")
    first_answers.run_job(job, folder, ("trainer.max_epochs=1", "model.width=4"))
    found = json.loads((folder / "results" / f"{job.name}.json").read_text())
    task = hold_out(PANEL, made(PANEL), "gaps")
    assert found["channels"]["a"]["values"] == sum(len(query.queried) for query in task.queries)
    assert np.isfinite(found["channels"]["b"]["crps"]) and found["fit_s"] > 0
    written = pd.read_csv(folder / "runs" / job.name / "data.csv")
    held_out = pd.concat([query.queried for query in task.queries])
    assert not set(written["a"].round(9)) & set(held_out["a"].round(9))
