"""Settings compared over several seeds: paired differences, intervals, verdicts."""
