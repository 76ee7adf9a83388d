"""Install each extra alone in an environment of its own, and do with it what it is for: make check-extras.

    python3 tests/helpers/extras.py [extra ...]

It takes about two minutes an extra, and network.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
RUN = "-m vrnn_lab.run model=rnn model.width=4 data=periodic data.train=20 data.val=5 data.test=5 data.points=8 " \
      "trainer=cpu trainer.max_steps=4 evaluate.samples=2 evaluate.draws=3"  # fmt: skip
PREDICT = "-m vrnn_lab.predict run=example input=example horizon=2w"
TABLE = "-m vrnn_lab.run model=rnn data=table data.path=co2.csv data.id=null trainer=cpu trainer.max_steps=4 " \
        "evaluate.samples=2 evaluate.draws=3"  # fmt: skip
EXAMPLE = (
    "-c \"from vrnn_lab.core.example import file_of; import shutil; shutil.copy(file_of('example'), 'co2.csv')\""
)
SWEEP = RUN.replace("vrnn_lab.run", "vrnn_lab.run -m") + " seed=0,1 hydra/launcher="
WORKS = {  # extra -> the arguments of python, one command after the other
    "parquet": [f"{PREDICT} output=co2.parquet"],
    "large": [EXAMPLE, f"{TABLE} data.stream=true"],
    "gp": [
        EXAMPLE,
        f"{TABLE} hydra.run.dir=r",
        "-c \"assert 'reference/gaussian process/' in open('r/metrics.json').read()\"",
    ],
    "digits": ["-m vrnn_lab.run experiment=digits trainer=cpu trainer.max_steps=4 evaluate.samples=2"],
    "hopper": ["-m vrnn_lab.fetch hopper", RUN.replace("data=periodic", "data=hopper")],
    "search": [RUN.replace("vrnn_lab.run", "vrnn_lab.search") + " trials=2"],
    "dashboard": ['-c "import optuna_dashboard, optuna"'],
    "mlflow": [f"{RUN} logger=mlflow"],
    "wandb": [f"{RUN} logger=wandb logger.wandb.offline=true"],
    "joblib": [f"{SWEEP}joblib"],
    "submitit": [f"{SWEEP}submitit_local"],
    "ray": [f"{SWEEP}ray"],
    "bench": ['-c "import celerite2, diffrax, jax, sklearn, torchode"'],
    "docs": [f"-m mkdocs build --strict --quiet --config-file {ROOT / 'mkdocs.yml'} --site-dir site"],
}


def works(extra: str, folder: Path) -> bool:
    """Return whether an extra installs into an empty environment and its commands run there; print what does not."""
    python = str(folder / "env" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[{extra}]"]
    for command in ([sys.executable, "-m", "venv", str(folder / "env")], install):
        subprocess.run(command, check=True)
    for words in WORKS[extra]:
        done = subprocess.run(
            f"{python} {words}", shell=True, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{extra}: python {words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            return False
    return True


def main() -> int:
    failed = []
    for extra in sys.argv[1:] or WORKS:
        with TemporaryDirectory() as place:
            fine = works(extra, Path(place))
        print(f"{extra}\t{'works alone' if fine else 'FAILED'}", flush=True)
        failed += [] if fine else [extra]
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
