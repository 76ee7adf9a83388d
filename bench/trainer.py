"""What the Trainer costs over a bare loop of the same steps, on the default job; they alternate in one process."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vrnn_lab.command import quiet

EPOCHS, STEPS, REPEATS, TARGET = 6, 96, 3, 1.10


def bare(parts) -> float:
    """Seconds of EPOCHS epochs in a plain loop."""
    model, data = parts.model.train(), parts.data
    loader = data.train_dataloader()
    steps = EPOCHS * len(loader)
    optimizer = model.recipe.optim(model.parameters())
    schedule = model.recipe.schedule(optimizer, steps)
    started, step = time.perf_counter(), 0
    for _ in range(EPOCHS):
        for batch in loader:
            model.noise.seed(0, step, device=torch.device("cpu"))
            terms = model.loss_terms(batch)
            loss = (terms.nll.sum() + terms.kl.sum()) / batch.scored.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), parts.config.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
            step += 1
    return time.perf_counter() - started


def trained(parts) -> float:
    """Seconds of the same steps in the Trainer of a run: logger, callbacks and all, without validation."""
    from vrnn_lab import callbacks
    from vrnn_lab.experiment import trainer_of

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(parts, Path(folder))
        trainer.fit(parts.model, datamodule=parts.data)
        return next(c for c in trainer.callbacks if isinstance(c, callbacks.Timer)).metrics["fit/seconds"]


def main() -> None:
    quiet()
    from vrnn_lab.config import compose
    from vrnn_lab.experiment import assemble

    # Ended by max_steps: a fit that ends with its last epoch is validated and drawn once more.
    keys = [f"trainer.max_steps={STEPS}", "trainer.check_val_every_n_epoch=1000", "trainer=cpu"]
    build = lambda: assemble(compose(keys))
    build_and_run = {"bare loop": bare, "Trainer": trained}
    seconds = {name: [] for name in build_and_run}
    for _ in range(REPEATS):
        for name, measure in build_and_run.items():
            seconds[name].append(measure(build()))
    ours, peer = (statistics.median(seconds[n]) for n in ("Trainer", "bare loop"))
    row = {
        "name": "trainer overhead", "ours": ours, "peer": peer, "peer_name": "bare loop", "unit": "s",
        "ratio": ours / peer, "target": TARGET, "ok": ours / peer <= TARGET,
    }  # fmt: skip
    out = Path("outputs/bench/latest.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([row], indent=1))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, default job, {EPOCHS} epochs of 16 steps")
    print(f"Trainer {ours:.2f} s, bare loop {peer:.2f} s: ratio {ours / peer:.3f}, target <= {TARGET}")


if __name__ == "__main__":
    main()
