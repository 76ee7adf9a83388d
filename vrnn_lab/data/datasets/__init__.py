"""Provide the built-in data sets, simulated and real."""
