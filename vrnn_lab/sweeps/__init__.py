"""Run sweeps and searches over many runs."""
