"""Define the error of invalid configs."""


class ConfigError(ValueError):
    """Signal a config that cannot work; its text says where, what was found, what was expected and the cure."""
