"""Every YAML fits the constructor it builds; what cannot work is refused by name, with the cure."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vrnn_lab
from vrnn_lab import describe
from vrnn_lab.command import arguments
from vrnn_lab.config import CONF, ConfigError, check, compose, groups, job_id, near, options, target
from vrnn_lab.experiment import assemble

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
    (["task=interpolate", "task.seen=1.5"], "share"),
    (["trainer.max_epochs=-1"], "trainer.max_epochs"),
    (["model.head.noise=point", "model.head.fixed=0.3"], "head.noise=channel"),
    (["model.head.fixed=1e-9"], "floor"),
    (["+model.foo=1"], "no such parameter"),
    (["model._target_=os.system"], "refused"),
    (["just_a_word"], "key=value"),
]


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


def test_tricks_compose_and_leave_their_names():
    config = compose(["trick=[big_batch,wide]"])
    assert (config.data.batch_size, config.model.width) == (200, 200)
    assert set(config.tricks) == {"big_batch", "wide"}


def test_the_command_line_outdoes_trick_and_experiment():
    config = compose(["experiment=periodic", "trick=wide", "model.width=7", "trainer.max_epochs=3"])
    assert (config.model.width, config.trainer.max_epochs, config.data.shared_times) == (7, 3, True)


def test_a_job_is_named_after_what_it_does_and_nothing_else():
    names = [job_id(compose(o)) for o in (["sweep=a"], ["sweep=b"], ["trainer=cpu"], ["seed=1"], ["model.width=65"])]
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3


def test_a_target_outside_is_refused_even_if_it_can_be_imported():
    with pytest.raises(ConfigError, match="subclass"):
        target("subprocess.Popen", "model")


def test_a_model_of_ones_own_is_one_file_and_one_yaml(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(
        "from vrnn_lab.checks import Count\nfrom vrnn_lab.models.rnn import RNN\n\n\n"
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
    assert near("adamm", ["adam", "sgd"]) == " Did you mean 'adam'?"
    assert near("zzz", ["adam", "sgd"]) == ""


def test_build_gives_an_untrained_model_and_its_data():
    model, data = vrnn_lab.build(["model=vrnn", "data=periodic", "model.width=8"])
    assert model.width == 8 and data.channels == ("x",)
    assert OmegaConf.is_config(compose([]))


def test_importing_the_package_and_asking_for_help_imports_no_torch():
    code = "import sys, vrnn_lab, vrnn_lab.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_small_commands_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="rnu=x"):
        arguments("usage", ("run",), ["rnu=x"])


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
