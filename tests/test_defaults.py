"""Defaults that stand both in conf/ and in Python are equal, but for those that are listed here with their reason."""

import inspect
from fnmatch import fnmatch

import yaml

from vrnn_lab.config.options import CONF
from vrnn_lab.config.plain import nodes
from vrnn_lab.config.validate import target

# A pattern of <file of conf/>:<key>, and why the two differ.
DIFFERENT = {
    "config.yaml:scored": "results are scored on held-out values; a task of training scores all that are known",
    "data/motion.yaml:*": "one class, two data sets: Python's defaults are those of speech",
    "data/speech.yaml:batch_size": "the published protocol",
    "experiment/digits.yaml:*": "an experiment chooses what it is about",
    "labels/none.yaml:weight": "none is a weight of zero",
    "model/*.yaml:level": "auto is resolved where the data set is known",
    "model/latent_ode*.yaml:origin": "auto is resolved where the data set is known",
    "model/latent_ode_poisson.yaml:point_process": "that is what the file chooses",
    "model/head/*_channel.yaml:noise": "that is what the file chooses",
    "model/head/*.yaml:speed": "a head alone learns at the rate of its model",
    "task/*.yaml:*": "a task of a config draws how much it shows; in Python it shows half",
    "trainer/*.yaml:*": "Python's defaults are those of Lightning",
}


def test_a_default_in_conf_is_that_of_python():
    compared, different, used = 0, [], set()
    for file in sorted(CONF.rglob("*.yaml")):
        for _, node in nodes(yaml.safe_load(file.read_text()) or {}):
            if not node["_target_"].startswith("vrnn_lab."):
                continue
            for key, parameter in inspect.signature(target(node["_target_"], str(file))).parameters.items():
                if parameter.default is parameter.empty or key not in node:
                    continue
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                name, compared = f"{file.relative_to(CONF)}:{key}", compared + 1
                if node[key] != default:
                    reasons = {pattern for pattern in DIFFERENT if fnmatch(name, pattern)}
                    used |= reasons
                    different += [] if reasons else [f"{name} is {node[key]}, and {default} in Python"]
    assert compared > 300 and not different
    assert used == {*DIFFERENT}  # none is listed that has become equal
