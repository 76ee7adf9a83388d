"""Configs: composed by Hydra from conf/ and overrides, and checked before anything is built."""
