"""Whose the GPUs' time, energy and money were, and who is on them now.

answers        reads a question's words, asks the store, shapes the answer
ranges         a stretch of time in words
slices         SQL: the seconds that each sample stands for
claims         SQL: whose those seconds are; every wall second in exactly one part
groups         SQL: by whom they are added up
ledger, usage, idle, series   the questions about a range
current        the questions about now
prices         what a GPU-hour costs
"""
