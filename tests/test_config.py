"""Every YAML fits the constructor it builds; what cannot work is refused by name, with the cure."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import vrnn_lab
from helpers.commands import command
from vrnn_lab import describe, run
from vrnn_lab.cli.arguments import arguments
from vrnn_lab.cli.suggestions import did_you_mean
from vrnn_lab.config.compose import compose, composer, job_id, jobs_of
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import CONF, groups, options
from vrnn_lab.config.validate import check, target
from vrnn_lab.runs.build import assemble
from vrnn_lab.runs.folder import record_start
from vrnn_lab.training.fit import _check_same_run

CHOICES = [(group, option) for group in groups() for option in options(group)]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_option_composes_and_fits_its_constructor(group, option):
    # A part of a model is composed with one that has such a part.
    config = compose([f"{group}={option}", *{"model/cell": ["model=rnn"]}.get(group, [])])
    if OmegaConf.is_missing(config.data, "path"):
        config.data.path = "some.file"
    check(config)


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_key_of_an_option_is_explained(group, option):
    """A parameter can be looked up: each line of an option carries a comment, or speaks for itself."""
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    for line in lines:
        key, _, value = line.strip().partition(":")
        plain = key in (
            "seed",
            "val",
            "test",
            "noise",
            "head",
            "momentum",
            "weight_decay",
            "devices",
            "monitor",
            "unit",
        )
        structure = not value.strip() or key.startswith(("_", "-", "#")) or group in ("experiment", "trick")
        assert "#" in line or plain or structure or not line.strip(), f"{group}={option}: {line}"


WRONG = [
    (["model=vrn"], "vrnn"),
    (["modle=vrnn"], "'model'"),
    (["model.widht=3"], "model.width"),
    (["optim.learning_rate=3"], "optim"),
    (["model=rnn", "model.nodes=3"], "belongs to model=latent_ode"),
    (["model=latent_ode", "objective=fivo"], "objective=iwae"),
    (["objective=iwae", "beta=warmup"], "beta=constant"),
    (["labels=learn"], "labels=none"),
    (["trick=[wide,wid]"], "wide"),
    (["model/head=gauss"], "gaussian"),
    (["model=vrnn", "model/cell=ode"], "it belongs to model=gru_d, ode_rnn, rnn"),
    (["model.width=abc"], "a whole number from 1"),
    (["model.width=0"], "a whole number from 1"),
    (["model.width=1.5"], "a whole number from 1"),
    (["model.width=true"], "a whole number from 1"),
    (["model.origin=center"], "row, common"),
    (["model.adjoint=3"], "true or false"),
    (["data=table"], "data.path=..."),
    (["data.batch_size=0"], "a whole number from 1"),
    (["data.start=[100,450]"], "400"),
    (["optim.lr=-1"], "learning rate"),
    (["optim.lr=fast"], "a number"),
    (["schedule.warmup=2"], "between 0.0 and 1.0"),
    (["seed=x"], "a whole number from 0"),
    (["evaluate.samples=0"], "a whole number from 1"),
    (["task=interpolate", "task.unit=row"], "point, value"),
    (["task=interpolate", "task.seen=1.5"], "fraction"),
    (["trainer.max_epochs=-1"], "trainer.max_epochs"),
    (["model.head.noise=point", "model.head.fixed=0.3"], "head.noise=channel"),
    (["model.head.fixed=1e-9"], "floor"),
    (["+model.foo=1"], "no such parameter"),
    (["model._target_=os.system"], "refused"),
    (["just_a_word"], "key=value"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "cure"), WRONG)
def test_what_cannot_work_is_refused_by_name(overrides, cure):
    with pytest.raises(ConfigError) as found:
        assemble(compose(overrides))
    assert cure in str(found.value)
    assert "\n" not in str(found.value)


def test_two_tricks_that_set_one_key_are_an_error(tmp_path):
    (tmp_path / "trick").mkdir()
    (tmp_path / "trick" / "wider.yaml").write_text(
        "# @package _global_\nmodel:\n  width: 300\ntricks:\n  wider: true\n"
    )
    with pytest.raises(ConfigError, match=r"wide.*model\.width"):
        compose(["trick=[wide,wider]"], (str(tmp_path),))


def test_two_tricks_that_choose_in_one_group_are_an_error():
    with pytest.raises(ConfigError, match="'adam' and 'adamw' both set optim"):
        compose(["trick=[adam,adamw]"])
    assert compose(["trick=[adam,lr_schedule]"]).optim.lr == 1e-2  # a key of a group is not the group


def test_tricks_compose_and_leave_their_names():
    config = compose(["trick=[big_batch,wide]"])
    assert (config.data.batch_size, config.model.width) == (200, 200)
    assert set(config.tricks) == {"big_batch", "wide"}


def test_the_command_line_outdoes_trick_and_experiment():
    config = compose(["experiment=periodic", "trick=wide", "model.width=7", "trainer.max_epochs=3"])
    assert (config.model.width, config.trainer.max_epochs, config.data.shared_times) == (7, 3, True)


LADDER = ["big_batch", "wide", "adamw", "lr_schedule", "early_stop"]
RUNGS = [
    *(LADDER[:steps] for steps in range(6)),
    ["big_batch", "wide", "adam"],
    *([trick] for trick in (*LADDER[1:], "adam")),
]


@pytest.mark.slow
def test_the_ladder_is_every_rung_for_every_seed():
    jobs = jobs_of(["experiment=tricks"])
    first = [compose(job) for job in jobs if "seed=0" in job]
    assert sorted(sorted(job.tricks) for job in first) == sorted(map(sorted, RUNGS))
    assert len({job_id(job) for job in first}) == len(RUNGS) == 12
    without = [sorted(o for o in job if not o.startswith("seed=")) for job in jobs]
    assert all(without.count(job) == 5 for job in without) and len({tuple(sorted(job)) for job in jobs}) == 60
    for job in first:
        check(job)
        optim = {"[adam]": "Adam", "[adamw]": "AdamW"}.get(
            f"[{''.join({'adam', 'adamw'} & set(job.tricks))}]", "RMSprop"
        )
        assert job.optim._target_ == f"torch.optim.{optim}"
        assert job.optim.lr == (1e-2 if "lr_schedule" in job.tricks else 1e-3)


GRIDS = [("tricks_batch", ("data.batch_time", "data.batch_size")), ("tricks_depth", ("model.depth", "model.width"))]


@pytest.mark.parametrize(("experiment", "keys"), GRIDS)
def test_the_grids_beside_the_ladder_hold_the_demo_and_every_pair(experiment, keys):
    jobs = jobs_of([f"experiment={experiment}", "seed=0,1,2"])
    demo = compose(["experiment=tricks"])
    assert sum({f"{key}={OmegaConf.select(demo, key)}" for key in keys} < set(job) for job in jobs) == 3
    assert len({tuple(sorted(job)) for job in jobs}) == len(jobs) == 27
    last = compose(jobs[-1])
    check(last)
    assert not last.tricks and {f"{key}={OmegaConf.select(last, key)}" for key in keys} < set(jobs[-1])


def test_what_an_experiment_sweeps_the_command_line_overrides():
    few = jobs_of(["experiment=tricks", "seed=7", "trick=wide,[adam]", "model.width=9"])
    assert sorted(map(sorted, few)) == [
        ["experiment=tricks", "model.width=9", "seed=7", f"trick={trick}"] for trick in ("[adam]", "wide")
    ]
    assert len(jobs_of(["experiment=tricks", "hydra.sweeper.params.trick=none"])) == 5
    assert jobs_of(["model=rnn,vrnn", "model.width=8"]) == [[f"model={m}", "model.width=8"] for m in ("rnn", "vrnn")]


@pytest.mark.parametrize("file", sorted((CONF.parent / "docs" / "claims").glob("*.yaml")), ids=lambda file: file.stem)
def test_both_sides_of_every_claim_are_in_its_sweep(file):
    jobs = jobs_of([f"experiment={file.stem}", "seed=0"])
    for claim in yaml.safe_load(file.read_text()):
        assert set(claim) <= {"claim", "better", "than", "metric", "lower"} and claim["better"] != claim["than"]
        for side in (claim["better"], claim["than"]):
            wanted = set(re.split(r",(?![^\[]*\])", side))  # at commas outside of brackets
            assert sum(wanted < set(job) for job in jobs) == 1, side


def test_a_job_is_named_after_what_it_does_and_nothing_else():
    names = [job_id(compose(o)) for o in (["sweep=a"], ["sweep=b"], ["trainer=cpu"], ["seed=1"], ["model.width=65"])]
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3


def test_a_target_outside_is_refused_even_if_it_can_be_imported():
    with pytest.raises(ConfigError, match="subclass"):
        target("subprocess.Popen", "model")


@pytest.mark.slow
def test_a_model_of_ones_own_is_one_file_and_one_yaml(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(
        "from vrnn_lab.core.types import Count\nfrom vrnn_lab.models.rnn import RNN\n\n\n"
        "class Mine(RNN):\n    def __init__(self, scale, recipe, head, width: Count = 8):\n"
        "        super().__init__(scale, recipe, head, width)\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        "defaults:\n  - head: gaussian\n  - _self_\n\n_target_: my_model.Mine\nwidth: 5\n"
    )
    monkeypatch.delitem(sys.modules, "my_model", raising=False)  # another test has one too
    monkeypatch.syspath_prepend(tmp_path)
    parts = assemble(compose(["model=mine", "data=periodic"], (str(tmp_path),)))
    assert type(parts.model).__name__ == "Mine" and parts.model.width == 5


def test_the_nearest_name_is_suggested():
    assert did_you_mean("adamm", ["adam", "sgd"]) == " Did you mean 'adam'?"
    assert did_you_mean("zzz", ["adam", "sgd"]) == ""


def test_build_gives_an_untrained_model_and_its_data():
    model, data = vrnn_lab.build(["model=vrnn", "data=periodic", "model.width=8"])
    assert model.width == 8 and data.channels == ("x",)
    assert OmegaConf.is_config(compose([]))


def test_importing_the_package_and_asking_for_help_imports_no_torch():
    code = "import sys, vrnn_lab, vrnn_lab.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_lists_every_choice_also_ones_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "model" / "head").mkdir(parents=True)
    for name in ("model/mine", "model/head/my_head"):
        (tmp_path / f"{name}.yaml").write_text("_target_: mine.Mine\n")
    monkeypatch.setattr(sys, "argv", ["run", "--help", "--config-dir", str(tmp_path)])
    before = set(sys.modules)
    assert run.main() == 0 and not {"torch", "hydra"} & (set(sys.modules) - before)
    shown = capsys.readouterr().out
    for group in groups():
        line = next(line for line in shown.splitlines() if line.startswith(f"{group}: "))
        assert set(options(group)) <= set(line.partition(": ")[2].split(", "))
    assert "linear_sde, mine, neural_ode" in shown and "laplace_channel, my_head" in shown
    assert "Examples" in shown and "$" not in shown


def test_small_commands_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match=r"'rnu=x' is not understood.*run, data.<key>. Did you mean 'run'\?"):
        arguments("usage", ("run", "data."), ["rnu=x"])


def test_small_commands_refuse_a_key_with_two_values():
    with pytest.raises(ValueError, match=r"run= is given twice, as a and as b; give it once."):
        arguments("usage", ("run",), ["run=a", "run=b"])
    assert arguments("usage", ("run",), ["run=a", "run=a"]) == {"run": "a"}


@pytest.mark.parametrize("module", ["run", "search"])
def test_a_key_with_two_values_is_refused_before_anything_is_written(module, tmp_path):
    words = ["model=rnn", "optim.lr=1e-3", "+optim.lr=1e-2"]
    done = command(module, *words, folder=tmp_path, check=False, varied=False)
    assert done.returncode == 2 and "optim.lr= is given twice, as 1e-3 and as 1e-2; give it once." in done.stderr
    assert not list(tmp_path.iterdir())


def test_describe_shows_docstring_and_keys(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["describe", "model=vrnn", "optim"])
    assert describe.main() == 0
    shown = capsys.readouterr().out
    assert "Chung" in shown and "latent: 16 # latent dimensions a step" in shown and "adamax" in shown


def test_describe_names_the_nearest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["describe", "modle"])
    with pytest.raises(ConfigError, match="'model'"):
        describe.main()


def test_no_generated_file_is_left_in_conf():
    assert {p.suffix for p in Path(CONF).rglob("*") if p.is_file()} <= {".yaml"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vrnn", "model.width=7", "optim.lr=1e-3", "seed=3"],
        ["trick=[wide,adam]", "model.width=9", "data.start=[1,2]"],
        ["data=table", "data.path='a b,c=d.csv'", "data.values=[x,y]", "data.window=null"],
        ["experiment=tricks", "trainer.max_steps=5", "+trainer.limit_val_batches=2", "~task.until"],
        ["model/head=gmm", "model.head.components=3", "evaluate.forecast.until=0.7", "data=ou"],
    ],
)
def test_many_are_composed_as_each_is(overrides):
    several = composer()
    for seed in (0, 1):
        each = [*overrides, f"evaluate.samples={seed + 5}"]
        assert several(each) == compose(each)


def test_what_is_wrong_is_said_as_well_when_many_are_composed():
    for wrong in (["model.widht=3"], ["model=vrn"], ["trick=[adam,adamw]"], ["a b"]):
        with pytest.raises(ConfigError) as one:
            compose(wrong)
        with pytest.raises(ConfigError) as other:
            composer()(wrong)
        assert str(one.value) == str(other.value)


def test_a_new_key_at_its_default_renames_no_job_and_lets_an_older_run_resume(tmp_path):
    config = compose(["model=rnn", "data=table", "data.path=a.csv"])
    older = copy.deepcopy(config)
    OmegaConf.set_struct(older, False)
    del older["start"], older["trainer"]["max_time"], older["data"]["log"], older["data"]["support"]
    assert job_id(config) == job_id(older)
    for changed in ("trainer.max_time=2m", "data.log=[a]", "data.support=counts"):
        assert job_id(config) != job_id(compose(["model=rnn", "data=table", "data.path=a.csv", changed]))
    record_start(tmp_path, older, [], {})
    _check_same_run(config, tmp_path, resuming=False)
    with pytest.raises(ConfigError, match=r"in which data\.log is None instead of"):
        _check_same_run(compose(["model=rnn", "data=table", "data.path=a.csv", "data.log=[a]"]), tmp_path, False)


@pytest.mark.parametrize("argument", ["retry=???", "start=???", "start=3"])
def test_a_key_without_a_value_is_refused_in_one_message(argument, tmp_path):
    done = command("run", argument, "data=ou", folder=tmp_path, check=False)
    key, _, value = argument.partition("=")
    assert done.returncode == 2 and f"error: {key}={value}: expected" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("key", ["fixed", "start"])
def test_a_whole_number_is_a_number_also_where_the_default_is_none(key):
    noise = "model.head.noise=channel"
    assemble(compose(["model=rnn", "data=ou", "data.train=4", noise, f"model.head.{key}=1"]))
    with pytest.raises(ConfigError, match=f"model.head.{key}='x': expected a number above 0 or null"):
        check(compose(["model=rnn", "data=ou", noise, f"model.head.{key}=x"]))
