"""Make the run and the table that come with the package (vrnn_lab/example): weekly CO2 at Mauna Loa by linear_sde.

    python experiments/example_run.py

The table is that of statsmodels (Keeling and Whorf, in the public domain). Training takes about a minute.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import OmegaConf
from real_sets import co2

from vrnn_lab.config.compose import choices, compose
from vrnn_lab.core import run_files
from vrnn_lab.core.example import EXAMPLE, RUN, TABLE
from vrnn_lab.core.files import write_yaml
from vrnn_lab.runs.folder import config_of
from vrnn_lab.runs.packed import pack
from vrnn_lab.training.fit import run


def main() -> None:
    TABLE.parent.mkdir(exist_ok=True)
    co2().to_csv(TABLE, index=False, lineterminator="\n")
    overrides = ["model=linear_sde", "data=table", f"data.path={EXAMPLE}", "data.id=null", "data.time=time"]
    overrides += ["data.period=365.25", "data.trend=quadratic", "trainer=cpu"]
    with TemporaryDirectory() as place:
        folder = Path(place) / "run"
        run(compose(overrides), folder, overrides, choices(overrides))
        config = config_of(folder)
        config.data.path = EXAMPLE  # in place of a path on this machine
        write_yaml(folder / run_files.CONFIG, OmegaConf.to_yaml(config))
        print(*pack(folder, RUN), sep="\n")
    for file in (RUN, TABLE):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
