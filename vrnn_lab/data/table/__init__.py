"""The data set of one's own table: readers of CSV and Parquet files, time stamps and errors."""
