"""Sweeps and searches over many runs."""
