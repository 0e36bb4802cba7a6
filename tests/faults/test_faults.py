"""Short versions of tests/faults; `make faults` runs the long ones. Two writers and two ranks are in test_state.py."""

from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["kills", "saving", "damage", "disk", "storms", "resuming"])
def test_nothing_is_lost(name):
    for row in import_module(f"faults.{name}").rows(quick=True):
        assert row.tries and row.survived == row.tries, row
