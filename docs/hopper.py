"""The hopper at 10, 20, 30 and 50 % of its points, as in Table 3 of Rubanova et al. 2019. Makes docs/hopper.md.

python docs/hopper.py [folder=outputs/hopper] [output=docs/hopper.md] [jobs=1] [only=interpolation/1000/rnn]

Runs that are missing are trained (`only`: no others, and no table; jobs=0: none), interrupted ones are resumed; then
each is scored on all tables of its protocol. Needs python -m vrnn_lab.fetch hopper and pip install '.[hopper]'.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vrnn_lab
from vrnn_lab.cli.arguments import arguments, configure_logging, run_command
from vrnn_lab.config.compose import compose
from vrnn_lab.core.files import write_whole
from vrnn_lab.core.series import TimeSeries
from vrnn_lab.core.tasks import Forecast, Interpolate, Task
from vrnn_lab.data.base import SPLITS, SeriesData
from vrnn_lab.evaluation.baselines import REFERENCES
from vrnn_lab.runs.dataset_cache import data_of
from vrnn_lab.runs.folder import finished

SHARES = (0.1, 0.2, 0.3, 0.5)
FEW = (0.1, 0.5)  # of models trained on 1000 trajectories
DRAWS = 9
ALIKE = ["data=hopper", "data.train=750", "data.val=50", "data.test=200", "optim=adamw", "optim.lr=2e-3"]
ALIKE += ["schedule=onecycle", "trainer.max_epochs=40", "trainer.check_val_every_n_epoch=5", "evaluate.samples=5"]
ALIKE += ["evaluate.draws=9"]
TASKS = {
    "interpolation": ["task=interpolate", "task.seen=[0.1,0.5]"],
    "extrapolation": ["data.points=200", "task=forecast", "task.until=[0.32,0.5]", "task.seen=[0.1,0.5]"],
}
PATH = ["model.latent=32", "model.width=200", "model.encoder_width=128", "model.decoder_width=128"]
MODELS = {
    "rnn": ["model=rnn", "model.width=128"],
    "gru_d": ["model=gru_d", "model.width=128"],
    "ode_rnn": ["model=ode_rnn", "model.width=128"],
    "rnn_vae": ["model=rnn_vae", *PATH],
    "latent_ode": ["model=latent_ode", *PATH],
    "latent_ode_ode_rnn": ["model=latent_ode", "model/encoder=ode_rnn", *PATH],
}
CAUSAL = ("rnn", "gru_d", "ode_rnn")
# Rubanova et al. 2019, arXiv 1907.03907, Table 3
PAPER = {
    "interpolation": {
        "RNN with gaps": (2.454, 1.714, 1.250, 0.785),
        "GRU-D": (1.968, 1.421, 1.134, 0.748),
        "ODE-RNN": (1.647, 1.209, 0.986, 0.665),
        "RNN-VAE": (6.514, 6.408, 6.305, 6.100),
        "Latent ODE, RNN encoder": (2.477, 0.578, 2.768, 0.447),
        "Latent ODE, ODE-RNN encoder": (0.360, 0.295, 0.300, 0.285),
    },
    "extrapolation": {
        "RNN with gaps": (7.259, 6.792, 6.594, 30.571),
        "GRU-D": (38.130, 20.041, 13.049, 5.833),
        "ODE-RNN": (13.508, 31.950, 15.465, 26.463),
        "RNN-VAE": (2.378, 2.135, 2.021, 1.782),
        "Latent ODE, RNN encoder": (1.663, 1.653, 1.485, 1.377),
        "Latent ODE, ODE-RNN encoder": (1.441, 1.400, 1.175, 1.258),
    },
}


@dataclass(frozen=True)
class Question:
    """A table: the runs of a protocol, scored at every share of the points that may be seen."""

    title: str
    protocol: str
    until: int | None = None  # points that may be seen; None: any

    def task(self, share: float) -> Task:
        return Interpolate(share) if self.until is None else Forecast(self.until, share)

    def held_out(self, batch: TimeSeries) -> Tensor:
        """(batch, time): what the second number of a cell is about."""
        if self.until is None:
            return batch.counts & ~batch.seen.any(-1)
        return batch.counts & (torch.arange(batch.times.shape[1]) >= self.until)


QUESTIONS = (
    Question("Interpolation: a random window of 100 points", "interpolation"),
    Question("Extrapolation: 200 points, seen ones among the first 100", "extrapolation", 100),
    Question(
        "Extrapolation: 200 points, seen ones among the first 66 (the paper's public code)", "extrapolation", 66
    ),
)


@dataclass(frozen=True)
class Job:
    """One run of a protocol, on 10 000 trajectories (the recipe) or on 1000 (all models alike)."""

    protocol: str
    size: int
    model: str

    @property
    def name(self) -> str:
        return f"{self.protocol}/{self.size}/{self.model}"

    @property
    def given(self) -> list[str]:
        if self.size == 10_000:
            return [f"experiment=hopper_{self.protocol}"]
        return [*MODELS[self.model], *ALIKE, *TASKS[self.protocol]]

    def run(self, folder: Path) -> None:
        where = folder / self.name
        if finished(where):
            return
        begun = (where / ".hydra" / "config.yaml").is_file()
        more = [f"resume={where}"] if begun else [*self.given, f"hydra.run.dir={where}"]
        command = [sys.executable, "-m", "vrnn_lab.run", *more]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()[-800:]}")
        print(where, flush=True)


JOBS = [Job(protocol, 10_000, "latent_ode") for protocol in TASKS]
JOBS += [Job(protocol, 1000, model) for protocol in TASKS for model in MODELS]


@cache
def paper_scale() -> Tensor:
    """(14,): the largest value of each channel in all 10 000 trajectories, seen or not, test ones too.

    The public code trains on (x - min) / max with both over all data. Its errors are ours, divided by this squared.
    """
    splits = data_of(compose(["data=hopper", "data.points=200"])).splits
    return torch.stack([torch.from_numpy(splits[name].values).amax(0) for name in SPLITS]).amax(0)


def errors(data: SeriesData, question: Question, share: float, guess) -> tuple[float, float]:
    """100 x MSE in the paper's scale, of the test split: (of all points, of what is held out)."""
    scale = paper_scale()
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for batch in data.batches("test", question.task(share), 100):
        error = (((guess(batch) - batch.values) / scale) ** 2).mean(-1)
        for i, among in enumerate((batch.counts, question.held_out(batch))):
            sums[i] += error[among].sum()
            counts[i] += among.sum()
    everywhere, held_out = (100 * sums / counts).tolist()
    return everywhere, held_out


