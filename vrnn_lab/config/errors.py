"""Errors of configs, and the nearest name to one that does not exist."""

import difflib


class ConfigError(ValueError):
    """A config that cannot work; its text says where, what was found, what was expected and the cure."""


def did_you_mean(word: str, among) -> str:
    """' Did you mean ...?' where something is like it."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
