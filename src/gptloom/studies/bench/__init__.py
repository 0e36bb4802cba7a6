"""Benchmarks of a model on this machine: one setting is varied at a time, and compared with the machine's limit."""
