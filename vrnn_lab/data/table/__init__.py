"""Provide the data set of the user's own table: readers of CSV and Parquet files, time stamps and error messages."""
