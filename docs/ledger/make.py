"""Write docs/ledger.md: published numbers beside ours, each with its protocol, command and cause.

    python docs/ledger/make.py

Our numbers are read out of the tables of the other pages, which the commands named there made from run folders, so
that a page and the ledger cannot differ.
"""

import re
import sys
from pathlib import Path

import yaml

DOCS = Path(__file__).parents[1]
ENTRIES = Path(__file__).with_name("entries.yaml")
HEAD = """# Ledger: published numbers, and what comes out here

One row for each published number that was measured again. *Published* is the number in the source, *here* what this
project measures under the source's protocol, and *fixed* what it measures after a fault of that protocol is mended,
or beside it by a method that needs no training. The numbers *here* and *fixed* are cells of the pages under
*measured*, where the commands, seeds and intervals are. Lower is better unless the row says otherwise. *Outcome* is
one of

* `reached`: as good as published, or better;
* `missed`: worse than published;
* `refuted`: the number does not show what it is quoted for. A method without training does as well, the protocol has
  a fault, or the number does not come out under its own protocol.

Below each table stands why the numbers differ; a test named there shows the effect. `python docs/ledger/make.py`
writes this page.
"""
OUTCOMES = ("reached", "missed", "refuted")


def tables(text: str, heading: str) -> list[list[list[str]]]:
    """Return the tables of a section, each a list of rows of cells; heading: the start of the section's heading."""
    sections = re.split(r"^#+ ", text, flags=re.MULTILINE)
    section = next((part for part in sections if part.startswith(heading)), None)
    if section is None:
        raise ValueError(f"no section '{heading}'")
    found, rows = [], []
    for line in [*section.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-*:?", cell) for cell in cells):
                rows.append(cells)
        elif rows:
            found.append(rows)
            rows = []
    return found


def cell(place: dict[str, str | int]) -> str:
    """Return a number of a page, as text: the group of a `pattern`, or the cell of a table.

    A cell has a section, a row (the start of its cells, joined by ' | '), a column (a heading, or its number from 0)
    and, where it reads 'a / b', a part.
    """
    page = str(place["page"])
    text = (DOCS / page).read_text()
    if "pattern" in place:
        if (found := re.search(str(place["pattern"]), text)) is None:
            raise ValueError(f"{page}: nothing matches {place['pattern']}")
        return found[1]
    wanted, column = str(place["row"]), place["column"]
    for head, *rows in tables(text, str(place["section"])):
        for row in rows:
            if (isinstance(column, int) or column in head) and " | ".join(row).startswith(wanted):
                value = row[column if isinstance(column, int) else head.index(column)]
                return value.split(" / ")[int(place["part"])] if "part" in place else value
    raise ValueError(f"{page}: no row '{wanted}' with column '{column}' in section '{place['section']}'")


def number(text: str) -> float:
    """Return the number that a cell begins with."""
    found = re.search(r"-?\d+\.?\d*(e-?\d+)?", text.replace("≥", ""))
    if found is None:
        raise ValueError(f"'{text}' is not a number")
    return float(found[0])


def checked(entry: dict) -> tuple[str, str]:
    """Return the cells 'here' and 'fixed' of an entry; raise ValueError where its outcome does not fit them."""
    here = cell(entry["here"]) if "here" in entry else ""
    fixed = cell(entry["fixed"]) if "fixed" in entry else ""
    if entry["outcome"] not in OUTCOMES:
        raise ValueError(f"outcome {entry['outcome']}: expected one of {', '.join(OUTCOMES)}")
    shown = "tests/" in entry.get("cause", "") or (fixed and number(fixed) < number(str(entry["published"])))
    if entry["outcome"] == "refuted" and not shown:
        raise ValueError("a number is refuted, but no better number under 'fixed' and no test in the cause shows it")
    if here and entry["outcome"] != "refuted":
        sign = -1 if entry.get("higher") else 1
        reached = sign * number(here) <= sign * number(str(entry["published"]))
        if reached != (entry["outcome"] == "reached"):
            raise ValueError(f"{here} against {entry['published']} is not {entry['outcome']}")
    return here, fixed


def page() -> str:
    """Return the whole page."""
    out = [HEAD]
    for group in yaml.safe_load(ENTRIES.read_text()):
        out.append(f"\n## {group['title']}\n")
        out.append(f"{group['text'].strip()}\n")
        out.append("\n| quantity | source | published | here | fixed | outcome | measured |\n|" + "---|" * 7 + "\n")
        causes: dict[str, list[str]] = {}
        for entry in group["rows"]:
            try:
                here, fixed = checked(entry)
            except (ValueError, KeyError) as error:
                raise ValueError(f"{ENTRIES}: {group['title']}, {entry.get('quantity')}: {error}") from error
            pages = dict.fromkeys(str(entry[key]["page"]) for key in ("here", "fixed") if key in entry)
            measured = ", ".join(f"[{name.removesuffix('.md')}]({name})" for name in pages)
            named = f"{fixed} ({entry['fixed']['by']})" if fixed else ""
            row = (entry["quantity"], entry["source"], entry["published"], here, named, entry["outcome"], measured)
            out.append(f"| {' | '.join(map(str, row))} |\n")
            causes.setdefault(entry.get("cause", "").strip(), []).append(str(entry["quantity"]))
        out.append("\nWhy the numbers differ:\n\n")
        for cause, quantities in causes.items():
            named = "" if len(causes) == 1 else f"*{'; '.join(quantities)}*: "
            out.append(f"* {named}{cause}\n")
    return "".join(out)


if __name__ == "__main__":
    (DOCS / "ledger.md").write_text(page())
    sys.exit(0)
