"""The built-in data sets, simulated and real."""
