"""Series drawn from a model that has seen nothing: what is asked, what is written, what is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from helpers.commands import command
from helpers.linear import linear_vae
from helpers.small import MODELS, model_of, scale_of
from vrnn_lab import sample
from vrnn_lab.models import prior_samples


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_series_over_a_typical_window_are_a_function_of_the_seed(name):
    model = model_of(name)
    if getattr(model, "point_process", False):
        pytest.skip("its times are drawn too")
    one, same, other = (prior_samples.draw(model, 3, seed) for seed in (0, 0, 1))
    assert one.values.shape == one.curve.shape == (3, 11, 2)  # a window of ten usual gaps
    assert one.times[0].tolist() == pytest.approx(np.linspace(100.0, 105.0, 11))
    assert one.there.all() and one.values.isfinite().all()
    assert torch.equal(one.values, same.values)
    assert not torch.equal(one.values, other.values)
    assert not torch.equal(one.values[0], one.values[1])
    more = prior_samples.draw(model, 5, 0)
    torch.testing.assert_close(more.values[:3], one.values, rtol=1e-4, atol=1e-4)  # and more change none of them


def test_draws_have_the_distribution_of_the_prior():
    model, marginal = linear_vae(2)
    values = prior_samples.draw(model, 200, 0, points=20).values.flatten(0, 1)
    assert ((values.mean(0) - marginal.mean).abs() < 0.06 * marginal.stddev).all()
    torch.testing.assert_close(
        values.T.cov() / marginal.covariance_matrix, torch.ones(2, 2).double(), atol=0.1, rtol=0
    )


def test_a_step_model_goes_on_from_its_own_draws():
    model = model_of("rnn", double=True)
    free = prior_samples.draw(model, 2, 0)
    asked = prior_samples.prior_query(model.scale, 2)
    first = torch.arange(11) < 5
    told = replace(asked, values=free.values, seen=asked.seen | first[:, None], scored=asked.scored & ~first[:, None])
    with model.fixed_noise(0):
        torch.testing.assert_close(model.predict(told, 1).density.mean[0, :, 5], free.curve[:, 5])


def test_where_series_are_single_points_so_are_the_draws():
    scale = replace(scale_of(), longest=torch.zeros(()).double())
    asked = prior_samples.prior_query(scale, 4)
    assert asked.times.shape == (4, 1)
    assert torch.equal(asked.window[:, 0], asked.window[:, 1])


def test_dense_series_have_no_more_points_than_the_limit_unless_asked():
    scale = replace(scale_of(), gap=torch.tensor(1e-6).double())
    assert prior_samples.prior_query(scale, 1).times.shape == (1, prior_samples.MOST_POINTS)
    assert prior_samples.prior_query(scale, 1, points=1500).times.shape == (1, 1500)


def test_a_point_process_draws_its_own_times():
    model = model_of("vae")
    model.point_process = True
    times = [torch.tensor(row, dtype=torch.float64) for row in ([101.0, 104.0], [102.0], [])]
    model.draw_times = lambda window, samples: times[:samples]
    draws = prior_samples.draw(model, 3, 0)
    assert draws.there.tolist() == [[True, True], [True, False], [False, False]]
    table = [line.split(",")[:2] for line in sample.csv(draws, ("a", "b")).splitlines()]
    assert table == [["series", "time"], ["0", "101.0"], ["0", "104.0"], ["1", "102.0"]]


def test_the_table_has_a_line_a_point_with_nothing_rounded(tmp_path):
    draws = prior_samples.draw(model_of("vrnn"), 3, 0)
    (tmp_path / "x.csv").write_text(sample.csv(draws, ("a", "b")))
    table = pd.read_csv(tmp_path / "x.csv")
    assert list(table.columns) == ["series", "time", "a", "b"]
    assert table.series.tolist() == np.repeat([0, 1, 2], 11).tolist()
    assert np.array_equal(table.time, draws.times.flatten())
    assert np.array_equal(table[["a", "b"]], draws.values.flatten(0, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    keys = "model=vae data=ou data.train=20 data.val=5 data.test=5 trainer=cpu trainer.max_epochs=1"
    command("run", *keys.split(), "evaluate.samples=2", "evaluate.draws=3", "hydra.run.dir=run", folder=folder)
    return folder / "run"


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_figure_and_the_same_again(run):
    told = command("sample", f"run={run}", "n=4", "points=7", folder=run.parent).stdout
    file = run / "samples" / "samples.csv"
    assert str(file) in told and str(file.with_suffix(".png")) in told
    assert len(pd.read_csv(file)) == 4 * 7
    assert min(imread(file.with_suffix(".png")).shape[:2]) > 200
    command("sample", f"run={run}", "n=4", "points=7", "output=deep/again.csv", folder=run.parent)
    assert (run.parent / "deep" / "again.csv").read_bytes() == file.read_bytes()
    assert {p.name for p in (run / "samples").iterdir()} == {"samples.csv", "samples.png"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=nowhere"], "is not a run folder"),
        (["n=3"], "run=<run folder> is missing"),
        (["run=run", "n=0"], "n=0: expected a whole number from 1"),
        (["run=run", "points=many"], "points=many"),
        (["run=run", "seed=-1"], "seed=-1: expected a whole number from 0"),
        (["run=run", "output=x.txt"], ".csv"),
        (["run=run", "count=3"], "'count=3' is not understood"),
    ],
)
def test_what_cannot_work_is_one_message(arguments, said, monkeypatch, capsys):
    from vrnn_lab.cli.arguments import run_command

    monkeypatch.setattr("sys.argv", ["sample", *arguments])
    assert run_command(sample.main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_help_is_shown_and_nothing_done(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sample", "--help"])
    with pytest.raises(SystemExit) as left:
        sample.main()
    assert left.value.code == 0 and "run=<run folder>" in capsys.readouterr().out
