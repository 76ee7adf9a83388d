"""Handle run folders: what they hold, how a model is built from one, and what is checked before one is trusted."""
