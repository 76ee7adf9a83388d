"""Figures of models, images and calibration."""
