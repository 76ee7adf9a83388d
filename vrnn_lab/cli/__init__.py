"""What the commands share: arguments, messages, signals and text for the terminal."""
