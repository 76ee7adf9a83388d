"""The report: from folders alone, honest numbers, one page."""
# ruff: noqa: F811 - fixtures of another file are parameters here

import csv
import json
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from helpers import accessibility
from helpers.report_runs import ADAM, PNG, RMSPROP, browser, make, said, write_events  # noqa: F401 - fixtures
from vrnn_lab.reports.compare import estimate, holm
from vrnn_lab.reports.curves import curve
from vrnn_lab.reports.data_sets import shortest_tails
from vrnn_lab.reports.runs import find, read

T975 = {1: 12.706204736432095, 2: 4.302652729911275, 3: 3.182446305284263}  # Student's t, from printed tables


def optimisers(top, losses):
    """Runs of {(optimiser, seed): loss}."""
    for (optim, seed), loss in losses.items():
        node = {"adam": ADAM, "rmsprop": RMSPROP}[optim]
        make(top / f"{optim}{seed}", seed, loss, ["optim"], {"optim": optim}, optim=node)
    return top


def table(said, tmp_path, *arguments) -> list[dict[str, str]]:
    """The rows of the CSV."""
    code, _, complaint = said(*arguments, f"output={tmp_path / 'out.csv'}")
    assert code == 0, complaint
    with (tmp_path / "out.csv").open() as file:
        return list(csv.DictReader(file))


# ---- statistics


def test_a_mean_has_the_interval_of_students_t():
    found = estimate([1.0, 2.0, 6.0])
    assert found.mean == 3.0 and found.half == pytest.approx(T975[2] * sqrt(7) / sqrt(3))
    assert estimate([1.0]).half is None and estimate([]) is None


def test_holms_p_values_are_those_of_the_textbook():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]


def test_runs_that_differ_by_seed_alone_are_one_row_with_unrounded_numbers(said, tmp_path):
    top = optimisers(tmp_path / "s", {("adam", 0): 1.0, ("adam", 1): 2.0, ("adam", 2): 6.0, ("rmsprop", 0): 1 / 3})
    make(top / "elsewhere", 3, 7.0, trainer={"accelerator": "cpu", "max_epochs": 5})  # where it ran is no difference
    rmsprop, adam = table(said, tmp_path, top)
    assert rmsprop["name"] == "optim=rmsprop" and adam["name"] == "optim=adam"
    assert float(adam["val/loss"]) == 4.0 and adam["n"] == "4" and rmsprop["best"] == "True"
    half = T975[3] * sqrt(26 / 3) / 2
    assert float(adam["val/loss high"]) == pytest.approx(4 + half) and float(adam["test/nll"]) == 5.0
    assert float(rmsprop["val/loss"]) == 1 / 3 and rmsprop["val/loss low"] == ""


def test_pairs_are_of_the_seeds_that_both_rows_have(said, tmp_path):
    losses = {("adam", 0): 1.0, ("adam", 1): 2.0, ("adam", 2): 3.0, ("adam", 5): 99.0}
    top = optimisers(tmp_path / "s", {**losses, ("rmsprop", 0): 2.0, ("rmsprop", 1): 3.5, ("rmsprop", 2): 4.0})
    row = table(said, tmp_path, top, "baseline=optim=rmsprop")[-1]
    part = lambda name: row[f"val/loss against baseline: {name}"]
    assert row["name"] == "optim=adam" and part("pairs") == "3" and part("verdict") == "better"
    half = T975[2] * sqrt(1 / 12) / sqrt(3)  # differences -1, -1.5, -1
    assert float(part("difference")) == pytest.approx(-7 / 6)
    assert float(part("low")) == pytest.approx(-7 / 6 - half) and float(part("high")) == pytest.approx(-7 / 6 + half)
    assert float(part("ratio")) == pytest.approx((1 / 2 * 2 / 3.5 * 3 / 4) ** (1 / 3))
    t = 7 / 6 * T975[2] / half  # two degrees of freedom: P(|T| > t) = 1 - t / sqrt(2 + t^2)
    assert float(part("p")) == pytest.approx(1 - t / sqrt(2 + t * t)) == float(part("p (Holm)"))


