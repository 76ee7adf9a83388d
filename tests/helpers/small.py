"""Small models, scales and batches for tests."""

import contextlib
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

from vrnn_lab.config.compose import compose
from vrnn_lab.config.options import options
from vrnn_lab.config.validate import check, instantiate
from vrnn_lab.core.series import Scale, TimeSeries, series_of
from vrnn_lab.models.recipe import ConstantBeta, Recipe, cosine

# A file of conf/model, and what is chosen beside it.
MODELS = [
    *options("model"),
    "latent_ode model/encoder=ode_rnn",
    "latent_ode model/head=gmm",
    "latent_ode model.levels=2",
    "latent_ode model.level=linear",
    "latent_sde model.level=linear",
    "linear_sde model.level=linear model.mean=linear model.shared=false",
    "linear_sde model.level=linear model.coupling=full",
    "linear_sde model.components=3",
    "linear_sde model.components=2 model.shared=false model.level=linear",
    "linear_sde model/head=laplace_channel",
    "linear_sde model/head=gaussian model.decoder_depth=1 model.shared=false",
    "rnn_vae model.level=linear",
    "rnn model.level=last",
    "gru_d model.level=last",
    "vrnn model.level=last",
    "latent_ode model.origin=middle",
    "vrnn model.prior=standard",
    "vrnn model.prior=markov model.posterior=smooth",
    "vrnn model.posterior=smooth model.residual=true",
    "vrnn model.posterior=smooth",
]
SMALL = {"width": 12, "latent": 3, "encoder_width": 12, "decoder_width": 12, "nodes": 6}


# A run of a second or two.
RUN = ["model=rnn", "model.width=8", "data=ou", "data.train=40", "data.val=30", "data.test=10", "data.batch_size=10"]
RUN += ["trainer=cpu", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "evaluate.draws=5"]


# Lightning's advice to those who fit into a folder that holds files.
IN_PROCESS = pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty.*", "ignore:.*smaller than the logging interval.*"
)


def trained(folder: Path, *overrides: str) -> Path:
    """The folder of a small run, finished."""
    from vrnn_lab.training import fit as fitting  # not for tests that need no run

    chosen = [*RUN, *overrides]
    with warnings.catch_warnings(), unchecked():  # the shapes of fits are checked where fits are tested
        warnings.simplefilter("ignore")  # Lightning's advice
        fitting.run(compose(chosen), folder, chosen)
    return folder


def scale_of(dim: int = 2, support: str = "real", factor: float = 3.0, shift: float = -7.0, clock: float = 5.0):
    """A training scale with nothing about it zero or one, unless asked."""
    number = lambda x: torch.tensor(x, dtype=torch.float64)
    names = tuple("abcdefgh"[:dim])
    mean = shift + torch.arange(dim, dtype=torch.float64)
    std = factor * (1 + torch.arange(dim, dtype=torch.float64))
    return Scale(
        names, support, mean, std, number(clock), number(clock / 10), number(clock), number(100.0), number(clock)
    )


def recipe_of(lr: float = 5e-3) -> Recipe:
    return Recipe(partial(torch.optim.Adam, lr=lr), cosine, ConstantBeta())


def model_of(name: str, scale: Scale | None = None, double: bool = False, seed: int = 0, recipe=None, **keys):
    """A small model of conf/model/<name>.yaml; further overrides may follow its name."""
    node = compose(f"model={name}".split()).model
    for key, value in {**{k: v for k, v in SMALL.items() if k in node}, **keys}.items():
        node[key] = value
    check({"model": node})
    torch.manual_seed(seed)
    model = instantiate(node, "model", scale=scale or scale_of(), recipe=recipe or recipe_of())
    if isinstance(getattr(model.head, "log_std", None), torch.nn.Parameter):
        # Any start obeys the laws; from this one a grid of a quarter of a std can check an integral.
        torch.nn.init.constant_(model.head.log_std, -0.7 / model.head.speed)
    if getattr(model, "lines", None) is not None:  # nor is much of it then beyond the grid's ends
        torch.nn.init.constant_(model.lines.log_level, -1.0)
    return model.double() if double else model


