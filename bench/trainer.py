"""Measure the overhead of the Trainer over a plain loop of the same steps, on the default job."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import ours
from bench.harness import OPTIONS, Row, Taken, row, spread

EPOCHS, REPEATS, TARGET = 3, 12, 1.10


def parts_of(steps: int):
    """Build a run ended by max_steps, since a fit that ends with its last epoch is validated and drawn once more."""
    return ours.parts_of(f"trainer.max_steps={steps}", "trainer.check_val_every_n_epoch=1000", "trainer=cpu")


def bare(parts) -> Taken:
    """Run the job's steps in a plain loop."""
    from torch.nn.utils import clip_grad_norm_

    model, data = parts.model.train(), parts.data
    loader = data.train_dataloader()
    steps = parts.config.trainer.max_steps
    optimizer = model.recipe.optim(model.parameters())
    schedule = model.recipe.schedule(optimizer, steps)
    started, began, step = time.perf_counter(), time.process_time(), 0
    for _ in range(steps // len(loader)):
        for batch in loader:
            model.noise.seed(0, step, device=model.device)
            loss = ours.loss_of(model.loss_terms(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), parts.config.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
            step += 1
    return Taken(time.perf_counter() - started, time.process_time() - began)


def trained(parts) -> Taken:
    """Run the same steps in a run's Trainer with logger and callbacks, without validation; cpu includes set-up."""
    from vrnn_lab.training.callbacks import timer_of
    from vrnn_lab.training.fit import trainer_of
    from vrnn_lab.training.loggers.tensorboard import TensorBoard

    with tempfile.TemporaryDirectory() as folder:
        trainer, began = trainer_of(parts, Path(folder), [TensorBoard(Path(folder))]), time.process_time()
        trainer.fit(parts.model, datamodule=parts.data, weights_only=True)
        return Taken(timer_of(trainer).metrics["fit/seconds"], time.process_time() - began)


def rows(quick: bool = False) -> Iterator[Row]:
    """Measure on the CPU only, since the plain loop does not move its batches to a device."""
    if OPTIONS.device != "cpu":
        return
    steps = 16 if quick else 16 * EPOCHS
    ways = {"Trainer": trained, "bare loop": bare}
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for turn in range(1 + (1 if quick else REPEATS)):
        for name, way in ways.items():
            seconds = way(parts_of(steps))
            taken[name] += [seconds] if turn else []  # the first is warm-up
    wall, cpu = ([[getattr(x, of) for x in each] for each in taken.values()] for of in ("wall", "cpu"))
    details = {
        "steps": steps,
        "cpu_ms": [round(1e3 * statistics.median(each)) for each in cpu],
        "repeats": [len(each) for each in wall],
        "spread": [round(spread(each), 3) for each in wall],
    }
    own, peer = map(statistics.median, wall)
    yield row("Trainer overhead, the default job", own, peer, "bare loop", "s", TARGET, "<=", **details)
