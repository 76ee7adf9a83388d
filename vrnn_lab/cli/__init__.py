"""Share between the commands: arguments, messages, signals and text for the terminal."""
