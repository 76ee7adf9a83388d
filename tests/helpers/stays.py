"""Stays in intensive care as small files of the true format."""

import numpy as np

from vrnn_lab.data.datasets.physionet2012 import SERIES

COUNT = 10  # records a set
FIRST = {"a": 132539, "b": 142675, "c": 152871}
HEAD = "Time,Parameter,Value\n"


def record(number: int, lines=None) -> str:
    """Return a record: ten heart rates, three temperatures, one lactate and a 7 of all else, at times of its own."""
    rng = np.random.default_rng(number)
    if lines is None:
        minutes = np.sort(rng.choice(np.arange(1, 2880), 10, replace=False))
        times = [f"{m // 60:02d}:{m % 60:02d}" for m in minutes]
        lines = [f"{t},HR,{rng.integers(40, 140)}" for t in times]
        lines += [f"{times[i]},Temp,{37 + 0.1 * rng.integers(-9, 9):.1f}" for i in (1, 4, 9)]
        lines += [f"{times[7]},Lactate,{rng.uniform(1, 5):.2f}"]
        lines += [f"{times[2]},{name},7" for name in SERIES if name not in ("Weight", "HR", "Temp", "Lactate")]
    static = [f"00:00,RecordID,{number}", "00:00,Age,54", f"00:00,Gender,{number % 2}", "00:00,Height,-1"]
    static += [f"00:00,ICUType,{1 + number % 4}", "00:00,Weight,80.6"]
    return HEAD + "\n".join([*static, *sorted(lines, key=lambda x: x[:5])]) + "\n"


def died(number: int) -> int:
    return int(number % 5 == 0)


def files_of(count: int = COUNT, **changed) -> dict[str, str]:
    """Return the whole challenge, small: {name: text}; a value of None takes a file away. count: records of a set."""
    made = {}
    for s, first in FIRST.items():
        numbers = range(first, first + count)
        made |= {f"set-{s}/{n}.txt": record(n) for n in numbers}
        rows = [f"{n},6,1,5,-1,{died(n)}" for n in numbers]
        title = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
        made[f"Outcomes-{s}.txt"] = "\n".join([title, *rows]) + "\n"
    return {name: text for name, text in (made | changed).items() if text is not None}
