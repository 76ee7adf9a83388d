"""Store the rows measured last in outputs/bench, as JSON, and format them as a table."""

import json
from pathlib import Path
from typing import Any

from bench.harness import FIELDS, Row
from vrnn_lab.core.files import write_whole

FOLDER = Path("outputs/bench")
# Keys that the table leaves out, or shows in columns of their own.
OWN = {*FIELDS, "sense", "suite", "threads", "device", "repeats", "spread", "cpu_ms", "load", "measured"}


def read(file: Path) -> list[Row]:
    """Return the rows of earlier runs; an empty list where there is no file."""
    try:
        rows = json.loads(file.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); remove it and measure again.") from error
    return [row for row in rows if "suite" in row]


def place(row: Row) -> tuple[Any, ...]:
    """Return the key under which a later measurement replaces a row: suite, threads and device."""
    return row["suite"], row["threads"], row["device"]


def keep(file: Path, fresh: list[Row], complete: bool = False) -> list[Row]:
    """Replace stored rows by newly measured ones of the same name and key, and return all rows.

    complete: the new rows are all rows of their suite, so its other stored rows are dropped.
    """
    names = {(place(row), row["name"]) for row in fresh}
    places = {place(row) for row in fresh} if complete else set()
    old = [row for row in read(file) if (place(row), row["name"]) not in names and place(row) not in places]
    write_whole(file, json.dumps([*old, *fresh], indent=1))
    return [*old, *fresh]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(row: Row) -> str:
    return {True: "yes", False: "NO", None: ""}[row["ok"]]


def more(row: Row) -> str:
    """Return the details that only some rows have, as text."""
    show = lambda v: f"{v:.2g}" if isinstance(v, float) else str(v)
    details = {k: v for k, v in row.items() if k not in OWN and not isinstance(v, dict)}
    return ", ".join(
        f"{k.replace('_', ' ')} {' / '.join(map(show, v)) if isinstance(v, list) else show(v)}"
        for k, v in details.items()
    )


HEAD = ("suite", "what", "threads", "ours", "peer", "unit", "against", "ratio", "target", "ok", "more")


def cells(row: Row) -> tuple[str, ...]:
    target = "" if row["target"] is None else f"{row['sense']} {number(row['target'])}"
    of = f"{row['threads'] or 'all'}" + (" GPU" if row["device"] == "cuda" else "")
    peer = "" if row["peer_name"] in row["name"] else row["peer_name"]
    numbers = (number(row["ours"]), number(row["peer"]), row["unit"], peer, number(row["ratio"]))
    return (row["suite"], row["name"], of, *numbers, target, verdict(row), more(row))


def table(rows: list[Row]) -> str:
    """Return a Markdown table with aligned columns, except the last."""
    lines = [HEAD, *map(cells, rows)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(HEAD) - 1)] + [0]
    aligned = [
        "| " + " | ".join(cell.ljust(size) for cell, size in zip(line, wide, strict=True)) + " |" for line in lines
    ]
    return "\n".join([aligned[0], "|" + "|".join("-" * (size + 2) for size in wide) + "|", *aligned[1:]])


def line(row: Row) -> str:
    """Return one line of text about a row, for the terminal."""
    numbers = f"{number(row['ours'])} {row['unit']}, {row['peer_name']} {number(row['peer'])}"
    return f"  {row['name']}: {numbers}, ratio {number(row['ratio'])} {verdict(row)}"


def page(file: Path = FOLDER / "latest.json") -> str:
    """Return the description of the machine, and the table of the stored rows."""
    rows = sorted(read(file), key=place) if file.exists() else []
    if not rows:
        raise ValueError(f"{file} holds no rows; measure some first: python -m bench")
    description = file.with_name("machine.json")
    machine = json.loads(description.read_text()) if description.exists() else {}
    about = ", ".join(f"{key} {'not installed' if value is None else value}" for key, value in machine.items())
    loads = [row["load"] for row in rows if "load" in row] or [0.0]
    return f"{about}; load while these rows were measured {min(loads)} to {max(loads)}\n\n{table(rows)}"
