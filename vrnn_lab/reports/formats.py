"""Write text tables to the terminal, in Markdown and in LaTeX."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vrnn_lab.cli import shown_text
from vrnn_lab.cli.shown_text import latex_comment, markdown_paragraph, terminal_cell
from vrnn_lab.cli.terminal import Terminal
from vrnn_lab.reports.tables import TextTable

WIDTH = 24
WIDEST = 40  # characters of an unfolded cell; a longer one is no number but text of someone else's run folder
WORDS = (
    "",
    "settings",
    "baseline",
    "question",
    "claim",
    "rows",
    "metric",
    "status",
    "verdict",
    "folder",
)  # the columns that may be folded


def print_tables(text_tables: Sequence[TextTable], console: Terminal) -> None:
    """Print each table; a numeric column that does not fit is left out with a notice, never cut."""
    for text_table in text_tables:
        shown = list(range(len(text_table.header)))
        while _least(_table(text_table, shown), console) > console.width and (spare := _spare(text_table, shown)):
            shown.remove(spare)
        if text_table.title:
            console.print(text_table.title)
        fits = _least(_table(text_table, shown), console) <= console.width
        console.print(_table(text_table, shown, WIDTH if fits else 1))
        if missing := [name for place, name in enumerate(text_table.header) if place not in shown]:
            notice = f"a width of {console.width} has no room for {', '.join(missing)}; use columns= or output="
            console.print(notice, soft_wrap=True)


def _least(table: Table, console: Terminal) -> int:
    """Return the minimum width of a table, independent of the terminal's width."""
    return console.measure(table, options=console.options.update(width=10_000)).minimum


def _spare(text_table: TextTable, shown: list[int]) -> int | None:
    """Return the index of the last numeric column that may be left out, None where there is none."""
    return next((place for place in reversed(shown[3:]) if text_table.header[place] not in WORDS), None)


def _table(text_table: TextTable, shown: list[int], least: int = WIDTH) -> Table:
    """Return a table of the columns `shown`; columns of words fold, but to no less than the width `least`."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in shown:
        name = terminal_cell(text_table.header[place])
        words = name in WORDS
        cells = [_cell(text_table, row, place) for row in text_table.rows]
        heading = name if words or len(name) < 14 else name.replace("/", "/\n")
        longest = max(map(len, [*heading.split("\n"), *cells]))
        table.add_column(
            heading,
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
            min_width=min(longest, least) if words else longest,
        )
    for place, row in enumerate(text_table.rows):
        table.add_row(
            *(_cell(text_table, row, p) for p in shown), style="bold" if place == text_table.marked else None
        )
    return table


def _cell(text_table: TextTable, row: Sequence[str], place: int) -> str:
    """Return a cell; it is cut to WIDEST unless its column folds or is our own count of runs."""
    whole = text_table.header[place] in (*WORDS, "runs")
    return terminal_cell(row[place]) if whole else terminal_cell(row[place], WIDEST)


def markdown(text_tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """Return the tables, then the notes, in Markdown."""
    parts = []
    for text_table in text_tables:
        lines = [text_table.header, ["---"] + ["---:"] * (len(text_table.header) - 1)]
        rows = [list(map(shown_text.markdown, row)) for row in [text_table.header, *text_table.rows]]
        if text_table.marked is not None:
            rows[text_table.marked + 1] = [f"**{cell}**" if cell else "" for cell in rows[text_table.marked + 1]]
        rows.insert(1, lines[1])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts += [*map(markdown_paragraph, text_table.title.splitlines()), table]
    return "\n\n".join([*parts, *map(markdown_paragraph, notes)]) + "\n"


def latex(text_tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """Return the tables in LaTeX with booktabs, with the notes as comments."""
    parts = ["% \\usepackage{booktabs}", *map(latex_comment, notes)]
    for text_table in text_tables:
        rows = [list(map(shown_text.latex, row)) for row in text_table.rows]
        if text_table.marked is not None:
            rows[text_table.marked] = [f"\\textbf{{{cell}}}" for cell in rows[text_table.marked]]
        line = lambda row: " & ".join(row) + r" \\"
        parts += map(latex_comment, text_table.title.splitlines() or [""])
        parts += [f"\\begin{{tabular}}{{l{'r' * (len(text_table.header) - 1)}}}"]
        parts += [r"\toprule", line(map(shown_text.latex, text_table.header)), r"\midrule", *map(line, rows)]
        parts += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"
