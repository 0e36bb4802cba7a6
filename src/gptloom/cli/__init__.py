"""The command line: `main.py`, what all commands share in `flags.py`, and one file for each command."""
