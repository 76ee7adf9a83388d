"""Run folders: what they hold, how they are built into a model, and what is checked before they are trusted."""
