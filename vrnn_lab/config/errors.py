"""Define the error of invalid configs, and suggest the nearest name to one that does not exist."""

import difflib


class ConfigError(ValueError):
    """Signal a config that cannot work; its text says where, what was found, what was expected and the cure."""


def did_you_mean(word: str, among) -> str:
    """Return " Did you mean '...'?" with the nearest name, empty where none is similar."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
