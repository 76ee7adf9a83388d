"""Read stays in intensive care from the PhysioNet/Computing in Cardiology Challenge 2012."""

import io
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vrnn_lab.core.types import Count, Natural, Positive
from vrnn_lab.data import splits
from vrnn_lab.data.archives import contents
from vrnn_lab.data.base import Ragged, SeriesData

log = logging.getLogger("vrnn_lab")

STAYS = 4000  # in each set
HOURS = 48  # length of each stay's record
STATICS = ("Age", "Gender", "Height", "ICUType")
SERIES = (
    *("Weight", "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP", "FiO2"),
    *("GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent", "Na", "NIDiasABP", "NIMAP"),
    *("NISysABP", "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI"),
    *("TroponinT", "Urine", "WBC"),
)
PARAMETERS = (*STATICS, *SERIES)
UNITS_OF_CARE = ("CoronaryCare", "CardiacSurgery", "Medical", "Surgical")  # ICUType 1 to 4
COVARIATES = ("Age", "Gender", "Height", "HeightKnown", *UNITS_OF_CARE)
USUAL = {"Age": 64.0, "Gender": 0.5, "Height": 170.0}  # imputed where a stay's record lacks them
POSSIBLE = {
    "Height": (100, 250),
    "Weight": (20, 300),
    "Temp": (25, 45),
    "pH": (6.5, 8),
    "WBC": (0, 500),
}  # ranges in a living patient
ZERO_IS_A_VALUE = ("Gender", "Urine")
RECORD = re.compile(r"set-([abc])(?:/.*)?/(\d+)\.txt$")
OUTCOMES = re.compile(r"Outcomes-([abc])\.txt$")
WANTED, PACKED = re.compile(f"{RECORD.pattern}|{OUTCOMES.pattern}"), re.compile(r"set-[abc][^/]*$")
HEAD = "Time,Parameter,Value"
SOURCE = (
    "Download set-a, set-b and set-c (.tar.gz or .zip) and Outcomes-a.txt, -b and -c from "
    "https://physionet.org/content/challenge-2012/1.0.0/ and set data.path to the folder that holds them, packed or "
    "not, or to one archive of all"
)


@dataclass(frozen=True)
class Protocol:
    """Define how stays are read and assigned to splits."""

    sets: str
    shares: tuple[float, float, float]
    ticks: float  # per hour: times are rounded to whole ticks, and values at one tick are averaged
    as_written: bool  # -1 and impossible values are kept, descriptors are channels, values are not dequantised
    labelled: str  # sets whose outcomes are used
    says: str = ""


RAW = "-1 and impossible values count as observed, and descriptors are channels observed at 00:00. Differences: "
PROTOCOLS = {
    "ours": Protocol("abc", (0.6, 0.2, 0.2), 60.0, False, "abc"),
    "rubanova": Protocol(
        "ab",
        (0.7, 0.1, 0.2),
        1 / 0.016,
        True,
        "a",
        "data.protocol=rubanova, as in Rubanova et al. 2019: sets a and b, 41 parameters, times rounded to 0.016 h, "
        f"outcomes of set a; {RAW}validation and test stays are disjoint, the scale is computed from training "
        "stays alone, and the times of a stay do not depend on its batch. Their extrapolation: "
        "evaluate.forecast.until=0.5; their interpolation is scored at the observed points.",
    ),
    "tpatchgnn": Protocol(
        "abc",
        (0.6, 0.2, 0.2),
        60.0,
        True,
        "abc",
        "data.protocol=tpatchgnn, as in Zhang et al. 2024: sets a, b and c, 41 parameters, mean within a minute, "
        f"60/20/20; {RAW}stays are assigned to splits by a hash of their id (theirs by the order of a folder's "
        "listing), and the scale is computed from training stays alone. Their models see what comes before 24 h: "
        "evaluate.forecast.until=0.4999.",
    ),
}


