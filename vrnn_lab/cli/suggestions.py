"""Suggest the nearest name to one that does not exist."""

import difflib


def did_you_mean(word: str, among) -> str:
    """Return " Did you mean '...'?" with the nearest name, empty where none is similar."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