def test_one_pair_decides_nothing_and_accuracy_is_better_when_larger(said, tmp_path):
    for name, values in {"adam": (0.9, 0.8, 0.9), "rmsprop": (0.5, 0.4, 0.6)}.items():
        for seed, value in enumerate(values):
            node = ADAM if name == "adam" else RMSPROP
            more = {"val/labels/accuracy": value}
            make(tmp_path / "s" / f"{name}{seed}", seed, 1.0, ["optim"], {"optim": name}, metrics=more, optim=node)
    rows = table(said, tmp_path, tmp_path / "s", "score=val/labels/accuracy", "baseline=optim=rmsprop")
    assert rows[0]["name"] == "optim=adam" and rows[0]["best"] == "True"
    assert rows[0]["val/labels/accuracy against baseline: verdict"] == "better"
    rows = table(said, tmp_path, tmp_path / "s", "where=seed=0", "baseline=optim=rmsprop")
    assert rows[0]["val/loss against baseline: verdict"] in ("undecided", "")


def test_the_same_config_and_seed_twice_counts_once(said, tmp_path):
    for place, loss in enumerate((1.0, 5.0)):
        make(tmp_path / "s" / str(place), 0, loss)
    make(tmp_path / "s" / "other", 1, 3.0)
    code, out, _ = said(tmp_path / "s")
    assert code == 0 and "1 run is a copy of another" in out
    assert table(said, tmp_path, tmp_path / "s")[0]["n"] == "2"


def test_runs_can_be_repeated_over_other_keys_than_the_seed(said, tmp_path):
    for seed in range(3):
        data = {"_target_": "vrnn_lab.data.datasets.periodic.Periodic", "batch_size": 32, "seed": seed}
        make(tmp_path / "s" / str(seed), seed, 1.0, data=data)
    assert len(table(said, tmp_path, tmp_path / "s")) == 3
    assert len(table(said, tmp_path, tmp_path / "s", "over=data.seed,seed")) == 1
    code, _, complaint = said(tmp_path / "s", "over=data.sed")
    assert code == 2 and "Did you mean 'data.seed'?" in complaint


# ---- names


def test_a_row_is_named_by_what_a_person_would_write(said, tmp_path):
    for optim, node in (("adam", ADAM), ("rmsprop", RMSPROP)):
        for width in (32, 64):
            model = {"_target_": "vrnn_lab.models.rnn.RNN", "width": width}
            typed = ["optim", "model.width"]
            make(tmp_path / "s" / f"{optim}{width}", 0, 1.0, typed, {"optim": optim}, model=model, optim=node)
    names = {row["name"] for row in table(said, tmp_path, tmp_path / "s")}
    assert names == {f"optim={o} model.width={w}" for o in ("adam", "rmsprop") for w in (32, 64)}
    _, out, _ = said(tmp_path / "s")
    line = next(line for line in out.splitlines() if "since optim set them: " in line)
    assert set(line.split(": ")[1].split(", ")) == {"optim.alpha", "optim.betas", "optim.lr"}
    assert "data=periodic" in out and out.count("data=periodic") == 1


def test_a_key_that_no_choice_accounts_for_is_named_though_nobody_typed_it(said, tmp_path):
    for place, lr in enumerate((1e-3, 3e-3)):  # a default that changed between two commits
        make(tmp_path / "s" / str(place), 0, 1.0, optim={**ADAM, "lr": lr})
    assert {row["name"] for row in table(said, tmp_path, tmp_path / "s")} == {"optim.lr=0.001", "optim.lr=0.003"}


def test_tricks_name_a_row_as_a_set_and_what_they_set_is_not_named(said, tmp_path):
    for place, tricks in enumerate(((), ("wide",), ("big_batch", "wide"))):
        model = {"_target_": "vrnn_lab.models.rnn.RNN", "width": 200 if tricks else 64}
        data = {"_target_": "vrnn_lab.data.datasets.periodic.Periodic", "batch_size": 200 if len(tricks) > 1 else 32}
        make(tmp_path / "s" / str(place), 0, 3.0 - place, ["trick"], tricks=tricks, model=model, data=data)
    names = [row["name"] for row in table(said, tmp_path, tmp_path / "s")]
    assert names == ["trick=[big_batch,wide]", "trick=[wide]", "trick=none"]
    for text, count in {"trick=none": 1, "trick=wide": 1, "trick=[wide,big_batch]": 1, "trick!=none": 2}.items():
        assert len(table(said, tmp_path, tmp_path / "s", f"where={text}")) == count


def test_runs_of_before_choices_were_recorded_are_named_by_their_classes(said, tmp_path):
    top = optimisers(tmp_path / "s", {("adam", 0): 1.0, ("rmsprop", 0): 2.0})
    for folder in top.iterdir():
        (folder / ".hydra" / "choices.yaml").unlink()
        (folder / ".hydra" / "overrides.yaml").unlink()
    assert [row["name"] for row in table(said, tmp_path, top)] == ["optim=adam", "optim=rmsprop"]
    assert len(table(said, tmp_path, top, "where=optim=adam")) == 1


