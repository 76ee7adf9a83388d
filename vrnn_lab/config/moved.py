"""Map class names in run folders of earlier versions to the names of today.

A run folder names the class of each of its parts (`_target_`). Whoever moves or renames such a class adds a line
here; tests/fixtures holds the names of every earlier version, and a run of it.
"""

from typing import Any

MODULES = {  # modules of version 0.1.0, which had one package less
    "vrnn_lab.callbacks": "vrnn_lab.training.callbacks",
    "vrnn_lab.cells": "vrnn_lab.models.cells",
    "vrnn_lab.compiled": "vrnn_lab.training.compile_step",
    "vrnn_lab.data.curves": "vrnn_lab.data.datasets.curves",
    "vrnn_lab.data.digits": "vrnn_lab.data.datasets.digits",
    "vrnn_lab.data.events": "vrnn_lab.data.datasets.events",
    "vrnn_lab.data.hopper": "vrnn_lab.data.datasets.hopper",
    "vrnn_lab.data.human_activity": "vrnn_lab.data.datasets.human_activity",
    "vrnn_lab.data.lgssm": "vrnn_lab.data.datasets.lgssm",
    "vrnn_lab.data.light_curves": "vrnn_lab.data.datasets.light_curves",
    "vrnn_lab.data.mixture": "vrnn_lab.data.datasets.mixture",
    "vrnn_lab.data.ode_demo": "vrnn_lab.data.datasets.ode_demo",
    "vrnn_lab.data.ou": "vrnn_lab.data.datasets.ou",
    "vrnn_lab.data.paleoclimate": "vrnn_lab.data.datasets.paleoclimate",
    "vrnn_lab.data.periodic": "vrnn_lab.data.datasets.periodic",
    "vrnn_lab.data.physionet2012": "vrnn_lab.data.datasets.physionet2012",
    "vrnn_lab.data.polyphonic": "vrnn_lab.data.datasets.polyphonic",
    "vrnn_lab.data.spirals": "vrnn_lab.data.datasets.spirals",
    "vrnn_lab.data.table": "vrnn_lab.data.table.dataset",
    "vrnn_lab.data.uea": "vrnn_lab.data.datasets.uea",
    "vrnn_lab.encoders": "vrnn_lab.models.encoders",
    "vrnn_lab.likelihoods": "vrnn_lab.models.heads",
    "vrnn_lab.metrics": "vrnn_lab.evaluation.evaluate",
    "vrnn_lab.recipe": "vrnn_lab.models.recipe",
    "vrnn_lab.tasks": "vrnn_lab.core.tasks",
}
CLASSES = {  # classes that were also renamed
    "vrnn_lab.metrics.Yardstick": "vrnn_lab.evaluation.evaluate.EvaluationProtocol",
    "vrnn_lab.tasks.Density": "vrnn_lab.core.tasks.DensityTask",
}


def current(node: Any) -> Any:
    """Return a config of any version, as dicts and lists, with the names that its classes have today."""
    return _renamed(node, CLASSES, MODULES)


def first(node: Any) -> Any:
    """Return a config with the names that its classes had at first, so that hashes of it stay equal."""
    return _renamed(node, *({now: before for before, now in names.items()} for names in (CLASSES, MODULES)))


def _renamed(node: Any, classes: dict[str, str], modules: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_renamed(each, classes, modules) for each in node]
    if not isinstance(node, dict):
        return node
    renamed = {key: _renamed(value, classes, modules) for key, value in node.items()}
    if isinstance(target := renamed.get("_target_"), str):
        module, _, name = target.rpartition(".")
        renamed["_target_"] = classes.get(target, f"{modules.get(module, module)}.{name}" if module else target)
    return renamed
