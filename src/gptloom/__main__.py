"""`python -m gptloom` is the same as `gptloom`."""

from gptloom.cli import run

run()
