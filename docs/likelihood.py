"""How near every model comes to an exact likelihood: makes docs/likelihood.md.

python docs/likelihood.py [sets=ou,lgssm,...] [models=rnn,vrnn,...] [folder=outputs/likelihood] [jobs=2]
                          [output=docs/likelihood.md] [epochs=30]

Trains each model on each set whose law is known (runs that are finished are read, not trained again), then scores
its test series: the ELBO and the importance-weighted bounds, in nats a value (an event) below the exact likelihood.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import sqrt
from pathlib import Path

import torch

import vrnn_lab
from vrnn_lab.cli.arguments import arguments, configure_logging, run_command
from vrnn_lab.core.densities import log_mean_exp
from vrnn_lab.core.tasks import DensityTask
from vrnn_lab.models.recipe import FIVO
from vrnn_lab.models.vrnn import VRNN
from vrnn_lab.runs.folder import finished

SETS = ("ou", "lgssm", "mixture", "events")
MODELS = {
    "rnn": ["model=rnn"],
    "rnn_gmm": ["model=rnn_gmm"],
    "rnn_gmm+full_covariance": ["model=rnn_gmm", "model.head.covariance=full"],
    "rnn_decay": ["model=rnn_decay"],
    "gru_d": ["model=gru_d"],
    "ode_rnn": ["model=ode_rnn"],
    "neural_ode": ["model=neural_ode"],
    "vae": ["model=vae"],
    "vrnn": ["model=vrnn"],
    "vrnn_gmm": ["model=vrnn_gmm"],
    "rnn_vae": ["model=rnn_vae"],
    "latent_ode": ["model=latent_ode"],
    "latent_ode+ode_rnn_encoder": ["model=latent_ode", "model/encoder=ode_rnn"],
    "latent_sde": ["experiment=latent_sde"],
    "latent_ode_poisson": ["experiment=events"],
}
ELSEWHERE = {
    "latent_ode_poisson": ("events",),
    "rnn_gmm+full_covariance": ("lgssm", "mixture"),  # for two channels
    **dict.fromkeys(("rnn", "rnn_gmm", "vrnn", "vrnn_gmm"), ("ou", "lgssm", "mixture")),
}
BOUNDS = (1, 10, 100, 1000)
PARTICLES = (10, 100)
ROWS = 20  # series at once


def run(name: str, data: str, folder: Path, epochs: str, threads: int) -> Path | None:
    """The finished run of a model on a set, trained if there is none; None if it failed."""
    where = folder / data / name
    if finished(where):
        return where
    given = MODELS[name] if MODELS[name][0].startswith("experiment") else ["experiment=oracle", *MODELS[name]]
    command = [sys.executable, "-m", "vrnn_lab.run", *given, f"data={data}", f"hydra.run.dir={where}"]
    command += ["evaluate.samples=10", "evaluate.draws=49"]  # the bounds are made below
    if given[0] == "experiment=oracle":
        command += [f"trainer.max_epochs={epochs}", "trainer.check_val_every_n_epoch=5"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{data} {name}: {'done' if not done.returncode else done.stderr.strip()[-500:]}", flush=True)
    return where if not done.returncode else None


def bounds(where: Path) -> dict[str, torch.Tensor]:
    """Per test series: minus the ELBO, the bounds by K, the exact NLL, and how many values there are."""
    model, data = vrnn_lab.load(where)
    bounds_by_key: dict[str, list] = {}
    with model.fixed_noise(0):
        for batch in data.batches("test", DensityTask(), ROWS):
            terms, weights = model.loss_terms(batch), model.log_weights(batch, max(BOUNDS)).double()
            row = {"elbo": (terms.nll + terms.kl).double(), "exact": -data.exact(batch)[0]}
            row |= {str(k): -log_mean_exp(weights[:k]) for k in BOUNDS}
            if isinstance(model, VRNN):
                row |= {f"FIVO-{k}": filtered(model, batch, k) for k in PARTICLES}
            row["count"] = batch.scored.sum((1, 2)).double()
            for key, value in row.items():
                bounds_by_key.setdefault(key, []).append(value)
    return {key: torch.cat(value) for key, value in bounds_by_key.items()}


def filtered(model: VRNN, batch, samples: int) -> torch.Tensor:
    """Minus the particle filter's bound of each series."""
    before, model.recipe = model.recipe, replace(model.recipe, objective=FIVO(samples))
    terms, model.recipe = model.loss_terms(batch), before
    return terms.nll.double()


