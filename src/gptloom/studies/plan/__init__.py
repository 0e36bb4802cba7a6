"""Estimate the size, cost and memory of a training before it starts."""
