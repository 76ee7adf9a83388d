"""A compiled training step: the numbers of one that is not, for every model; and what is said where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_run import FAST, command, metrics

from vrnn_lab.compiled import Compiling, trainer
from vrnn_lab.config import ConfigError, check, compose
from vrnn_lab.hardware import check_accelerator


def wrong(*arguments: str) -> str:
    """What differs, of models whose steps are traced in a process of its own."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "compiling.py", *arguments], cwd=here, env=environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr


# Traced, not turned into machine code: that takes minutes.
def test_the_step_of_every_model_is_traced_to_the_same_numbers():
    assert wrong("on", "eager") == ""


def test_so_is_that_of_every_objective():
    assert wrong("on", "eager", "latent_ode:iwae", "vrnn:iwae", "vrnn:fivo") == ""


def test_in_one_piece_too():
    assert wrong("reduce-overhead", "eager", "vae", "rnn", "vrnn", "latent_ode") == ""


def test_compiled_code_gives_the_numbers_but_for_rounding():
    assert wrong("on", "inductor", "vae") == ""
