"""What the README shows works as shown."""

import re
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch

import vrnn_lab
from helpers.small import batch_of, density, scale_of
from vrnn_lab import describe
from vrnn_lab.config.compose import compose, jobs_of
from vrnn_lab.config.validate import check
from vrnn_lab.forecaster import Forecaster
from vrnn_lab.runs.build import assemble

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
YOUR_MODEL = (ROOT / "docs" / "your-model.md").read_text()


def block(language: str, word: str, text: str = TEXT) -> str:
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if word in b]
    assert len(found) == 1
    return found[0]


def commands(module: str) -> list[str]:
    """The arguments of every call of a module that the README shows."""
    lines = [line.split("#")[0].split("&&") for line in TEXT.replace("`", "\n").splitlines()]
    calls = [c.strip() for line in lines for c in line if f"python -m vrnn_lab.{module} " in c]
    return [c.split(f"vrnn_lab.{module} ")[1].strip() for c in calls]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [c for c in commands("run") if "resume" not in c and "--" not in c])
def test_every_run_it_shows_composes_and_fits_its_constructors(arguments):
    for overrides in jobs_of([a for a in arguments.split() if a != "-m" and not a.startswith("hydra.")]):
        check(compose(overrides))


@pytest.mark.parametrize("arguments", commands("describe"))
def test_every_description_it_names_exists(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["describe", *arguments.split()])
    assert describe.main() == 0 and capsys.readouterr().out


def test_the_model_in_two_files_is_one(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(block("python", "Climatology", YOUR_MODEL))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "my_model.yaml").write_text(block("yaml", "Climatology", YOUR_MODEL))
    monkeypatch.delitem(sys.modules, "my_model", raising=False)  # another test has one too
    monkeypatch.syspath_prepend(tmp_path)
    model = assemble(compose(["model=my_model", "data=ou"], (str(tmp_path),)), scale_of(2)).model
    batch = density(batch_of())
    with model.fixed_noise(0):
        terms, weights, prediction = model.loss_terms(batch), model.log_weights(batch, 3), model.predict(batch, 3)
    std = (1 + 1e-6) ** 0.5  # exp(0), with the floor
    normal = torch.distributions.Normal(model.data_mean, model.data_std * std)
    expected = -torch.where(batch.scored, normal.log_prob(batch.values), 0).sum((1, 2))
    torch.testing.assert_close(terms.nll.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights[0], -terms.nll)
    assert prediction.paths.shape == (3, *batch.values.shape)


def test_the_forecaster_takes_what_is_shown(monkeypatch):
    monkeypatch.setattr(vrnn_lab, "Forecaster", create_autospec(Forecaster))
    exec(block("python", "Forecaster"), {"vrnn_lab": vrnn_lab, "frame": None})


def test_the_python_lines_run(monkeypatch, tmp_path):
    model, _ = vrnn_lab.build(["model=rnn", "data=ou"])
    monkeypatch.setattr(vrnn_lab, "load", lambda run: (model, None))
    code = block("python", "vrnn_lab.load")
    shown: dict = {}
    exec(code, shown)
    assert shown["model"].predict(shown["batch"], samples=99).paths.shape == (99, 1, 3, 1)
