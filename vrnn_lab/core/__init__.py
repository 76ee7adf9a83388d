"""What every package builds on: the value that flows, densities, noise, exact inference and files."""
