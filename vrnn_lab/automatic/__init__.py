"""Choose columns, models and their mixture for a table, within a budget of time: what vrnn_lab.auto does."""
