"""Compute scores, calibration, recalibration and baselines of every result."""
