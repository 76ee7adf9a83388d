"""Linear SDEs of every kind, or with the parameters of a process; and batches for them."""

from dataclasses import replace

import torch

from helpers.small import model_of, scale_of
from vrnn_lab.core.series import TimeSeries, series_of
from vrnn_lab.models.linear_state import SPEED

KINDS = {
    "ou": "model.ou=2 model.matern=0 model.oscillators=0",
    "matern": "model.ou=0 model.matern=2 model.oscillators=0",
    "oscillator": "model.ou=0 model.matern=0 model.oscillators=2",
    "periods": "model.ou=0 model.matern=0 model.periods=[1.7]",
    "level": "model.level=constant model.mean=linear",
    "all": "model.level=linear model.mean=linear model.periods=[1.7]",
    "separate": "model.level=linear model.shared=false",
    "full": "model.level=linear model.coupling=full",
}


MIXTURES = {
    "shared": "model.shared=true model.level=none",
    "levels": "model.shared=true model.level=linear model.mean=linear",
    "separate": "model.shared=false model.level=linear",
    "periods": "model.shared=true model.level=constant model.periods=[1.7]",
    "full": "model.level=linear model.coupling=full",
}


def any_model(kind: str, dim: int = 2, seed: int = 3, unit: float = 1.0):
    """A model whose parameters are moved from where they begin; unit: that of times, in usual ones."""
    scale = replace(scale_of(dim, factor=1.0, shift=0.0), whole_series=True)
    scale = replace(scale, **{k: unit * getattr(scale, k) for k in ("clock", "gap", "longest", "start", "reach")})
    return moved(model_of(f"linear_sde {KINDS[kind].replace('[1.7]', f'[{1.7 * unit}]')}", scale, double=True), seed)


def mixture_of(kind: str, dim: int = 2, components: int = 3):
    """A mixture whose parameters are moved from where they begin."""
    scale = replace(scale_of(dim, factor=1.0, shift=0.0), whole_series=True)
    return moved(model_of(f"linear_sde model.components={components} {MIXTURES[kind]}", scale, double=True))


def moved(model, seed: int = 3):
    """The model with its parameters moved at random."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.04 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return model


def any_batch(dim: int = 2, rows: int = 2, time: int = 14) -> TimeSeries:
    """Irregular times before, within and after the window, some of them twice; a third of the values unknown."""
    rng = torch.Generator().manual_seed(1)
    times = 100 + 8 * torch.rand(rows, time, generator=rng, dtype=torch.float64) - 1.5
    times[:, 3], times[:, 4] = times[:, 2], times[:, 2]
    values = torch.randn(rows, time, dim, generator=rng, dtype=torch.float64)
    part = torch.rand(rows, time, dim, generator=rng)
    error = 0.4 * torch.rand(rows, time, dim, generator=rng)
    window = torch.tensor([[100.0, 105.0]]).expand(rows, 2)
    return series_of(times.sort(1).values, values, part < 0.4, part > 0.6, window, error=error)


def set_to(model, **values):
    """Parameters by their names, logarithms given as the numbers themselves."""
    for name, value in values.items():
        parameter = model.get_parameter(name.replace("__", "."))
        value = torch.as_tensor(value).double()
        with torch.no_grad():
            parameter.copy_(value.log() / SPEED if "log_" in name else value / SPEED)


def of_process(data, parts: str):
    """A model of the data set's own units, but for what it must learn, and the exact model's answers."""
    scale = data.scale
    model = model_of(f"linear_sde {parts} model.level=none", scale, double=True)
    return model, scale.std, scale.mean, scale.clock.item()
