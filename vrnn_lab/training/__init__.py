"""The fit of a model in its run folder: callbacks, stops, processes, devices."""
