"""The command line: `main.py`, helpers of all commands in `flags.py`, and one file per command."""
