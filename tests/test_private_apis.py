"""The private APIs of other libraries that the code uses: each by name, so that an upgrade fails here first."""

import ast
import re
import tempfile
from collections.abc import Iterator
from importlib import import_module

import pytest

from vrnn_lab.config.options import PACKAGE


def attribute(module: str, *names: str) -> object:
    """Return an attribute of a module, or of an object in it; AttributeError where it is gone."""
    found = import_module(module)
    for name in names:
        found = getattr(found, name)
    return found


def of_a_layer(name: str) -> object:
    from torch import nn

    return getattr(nn.Linear(1, 1), name)


def of_a_trainer() -> object:
    from lightning.pytorch import Trainer

    return Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")._checkpoint_connector.dump_checkpoint


def of_a_wandb_logger() -> object:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(offline=True, save_dir=tempfile.mkdtemp())._wandb_init


def of_a_trial() -> object:
    import optuna

    return optuna.create_study().ask()._trial_id, optuna.trial.create_trial(value=0.0)._trial_id


def of_a_job() -> object:
    from hydra.core.utils import JobReturn

    return JobReturn()._return_value


USED = {
    "_internal.core_plugins.basic_sweeper": lambda: attribute(
        "hydra._internal.core_plugins.basic_sweeper", "BasicSweeper"
    ),
    "_utils": lambda: attribute("omegaconf._utils", "get_yaml_loader"),
    "_are_functorch_transforms_active": lambda: attribute("torch._C", "_are_functorch_transforms_active"),
    "_current_level": lambda: attribute("torch.autograd.forward_ad", "_current_level"),
    "_forward_hooks": lambda: of_a_layer("_forward_hooks"),
    "_forward_pre_hooks": lambda: of_a_layer("_forward_pre_hooks"),
    "_backward_hooks": lambda: of_a_layer("_backward_hooks"),
    "_trial_id": of_a_trial,
    "_return_value": of_a_job,
    "_dynamo": lambda: attribute("torch", "_dynamo"),
    "_dynamo.exc": lambda: attribute("torch._dynamo.exc", "TorchDynamoException"),
    "_inductor": lambda: attribute("torch._inductor", "exc"),
    "_inductor.exc": lambda: attribute("torch._inductor.exc", "InvalidCxxCompiler"),
    "_checkpoint_connector": of_a_trainer,
    "_wandb_init": of_a_wandb_logger,
    "_get_file_writer": lambda: attribute("torch.utils.tensorboard", "SummaryWriter", "_get_file_writer"),
}
PUBLIC = {"_exit", "_target_", "_C"}  # os._exit is documented, _target_ is a key of Hydra, _C holds one listed above


def private_names() -> Iterator[str]:
    """Yield what begins with one underscore and no file of ours defines: modules of imports, and attributes."""
    trees = [ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]
    ours = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            ours.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            ours.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            yield f"_{str(node.module).partition('._')[2]}"
        elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr not in ours:
            yield node.attr


@pytest.mark.slow
def test_no_private_api_is_used_that_is_not_listed():
    assert {*private_names()} - PUBLIC == {*USED}


@pytest.mark.parametrize("name", USED)
def test_a_private_api_is_still_there(name):
    assert USED[name]() is not ...