def cell(pair: tuple[float, float]) -> str:
    return " / ".join(f"{x:.3f}" for x in pair)


def scores_of(job: Job, folder: Path) -> dict[str, Any]:
    """How many trajectories the run was trained on, and its errors, question by question; kept in its folder."""
    file = folder / job.name / "hopper.json"
    if not file.is_file():
        model, data = vrnn_lab.load(folder / job.name)
        shares = SHARES if job.size == 10_000 else FEW
        scores: dict[str, Any] = {"train": len(data.splits["train"])}
        for question in QUESTIONS:
            if question.protocol == job.protocol:
                of_question = {str(share): errors(data, question, share, predicted(model)) for share in shares}
                scores[question.title] = of_question
        write_whole(file, json.dumps(scores, indent=1))
    return json.loads(file.read_text())


def predicted(model):
    """The mean of a fitted model's densities, also at seen points, where its path is the value itself."""

    def guess(batch: TimeSeries) -> Tensor:
        with model.fixed_noise(model.seed):
            return model.predict(batch, DRAWS).density.mean.mean(0)

    return guess


HEAD = """# The hopper of Rubanova et al. 2019

This page is made by `python docs/hopper.py`, with one thread per run on a 2-core machine without GPU. The machine \
was shared, so that a run had a fifth to a
half of a core. On 10 000 trajectories, of which 2000 test: `experiment=hopper_interpolation` (45 epochs, 6750 steps
of 50 trajectories) and `experiment=hopper_extrapolation` (36 epochs, 5400 steps). On 1000, of which 200 test, all
models get the same small budget, 40 epochs, 600 steps:
`{alike}`.

The data are trajectories of MuJoCo's planar hopper, 14 channels every 0.005 s; the simulation equals dm_control's \
bit by bit.

Each cell: **mean squared error x 100 of all points / of the held-out points**, on test trajectories, in the paper's
scale: a channel's error is divided by the square of its largest value in all 10 000 trajectories, which is \
equivalent to the public
code's (x - min) / max. Only these tables use that scale: the models standardise by training trajectories.

* *Held out* are, in interpolation, the points of the window that are not seen and, in extrapolation, the points \
after the part
  that may be seen. The paper's Table 3 is "on the full series"; its public code scores an extrapolation after the
  observed part only, as our second number does.
* *All points* counts, at a seen point, the mean of the model's own density: of a path model its reconstruction, of a
  step model (*causal*: it cannot use what is seen after a query) its prediction from the points before.
* Our number is the error of the mean of the densities of {draws} draws; the public code averages the errors of \
single draws.
* Each of our models serves all shares of seen points: in training 10 to 50 % are seen. The paper trains one model \
per share.
"""


