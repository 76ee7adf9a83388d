"""A compiled training step: the numbers of one that is not, for every model; and what is said where there is none."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import FAST, command, metrics
from vrnn_lab.config.compose import compose, job_id
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import PACKAGE
from vrnn_lab.config.validate import check
from vrnn_lab.training.compile_step import Compiling, trainer
from vrnn_lab.training.devices import check_accelerator


def differing(*arguments: str) -> str:
    """The models whose compiled steps differ, traced in a process of its own."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "helpers.compiling", *arguments]
    done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


# Traced and run as they are: machine code would take minutes.
@pytest.mark.slow
def test_the_step_of_every_model_is_traced_to_the_same_numbers():
    assert differing("on", "eager") == ""


def test_every_einsum_has_two_operands():
    """torch.einsum asks opt_einsum for an order of three, where that is installed; it cannot be traced."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
        einsums = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "einsum"]
        found += einsums
        assert not [f"{file}:{call.lineno}" for call in einsums if len(call.args) > 3]
    assert len(found) > 10


@pytest.mark.slow
def test_so_is_that_of_every_objective():
    assert differing("on", "eager", "latent_ode:iwae", "vrnn:fivo") == ""


@pytest.mark.slow
def test_for_cuda_graphs_it_is_one_piece():
    assert differing("reduce-overhead", "eager", "vae", "vrnn", "latent_ode") == ""


@pytest.mark.slow
def test_what_is_no_piece_is_an_error_with_the_cure():
    said = differing("reduce-overhead", "eager", "vae:asks")
    assert "ConfigError: trainer.compile=reduce-overhead: the training step of VAE could not be compiled" in said
    assert "Set trainer.compile=off, or trainer.compile=on" in said


@pytest.mark.slow
def test_machine_code_gives_the_numbers_but_for_rounding():
    assert differing("on", "inductor", "vae") == ""


@pytest.mark.slow
def test_without_a_compiler_the_cure_is_named_and_the_run_goes_on_without(tmp_path):
    few = [*FAST, "trainer.max_epochs=1", "hydra.run.dir=run", "trainer.compile=on"]
    none = (
        f"import os; os.environ |= {{'CXX': 'no-compiler', 'TORCHINDUCTOR_CACHE_DIR': {str(tmp_path / 'cache')!r}}}"
    )
    done = command("run", *few, folder=tmp_path, before=none, check=False, fresh=True)
    assert done.returncode == 2 and "no C++ compiler" in done.stderr and "trainer.compile=off" in done.stderr
    assert "Traceback" not in done.stderr
    command("run", "resume=run", "trainer.compile=off", folder=tmp_path)
    assert metrics(tmp_path / "run")["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("value", ["off", "on", "reduce-overhead", "true", "false"])
def test_the_key_is_known_to_every_trainer_and_names_no_other_job(value):
    for option in ("auto", "cpu", "ddp", "debug", "gpu"):
        config = compose([f"trainer={option}", f"trainer.compile={value}"])
        check(config)
        assert job_id(config) == job_id(compose([f"trainer={option}"]))


@pytest.mark.parametrize(("value", "mode"), [("off", []), (False, []), ("on", ["on"]), (True, ["on"])])
def test_a_trainer_compiles_where_it_is_told_to(value, mode):
    made = trainer(compile=value, accelerator="cpu", logger=False, enable_progress_bar=False)
    assert [c.mode for c in made.callbacks if isinstance(c, Compiling)] == mode  # pyright: ignore


def test_what_cannot_be_compiled_is_refused_at_the_door():
    with pytest.raises(ConfigError, match="off, on, reduce-overhead"):
        check(compose(["trainer.compile=always"]))
    with pytest.raises(ConfigError, match=r"CUDA graphs.*trainer.compile=on"):
        check_accelerator(compose(["trainer=cpu", "trainer.compile=reduce-overhead"]))
