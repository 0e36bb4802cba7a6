"""Checkpoints of a run: their format, their folders, their state, and the thread that writes them."""
