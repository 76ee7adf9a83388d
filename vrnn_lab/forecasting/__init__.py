"""Forecasts of one's own series: queries, predictions, ensembles, backtests."""
