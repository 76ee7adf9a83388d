"""Write the losses, scores and figures of a run to where its user looks at them, by Lightning's loggers."""