def test_runs_of_different_code_are_said_to_be(said, tmp_path):
    for seed in range(2):
        make(tmp_path / "s" / str(seed), seed, 1.0)
        origin = {"code": f"hash{seed}", "data": None, "torch": "2.13.0"}
        (tmp_path / "s" / str(seed) / ".hydra" / "origin.json").write_text(json.dumps(origin))
    _, out, _ = said(tmp_path / "s")
    assert "these runs were not all made with the same code" in out and "version of torch" not in out


def test_rows_on_different_data_are_never_in_one_ranking(said, tmp_path):
    make(tmp_path / "s" / "a", 0, 1.0, ["data"])
    make(tmp_path / "s" / "b", 0, 2.0, ["data"], {"data": "ou"}, data={"_target_": "vrnn_lab.data.datasets.ou.OU"})
    code, out, _ = said(tmp_path / "s")
    assert code == 0 and "2 data sets" in out and "* best" not in out
    assert out.index("data set periodic") < out.index("data set ou")
    for name, data in (("c", "Periodic"), ("d", "OU")):
        choices = {"experiment": name, "data": data}
        make(tmp_path / "e" / name, 0, 1.0, ["experiment"], choices, data={"_target_": f"vrnn_lab.data.{data}"})
    code, out, _ = said(tmp_path / "e")
    assert code == 0 and "experiment=c" in out and "2 data sets" in out and "* best" not in out


@pytest.fixture
def two_tables(tmp_path) -> Path:
    """Runs of two optimisers on each of two tables, with baselines; scores on the second table are lower."""
    for path, level in (("a.csv", 5.0), ("b.csv", 1.0)):
        for place, (optim, node) in enumerate((("adam", ADAM), ("rmsprop", RMSPROP))):
            key = lambda row, score: f"reference/{row}/forecast/{score}"
            found = {
                key("blend", "crps"): level + 2,
                key("drift", "crps"): level + 0.5,
                key("drift", "mse"): level / 3,
            }
            found |= {key("drift", "coverage_90"): 0.875, "test/forecast/coverage_90": 0.75}
            data = {"_target_": "vrnn_lab.data.table.dataset.Table", "path": f"/long/way/to/{path}"}
            choices, typed = {"data": "table", "optim": optim}, ["data", "data.path", "optim"]
            folder = tmp_path / "s" / path[0] / optim
            make(folder, 0, level + place, typed, choices, metrics=found, data=data, optim=node)
    return tmp_path / "s"


