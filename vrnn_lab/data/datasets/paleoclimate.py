"""Read ice-core and sediment records, which are real, long and strongly irregular."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data import splits
from vrnn_lab.data.base import Ragged, SeriesData
from vrnn_lab.data.cache import cache_folder


@dataclass(frozen=True)
class Record:
    """Hold the file of a record, the columns of ages and values in it, and their units."""

    file: str
    age: str  # the column of ages before present
    value: str
    channel: str
    unit: str
    years: float  # one unit of the column of ages, in years


RECORDS = {
    "co2": Record("EPICA_Dome_C_CO2.csv", "Age [kyr BP]", "$CO_2$ [ppm]", "co2", "ppm", 1000.0),
    "deuterium": Record("edc3deuttemp2007.csv", "Age", "Deuterium", "deuterium", "permil", 1.0),
    "lr04": Record("LR04.csv", "Time (ka)", "Benthic d18O (per mil)", "d18o", "permil", 1000.0),
    "gisp2": Record("GISP2_d18O.csv", "Age [yr BP]", "d18O [permil]", "d18o", "permil", 1.0),
}


class Paleoclimate(SeriesData):
    """Read one record of the past climate, cut into windows of `window` points. Time is minus the age, in kyr.

    * co2: CO2 in air from EPICA Dome C, ppm, 1901 points in 806 kyr (Lüthi et al. 2008, Nature 453)
    * deuterium: deuterium of EPICA Dome C ice, 5785 points in 802 kyr (Jouzel et al. 2007, Science 317)
    * lr04: benthic d18O, a stack of 57 sediment cores, 2115 points in 5320 kyr (Lisiecki & Raymo 2005,
      Paleoceanography 20, PA1003)
    * gisp2: d18O of Greenland ice, 1390 points in 111 kyr (GISP2; Grootes & Stuiver 1997, JGR 102)

    split=blocks (default) assigns blocks of `window` points to the splits at random; adjacent training blocks are
    joined, and windows start `stride` points apart in them. Windows of different splits share no point. This tests
    the filling of gaps in a climate that is observed on both sides. split=time trains on the oldest part and tests on
    the youngest. That is forecasting, but not a fair test here: the records get denser and change in character
    towards the present (CO2's last 15 % of the points are 5 kyr of one warm period), so that neither the level nor
    the gaps are those of training.

    Values at equal ages are averaged. `python -m vrnn_lab.fetch paleoclimate` downloads the files.
    """

    time_unit = "kyr"

    def __init__(
        self,
        record: Literal["co2", "deuterium", "lr04", "gisp2"] = "co2",
        window: Count = 50,
        stride: Count | None = 10,
        split: Literal["blocks", "time"] = "blocks",
        shares: list[Positive] | tuple[Positive, ...] = (0.7, 0.15, 0.15),
        dequantise: bool = True,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        splits.check_cut(shares, window, stride)
        self.record, self.window, self.stride, self.split = record, window, stride, split
        self.shares, self.dequantise = tuple(shares), dequantise
        self.units = (RECORDS[record].unit,)

    @property
    def channels(self):
        return (RECORDS[self.record].channel,)

    def whole(self) -> Ragged:
        """Return the record as one series, before it is cut into windows and without added noise."""
        times, values = read(RECORDS[self.record])
        return Ragged.joined(
            times=times,
            values=values[:, None],
            offsets=np.array([0, len(times)]),
            windows=times[None, [0, -1]],
            ids=splits.hashed([self.record]),
            names=(self.record,),
        )

    def make(self):
        return splits.make_splits(*self._uncut(), self.window, self.stride)

    def reaching_back(self, split):
        series, runs = self._uncut()
        return splits.reaching_back(series, runs[split])

    def _uncut(self) -> tuple[Ragged, dict[str, splits.Runs]]:
        series = self.whole()
        if self.split == "time":
            runs = splits.by_time(series, self.shares)
        else:
            runs = splits.by_blocks(series, self.shares, self.window, self.seed)
        if self.dequantise:
            series = splits.dequantised(series, runs["train"], self.channels, self.seed)
        return series, runs


def read(record: Record):
    """Return (times, values), each (points,): times are minus the age in kyr and increase; equal ages are averaged.

    Raise ValueError for a missing file or one without the record's columns.
    """
    path = cache_folder() / record.file
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run: python -m vrnn_lab.fetch paleoclimate")
    header = _header(path.read_text("utf-8-sig").splitlines(), record)
    if header is None:
        raise ValueError(
            f"{path} has no line with the columns '{record.age}' and '{record.value}'; delete it and "
            "run: python -m vrnn_lab.fetch paleoclimate"
        )
    table = pd.read_csv(path, skiprows=header, encoding="utf-8-sig", usecols=[record.age, record.value]).dropna()
    times = -table[record.age].to_numpy(np.float64) * record.years / 1000 + 0.0  # no -0.0
    times, place, count = np.unique(times, return_inverse=True, return_counts=True)
    return times, np.bincount(place, table[record.value].to_numpy(np.float64)) / count


def _header(lines: list[str], record: Record) -> int | None:
    """Return the number of lines before the header, as some files begin with notes; None without a header."""
    headers = (i for i, line in enumerate(lines) if {record.age, record.value} <= set(line.split(",")))
    return next(headers, None)
