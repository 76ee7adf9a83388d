"""Fit a model in its run folder: callbacks, stops, processes and devices."""
