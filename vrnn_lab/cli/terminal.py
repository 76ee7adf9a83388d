"""Print to the terminal text that other people's files may hold."""

from typing import Any

from rich.console import Console
from rich.text import Text

from vrnn_lab.cli.shown_text import terminal


class Terminal(Console):
    """Extend Rich's console to show text literally: no markup such as [red], no :emoji:, no escape codes.

    What is printed as a string, the cells and titles of tables too, is neutralised (`shown_text.terminal`). A `Text`
    is shown as it is.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as `Text`, neutralised."""
        return super().render_str(terminal(text), **options)