class Physionet2012(SeriesData):
    """Read 12 000 stays of 48 hours in intensive care: 37 vital signs and laboratory values at irregular times.

    Source: Silva, Moody, Scott, Celi & Mark 2012 (Computing in Cardiology 39, 245-248); ODC-BY 1.0; from
    physionet.org/content/challenge-2012, sets a, b and c of 4000 stays. The label is death in hospital. Times are
    hours since admission, windows [0, 48]; values of one minute are averaged.

    protocol=ours: the files write -1 for unknown values, so values not above zero (urine: below zero) count as
    missing, as do weights outside 20 to 300 kg, temperatures outside 25 to 45 degrees, pH outside 6.5 to 8 and WBC
    above 500. Rounded values get uniform noise of one rounding step (`dequantise`), estimated from training values;
    without it their likelihood is unbounded. The facts recorded at admission (`descriptors`) are covariates, known at
    every point and never scored; missing ones are set to usual values. MechVent is 1 wherever it is recorded, so its
    density is only bounded by the floor of the predicted std. Stays without a value are left out.

    protocol=rubanova and tpatchgnn read the stays as those papers do; a warning lists the settings.

    Whole stays are assigned to splits by the rank of a hash of (seed, id). Raise ValueError for unknown sets.
    """

    time_unit = "hours"
    classes = ("survived", "died")

    def __init__(
        self,
        path: str,
        protocol: Literal["ours", "rubanova", "tpatchgnn"] = "ours",
        sets: list[str] | tuple[str, ...] | None = None,
        shares: list[Positive] | tuple[Positive, ...] | None = None,
        descriptors: Literal["covariates", "channels", "none"] | None = None,
        dequantise: bool | None = None,
        batch_size: Count = 50,
        seed: Natural = 0,
    ):
        super().__init__(batch_size, seed)
        self.path, self.protocol = Path(path).expanduser(), PROTOCOLS[protocol]
        self.sets = tuple(self.protocol.sets if sets is None else sets)
        self.shares = tuple(self.protocol.shares if shares is None else shares)
        self.descriptors = descriptors or ("channels" if self.protocol.as_written else "covariates")
        self.dequantise = not self.protocol.as_written if dequantise is None else dequantise
        splits.check_cut(self.shares, None, None)
        if not self.sets or not set(self.sets) <= set("abc") or len(set(self.sets)) < len(self.sets):
            raise ValueError(f"data.sets={list(self.sets)}; expected some of a, b and c, each once.")

    @property
    def channels(self):
        return PARAMETERS if self.descriptors == "channels" else SERIES

    @property
    def covariates(self):
        return COVARIATES if self.descriptors == "covariates" else ()

    def make(self):
        if self.protocol.says:
            log.warning(self.protocol.says)
        stays, died = read(self.path, self.sets, [s for s in self.sets if s in self.protocol.labelled])
        rows = rows_of(stays)
        if not self.protocol.as_written:
            rows = plausible(rows)
        series, single = averaged(rows, tuple(stays), self.channels, self.protocol.ticks)
        names = series.names or ()
        series = replace(series, labels=np.array([died.get(name, -1) for name in names]))
        if self.covariates:
            of_stay = dict(zip(stays, covariates_of(rows, len(stays)), strict=True))
            covariates = np.repeat(np.stack([of_stay[name] for name in names]), series.lengths, axis=0)
            series = replace(series, points=replace(series.points, covariates=covariates))
        runs = splits.by_name(series, self.shares, self.seed)
        if self.dequantise:
            series = splits.dequantised(series, runs["train"], self.channels, self.seed, shown=single)
        return {split: series.part(part.owner) for split, part in runs.items()}


def read(path: Path, sets, labelled) -> tuple[dict[str, str], dict[str, int]]:
    """Return the text of every record of some sets, and the outcomes (1 = died) of the labelled sets, by record id.

    Raise ValueError for a missing, truncated or wrong file.
    """
    if not path.exists():
        raise ValueError(f"data.path={path} does not exist (looked in {Path.cwd()}). {SOURCE}")
    records: dict[str, dict[str, str]] = {s: {} for s in sets}
    died: dict[str, int] = {}
    with_outcomes = set()
    for name, text in contents(path, WANTED, PACKED):
        if (match := RECORD.search(name)) and match[1] in sets:
            records[match[1]][match[2]] = text.decode("utf-8", errors="replace")
        elif (match := OUTCOMES.search(name)) and match[1] in labelled:
            died |= outcomes(path, name, text.decode("utf-8", errors="replace"))
            with_outcomes.add(match[1])
    for s in sets:
        if len(records[s]) != STAYS:
            raise ValueError(
                f"data.path={path}: set-{s} has {len(records[s])} records, expected {STAYS}, such as "
                f"set-{s}/132539.txt. {SOURCE}"
            )
    if missing := sorted(set(labelled) - with_outcomes):
        raise ValueError(f"data.path={path} has no Outcomes-{missing[0]}.txt. {SOURCE}")
    stays = {name: text for s in sets for name, text in sorted(records[s].items())}
    for name, text in stays.items():
        check_ends(path, name, text)
    if labelled and (without := [n for s in labelled for n in records[s] if n not in died]):
        raise ValueError(
            f"data.path={path}: record {without[0]} has no outcome ({len(without)} such records in all). {SOURCE}"
        )
    return stays, died


