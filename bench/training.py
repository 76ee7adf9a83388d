"""Measure a training step of the latent ODE, and of an ODE-RNN whose rows have their own times."""

from collections.abc import Callable, Iterator

import torch

from bench import ours
from bench.harness import OPTIONS, Row, against, within
from bench.plain_latent_ode import PlainLatentODE
from bench.plain_ode_rnn import over_union
from vrnn_lab.models.networks import ODERNNCell

LIMIT = 16.0  # ms of a step
PERIODIC = (
    "experiment=periodic",
    "trainer=cpu",
    "model.latent=10",
    "model.width=100",
    "model.encoder_width=20",
    "objective.samples=3",
)


def plain_step(batch) -> Callable[[], None]:
    """Return a training step of the plain implementation on the same series, standardised."""
    torch.manual_seed(0)
    model = PlainLatentODE(10, 20, 100).to(OPTIONS.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    times, values = (batch.times[0] / batch.window[0, 1]).float(), batch.values[..., 0].float()
    values = (values - values.mean()) / values.std()

    def step() -> None:
        optimizer.zero_grad()
        model.loss(times, values, batch.seen[..., 0], 3).backward()
        optimizer.step()

    return step


def latent_ode(quick: bool) -> Iterator[Row]:
    parts = ours.parts_of(*PERIODIC, *(["data.points=12", "task.seen=6", "data.train=50"] if quick else []))
    batch = next(iter(parts.data.train_dataloader())).to(OPTIONS.device)
    nodes = parts.config.model.nodes
    step, plain = ours.step_of(parts.model, batch), plain_step(batch)
    details = {"sizes": "batch 50, 50 of 100 shared times seen, 3 samples", "nodes": nodes}
    measured = against("latent ODE, a training step", step, plain, "plain, dopri5 over all times", **details)
    accuracy = {"repeats": measured["repeats"][0], "spread": measured["spread"][0]}
    yield within("latent ODE, a training step: ms", measured["ours"], LIMIT, "ms", **details, **accuracy)
    yield measured


def memory_of(rows: int, points: int, seed: int = 0) -> tuple[ODERNNCell, torch.Tensor, torch.Tensor]:
    """Return an ODE-RNN of the encoder's sizes, its inputs (rows, points, 12), and times in [0, 1]."""
    torch.manual_seed(seed)
    memory = ODERNNCell(12, 20, 64, 1, "tanh", 1.0, nodes=10)
    times = torch.rand(rows, points, dtype=torch.float64).sort(1).values
    on = lambda x: x.to(OPTIONS.device)
    return on(memory), on(torch.randn(rows, points, 12)), on(times)


def last_state(memory: ODERNNCell, inputs: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return our states, carried on to the last time of the union."""
    gap = torch.cat([times, times.max().expand(len(times), 1)], 1).diff(dim=1)
    return memory(inputs, gap.to(inputs), inputs.new_zeros(len(inputs), memory.memory.size))[1][:, -1]


def gradient_of(
    final_state: Callable[..., torch.Tensor], memory: ODERNNCell, *series: torch.Tensor
) -> Callable[[], object]:
    weights = list(memory.parameters())
    return lambda: torch.autograd.grad(final_state(memory, *series).square().sum(), weights)


def ode_rnn(quick: bool) -> Iterator[Row]:
    memory, inputs, times = arguments = memory_of(*(4, 5) if quick else (50, 100))
    with torch.no_grad():
        fine = ODERNNCell(12, 20, 64, 1, "tanh", 1.0, nodes=200).double().to(inputs.device)
        fine.load_state_dict(memory.state_dict())
        exact = last_state(fine, inputs.double(), times)
        errors = [
            (final_state(*arguments).double() - exact).abs().max().item() for final_state in (last_state, over_union)
        ]
    own, union = (gradient_of(final_state, *arguments) for final_state in (last_state, over_union))
    name, peer = "ODE-RNN encoder, own times, forward and backward", "union of times, one by one"
    size = f"{times.shape[0]} rows x {times.shape[1]} points"
    steps = "ours Runge-Kutta of at most a 10th of the window, the union's Euler from time to time"
    yield against(name, own, union, peer, 50.0, sizes=size, errors=errors, steps=steps)


def rows(quick: bool = False) -> Iterator[Row]:
    yield from latent_ode(quick)
    yield from ode_rnn(quick)
