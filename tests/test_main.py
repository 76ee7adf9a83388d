"""vrnn-lab <command>: one name for all commands."""

import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest

from vrnn_lab import __main__
from vrnn_lab.config.options import PACKAGE


def printed(*words: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a Python module."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_every_command_is_listed():
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__", "forecaster"}
    assert modules == {*__main__.COMMANDS}
    assert all(callable(import_module(f"vrnn_lab.{name}").main) for name in modules)


def test_a_command_does_what_its_module_does():
    assert printed("vrnn_lab", "describe", "model=rnn") == printed("vrnn_lab.describe", "model=rnn")


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_without_a_command_all_are_listed(words, code):
    found, out, _ = printed("vrnn_lab", *words)
    assert found == code and all(name in out for name in __main__.COMMANDS)


def test_an_unknown_command_is_one_message():
    code, _, message = printed("vrnn_lab", "pedict", "a=b")
    assert code == 2 and message.count("\n") == 1 and "Did you mean 'predict'?" in message


def test_the_script_is_installed():
    found = [each.value for each in entry_points(group="console_scripts") if each.name == "vrnn-lab"]
    assert found == ["vrnn_lab.__main__:main"]