def outcomes(path: Path, name: str, text: str) -> dict[str, int]:
    """Return the outcome by record id, 1 for death in hospital, else 0; raise ValueError for a wrong file."""
    try:
        table = pd.read_csv(io.StringIO(text), usecols=["RecordID", "In-hospital_death"], dtype=int)
    except ValueError as error:
        raise ValueError(f"data.path={path}: {name} is not a list of outcomes ({error}). {SOURCE}") from error
    died = dict(zip(table["RecordID"].astype(str), table["In-hospital_death"].tolist(), strict=True))
    if len(died) != STAYS or not set(died.values()) <= {0, 1}:
        raise ValueError(
            f"data.path={path}: {name} has the outcomes of {len(died)} records, with the values "
            f"{sorted(set(died.values()))[:5]}; expected {STAYS}, each 0 or 1. {SOURCE}"
        )
    return died


def check_ends(path: Path, name: str, text: str) -> None:
    """Check that a text is the whole record of that name; raise ValueError if not."""
    start = f"{HEAD}\n00:00,RecordID,{name}\n"
    if not text.replace("\r\n", "\n").startswith(start):
        raise ValueError(f"data.path={path}: {name}.txt begins {text[:50]!r}, expected {start!r}. {SOURCE}")
    if not text.endswith("\n"):
        raise ValueError(f"data.path={path}: {name}.txt ends {text[-20:]!r}, in the middle of a line. {SOURCE}")


@dataclass(frozen=True)
class Measurements:
    """Hold the lines of all records as numbers, each field (lines,)."""

    owner: NDArray[np.int64]  # index of the record
    minute: NDArray[np.int64]  # since admission
    kind: NDArray[np.int64]  # index into PARAMETERS
    value: NDArray[np.float64]

    def some(self, mask: NDArray[np.bool_]) -> "Measurements":
        return Measurements(self.owner[mask], self.minute[mask], self.kind[mask], self.value[mask])


def rows_of(stays: dict[str, str]) -> Measurements:
    """Parse all lines of the records except RecordID and the 2403 lines without the name of a parameter.

    Raise ValueError that names the first line that cannot be read.
    """
    try:
        return _rows(stays)
    except (ValueError, TypeError) as error:
        for name, text in stays.items():  # slow, so only run to find the faulty line
            _check_lines(name, text)
        raise ValueError(f"the records cannot be read ({error}). {SOURCE}") from error


def _rows(stays: dict[str, str]) -> Measurements:
    bodies = [text.replace("\r\n", "\n").split("\n", 1)[1] for text in stays.values()]
    frame = pd.read_csv(
        io.StringIO("".join(bodies)),
        header=None,
        names=["time", "parameter", "value"],
        dtype={"time": "category", "parameter": "category", "value": float},
        keep_default_na=False,
    )
    lengths = [body.count("\n") for body in bodies]
    if sum(lengths) != len(frame) or not np.isfinite(frame["value"]).all():
        raise ValueError("lines are missing or hold no number")
    place = {name: i for i, name in enumerate(PARAMETERS)} | {"RecordID": -1, "": -1}
    kind = np.array([place.get(x, -2) for x in frame["parameter"].cat.categories])[frame["parameter"].cat.codes]
    minute = np.array([minute_of(x) for x in frame["time"].cat.categories])[frame["time"].cat.codes]
    if (kind == -2).any():
        raise ValueError("a parameter is unknown")
    rows = Measurements(np.repeat(np.arange(len(stays)), lengths), minute, kind, frame["value"].to_numpy())
    return rows.some(kind >= 0)


