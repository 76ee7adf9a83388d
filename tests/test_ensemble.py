"""Test pooled models against the mixture of the members' own predictions."""

import json
from dataclasses import replace
from math import log

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.commands import call
from helpers.linear import linear_vae, whole_points
from helpers.oracle import QUESTIONS, Oracle, small_data
from helpers.pools import pool_of
from helpers.predictions import KEYS, ask, parts_of, table
from helpers.small import asked, batch_of, model_of, scale_of
from vrnn_lab import evaluate, predict, sample
from vrnn_lab.cli.arguments import folders_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.files import write_json
from vrnn_lab.core.tasks import DensityTask
from vrnn_lab.evaluation.evaluate import evaluate as scores_of
from vrnn_lab.evaluation.recalibration import Recalibration
from vrnn_lab.evaluation.scores import sample_scores
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.forecasting import ensemble
from vrnn_lab.forecasting.ensemble import APART, Ensemble, Recalibrations, Weights, draws_of, load_runs
from vrnn_lab.forecasting.mixture_folder import Mixture, expanded


def alone(pool: Ensemble, batch, samples: int, seed: int = 5) -> list:
    """Return the predictions of each member, with the noise that it has in the pool."""
    told = []
    for number, member in enumerate(pool):
        with member.fixed_noise(seed + APART * number):
            told.append(member.predict(batch, samples))
    return told


