"""Frames on their way out: each turn's outbox, paced to real time and written in batches."""
