"""Pooled models."""

from helpers.small import model_of, scale_of
from vrnn_lab.forecasting.ensemble import Ensemble

NAMES = ["rnn", "linear_sde", "rnn_gmm"]  # densities of two kinds


def pool_of(*names: str, scale=None, weights=None) -> Ensemble:
    scale = scale or scale_of()
    members = [model_of(name, scale, double=True, seed=i) for i, name in enumerate(names or NAMES)]
    return Ensemble(members, [f"runs/{i}" for i in range(len(members))], weights)