def test_draws_are_split_evenly_and_the_density_is_the_mixture_with_equal_shares():
    pool, batch = pool_of(), asked(batch_of())
    with pool.fixed_noise(5):
        found = pool.predict(batch, 8)
    told = alone(pool, batch, 3)
    assert found.paths.shape[0] == 8
    for s, path in enumerate(found.paths):
        torch.testing.assert_close(path, told[s % 3].paths[s // 3])
    nll = torch.stack([sample_scores(each, batch.values)["nll"] for each in told])
    torch.testing.assert_close(sample_scores(found, batch.values)["nll"], log(3) - torch.logsumexp(-nll, 0))
    mean, std = (torch.stack([getattr(each, name) for each in told]) for name in ("mean", "std"))
    torch.testing.assert_close(found.mean, mean.mean(0))
    torch.testing.assert_close(found.std, (std.square().mean(0) + mean.var(0, correction=0)).sqrt())


def test_weights_are_the_shares_of_draws_and_of_the_density():
    weights = (0.62, 0.08, 0.3)
    pool, batch = pool_of(weights=Weights(weights, weights)), asked(batch_of())
    with pool.fixed_noise(5):
        found = pool.predict(batch, 50)
    counts = [31, 4, 15]
    alone_each = _alone_by_count(pool, batch, counts)
    assert found.paths.shape[0] == sum(counts)
    nll = torch.stack([sample_scores(each, batch.values)["nll"] for each in alone_each])
    shares = torch.tensor(counts).double().div(50).log()[:, None, None, None]
    torch.testing.assert_close(sample_scores(found, batch.values)["nll"], -torch.logsumexp(shares - nll, 0))
    every = torch.cat([each.paths for each in alone_each]).sort(0).values
    torch.testing.assert_close(found.paths.sort(0).values, every)
    with pool.fixed_noise(5):
        few = pool.predict(batch, 3)  # every member gives one draw at least
    assert len(few.paths) == 3
    both = torch.stack([member.log_weights(whole_points(2), 4).double() for member in pool_of("rnn", "rnn_gmm")])
    pair = pool_of("rnn", "rnn_gmm", weights=Weights((0.9, 0.1), (0.5, 0.5)))
    expected = torch.logsumexp(both + torch.tensor([0.9, 0.1]).double().log()[:, None, None], 0)
    torch.testing.assert_close(pair.log_weights(whole_points(2), 4), expected)


def test_a_forecast_has_weights_of_its_own_and_a_member_without_weight_is_not_asked():
    pool, batch = pool_of(weights=Weights((0.5, 0.5, 0.0), (0.0, 0.25, 0.75))), batch_of()
    early = torch.arange(8) < 5
    later = replace(batch, seen=batch.known & early[:, None], scored=batch.known & ~early[:, None])
    both = replace(batch, seen=batch.known & (early & (torch.arange(8) != 2))[:, None])
    both = replace(both, scored=batch.known & ~both.seen)
    with pool.fixed_noise(5):
        ahead, gaps = pool.predict(later, 8), pool.predict(both, 8)
        with pool.one_question():
            mixed = pool.predict(later, 8)
    assert (ahead.numbers, gaps.numbers, mixed.numbers) == ((1, 2), (0, 1), (0, 1))
    assert [len(each.paths) for each in ahead.members] == [2, 6]
    alone_each = _alone_by_count(pool, later, [1, 2, 6])
    torch.testing.assert_close(ahead.mean, 0.25 * alone_each[1].mean + 0.75 * alone_each[2].mean)
    factors = Recalibration(("a", "b"), *torch.full((2, 2), 2.0).double())
    wider = Recalibrations(pool.names, (None, None, factors)).apply(ahead, later)
    torch.testing.assert_close(wider.density.std[:2], ahead.density.std[:2])
    torch.testing.assert_close(wider.members[1].std, factors.apply(alone_each[2], later).std)


def test_a_series_without_observations_changes_no_weights_of_others():
    pool, batch = pool_of(weights=Weights((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))), batch_of()
    early = torch.arange(8) < 5
    later = replace(batch, seen=batch.known & early[:, None], scored=batch.known & ~early[:, None])
    seen = later.seen.clone()
    seen[0] = False
    with pool.fixed_noise(5):
        assert pool.predict(later, 4).numbers == pool.predict(replace(later, seen=seen), 4).numbers == (2,)


def test_every_draw_is_given_however_weights_and_draws_divide():
    for weights, samples in (((0.05,) * 4 + (0.4, 0.4), 6), ((0.5, 0.5), 3), ((0.01,) * 10 + (0.9,), 11)):
        draws = draws_of(weights, samples)
        assert sum(draws) == samples and min(draws) >= 1


def _alone_by_count(pool: Ensemble, batch, counts: list[int]) -> list:
    return [alone(pool, batch, count)[number] for number, count in enumerate(counts)]


def test_two_equal_members_do_not_share_their_noise():
    pool, batch = Ensemble([model_of("rnn", double=True) for _ in "ab"], ["a", "b"]), asked(batch_of())
    with pool.fixed_noise(0):
        paths = pool.predict(batch, 2).paths
    assert (paths[0] != paths[1])[batch.scored].all()


def test_zeros_and_ones_keep_their_kind():
    names = ["rnn model/head=bernoulli", "vrnn model/head=bernoulli"]
    pool, batch = pool_of(*names, scale=scale_of(support="binary")), asked(batch_of())
    batch = replace(batch, values=(batch.values > -6).to(batch.values) * batch.known)
    with pool.fixed_noise(5):
        found = pool.predict(batch, 4)
    told = alone(pool, batch, 2)
    torch.testing.assert_close(found.mean, (told[0].mean + told[1].mean) / 2)
    assert sample_scores(found, batch.values).keys() == {"nll", "brier"}


def test_log_p_of_a_series_is_that_of_the_mixture_of_whole_sequences():
    ou = small_data()
    oracles = [Oracle(ou), Oracle(small_data(theta=0.3))]
    pool = Ensemble(oracles, ["a", "b"])
    scored = scores_of(pool, ou, "test", QUESTIONS, 0)
    total = count = 0.0
    for batch in ou.batches("test", DensityTask()):
        both = torch.stack([oracle.data.exact(batch)[0] for oracle in oracles])
        total, count = total - log_mean_exp(both).sum().item(), count + batch.scored.sum().item()
    assert scored["test/nll"] == pytest.approx(total / count, rel=1e-9)
    assert scored["test/nll_is_exact"] == 1 and scored["test/nll_above_exact"] > 0
    assert "test/loss" not in scored


@pytest.mark.slow
def test_bounds_of_members_give_a_bound_on_the_mixture():
    """Compare averages over the noise with log p, for the ELBO and for 5 samples; many samples come close to it."""
    (one, exact), (two, other) = linear_vae(2, widen=1.3), linear_vae(2, widen=1.2)
    with torch.no_grad():
        two.decoder[0].bias.add_(0.1)  # its posterior is another's now, so its bound is loose
    other = type(exact)(exact.loc + two.data_std * 0.1, other.covariance_matrix)
    pool, batch = Ensemble([one, two], ["a", "b"]), whole_points(2)
    truth = log_mean_exp(torch.stack([p.log_prob(batch.values).sum(1) for p in (exact, other)]))
    for samples, most, least in ((1, 0.0, -30.0), (5, 0.0, -10.0), (5000, 0.05, -0.05)):
        off = []
        for seed in range(1 if samples > 5 else 100):
            with pool.fixed_noise(seed):
                off.append(log_mean_exp(pool.log_weights(batch, samples)) - truth)
        mean = torch.stack(off).mean()
        assert least < mean <= most


def test_each_member_is_recalibrated_by_its_own_factors():
    pool, batch = pool_of("rnn", "linear_sde"), asked(batch_of())
    factors = Recalibration(("a", "b"), *torch.tensor([[2.0, 3.0], [4.0, 5.0]]).double())
    both = Recalibrations(pool.names, (None, factors))
    with pool.fixed_noise(5):
        found = both.apply(pool.predict(batch, 9), batch)
    told = alone(pool, batch, 5)
    told[1] = factors.apply(told[1], batch)
    torch.testing.assert_close(found.paths[1::2], told[1].paths[:4])
    torch.testing.assert_close(found.paths[::2], told[0].paths)
    torch.testing.assert_close(found.mean, (told[0].mean + told[1].mean) / 2)
    torch.testing.assert_close(found.density.std[:5], told[0].density.std)
    assert (both.changed(batch) == ~batch.seen).all()
    assert both.lines()[0] == "run runs/0: not recalibrated" and "a 4.000" in both.lines()[3]


def test_fewer_draws_than_runs_are_refused():
    with pytest.raises(ValueError, match="2 draws are too few for an ensemble of 3 runs"):
        pool_of().predict(asked(batch_of()), 2)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [2.0, 9.0])
@pytest.mark.parametrize("whole", [True, False])
def test_a_pool_asks_each_member_over_the_window_it_has_alone(horizon, whole):
    """Of whole series beyond the longest window a path model keeps the start, and an RNN has the latest stretch."""
    pool = pool_of("linear_sde model.level=linear", "rnn", scale=replace(scale_of(), whole_series=whole))
    asking = {"horizon": horizon, "every": 1.0}
    found = ask(table(), pool, **asking, draws=6, paths=6)
    for number, member in enumerate(pool):
        told = ask(table(), member, **asking, draws=3, paths=3, seed=APART * number)
        for place in range(3):
            np.testing.assert_allclose(found[f"path_{2 * place + number + 1}"], told[f"path_{place + 1}"], rtol=1e-6)


UNLIKE = {
    "channels b, a, a with a, b": {"channels": ("b", "a")},
    "values binary, a with real": {"support": "binary"},
    "unit of time days (dates), a with numbers": {"dates": True},
    "error bars yes, a with no": {"errors": True},
    "covariates known u, a with none": {"covariates": ("u",)},
}


@pytest.mark.parametrize("said", UNLIKE)
def test_what_runs_must_share_is_named(said, monkeypatch):
    one, other = (parts_of(model_of("rnn", replace(scale_of(), dates=False))) for _ in "ab")
    other.model.scale = replace(one.model.scale, **UNLIKE[said])
    monkeypatch.setattr(
        ensemble, "load_parts", lambda folder, changes=None, trust=(): {"a": one, "b": other}[str(folder)]
    )
    with pytest.raises(ValueError, match="Leave one of the two out") as refused:
        load_runs(["a", "b"])
    assert f"b was trained with {said}: the runs of an ensemble must agree" in str(refused.value)


def test_models_of_events_are_not_pooled(monkeypatch):
    scale = scale_of(1, support="events")
    one = parts_of(model_of("latent_ode_poisson model/head=events", scale))
    monkeypatch.setattr(ensemble, "load_parts", lambda folder, changes=None, trust=(): one)
    with pytest.raises(ValueError, match="a is a model of event times"):
        load_runs(["a", "b"])


def test_run_names_several_folders_and_commas_may_be_part_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "lr=1,seed=2"):
        (tmp_path / name).mkdir()
    names = lambda text: [str(folder) for folder in folders_of({"run": text})]
    assert names("a,b") == ["a", "b"]
    assert names("lr=1,seed=2") == ["lr=1,seed=2"]
    assert names("a,lr=1,seed=2,b") == ["a", "lr=1,seed=2", "b"]
    assert names("a,none,b") == ["a", "none", "b"]
    for text, said in {"a,a": "names a twice", "a,,b": "is empty"}.items():
        with pytest.raises(ValueError, match=said):
            names(text)


