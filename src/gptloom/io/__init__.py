"""Atomic writes, and reads of untrusted files."""
