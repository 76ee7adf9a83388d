"""Measure a training step of the VRNN against the usual loop, in which all computations are inside the loop."""

import statistics
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import ours
from bench.harness import OPTIONS, Row, against, alternate, row
from bench.plain_vrnn import PlainVRNN, copied
from vrnn_lab.core.series import Scale, TimeSeries
from vrnn_lab.models.fused.tape import fused_disabled
from vrnn_lab.models.vrnn import VRNN

PIXELS = 28  # a row of an image is a point: sequential MNIST
LATENT = 16


def scale_of(time: int, dim: int, support: str = "binary") -> Scale:
    """Return the scale of series of `time` points, one per unit of time."""
    number = lambda x: torch.tensor(float(x), dtype=torch.float64)
    length = number(time - 1)
    names = tuple(f"x{i}" for i in range(dim))
    mean, std = torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)
    return Scale(names, support, mean, std, length, number(1), length, number(0), length)


def batch_of(batch: int, time: int, dim: int, binary: bool = True) -> TimeSeries:
    """Return random series at regular times, all known, as the training loader yields them."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand if binary else torch.randn
    values = draw(batch, time, dim, generator=generator, dtype=torch.float64)
    known = torch.ones_like(values, dtype=torch.bool)
    return TimeSeries(
        times=torch.arange(time, dtype=torch.float64).expand(batch, -1).contiguous(),
        values=values.round() if binary else values,
        seen=known,
        scored=known,
        window=torch.tensor([0.0, time - 1.0], dtype=torch.float64).expand(batch, -1).contiguous(),
        ids=torch.arange(batch),
        most_seen=time,
        longest_gap=1.0,
        opens_seen=True,
        in_training=True,
    ).to(OPTIONS.device)


def model_of(time: int, width: int, dim: int = PIXELS) -> VRNN:
    keys = [f"model.width={width}", f"model.feature_width={width}", f"model.latent={LATENT}"]
    overrides = ["model=vrnn", "model/head=bernoulli", "trainer=cpu", *keys]
    model = ours.parts_of(*overrides, scale=scale_of(time, dim)).model
    assert isinstance(model, VRNN)
    return model


def noise_of(model: VRNN, batch: TimeSeries) -> torch.Tensor:
    """Return the noise of the latents, (batch, time, latent), that a loss draws after seeding with 0."""
    model.noise.seed(0, device=batch.values.device)
    return model.noise.at_points("latent", batch, 1, model.latent, next(model.parameters()))[0]


def losses(model: VRNN, plain: PlainVRNN, batch: TimeSeries) -> tuple[float, float]:
    """Return the losses of our VRNN and of the plain one, with the same weights and the same noise."""
    noise = noise_of(model, batch)
    model.noise.seed(0, device=batch.values.device)
    own = ours.loss_of(model.loss_terms(batch), batch)
    return own.item(), plain.loss(batch.values.to(noise), noise).item()


def plain_backward(plain: PlainVRNN, batch: TimeSeries) -> Callable[[], torch.Tensor]:
    values = batch.values.float()

    def step() -> torch.Tensor:
        plain.zero_grad()
        loss = plain.loss(values, torch.randn(*values.shape[:2], plain.latent, device=values.device))
        loss.backward()
        return loss

    return step


def flops(step: Callable[[], object]) -> int:
    """Count the operations of matrix products; fused functions are disabled, as the counter cannot see into them."""
    with FlopCounterMode(display=False) as counter, fused_disabled():
        step()
    return counter.get_total_flops()


def rows(quick: bool = False) -> Iterator[Row]:
    for time, size, width, target in ((28, 128, 100, 1.3), (200, 32, 64, 2.0)):
        time, size = (4, 3) if quick else (time, size)
        yield from compare(time, size, width, target)


def compare(time: int, size: int, width: int, target: float) -> Iterator[Row]:
    model, batch = model_of(time, width), batch_of(size, time, PIXELS)
    plain = copied(model, PIXELS)
    own, theirs = losses(model, plain, batch)
    ours.check_losses("VRNN against the plain loop", own, theirs)
    step, other = ours.backward_of(model, batch), plain_backward(plain, batch)
    count, other_count = flops(step), flops(other)
    name = f"VRNN, T {time}, batch {size}, width {width}"
    measured = against(
        f"{name}: forward and backward", step, other, "everything in the loop", target,
        losses=[own, theirs], gflop=[count / 1e9, other_count / 1e9],
    )  # fmt: skip
    yield measured
    yield share_of_peak(name, step, count)


def share_of_peak(name: str, step: Callable[[], object], count: int, size: int = 1536) -> Row:
    """Measure the step's rate of matrix products, relative to the machine's rate of large float32 products."""
    a, b = torch.randn(2, size, size, device=OPTIONS.device)
    out = torch.empty_like(a)
    taken = alternate({"ours": step, "peak": lambda: torch.mm(a, b, out=out)})
    seconds = {key: statistics.median(call.wall for call in calls) for key, calls in taken.items()}
    rate, peak = count / seconds["ours"] / 1e9, 2 * size**3 / seconds["peak"] / 1e9
    peer_name = f"mm of {size} x {size}"
    return row(f"{name}: matrix products a second", rate, peak, peer_name, "GFLOP/s", None, "<=")