def line(name: str, where: Path) -> str:
    """A row of the table, made once a run."""
    row = where / "likelihood.md"
    if not row.exists():
        row.write_text(scored(name, where))
    return row.read_text()


def scored(name: str, where: Path) -> str:
    scores, latent = bounds(where), vrnn_lab.load(where)[0]
    count = scores["count"].sum()
    above = scores[str(max(BOUNDS))] - scores["exact"]
    mean = lambda x: f"{(x.sum() / count).item():.4f}"
    error = lambda x: f"{(x.std() * sqrt(len(x)) / count).item():.4f}"
    cells = [mean(scores[key]) for key in ("elbo", *map(str, BOUNDS))]
    filters = [mean(scores[f"FIVO-{k}"]) if f"FIVO-{k}" in scores else "" for k in PARTICLES]
    if not getattr(latent, "latent", 0) or torch.equal(scores["1"], scores["1000"]):
        cells = ["", "", "", "", cells[-1]]
        apart = ""
    else:
        apart = f"{mean(scores['1'] - scores['elbo'])} ± {error(scores['1'] - scores['elbo'])}"
    return (
        f"| {name} | "
        + " | ".join([*cells, *filters, mean(scores["exact"]), f"{mean(above)} ± {error(above)}", apart])
        + " |"
    )


HEAD = """# Bounds of every model compared with the exact likelihood

This page is made by `python docs/likelihood.py` ({torch}, {threads} per run). Each number is a negative \
log-likelihood, or a bound of it, in nats per
value (for `events`: per event), of 200 test series after training on 1800; {epochs} epochs (for the SDE and the \
events 40). Lower is better.

* *ELBO*: the evidence lower bound. *IWAE-K*: the importance-weighted bound with K samples. *FIVO-K*: the particle \
filter's bound
  with K particles. Models without latents have one number, their exact negative log-likelihood, under IWAE-1000.
* *exact*: the negative log-likelihood of the process that generated the data.
* *gap*: the last bound minus *exact*, with the standard error of the paired difference over series. An invalid \
bound could show
  a negative gap of several standard errors.
* *IWAE-1 - ELBO*: two estimates of the same quantity, so the difference must be zero within its error.
"""
COLUMNS = [
    "",
    "ELBO",
    *(f"IWAE-{k}" for k in BOUNDS),
    *(f"FIVO-{k}" for k in PARTICLES),
    "exact",
    "gap",
    "IWAE-1 - ELBO",
]


def main() -> int:
    given = arguments(
        str(__doc__), ("sets", "models", "folder", "jobs", "output", "epochs"), sys.argv[1:] or ["jobs=2"]
    )
    configure_logging()
    jobs, epochs = int(given.get("jobs", 2)), given.get("epochs", "30")
    sets = given["sets"].split(",") if "sets" in given else SETS
    wanted = given["models"].split(",") if "models" in given else list(MODELS)
    folder = Path(given.get("folder", "outputs/likelihood"))
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // jobs)))
    fits = lambda name, data: data in ELSEWHERE.get(name, ("ou", "lgssm"))
    pairs = [(data, name) for data in sets for name in MODELS if name in wanted and fits(name, data)]
    with ThreadPoolExecutor(jobs) as pool:
        runs = dict(zip(pairs, pool.map(lambda p: run(p[1], p[0], folder, epochs, threads), pairs), strict=True))
    per_run = f"{threads} thread{'' if threads == 1 else 's'}"
    text = HEAD.format(torch=f"torch {torch.__version__}", threads=per_run, epochs=epochs)
    for data in sets:
        text += f"\n## {data}\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS) + "\n"
        text += "".join(f"{line(n, where)}\n" for (d, n), where in runs.items() if d == data and where)
    output = Path(given.get("output", "docs/likelihood.md"))
    temporary = output.with_name(f".{output.name}.part")
    temporary.write_text(text)
    temporary.replace(output)
    print(text)
    return 1 if None in runs.values() else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
