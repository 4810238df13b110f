"""Whose the GPUs' time, energy and money were, and who is on them now.

answers        reads a question's words, asks the store, shapes the answer
ranges         a stretch of time in words
desk           what the answers need of the store
slices         SQL: the seconds that each sample stands for
claims         SQL: whose those seconds are; every wall second in exactly one part
cells          the shape of what is kept of that: the accounts of one bucket of time
pieces         divides time and GPUs, so that there is memory for each piece's rows
rolling        makes cells of raw rows, and hourly coarser ones of finer ones
metrics        SQL: what samples say of each metric, by hour
plan           which cells and which raw rows answer for a range
gathering      the cells of a range, with those that are made for the question
groups         SQL: by whom they are added up
ledger, usage, idle, utilization, series   the questions about a range; buckets, those of a series
current        the questions about now
prices         what a GPU-hour costs
"""
