"""Short versions of the faults in input files and settings; `make faults` runs the long ones."""

import contextlib
import io
import time

from faults import bad_configs, fuzz_loaders
from gptloom.cli.main import main


def test_five_hundred_bad_configurations_end_in_a_line_each():
    def here(words, folder):
        said, began = io.StringIO(), time.monotonic()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main(words)
        return code, said.getvalue(), time.monotonic() - began

    tally, _ = bad_configs.run(500, 11, here, limit=float("inf"))
    assert tally.tries == 500 and not tally.problems


def test_a_few_of_them_as_commands():
    tally, _ = bad_configs.run(3, 12, limit=float("inf"))
    assert tally.tries == 3 and not tally.problems


def test_damaged_files_load_or_end_in_an_error_of_ours():
    (row,) = fuzz_loaders.rows(quick=True)
    assert row.tries == row.survived == 300, row.note
