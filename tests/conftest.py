"""Shapes in signatures are checked while tests run; small models and batches that many tests share."""

from jaxtyping import install_import_hook

install_import_hook("vrnn_lab", "beartype.beartype")

import os  # noqa: E402 - the hook must be installed before anything it is to check is imported

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402 - the hook must be installed before anything it is to check is imported
import torch  # noqa: E402 - the hook must be installed before anything it is to check is imported

torch.set_num_threads(1)
pytest.register_assert_rewrite("helpers")  # their assertions say as much as those of test files


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a small run that has ended; tests copy it."""
    from helpers.small import trained

    return trained(tmp_path_factory.mktemp("finished") / "run")
