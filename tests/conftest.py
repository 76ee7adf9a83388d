"""Shapes in signatures are checked while tests run; small models and batches that many tests share."""

from jaxtyping import install_import_hook

install_import_hook("vrnn_lab", "beartype.beartype")

import os  # noqa: E402 - the hook must be installed before anything it is to check is imported
from copy import deepcopy  # noqa: E402 - the hook must be installed before anything it is to check is imported

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402 - the hook must be installed before anything it is to check is imported
import torch  # noqa: E402 - the hook must be installed before anything it is to check is imported

torch.set_num_threads(1)
pytest.register_assert_rewrite("helpers")  # their assertions say as much as those of test files


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Compose each config once in a process: Hydra takes a tenth of a second, and tests ask for the same ones.

    A config with folders of configs besides conf/ is composed each time, since tests write these folders.
    """
    from vrnn_lab.config import compose

    known, kept = {}, compose._composed

    def once(overrides, config_dirs, with_hydra=False):
        if config_dirs:
            return kept(overrides, config_dirs, with_hydra)
        key = (*overrides, with_hydra)
        if key not in known:
            known[key] = kept(overrides, config_dirs, with_hydra)
        return deepcopy(known[key])

    compose._composed = once
    yield
    compose._composed = kept


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a small run that has ended; tests copy it."""
    from helpers.small import trained

    return trained(tmp_path_factory.mktemp("finished") / "run")
