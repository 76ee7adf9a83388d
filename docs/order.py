"""RNN-Gauss < RNN-GMM < VRNN-Gauss <= VRNN-GMM (Chung et al. 2015, table 1)? Makes docs/order.md.

python docs/order.py [sets=curves,speech,motion] [folder=outputs/order] [jobs=2] [output=docs/order.md] [seeds=3]

Each of the four models gets the same trials on each set; the one with the best nats on validation (`val/nll`) is
trained with further seeds, whose test nats are in the table. Runs that are finished are read, not trained again.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from vrnn_lab.cli.arguments import arguments, run_command
from vrnn_lab.runs.folder import finished

SETS = {"curves": 40, "speech": 80, "motion": 150}  # epochs
MODELS = ("rnn", "rnn_gmm", "vrnn", "vrnn_gmm")
TRIALS = (
    ["model.width=32", "optim.lr=5e-3"],
    ["model.width=64", "optim.lr=5e-3"],
    ["model.width=64", "optim.lr=1e-2"],
    ["model.width=128", "optim.lr=3e-3"],
)


def name(trial: list[str]) -> str:
    return "_".join(part.partition("=")[2] for part in trial)


class Job:
    """One run: a set, a model, a trial and a seed."""

    def __init__(self, data: str, model: str, trial: list[str], seed: int, folder: Path):
        self.where = folder / data / model / name(trial) / str(seed)
        self.given = ["experiment=order", f"model={model}", f"data={data}", *trial, f"seed={seed}"]
        self.given += [f"trainer.max_epochs={SETS[data]}", "evaluate.draws=19"]

    def run(self) -> dict[str, float]:
        return finished(self.where) or self._train()

    def _train(self) -> dict[str, float]:
        command = [sys.executable, "-m", "vrnn_lab.run", *self.given, f"hydra.run.dir={self.where}"]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()[-800:]}")
        print(self.where, flush=True)
        return json.loads((self.where / "metrics.json").read_text())


def interval(values: list[float]) -> str:
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{mean(values):.3f} ± {error:.3f}"


HEAD = """# The order of models in Chung et al. 2015

Chung et al. found RNN-Gauss < RNN-GMM < VRNN on speech. This page, made by `python docs/order.py`, repeats the \
comparison on three data sets. *Test log-likelihood*
and *validation* are in nats per value (higher is better), with mean and standard error over {seeds} training seeds; \
those of the VRNNs are the importance-weighted bound with K = 100.
*Active units* is the number of latent dimensions that the model uses, and *chosen* the arguments of the best trial. \
Each model had the same {trials} trials
({grid}); the best on validation was trained with further seeds.
"""


def main() -> int:
    given = arguments(str(__doc__), ("sets", "folder", "jobs", "output", "seeds"), sys.argv[1:] or ["jobs=2"])
    folder, seeds = Path(given.get("folder", "outputs/order")), int(given.get("seeds", 3))
    sets = given["sets"].split(",") if "sets" in given else list(SETS)
    pairs = [(data, model) for data in sets for model in MODELS]
    text = HEAD.format(seeds=seeds, trials=len(TRIALS), grid="; ".join(" ".join(trial) for trial in TRIALS))
    with ThreadPoolExecutor(int(given.get("jobs", 2))) as pool:
        jobs = {(*pair, name(trial)): Job(*pair, trial, 0, folder) for pair in pairs for trial in TRIALS}
        scores = dict(zip(jobs, pool.map(Job.run, jobs.values()), strict=True))
        best = {pair: min(TRIALS, key=lambda t: scores[*pair, name(t)]["val/nll"]) for pair in pairs}
        more = {(*pair, seed): Job(*pair, best[pair], seed, folder) for pair in pairs for seed in range(seeds)}
        results = dict(zip(more, pool.map(Job.run, more.values()), strict=True))
    for data in sets:
        text += (
            f"\n## {data}\n| model | test log-likelihood | validation | active units | chosen, with `seed=0,1,2` |\n"
        )
        text += "|---|---|---|---|---|\n"
        for model in MODELS:
            metrics = [results[data, model, seed] for seed in range(seeds)]
            active = [m["test/latent/active_units"] for m in metrics if "test/latent/active_units" in m]
            cells = [interval([-m[f"{split}/nll"] for m in metrics]) for split in ("test", "val")]
            command = " ".join(more[data, model, 0].given).replace(" seed=0", "")
            text += f"| {model} | {' | '.join(cells)} | {f'{mean(active):.1f}' if active else ''} | `{command}` |\n"
        if any("reference/exact/nll" in m for m in results.values()):
            exact = [results[data, MODELS[0], 0].get("reference/exact/nll")]
            text += f"\nExact log-likelihood: {-exact[0]:.3f}\n" if exact[0] is not None else ""
    output = Path(given.get("output", "docs/order.md"))
    temporary = output.with_name(f".{output.name}.part")
    temporary.write_text(text)
    temporary.replace(output)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