@pytest.mark.parametrize(
    "content",
    [
        {"runs": ["a", "../b"], "gaps": [0.5, 0.5], "ahead": [0.5, 0.5]},
        {"runs": ["a", "a"], "gaps": [0.5, 0.5], "ahead": [0.5, 0.5]},
        {"runs": ["a", "b"], "gaps": [0.5, 0.5], "ahead": [0.5, 0.6]},
        {"runs": ["a"], "gaps": [], "ahead": [1.0]},
        {"runs": [], "gaps": [], "ahead": []},
        {"runs": "a", "gaps": [1.0], "ahead": [1.0]},
        {"runs": ["a", "b"], "gaps": [1.5, -0.5], "ahead": [0.5, 0.5]},
    ],
)
def test_a_folder_that_holds_no_mixture_is_refused(content, tmp_path):
    write_json(tmp_path / "mixture.json", content)
    with pytest.raises(ValueError, match="holds no mixture; expected"):
        expanded([tmp_path])


def test_mixtures_within_a_list_of_runs_keep_their_shares(tmp_path):
    Mixture((tmp_path / "a", tmp_path / "b"), Weights((0.8, 0.2), (0.0, 1.0))).save(tmp_path)
    found = expanded([tmp_path, tmp_path / "c"])
    assert found.folders == (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert found.weights == Weights((0.4, 0.1, 0.5), (0.0, 0.5, 0.5)) and found.unequal == found.weights
    assert str(found.weights) == "0.4, 0.1, 0.5 for gaps and 0, 0.5, 0.5 for forecasts"
    assert expanded([tmp_path / "c", tmp_path / "d"]).unequal is None
    with pytest.raises(ConfigError, match="named twice"):
        expanded([tmp_path, tmp_path / "b"])


# ---- the commands -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    top, frame = tmp_path_factory.mktemp("pooled"), table(40)
    keys = [*KEYS[2:], "out_of_time=false"]
    for name, of in {"a": KEYS[:2], "b": ["model=linear_sde"], "other": [*KEYS[:2], "data.seed=1"]}.items():
        Forecaster(*of, *keys, folder=top / name).fit(frame)
    for folder in (top / "a", top / "b"):
        factor = 2.0 if folder.name == "a" else 0.5
        Recalibration(("a", "b"), *torch.full((2, 2), factor).double()).save(folder)
    return top


@pytest.mark.slow
def test_predict_and_forecaster_say_the_same_of_several_runs(runs, monkeypatch, capsys):
    table().to_csv(runs / "mine.csv", index=False)
    question = "input=mine.csv output=out.csv horizon=2 every=1 draws=6 paths=6"
    assert call(predict, f"run=a,b {question}", monkeypatch, runs) == 0
    written = pd.read_csv(runs / "out.csv")
    forecaster = Forecaster.load(["a", "b"])
    found = forecaster.predict(table(), horizon=2, every=1, draws=6, paths=6)
    pd.testing.assert_frame_equal(written, found, check_dtype=False, rtol=1e-12)
    one = Forecaster.load("a").predict(table(), horizon=2, every=1, draws=3, paths=3)  # with its own factors
    np.testing.assert_allclose(found[["path_1", "path_3", "path_5"]], one[["path_1", "path_2", "path_3"]])
    plain = forecaster.predict(table(), horizon=2, every=1, draws=6, recalibrate=False)
    np.testing.assert_allclose(found["mean"], plain["mean"])
    assert (np.abs(found["std"] / plain["std"] - 1) > 1e-3).all()
    with pytest.raises(ValueError, match="cannot be fitted"):
        forecaster.fit(table())
    with pytest.raises(ValueError, match="each once"):
        Forecaster.load(["a", "a"])


@pytest.mark.slow
def test_a_folder_of_a_mixture_answers_with_its_weights(runs, monkeypatch, capsys):
    table().to_csv(runs / "mine.csv", index=False)
    Mixture((runs / "a", runs / "b"), Weights((0.75, 0.25), (0.75, 0.25))).save(runs)
    try:
        asked_for = "run=. input=mine.csv output=out.csv horizon=2 every=1 draws=8"
        assert call(predict, asked_for, monkeypatch, runs) == 0
        found = Forecaster.load(runs).predict(table(), horizon=2, every=1, draws=8)
        pd.testing.assert_frame_equal(pd.read_csv(runs / "out.csv"), found, check_dtype=False, rtol=1e-12)
        one, two = (
            Forecaster.load(name).predict(table(), horizon=2, every=1, draws=n, seed=seed)
            for name, n, seed in (("a", 6, 0), ("b", 2, APART))
        )
        np.testing.assert_allclose(found["mean"], 0.75 * one["mean"] + 0.25 * two["mean"])
        assert call(evaluate, "run=. evaluate.samples=2", monkeypatch, runs) == 0
        assert "with the weights 0.75, 0.25" in capsys.readouterr().out
        assert call(sample, "run=.", monkeypatch, runs) == 2
        assert "holds a mixture of runs; name one of them, such as a" in capsys.readouterr().err
    finally:
        (runs / "mixture.json").unlink()


@pytest.mark.slow
def test_evaluate_prints_the_table_of_the_pool_and_leaves_the_runs_alone(runs, monkeypatch, capsys):
    before = {file: file.read_bytes() for file in runs.rglob("*.json")}
    assert call(evaluate, "run=a,b evaluate.samples=2", monkeypatch, runs) == 0
    shown = capsys.readouterr().out
    assert "ensemble 2 runs" in shown and "this model" in shown and "recalibrated" in shown
    pool = load_runs(["a", "b"])
    scored = scores_of(pool.model, pool.data, "test", pool.protocol, pool.config.seed)
    assert f"nll      {scored['test/nll']:.4g} nats a value, all points (exact for this model)" in shown
    assert call(evaluate, "run=a,b recalibrate=false", monkeypatch, runs) == 0
    assert "\n   recalibrated" not in capsys.readouterr().out
    assert before == {file: file.read_bytes() for file in runs.rglob("*.json")}


@pytest.mark.slow
def test_backtests_of_the_pool_are_recalibrated_unless_told_otherwise(runs, monkeypatch, capsys):
    keys = "run=a,b backtest=true backtest.horizon=1 backtest.folds=2 output=values.csv"
    assert call(evaluate, keys, monkeypatch, runs) == 0
    assert "recalibrated" in capsys.readouterr().out
    values = pd.read_csv(runs / "values.csv")
    found = Forecaster.load(["a", "b"]).backtest(horizon=1, folds=2)
    np.testing.assert_allclose(values[["mean", "std", "nll"]], found[["mean", "std", "nll"]])
    assert call(evaluate, f"{keys} recalibrate=false", monkeypatch, runs) == 0
    assert "recalibrated" not in capsys.readouterr().out
    assert (pd.read_csv(runs / "values.csv")["std"] != values["std"]).all()


REFUSED = {
    "run=a,b recalibrate=true": "recalibrate=true fits the factors of one run, and run= names 2",
    "run=a,other": "other was trained with data.seed=1, a with data.seed=0",
    "run=a,b data.seed=1": "data.seed: with several runs it could make training series of one run test series of all",
    "run=a,nowhere": "nowhere is not a run folder",
    "run=a,b evaluate.draws=1": "1 draws are too few for an ensemble of 2 runs",
}


@pytest.mark.slow
@pytest.mark.parametrize("given", REFUSED)
def test_what_several_runs_cannot_be_asked_is_refused(given, runs, monkeypatch, capsys):
    assert call(evaluate, given, monkeypatch, runs) == 2
    assert REFUSED[given] in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_different_splits_can_still_predict_but_not_backtest(runs, monkeypatch):
    monkeypatch.chdir(runs)
    forecaster = Forecaster.load(["a", "other"])
    assert len(forecaster.predict(table(), horizon=1, every=1, draws=4))
    with pytest.raises(ValueError, match=r"other was trained with data\.seed=1"):
        forecaster.backtest(horizon=1)


@pytest.mark.slow
def test_files_of_another_content_are_other_data(runs, monkeypatch):
    monkeypatch.chdir(runs)
    ensemble.check_splits(["a", "b"])  # each holds its own copy of one frame
    kept = (runs / "b" / "data.csv").read_text()
    try:
        (runs / "b" / "data.csv").write_text(kept.replace("s0,", "t0,"))
        with pytest.raises(ValueError, match=r"b was trained with data\.path="):
            ensemble.check_splits(["a", "b"])
    finally:
        (runs / "b" / "data.csv").write_text(kept)
    assert json.loads((runs / "b" / "recalibration.json").read_text())["forecast"]["a"] == 0.5
