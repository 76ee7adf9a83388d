"""Compose configs by Hydra from conf/ and overrides, and check them before anything is built."""
