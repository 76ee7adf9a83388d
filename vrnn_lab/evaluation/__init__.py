"""Scores, calibration, recalibration and the baselines of every result."""
