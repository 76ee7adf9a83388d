"""Helpers that several tests share: small models, commands in processes of their own, strategies of inputs."""
