"""Neutralise text out of files that other people made, for the place where it is shown.

Names, config values and messages of a run folder may hold anything: escape codes that move the cursor of a terminal,
cells that a spreadsheet takes for formulas, commands of LaTeX, tags of HTML. Everything that this package prints or
writes into a report goes through one of these functions.
"""

import json
import re
import sys
from typing import Any

LONGEST = 1000  # characters of a cell on the terminal, at most
# Control characters (C0, DEL, C1), separators of lines and paragraphs, marks of the direction of writing, byte order
# marks, and surrogates, which no encoding can write: file names that are not UTF-8 are read as such.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")
FORMULA = re.compile(r"(^|;)(\s*)(?=[=+\-@＝＋－＠])")  # a spreadsheet may divide cells at `;` too
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}


def terminal(text: str) -> str:
    """Return a text in which every hidden character but a newline is written as its escape, such as \\x1b."""
    return HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else _escaped(found[0]), text)


def one_line(text: str) -> str:
    """Return a text in which every hidden character, newlines too, is written as its escape."""
    return HIDDEN.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def terminal_cell(text: str, longest: int = LONGEST) -> str:
    """Return a text as a cell of a table on the terminal: one line, with a note where it is cut to `longest`."""
    cut = text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"
    return one_line(cut)


def say(line: str) -> None:
    """Print a line that may hold text out of files."""
    print(terminal(line), flush=True)


def complain(line: str) -> None:
    """Print a line that may hold text out of files on the standard error."""
    print(terminal(line), file=sys.stderr, flush=True)


def spreadsheet(value: Any) -> Any:
    """Return a cell of CSV that no spreadsheet takes for a formula; numbers, also as text, stay as they are.

    A text that begins with =, +, - or @ (or has one behind a `;`) has an apostrophe before it (OWASP, CSV injection).
    """
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    return FORMULA.sub(r"\1\2'", one_line(value))


def markdown(text: str) -> str:
    """Return a text as Markdown that is shown literally, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", _joined(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_paragraph(text: str) -> str:
    """Return a text as a paragraph of Markdown, which begins no list, rule or heading."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", markdown(text))


def latex(text: str) -> str:
    """Return a text as a cell of a LaTeX table; behind the \\\\ of a row a `[` or `*` would be its argument."""
    joined = _joined(text)
    return "{}" * joined.startswith(("[", "*")) + "".join(TEX.get(c, c) for c in joined)


def latex_comment(text: str) -> str:
    """Return a text as a comment of LaTeX, which a line break would end."""
    return f"% {_joined(text)}"


def _joined(text: str) -> str:
    return one_line(" ".join(text.split()))


def script_json(data: Any) -> str:
    """Return data as JSON for a <script> of HTML: `<`, which alone could end it, is \\u003c there."""
    return json.dumps(_neutral(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _neutral(data: Any) -> Any:
    if isinstance(data, str):
        return terminal(data)
    if isinstance(data, dict):
        return {terminal(str(key)): _neutral(value) for key, value in data.items()}
    return list(map(_neutral, data)) if isinstance(data, (list, tuple)) else data