def test_each_data_set_has_a_ranking_of_its_own_with_rows_named_by_folder(said, two_tables, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = said(two_tables, f"output={tmp_path / 'r.md'},{tmp_path / 'r.tex'}")
    one, two = out.split("data set table path=a.csv\n")[1].split("data set table path=b.csv\n")
    assert code == 0 and "a/adam *" in one and "a/rmsprop" in one and "b/" not in one
    assert "b/adam *" in two and "b/rmsprop" in two and "a/" not in two.split("data sets:")[0]
    assert "/long/way" not in out and "test/\n" not in out and "* best val/loss of its data set" in out
    assert out.startswith("data=table model=rnn\ndata set table path=a.csv\n")
    rows = [line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("|")]
    assert "| **a/adam \\*** | **optim=adam** | **1** | **5** |" in "\n".join(rows)
    assert "test/forecast/90 % coverage" in rows[0]
    assert (tmp_path / "r.tex").read_text().count(r"\begin{tabular}") == 4


def test_the_csv_tells_data_sets_apart_and_keeps_baselines_in_a_file_of_their_own(said, two_tables, tmp_path):
    rows = table(said, tmp_path, two_tables)
    assert [(row["data set"], row["folder"], row["best"]) for row in rows] == [
        ("table path=a.csv", "a/adam", "True"),
        ("table path=a.csv", "a/rmsprop", "False"),
        ("table path=b.csv", "b/adam", "True"),
        ("table path=b.csv", "b/rmsprop", "False"),
    ]
    with (tmp_path / "out.baselines.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["data set"], row["baseline"], row["key"]) for row in found] == [
        ("table path=a.csv", "drift", "reference/drift/forecast"),
        ("table path=a.csv", "half last + half mean", "reference/blend/forecast"),
        ("table path=b.csv", "drift", "reference/drift/forecast"),
        ("table path=b.csv", "half last + half mean", "reference/blend/forecast"),
    ]
    assert float(found[2]["mse"]) == 1 / 3 and found[2]["mse n"] == "2" and found[3]["mse"] == ""
    assert float(found[0]["coverage_90"]) == 0.875


def test_runs_without_baselines_write_no_file_of_them(said, tmp_path):
    table(said, tmp_path, optimisers(tmp_path / "s", {("adam", 0): 1.0}))
    assert not (tmp_path / "out.baselines.csv").exists()


def test_a_comparison_is_within_the_data_set_of_its_baseline(said, two_tables, tmp_path):
    rows = table(said, tmp_path, two_tables, "baseline=optim=adam data.path=/long/way/to/a.csv")
    differences = [row["val/loss against baseline: difference"] for row in rows]
    assert differences == ["", "1.0", "", ""]


def test_a_folder_is_named_by_its_shortest_distinct_tail():
    paths = [Path(each) for each in ("/x/a/seed0", "/x/b/seed0", "/y/b/seed0", "/x/c", "/c")]
    assert list(shortest_tails(paths).values()) == ["a/seed0", "x/b/seed0", "y/b/seed0", "x/c", "/c"]


def test_the_seed_of_a_data_set_and_the_size_of_batches_make_no_other_one(said, tmp_path):
    for seed in range(2):
        data = {"_target_": "vrnn_lab.data.datasets.periodic.Periodic", "batch_size": 32 * (1 + seed), "seed": seed}
        make(tmp_path / "s" / str(seed), seed, 1.0 + seed, data=data)
    rows = table(said, tmp_path, tmp_path / "s")
    assert [row["data set"] for row in rows] == ["periodic", "periodic"] and rows[0]["best"] == "True"


# ---- what is there


def test_failed_running_and_interrupted_runs_are_counted_beside_the_completed(said, tmp_path):
    top = tmp_path / "s"
    make(top / "0", 0, 1.0)
    make(top / "1", 1, error="NotFiniteError: [bold]nan[/bold]")
    make(top / "2", 2)
    make(top / "3", 3)
    with FileLock(top / "2" / ".lock"):
        code, out, _ = said(top)
    assert code == 0 and "1 of 4, 1 failed, 1 running, 1 interrupted" in out
    assert "NotFiniteError: [bold]nan[/bold]" in out
    with FileLock(top / "3" / ".lock", timeout=0):  # looking left no lock behind
        assert read(top / "3").status == "running"
    rows = table(said, tmp_path, top, "where=status=failed", "runs=true")
    assert rows[0]["failed"] == "1" and rows[0]["val/loss"] == ""
    assert "NotFiniteError" in (tmp_path / "out.runs.csv").read_text()


def test_a_sweep_of_which_nothing_is_completed_and_an_empty_folder_are_no_errors(said, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, _ = said(tmp_path / "empty", f"output={tmp_path / 'e.html'},{tmp_path / 'e.csv'},{tmp_path / 'e.md'}")
    assert code == 0 and "no runs in" in out
    make(tmp_path / "s" / "0", 0)
    code, out, _ = said(tmp_path / "s", f"output={tmp_path / 's.html'}", "columns=test/nll")
    assert code == 0 and "0 of 1, 1 interrupted" in out


def test_broken_folders_are_named_and_left_out(said, tmp_path):
    top = tmp_path / "s"
    make(top / "good", 0, 1.0)
    for name, text in {"half": "model: {width: [", "nothing": "", "list": "[1, 2]", "binary": "\x00\x01"}.items():
        (make(top / name, 1) / ".hydra" / "config.yaml").write_text(text)
    (make(top / "cut", 1) / "metrics.json").write_text('{"status": "comp')
    (make(top / "words", 1) / "metrics.json").write_text('"words"')
    (make(top / "choices", 1) / ".hydra" / "choices.yaml").write_text("a: [")
    (make(top / "latin", 1) / ".hydra" / "config.yaml").write_bytes(b"name: \xff\xfe")
    (make(top / "typed", 1) / ".hydra" / "overrides.yaml").write_text("7")
    (make(top / "tricks", 1, 1.0) / ".hydra" / "config.yaml").write_text("tricks: 5\nseed: 1")
    code, out, complaint = said(top)
    assert code == 0 and "val/loss" in out
    for name in ("half", "nothing", "list", "binary", "cut", "words", "choices", "latin", "typed"):
        assert f"{top / name} is left out" in complaint


def test_a_metric_that_is_no_finite_number_is_shown_as_such_and_is_never_best(said, tmp_path):
    top = optimisers(tmp_path / "s", {("adam", 0): float("nan"), ("adam", 1): 1.0, ("rmsprop", 0): 5.0})
    rows = table(said, tmp_path, top, f"output={tmp_path / 'n.html'}", "baseline=optim=rmsprop")
    assert [row["name"] for row in rows] == ["optim=rmsprop", "optim=adam"] and rows[1]["val/loss"] == "nan"
    assert rows[0]["best"] == "True" and rows[1]["val/loss against baseline: pairs"] == "0"


def test_a_folder_is_read_once_however_often_it_is_named(tmp_path):
    make(tmp_path / "s" / "0", 0, 1.0)
    assert len(find([tmp_path, tmp_path / "s", tmp_path / "s" / "0"])) == 1


def test_a_report_imports_nothing_heavy(tmp_path):
    top = optimisers(tmp_path / "s", {("adam", 0): 1.0, ("adam", 1): 2.0, ("rmsprop", 0): 1.0})
    code = (
        f"import sys; sys.argv = ['x', {str(top)!r}, 'output={tmp_path}/x.html,{tmp_path}/x.tex']\n"
        "from vrnn_lab import report\nassert report.main() == 0\n"
        "heavy = {'torch', 'lightning', 'pandas', 'matplotlib', 'tensorboard', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- what is asked


WRONG = {
    "where=optm=adam": "Did you mean 'optim'?",
    "where=optim.lr>much": "compares numbers",
    "where=optim": "expected <key>=<value>",
    "where=test/nll<1": "test metrics must not choose runs",
    "score=test/nll": "choose by a val/ metric such as val/nll",
    "score=val/nl": "Did you mean 'val/nll'?",
    "columns=test/nl": "Did you mean 'test/nll'?",
    "sort=optm": "Did you mean 'optim'?",
    "baseline=optim=sgd": "optim is adam, rmsprop",
    "baseline=seed=0": "matches 2 rows",
    "metric=test/nll": "add baseline=",
    "output=report.pdf": "expected a name that ends in",
    "output=nowhere/report.md": "there is no folder",
    "figures=3": "add output=report.html",
    "figures=some": "expected true or false",
    "runs=maybe": "expected true or false",
    "colums=test/nll": "Did you mean 'columns'?",
    "score=": "has no value",
    "nowhere": "there is no such folder",
    "claims=none.yaml": "there is no such file",
}


@pytest.mark.parametrize("argument", WRONG)
def test_what_cannot_be_answered_is_said_in_one_line(argument, said, tmp_path):
    top = optimisers(tmp_path / "s", {("adam", 0): 1.0, ("rmsprop", 0): 2.0})
    code, _, complaint = said(top, argument)
    assert code == 2 and WRONG[argument] in complaint and complaint.count("\n") == 1


FILTERS = {
    ("schedule=off",): 3,
    ("optim=adam",): 2,
    ("model.width>=32", "optim=adam"): 1,
    ("model.width>=32,optim=adam",): 1,
    ("model.width<32",): 1,
    ("optim.lr=1e-3",): 1,
    ("optim.betas=[0.9,0.999],model.width!=16",): 1,
    ("val/loss<=2",): 2,
    ("model/width=16",): 0,
    ("optim=sgd",): 0,
}


@pytest.mark.parametrize("where", FILTERS)
def test_filters_keep_what_they_say(where, said, tmp_path):
    for place, (optim, width) in enumerate((("adam", 16), ("adam", 32), ("rmsprop", 64))):
        node = ADAM if optim == "adam" else RMSPROP
        model = {"_target_": "vrnn_lab.models.rnn.RNN", "width": width}
        make(tmp_path / "s" / str(place), 0, 1.0 + place, ["optim"], {"optim": optim}, model=model, optim=node)
    code, out, complaint = said(tmp_path / "s", *(f"where={each}" for each in where))
    if where == ("model/width=16",):
        assert code == 2 and "Did you mean 'model.width'?" in complaint
    elif FILTERS[where] == 0:
        assert code == 0 and "none of 3 runs matches" in out and "optim is adam, rmsprop" in out
    else:
        assert len(table(said, tmp_path, tmp_path / "s", *(f"where={w}" for w in where))) == FILTERS[where]


def test_rows_are_sorted_as_asked_and_those_without_a_value_come_last(said, tmp_path):
    for width, loss in ((16, 3.0), (128, 1.0), (64, None)):
        model = {"_target_": "vrnn_lab.models.rnn.RNN", "width": width}
        make(tmp_path / "s" / str(width), 0, loss, ["model.width"], model=model)
    order = lambda *sort: [int(row["model.width"]) for row in table(said, tmp_path, tmp_path / "s", *sort)]
    assert order() == [128, 16, 64] and order("sort=-val/loss") == [16, 128, 64]
    assert order("sort=model.width") == [16, 64, 128] and order("sort=-model.width") == [128, 64, 16]


def test_a_narrow_terminal_cuts_no_number(said, tmp_path, monkeypatch):
    top = optimisers(tmp_path / "s", {(o, s): 1.23456789 + s for o in ("adam", "rmsprop") for s in range(3)})
    monkeypatch.setenv("COLUMNS", "50")
    code, out, _ = said(top, "baseline=optim=adam")
    assert code == 0 and all(len(line) <= 50 for line in out.splitlines() if line.startswith(" optim="))
    assert out.count("2.235 ± 2.5") == 2 and "a width of 50 has no room for" in out and "undecided" in out


def test_claims_hold_or_do_not_or_are_undecided(said, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    losses = {("adam", s): 1.0 + s for s in range(3)} | {("rmsprop", s): 2.0 + 1.1 * s for s in range(3)}
    top = optimisers(tmp_path / "s", losses)
    claims = [
        {"claim": "Adam is better", "better": "optim=adam", "than": ["optim=rmsprop", "seed>=0"]},
        {"claim": "RMSprop is better", "better": "optim=rmsprop", "than": "optim=adam", "metric": "test/nll"},
        {"claim": "more is more", "better": "optim=rmsprop", "than": "optim=adam", "lower": False},
        {"claim": "SGD is best", "better": "optim=sgd", "than": "optim=adam"},
    ]
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(claims))
    code, out, _ = said(top, f"claims={tmp_path / 'claims.yaml'}", f"output={tmp_path / 'c.md'}", "where=optim=adam")
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert code == 0 and "  holds  " in lines["Adam is better"] and "  holds  " in lines["more is more"]
    assert "does not hold" in lines["RMSprop is better"] and "test/nll" in lines["RMSprop is better"]
    assert "undecided" in lines["SGD is best"] and "optim is adam, rmsprop" in lines["SGD is best"]
    text = (tmp_path / "c.md").read_text()
    assert "| 3 | val/loss | optim=adam less optim=rmsprop, seed&gt;=0 |" in text
    (tmp_path / "claims.yaml").write_text(
        yaml.safe_dump([{"claim": "x", "beter": "optim=adam", "than": "optim=adam"}])
    )
    code, _, complaint = said(top, f"claims={tmp_path / 'claims.yaml'}")
    assert code == 2 and "claim 1" in complaint and "beter" in complaint


def test_markdown_and_latex_hold_any_name(said, tmp_path):
    for place, path in enumerate(("a|b_c*.csv", "50%_{x}&#~^\\<i>.csv")):
        model = {"_target_": "vrnn_lab.models.rnn.RNN", "path": path}
        make(tmp_path / "s" / str(place), 0, 1.0 + place, ["model.path"], model=model)
    code, _, _ = said(tmp_path / "s", f"output={tmp_path / 'r.md'},{tmp_path / 'r.tex'}")
    text, tex = (tmp_path / "r.md").read_text(), (tmp_path / "r.tex").read_text()
    assert code == 0 and "a\\|b\\_c\\*.csv" in text and "&lt;i&gt;" in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert r"50\%\_\{x\}\&\#\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}i\textgreater{}" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1


# ---- curves and the page


def test_a_curve_is_what_tensorboard_was_told(tmp_path):
    write_events(tmp_path, [(1, 4.0), (200, 3.0), (70000, 2.5)])
    assert curve(tmp_path, "val/loss") == [(1, 4.0), (200, 3.0), (70000, 2.5)]
    assert curve(tmp_path, "val/los") == []
    write_events(tmp_path, [(200, 2.75), (300, 2.0)], name="events.out.tfevents.2.x.1.0")
    assert dict(curve(tmp_path, "val/loss"))[200] == 2.75
    write_events(tmp_path, [(70000, 9.0)], other="fit/seconds", name="events.out.tfevents.3.x.1.0")
    assert curve(tmp_path, "val/loss")[-1] == (70000, 2.5)  # what follows the fit is of the best checkpoint
    file = tmp_path / "events.out.tfevents.1.x.1.0"
    file.write_bytes(file.read_bytes()[:-9])  # at work: the last record is half there
    assert 70000 not in dict(curve(tmp_path, "val/loss"))


def test_a_long_curve_is_thinned_and_keeps_its_end(tmp_path):
    write_events(tmp_path, [(step, float(step)) for step in range(1, 1002)])
    found = curve(tmp_path, "val/loss")
    assert len(found) <= 201 and found[0] == (1, 1.0) and found[-1] == (1001, 1001.0)


@pytest.fixture
def shown(said, tmp_path) -> Path:
    """A page of two rows of three seeds, one failed run with a hostile error, figures and curves."""
    top = optimisers(tmp_path / "s", {(o, s): 1.0 + s + (o == "adam") for o in ("adam", "rmsprop") for s in range(3)})
    hostile = "</script><script>document.title='owned'</script><img src=http://example.org/x>"
    make(top / "<b>bad", 3, typed=["optim"], choices={"optim": "rmsprop"}, error=hostile, optim=RMSPROP)
    for folder in top.glob("[ar]*"):
        write_events(folder, [(10, 5.0), (20, 2.0)])
        (folder / "figures").mkdir()
        (folder / "figures" / "forecast.png").write_bytes(PNG)
    code, _, complaint = said(top, f"output={tmp_path / 'page.html'}", "baseline=optim=adam")
    assert code == 0, complaint
    return tmp_path / "page.html"


def test_the_page_holds_as_many_figures_as_asked(said, shown, tmp_path):
    count = lambda: json.loads(shown.read_text().split('id="data">')[1].split("</script>")[0])
    figures = lambda: sum(len(run["figures"]) for run in count()["runs"])
    assert figures() == 6
    said(tmp_path / "s", f"output={shown}", "figures=2")
    assert figures() == 2 and any("figures of 4 runs are left out of this page" in note for note in count()["notes"])
    said(tmp_path / "s", f"output={shown}", "figures=false")
    assert figures() == 0


@pytest.mark.slow
def test_the_page_works_in_a_browser_without_network(shown, browser):
    page = browser.new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(shown.as_uri())
    rows = lambda: page.locator("tr.row .name button").all_inner_texts()
    assert rows() == ["rmsprop", "adam"] and page.title() == "s: comparison of runs"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert accessibility.faults(page) == []
    page.locator("thead button").nth(2).click()
    page.locator("thead button").nth(2).click()
    assert rows() == ["adam", "rmsprop"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    for view, mark in (("parallel", "path"), ("scatter", "circle"), ("curves", "path")):
        assert page.locator(f"#{view} {mark}.mark").count() == 6
    page.locator("tr.row", has_text="rmsprop").click()
    figure = page.locator("figure img")
    assert figure.count() == 1 and figure.evaluate("image => image.complete && image.naturalWidth") == 1
    page.locator(".mini tr", has_text="failed").click()
    assert "document.title='owned'" in page.locator("pre").inner_text() and page.title() == "s: comparison of runs"
    page.select_option("#x", "fit/seconds")
    page.locator("#scatter circle.mark").first.hover()
    assert "val/loss" in page.locator("#tip").inner_text()
    page.locator("#curves path.mark").first.dispatch_event("click")
    assert page.locator("tr.open").count() == 1
    page.locator("#parallel").scroll_into_view_if_needed()
    axis = page.locator("#parallel .catch").last.bounding_box()
    page.mouse.move(axis["x"] + 5, axis["y"] + axis["height"] - 2)
    page.mouse.down()
    page.mouse.move(axis["x"] + 5, axis["y"] + axis["height"] * 0.6)
    page.mouse.up()
    assert 0 < page.locator("#parallel .dim").count() < 6
    page.fill("#filter", "rms fail")
    assert rows() == ["rmsprop"] and page.locator("#scatter circle.mark").count() == 3
    assert not messages and all(url.startswith(("file:", "data:")) for url in requests)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_page_of_nothing_or_of_one_row_stands(rows, said, tmp_path, browser):
    (tmp_path / "s").mkdir()
    for place in range(rows):
        make(tmp_path / "s" / str(place), place)
    said(tmp_path / "s", f"output={tmp_path / 'page.html'}")
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("tr.row").count() == rows and not errors


# ---- what people type


def test_the_name_of_a_row_is_a_filter(said, tmp_path):
    for optim, node in (("adam", ADAM), ("rmsprop", RMSPROP)):
        for width in (8, 16):
            for seed in (0, 1):
                name, typed = f"{optim}{width}{seed}", ["optim", "model.width"]
                make(
                    tmp_path / "s" / name,
                    seed,
                    1.0 + width + seed,
                    typed,
                    {"optim": optim},
                    optim=node,
                    model={"width": width},
                )
    code, _, err = said(tmp_path / "s", "baseline=optim=adam")
    assert code == 2 and "optim=adam model.width=8" in err
    code, out, _ = said(tmp_path / "s", "baseline=optim=adam model.width=8")
    assert code == 0 and "each row less optim=adam model.width=8" in out


def test_a_claim_about_a_metric_that_no_run_has_is_undecided(said, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    top = optimisers(tmp_path / "s", {("adam", 0): 1.0, ("rmsprop", 0): 2.0})
    claim = {"claim": "Adam is fast", "better": "optim=adam", "than": "optim=rmsprop", "metric": "fit/speed"}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([claim]))
    code, out, _ = said(top, f"claims={tmp_path / 'claims.yaml'}")
    assert code == 0 and "undecided" in out and "no completed run has a metric fit/speed" in out


def test_a_row_without_results_is_no_comparison_and_the_score_no_second_column(said, tmp_path):
    top = optimisers(
        tmp_path / "s", {("adam", s): 1.0 + s for s in range(2)} | {("rmsprop", s): 2.0 for s in range(2)}
    )
    for folder in top.glob("rmsprop*"):
        (folder / "metrics.json").write_text('{"status": "failed", "error": "no memory"}')
    code, out, _ = said(top, "baseline=optim=adam", "columns=val/loss")
    assert code == 0 and "comparisons at 95" not in out and out.count("val/loss ") <= 3


def test_a_verdict_knows_which_way_is_better_or_is_refused(tmp_path, said):
    more = {"test/events/ks_p": 0.5, "fit/steps_per_second": 9.0, "test/forecast/coverage_90": 0.9}
    less = {"test/events/ks_p": 0.1, "fit/steps_per_second": 3.0, "test/forecast/coverage_90": 0.8}
    for seed in (0, 1, 2):
        make(
            tmp_path / f"a{seed}",
            seed,
            1,
            ["optim"],
            {"optim": "adam"},
            metrics={k: v + seed / 99 for k, v in more.items()},
        )
        make(tmp_path / f"r{seed}", seed, 1, ["optim"], {"optim": "rmsprop"}, optim=RMSPROP, metrics=less)
    for metric in ("test/events/ks_p", "fit/steps_per_second"):
        _, out, _ = said(tmp_path, "baseline=optim=rmsprop", f"metric={metric}")
        assert " better" in out and " worse" not in out
    code, _, complaint = said(tmp_path, "baseline=optim=rmsprop", "metric=test/forecast/coverage_90")
    assert code == 2 and "neither a lower nor a higher coverage" in complaint


def test_baselines_stand_below_the_rows_of_their_data_set_best_crps_first(said, two_tables, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    code, out, _ = said(two_tables, f"output={tmp_path / 'r.md'},{tmp_path / 'r.tex'}")
    heading = "data set table path={}: baselines on test, best CRPS first"
    one, two = out.split(heading.format("a.csv"))[1].split(heading.format("b.csv"))
    assert code == 0 and "5.5" in one and "1.5" in two and "0.875" in one and "90 % coverage" in one
    for part in (one.split("data set")[0], two):
        assert part.index("drift") < part.index("half last + half mean")
    assert all("half last + half mean" in (tmp_path / f"r.{ending}").read_text() for ending in ("md", "tex"))


def test_the_page_groups_rows_by_data_set_and_holds_the_baselines(said, two_tables, tmp_path, browser):
    said(two_tables, f"output={tmp_path / 'page.html'}")
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    lines = lambda: [line.split("\t")[0] for line in page.locator("#rows tbody tr").all_inner_texts()]
    tables = ("data set table path=a.csv", "data set table path=b.csv")
    assert lines() == [tables[0], "a/adambest", "a/rmsprop", tables[1], "b/adambest", "b/rmsprop"]
    page.locator("#rows thead button", has_text="loss").click()
    page.locator("#rows thead button", has_text="loss").click()
    assert lines() == [tables[0], "a/rmsprop", "a/adambest", tables[1], "b/rmsprop", "b/adambest"]
    assert page.locator("#rows thead").inner_text().count("90 % coverage") == 1
    baselines = page.locator("#baselines").inner_text()
    one, two = baselines.split(tables[0])[1].split(tables[1])
    assert "half last + half mean\tforecast\t7" in one and "drift\tforecast\t1.5\t0.3333\t0.875" in two
    assert page.locator("#scatter circle.mark").count() == 2 and "best 5" in page.locator("#legend").inner_text()
    page.select_option("#set select", label="table path=b.csv")
    assert page.locator("#scatter circle.mark").count() == 2 and "best 1" in page.locator("#legend").inner_text()
    page.fill("#filter", "a.csv adam")
    assert lines() == [tables[0], "a/adambest"] and not errors
