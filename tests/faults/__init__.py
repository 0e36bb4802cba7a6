"""Faults that a run must survive: each module tries one kind and says how many tries came through (`make faults`)."""
