"""What every schedule makes of a learning rate, through a real optimizer."""

import itertools
from dataclasses import replace
from functools import partial
from math import cos, isfinite, pi, sqrt

import lightning.pytorch as pl
import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from helpers.small import model_of, recipe_of
from vrnn_lab.config.compose import compose
from vrnn_lab.config.errors import ConfigError
from vrnn_lab.config.options import options
from vrnn_lab.config.validate import instantiate
from vrnn_lab.data.datasets.spirals import Spirals1D
from vrnn_lab.models import recipe
from vrnn_lab.runs.build import assemble
from vrnn_lab.training.fit import _idle_weight

LR, STEPS = 0.5, 100
# Factors of the learning rate at some steps, with the defaults of conf/schedule and 100 steps in all.
FACTORS = {
    "constant": {0: 1, 50: 1, 100: 1},
    "cosine": {0: 0.5, 1: 1, 2: 1, 51: 0.01 + 0.99 / 2, 100: 0.01},
    "exponential": {0: 1, 50: sqrt(0.1), 100: 0.1},
    "onecycle": {0: 1 / 25, 100: 1 / 25e4},
    "plateau": {0: 1, 100: 1},  # it goes by validations, not by steps
}


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates or (LR,)]
    return torch.optim.SGD(groups)


def rates(schedule, steps: int = STEPS, total: int | None = None) -> list[float]:
    """The learning rate of each step, and the one after the last."""
    optimizer = optimizer_of()
    scheduler = schedule(optimizer, total or steps)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_every_schedule_is_looked_at_here():
    assert set(FACTORS) == set(options("schedule"))


@pytest.mark.parametrize("name", FACTORS)
def test_a_schedule_has_its_rates_at_the_start_on_its_way_and_at_the_end(name):
    found = rates(instantiate(compose([f"schedule={name}"]).schedule, "schedule"))
    assert {step: found[step] for step in FACTORS[name]} == pytest.approx(
        {step: LR * factor for step, factor in FACTORS[name].items()}
    )
    assert max(found) <= LR * (1 + 1e-9)
    assert min(found) > 0


def test_cosine_rises_linearly_and_falls_along_half_a_cosine():
    found = rates(partial(recipe.cosine, warmup=0.2, final=0.1))
    rise = [LR * (i + 1) / 20 for i in range(20)]
    fall = [LR * (0.1 + 0.9 * (1 + cos(pi * (i - 20) / 80)) / 2) for i in range(20, 101)]
    assert found == pytest.approx(rise + fall)


def test_cosine_stays_at_its_end_when_stepped_on():
    assert rates(recipe.cosine, 130, total=100)[100:] == pytest.approx([0.01 * LR] * 31)


@pytest.mark.parametrize("rise", [0.2, 0.3, 0.5])
def test_onecycle_is_at_its_peak_where_it_says(rise):
    found = rates(partial(recipe.onecycle, rise=rise), 200)
    peak = max(range(201), key=found.__getitem__)
    assert peak == pytest.approx(rise * 200, abs=1)
    assert found[peak] == pytest.approx(LR, rel=0.01)
    assert all(a < b for a, b in itertools.pairwise(found[: peak + 1]))
    assert all(a > b for a, b in itertools.pairwise(found[peak:]))


@pytest.mark.parametrize("steps, rise", [(1, 0.5), (4, 0.2), (9, 0.1), (99, 0.01), (10, 0.0), (10, 1.0), (1, 0.3)])
def test_onecycle_works_for_any_number_of_steps_and_any_rise(steps, rise):
    found = rates(partial(recipe.onecycle, rise=rise), steps)
    assert all(0 < rate <= LR * (1 + 1e-9) for rate in found)