def table(question: Question, jobs: list[Job], folder: Path) -> str:
    lines = [
        f"\n## {question.title}\n",
        "| | trained on | 10 % | 20 % | 30 % | 50 % | fit |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, numbers in PAPER[question.protocol].items():
        lines.append(f"| *{name}, published* | 8000 | {' | '.join(f'*{x:.3f}*' for x in numbers)} | |")
    ours: dict[str, dict[float, tuple[float, float]]] = {}
    for job in jobs:
        known = scores_of(job, folder)
        mine = {float(share): tuple(pair) for share, pair in known[question.title].items()}
        fit = (finished(folder / job.name) or {}).get("fit/seconds", float("nan"))
        label = f"`{job.model}`" + (" (causal)" if job.model in CAUSAL else "")
        lines.append(f"| {label} | {known['train']} | {row(mine)} | {fit / 60:.0f} min |")
        ours[f"`{job.model}` trained on {known['train']}"] = mine
    data = data_of(compose(jobs[0].given))
    baselines = {}
    for name, reference in REFERENCES.items():
        guess = lambda batch, reference=reference: reference(batch, data.scale.mean)
        baselines[name] = {share: errors(data, question, share, guess) for share in SHARES}
        lines.append(f"| {name} (no model) | | {row(baselines[name])} | |")
    return "\n".join(lines) + "\n\n" + verdict(ours, baselines) + "\n"


def row(mine: dict[float, tuple[float, float]]) -> str:
    return " | ".join(cell(mine[share]) if share in mine else "" for share in SHARES)


def verdict(ours, baselines) -> str:
    """Who is best on held-out points at each share."""
    best = []
    for share in SHARES:
        everyone = {name: errors[share][1] for name, errors in {**ours, **baselines}.items() if share in errors}
        name = min(everyone, key=lambda n: everyone[n])
        best.append(f"{share:.0%} {name}{' (a baseline)' if name in baselines else ''}")
    return f"Best on held-out points: {'; '.join(best)}."


def main() -> int:
    given = arguments(str(__doc__), ("folder", "output", "jobs", "only"), sys.argv[1:] or ["jobs=1"])
    configure_logging()
    folder, only = Path(given.get("folder", "outputs/hopper")), given.get("only")
    wanted = [job for job in JOBS if only in (None, job.name)]
    if not wanted:
        raise ValueError(f"only={only}: expected one of {', '.join(job.name for job in JOBS)}.")
    if jobs := int(given.get("jobs", 1)):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda job: job.run(folder), wanted))
    if only:
        return 0
    fitted = [job for job in JOBS if finished(folder / job.name)]
    text = HEAD.format(alike=" ".join(ALIKE), draws=DRAWS)
    for question in QUESTIONS:
        text += table(question, [job for job in fitted if job.protocol == question.protocol], folder)
    write_whole(Path(given.get("output", "docs/hopper.md")), text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