def batch_of(rows: int = 5, time: int = 8, dim: int = 2, seed: int = 1, scale: Scale | None = None) -> TimeSeries:
    """Random series in the units of `scale_of`, each on its own clock, with values missing at random."""
    scale = scale or scale_of(dim)
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=rng, dtype=torch.float64)
    start = scale.start + draw(rows, 1)
    times = start + scale.clock * torch.sort(draw(rows, time), 1).values
    values = scale.mean + scale.std * torch.randn(rows, time, dim, generator=rng, dtype=torch.float64)
    known = draw(rows, time, dim) < 0.8
    window = torch.cat([start, start + scale.clock], 1)
    return series_of(times, torch.where(known, values, torch.nan), window=window, ids=torch.arange(rows) + 40)


def told_scale(scale: Scale) -> Scale:
    """With two covariates, and error bars."""
    number = lambda *x: torch.tensor(x, dtype=torch.float64)
    told = {"covariates": ("u", "v"), "covariate_mean": number(0.5, 101.0), "covariate_std": number(2.0, 0.3)}
    return replace(scale, **told, errors=True)


def told(batch: TimeSeries, std: Tensor | float = 3.0) -> TimeSeries:
    """With a covariate that changes and a static one, and error bars about a third of `std`."""
    wave = torch.sin(2 * batch.times)
    static = batch.window[:, :1].expand_as(batch.times)
    error = (std * (0.3 + 0.2 * wave)[..., None]).expand_as(batch.values)
    return replace(batch, covariates=torch.stack([wave, static], -1), error=error).check()


def density(batch: TimeSeries) -> TimeSeries:
    return replace(batch, seen=batch.known, scored=batch.known)


def held_out(batch: TimeSeries, share: float = 0.5, seed: int = 2) -> TimeSeries:
    """Some of the points seen, all known values scored."""
    rng = torch.Generator().manual_seed(seed)
    seen = batch.known & (torch.rand(batch.times.shape, generator=rng) < share)[..., None]
    return replace(batch, seen=seen, scored=batch.known)


def asked(batch: TimeSeries, share: float = 0.5, seed: int = 2) -> TimeSeries:
    """Some of the points seen, the other known values asked."""
    out = held_out(batch, share, seed)
    return replace(out, scored=out.known & ~out.seen)


def from_loader(batch: TimeSeries) -> TimeSeries:
    """The batch with what the training loader knows of it."""
    pairs = zip(batch.times, batch.counts, strict=True)
    longest = max(row[there].diff().max().item() for row, there in pairs if there.sum() > 1)
    return replace(batch, in_training=True, most_seen=int(batch.seen.any(-1).sum(1).max()), longest_gap=longest)


def with_empty_points(batch: TimeSeries, seed: int = 3) -> tuple[TimeSeries, torch.Tensor]:
    """The batch with empty points put in anywhere, also at both ends; and where the old points went (time,)."""
    rng = torch.Generator().manual_seed(seed)
    time = batch.times.shape[1]
    total = time + 5
    place = torch.cat([torch.tensor([1]), 2 + torch.randperm(total - 3, generator=rng)[: time - 1].sort().values])
    times = torch.zeros(len(batch.times), total, dtype=torch.float64)
    times[:, place] = batch.times
    for i in range(total):
        if i not in place:
            before = times[:, i - 1] if i else batch.times[:, 0] - 1.0
            after = batch.times[:, (place < i).sum()] if (place > i).any() else before + 50.0
            times[:, i] = before + 0.3 * (after - before)
    spread = lambda x, fill: torch.full((*times.shape, x.shape[2]), fill, dtype=x.dtype).index_copy(1, place, x)
    empty = replace(
        batch,
        times=times,
        values=spread(batch.values, 0.0),
        seen=spread(batch.seen, False),
        scored=spread(batch.scored, False),
        covariates=batch.covariates if batch.covariates is None else spread(batch.covariates, torch.nan),
        error=batch.error if batch.error is None else spread(batch.error, torch.nan),
    )
    return empty.check(), place


@contextlib.contextmanager
def unchecked():
    """Leave out the checks of shapes, which take half the time of a small step, where the same was checked before."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def fit(model, batches, steps: int) -> None:
    """A bare training loop on the model's own objective."""
    optimizer = model.recipe.optim(model.parameters())
    schedule = model.recipe.schedule(optimizer, steps)
    model.train()
    for step in range(steps):
        batch = batches(step)
        model.noise.seed(0, step, device=torch.device("cpu"))
        with contextlib.nullcontext() if step < 2 else unchecked():
            terms = model.loss_terms(batch)
        loss = (terms.nll + terms.kl).sum() / batch.scored.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
