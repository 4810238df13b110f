"""Sealing: a day that is over becomes Parquet files with a manifest, in a process of its own.

process (the server's side) · worker (the process: takes a job, says what became of it) · raw (a day's rows) ·
filling (CSV files to a database on disk) · sorting (that database to Parquet, a few GPUs at a time) ·
cells (a day's accounts) · stamps (what all this depends on, beside the rows)
"""
