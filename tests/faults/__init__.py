"""Faults that a run must survive; each module tries one kind and counts the survivals (`make faults`)."""