@pytest.mark.parametrize("name", ["constant", "cosine", "exponential", "onecycle"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_schedules_take_very_short_runs(name, steps):
    found = rates(getattr(recipe, name), steps)
    assert all(0 < rate <= LR * (1 + 1e-9) for rate in found)


def test_exponential_loses_the_same_factor_at_every_step():
    found = rates(partial(recipe.exponential, final=0.01))
    assert [b / a for a, b in itertools.pairwise(found)] == pytest.approx([0.01**0.01] * STEPS)


@pytest.mark.parametrize("name", ["cosine", "exponential", "onecycle"])
def test_groups_of_parameters_keep_their_proportions(name):
    optimizer = optimizer_of(0.5, 0.05)
    scheduler = getattr(recipe, name)(optimizer, 20)
    for _ in range(20):
        one, two = (group["lr"] for group in optimizer.param_groups)
        assert one == pytest.approx(10 * two)
        optimizer.step()
        scheduler.step()


def plateau_after(losses: list[float], **keys) -> float:
    optimizer = optimizer_of()
    scheduler = recipe.plateau(optimizer, 100, **keys)
    for loss in losses:
        scheduler.step(loss)
    return optimizer.param_groups[0]["lr"] / LR


def test_plateau_waits_for_its_patience_and_then_halves_the_rate():
    assert plateau_after([2.0] * 6) == 1
    assert plateau_after([2.0] * 7) == 0.5
    assert plateau_after([2.0] * 13) == 0.25
    assert plateau_after([2.0] * 4, factor=0.1, patience=2) == pytest.approx(0.1)


def test_plateau_leaves_the_rate_while_the_loss_gets_better():
    assert plateau_after([2.0 - 0.1 * i for i in range(40)]) == 1


@pytest.mark.parametrize("loss", [2.0, 0.0, -2.0])
def test_plateau_sees_a_stalled_loss_whatever_its_sign(loss):
    """Nats of a density are negative as often as not."""
    assert plateau_after([loss] * 7) == 0.5


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_warmup_of_the_kl_is_a_line_from_zero_to_one(share):
    beta = recipe.WarmupBeta(share)
    assert [beta(step, 200) for step in (0, 10, 20)] == pytest.approx([0, 10 / (200 * share), 20 / (200 * share)])
    assert beta(int(200 * share), 200) == pytest.approx(1)
    assert beta(200, 200) == beta(500, 200) == 1
    assert beta(0, 0) == 0


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_a_constant_weight_of_the_kl_is_constant(weight):
    assert {recipe.ConstantBeta(weight)(step, 10) for step in (0, 5, 10)} == {weight}


def test_the_weights_of_the_kl_in_conf_are_these():
    made = {name: instantiate(compose([f"beta={name}"]).beta, "beta") for name in options("beta")}
    assert {name: (beta(0, 100), beta(10, 100), beta(100, 100)) for name, beta in made.items()} == {
        "constant": (1, 1, 1),
        "warmup": (0, 0.5, 1),
        "cyclic": (0, 0.8, 1),
        "free_bits": (1, 1, 1),
        "balance": (1, 1, 1),
    }


def test_a_weight_of_another_kind_is_refused_before_training():
    config = compose(["model=rnn", "data=ou"])
    config.beta = {"_target_": "vrnn_lab.models.recipe.Labels"}
    with pytest.raises(ConfigError, match=r"beta is a Labels; expected a subclass of .*KLWeight"):
        assemble(config)


def test_a_cyclic_weight_rises_in_each_part_of_the_training_and_ends_at_one():
    beta = recipe.CyclicBeta(cycles=2, rise=0.5)
    assert [beta(step, 200) for step in (0, 25, 50, 99, 100, 125, 150, 199, 200)] == pytest.approx(
        [0, 0.5, 1, 1, 0, 0.5, 1, 1, 1]
    )
    assert beta(0, 0) == 1


def moved(name: str, keys: dict, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Weights after a step for each gradient."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = instantiate({**compose([f"optim={name}"]).optim, **keys}, "optim")([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", options("optim"))
def test_a_fused_optimizer_makes_the_steps_of_a_plain_one(name):
    gradients = list(torch.randn(20, 7, generator=torch.Generator().manual_seed(0)))
    key = {"fused", "foreach"} & set(compose([f"optim={name}"]).optim)
    assert len(key) == 1
    plain = moved(name, {key.pop(): False}, gradients)
    torch.testing.assert_close(moved(name, {}, gradients), plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", options("optim"))
def test_gradients_are_clipped_before_the_step_in_mixed_precision_too(name):
    """At a limit of next to nothing all but stand still; unclipped, one step moves weights by the learning rate."""
    made, data = instantiate(compose([f"optim={name}"]).optim, "optim"), Spirals1D(train=12, val=3, test=3, points=6)
    model = model_of("rnn", data.scale, recipe=replace(recipe_of(), optim=made))
    before = [p.detach().clone() for p in model.parameters()]
    pl.Trainer(
        max_epochs=2, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=1e-12, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(model, datamodule=data)  # fmt: skip
    moves = [(p - q).abs().max().item() for p, q in zip(model.parameters(), before, strict=True)]
    assert all(map(isfinite, moves)) and max(moves) < 1e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model=rnn beta=cyclic", "beta has no effect: RNN has no latents"),
        ("model=neural_ode beta=warmup", "beta has no effect: NeuralODE has no latents"),
        ("model=linear_sde beta.weight=0.5", "beta has no effect: LinearSDE has no latents"),
        ("model=linear_sde model/head=laplace_channel beta=warmup", ""),
        ("model=vrnn beta=warmup", ""),
        ("model=rnn", ""),
    ],
)
def test_a_weight_of_a_kl_that_is_not_there_is_said(words, said):
    parts = assemble(compose([*words.split(), "data=periodic", "data.train=4", "data.val=2", "data.test=2"]))
    sentence = _idle_weight(parts)
    assert sentence.startswith(said) and bool(sentence) == bool(said)
