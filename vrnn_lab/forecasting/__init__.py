"""Forecast a user's own series: queries, predictions, ensembles and backtests."""
