"""Provide what every other package builds on: time series, densities, noise, exact inference and files."""
