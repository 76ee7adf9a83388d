"""Records the numbers of small runs of every model and command, to show that a change of code changes none of them.

    python experiments/record_numbers.py record before.json     (at the commit before)
    python experiments/record_numbers.py compare before.json    (at the commit after, on the same machine)

Only commands that users type are called, so that the script outlives any move of code. Each model of conf/model is
fitted for a few steps and scored; then come a sweep, evaluate, predict, sample and report. Wall times and what names
the commit are left out; all other numbers are compared to the last digit.
"""

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = ["trainer=cpu", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "evaluate.draws=9", "seed=3"]
SIZES = {"model.width": 12, "model.latent": 3, "model.encoder_width": 12, "model.decoder_width": 12, "model.nodes": 6}
SETS = {"latent_ode_poisson": ("events", ["model/head=events"]), "vae": ("digits", ["model/head=bernoulli"])}
OWN = ("data.train=40", "data.val=20", "data.test=20", "data.batch_size=10")
VARYING = ("seconds", "per_second", "memory", "code", "threads", "time", "started", "versions", "sha256", "folder")


def run(*arguments: str, folder: Path) -> str:
    """Return what a command prints. Raises SystemExit, with its messages, where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(arguments)}\nended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return ended.stdout


def keys_of(model: str) -> set[str]:
    """Return the keys of a file of conf/model and of the files that its first lines refer to."""
    texts = [(ROOT / "conf" / "model" / f"{model}.yaml").read_text()]
    texts += [
        (ROOT / "conf" / "model" / f"{line[4:].strip()}.yaml").read_text()
        for line in texts[0].splitlines()
        if line.startswith("  - ") and ":" not in line and "_self_" not in line
    ]
    return {line.split(":")[0].strip() for text in texts for line in text.splitlines() if ":" in line}


def overrides(model: str) -> list[str]:
    """Return the overrides of a run of seconds."""
    data, more = SETS.get(model, ("ou", []))
    sizes = [f"{key}={value}" for key, value in SIZES.items() if key.partition(".")[2] in keys_of(model)]
    return [f"model={model}", f"data={data}", *more, *sizes, *SMALL, *(() if data == "digits" else OWN)]


def numbers(value: object, path: str = "") -> dict[str, object]:
    """Return the leaves of a JSON value by their path, without those that differ from one run to the next."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {path: repr(value) if isinstance(value, float) else value}
    kept = ((f"{path}/{key}", part) for key, part in parts if not any(word in str(key) for word in VARYING))
    return {name: leaf for key, part in kept for name, leaf in numbers(part, key).items()}


def table(file: Path) -> dict[str, object]:
    """Return the cells of a CSV file by their row and column."""
    rows = csv.DictReader(io.StringIO(file.read_text()))
    return numbers([dict(row) for row in rows])


def irregular_table(file: Path) -> None:
    """Write a table of six irregular series of two channels, some cells of which are empty."""
    import numpy as np

    random = np.random.default_rng(0)
    lines = ["id,time,a,b"]
    for series in range(6):
        times = np.sort(random.uniform(0, 10, 40))
        for time in times:
            cells = [f"{np.sin(time + series) + 0.1 * random.normal():.17g}", f"{random.normal():.17g}"]
            cells[int(random.integers(2))] = "" if random.random() < 0.3 else cells[0]
            lines.append(f"s{series},{time:.17g},{cells[0]},{cells[1]}")
    file.write_text("\n".join(lines) + "\n")


def recorded(folder: Path) -> dict[str, dict[str, object]]:
    """Return every number, by the command that it came from. Runs lie in the given folder."""
    recorded_numbers: dict[str, dict[str, object]] = {}
    models = sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml"))
    for model in models:
        run("vrnn_lab.run", *overrides(model), f"hydra.run.dir={folder / model}", folder=folder)
        recorded_numbers[f"run {model}"] = numbers(json.loads((folder / model / "metrics.json").read_text()))
        print(model, len(recorded_numbers[f"run {model}"]), flush=True)
    shown = run("vrnn_lab.evaluate", f"run={folder / 'latent_ode'}", folder=folder)
    recorded_numbers["evaluate"] = numbers([line for line in shown.splitlines() if str(folder) not in line])
    backtest = folder / "backtest.csv"
    sweep = [*overrides("rnn"), "optim=adam,sgd", "sweep=pair", f"hydra.sweep.dir={folder / 'pair'}"]
    run("vrnn_lab.run", "-m", *sweep, folder=folder)
    for file in sorted((folder / "pair").rglob("metrics.json")):
        recorded_numbers[f"sweep {file.parent.name}"] = numbers(json.loads(file.read_text()))
    irregular_table(folder / "own.csv")
    own = ["data=table", f"data.path={folder / 'own.csv'}", *SMALL]
    for model in ("latent_ode", "linear_sde"):
        fitted = folder / f"own_{model}"
        chosen = [override for override in overrides(model) if not override.startswith("data")]
        run("vrnn_lab.run", *chosen, *own, f"hydra.run.dir={fitted}", folder=folder)
        recorded_numbers[f"run {fitted.name}"] = numbers(json.loads((fitted / "metrics.json").read_text()))
        answer = folder / f"{fitted.name}.csv"
        options = [f"run={fitted}", f"input={folder / 'own.csv'}", "horizon=2", "seed=1", f"output={answer}"]
        run("vrnn_lab.predict", *options, folder=folder)
        recorded_numbers[f"predict {model}"] = table(answer)
        options = [f"run={fitted}", "backtest=true", "backtest.horizon=2", f"output={backtest}"]
        run("vrnn_lab.evaluate", *options, folder=folder)
        recorded_numbers[f"backtest {model}"] = table(backtest)
    drawn = folder / "drawn.csv"
    run("vrnn_lab.sample", f"run={folder / 'vrnn'}", "n=3", "seed=2", f"output={drawn}", folder=folder)
    recorded_numbers["sample"] = table(drawn)
    run("vrnn_lab.report", str(folder / "pair"), f"output={folder / 'report.csv'}", folder=folder)
    recorded_numbers["report"] = {k: v for k, v in table(folder / "report.csv").items() if str(folder) not in str(v)}
    return recorded_numbers


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "compare"):
        raise SystemExit(__doc__)
    file = Path(sys.argv[2]).absolute()
    with tempfile.TemporaryDirectory() as made:
        recorded_numbers = recorded(Path(made))
    if sys.argv[1] == "record":
        file.write_text(json.dumps(recorded_numbers, indent=1))
        raise SystemExit(0)
    before = json.loads(file.read_text())
    differing = [
        f"{command}{key}: {before.get(command, {}).get(key)} before, {recorded_numbers.get(command, {}).get(key)} now"
        for command in sorted({*before, *recorded_numbers})
        for key in sorted({*before.get(command, {}), *recorded_numbers.get(command, {})})
        if before.get(command, {}).get(key) != recorded_numbers.get(command, {}).get(key)
    ]
    count = sum(map(len, before.values()))
    print(f"{count - len(differing)} of {count} numbers are equal to the last digit", *differing[:50], sep="\n")
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
