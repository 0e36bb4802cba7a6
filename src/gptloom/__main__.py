"""`python -m gptloom` is the same as `gptloom`."""

from gptloom.cli.main import run

run()
