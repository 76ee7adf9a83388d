"""What the Trainer costs over a bare loop of the same steps, on the default job."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import ours
from bench.harness import OPTIONS, Row, row, spread

EPOCHS, REPEATS, TARGET = 6, 7, 1.10


def parts_of(steps: int):
    """Ended by max_steps: a fit that ends with its last epoch is validated and drawn once more."""
    return ours.parts_of(f"trainer.max_steps={steps}", "trainer.check_val_every_n_epoch=1000", "trainer=cpu")


def bare(parts) -> float:
    """Seconds of the job's steps in a plain loop."""
    from torch.nn.utils import clip_grad_norm_

    model, data = parts.model.train(), parts.data
    loader = data.train_dataloader()
    steps = parts.config.trainer.max_steps
    optimizer = model.recipe.optim(model.parameters())
    schedule = model.recipe.schedule(optimizer, steps)
    started, step = time.perf_counter(), 0
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
    return time.perf_counter() - started


def trained(parts) -> float:
    """Seconds of the same steps in the Trainer of a run: logger, callbacks and all, without validation."""
    from vrnn_lab.callbacks import timer_of
    from vrnn_lab.experiment import trainer_of

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(parts, Path(folder))
        trainer.fit(parts.model, datamodule=parts.data)
        return timer_of(trainer).metrics["fit/seconds"]


def rows(quick: bool = False) -> Iterator[Row]:
    """On the CPU: batches of the bare loop stay where they are made."""
    if OPTIONS.device != "cpu":
        return
    steps = 16 if quick else 16 * EPOCHS
    ways = {"Trainer": trained, "bare loop": bare}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + (1 if quick else REPEATS)):
        for name, way in ways.items():
            taken = way(parts_of(steps))
            seconds[name] += [taken] if turn else []  # the first is warm-up
    own, peer = (statistics.median(each) for each in seconds.values())
    told = {"repeats": [len(v) for v in seconds.values()], "spread": [round(spread(v), 3) for v in seconds.values()]}
    yield row("Trainer overhead, the default job", own, peer, "bare loop", "s", TARGET, "<=", steps=steps, **told)