def minute_of(text: str) -> int:
    """Return the minutes since admission of a time hh:mm; raise ValueError for an invalid or a later time."""
    hour, minute = text.split(":")
    if not (
        len(hour) == len(minute) == 2 and 0 <= int(minute) < 60 and 0 <= int(hour) * 60 + int(minute) <= HOURS * 60
    ):
        raise ValueError(f"'{text}' is not a time from 00:00 to {HOURS}:00")
    return int(hour) * 60 + int(minute)


def _check_lines(name: str, text: str) -> None:
    for number, line in enumerate(text.splitlines()[1:], 2):
        try:
            time, parameter, value = line.split(",")
            minute_of(time)
            if not np.isfinite(float(value)) or parameter not in (*PARAMETERS, "RecordID", ""):
                raise ValueError("the parameter is unknown or the value is not finite")
        except ValueError as error:
            raise ValueError(
                f"{name}.txt, line {number}: {line!r} is not of the form '{HEAD}' ({error}). {SOURCE}"
            ) from error


def plausible(rows: Measurements) -> Measurements:
    """Keep the measurements whose values are possible in a living patient."""
    least = np.array([0.0 if name in ZERO_IS_A_VALUE else np.nextafter(0, 1) for name in PARAMETERS])
    low = np.maximum(least, [POSSIBLE.get(name, (0, 0))[0] for name in PARAMETERS])
    high = np.array([POSSIBLE.get(name, (0, np.inf))[1] for name in PARAMETERS])
    return rows.some((low[rows.kind] <= rows.value) & (rows.value <= high[rows.kind]))


def covariates_of(rows: Measurements, count: int) -> NDArray[np.float64]:
    """Return the covariates (records, covariate) from the facts recorded at admission, in the order of COVARIATES."""
    facts = np.full((count, len(STATICS)), np.nan)
    first = rows.kind < len(STATICS)
    facts[rows.owner[first], rows.kind[first]] = np.where(rows.value[first] < 0, np.nan, rows.value[first])
    age, gender, height, unit = facts.T
    known = lambda name, column: np.where(np.isnan(column), USUAL[name], column)
    columns = [known("Age", age), known("Gender", gender), known("Height", height), ~np.isnan(height)]
    return np.stack([*columns, *(unit == i + 1 for i in range(len(UNITS_OF_CARE)))], 1).astype(np.float64)


def averaged(
    rows: Measurements, names: tuple[str, ...], channels: tuple[str, ...], ticks: float
) -> tuple[Ragged, Ragged]:
    """Return the records as series, and a copy without the values that are the mean of several measurements.

    ticks: per hour; measurements of a channel at one tick are averaged. Records without a value are left out.
    """
    left_out = len(PARAMETERS) - len(channels)
    rows = rows.some(rows.kind >= left_out)
    moment = np.rint(rows.minute * (ticks / 60)).astype(np.int64)
    channel = rows.kind - left_out
    most = round(HOURS * ticks) + 1
    key = (rows.owner * most + moment) * len(channels) + channel
    order = np.argsort(key, kind="stable")
    cell, first, count = np.unique(key[order], return_index=True, return_counts=True)
    mean = np.add.reduceat(rows.value[order], first) / count
    point, place = np.unique(cell // len(channels), return_inverse=True)
    values, single = (np.full((len(point), len(channels)), np.nan) for _ in range(2))
    values[place, cell % len(channels)] = mean
    single[place, cell % len(channels)] = np.where(count == 1, mean, np.nan)
    owner = point // most
    here, offsets = np.unique(owner, return_index=True)
    if len(here) < len(names):
        empty = [names[i] for i in np.setdiff1d(np.arange(len(names)), here)]
        log.warning("%d stays have no value and are left out: %s", len(empty), ", ".join(empty[:15]))
    kept = tuple(names[i] for i in here)
    series = Ragged.joined(
        times=np.minimum(point % most / ticks, HOURS),
        values=values,
        offsets=np.append(offsets, len(owner)),
        windows=np.tile([0.0, HOURS], (len(here), 1)),
        ids=splits.hashed(kept),
        names=kept,
    )
    return series, replace(series, points=replace(series.points, values=single))
