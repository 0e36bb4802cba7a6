"""What holds for every test: one thread, examples that repeat, and a cache that pytest removes."""

import os
import signal

import pytest
import torch
from hypothesis import settings

# Models this small are twenty times faster on one thread, and results do not vary with the machine's number of cores.
torch.set_num_threads(1)

# Background jobs of a shell ignore interrupts, and `make test &` is such a job; the tests of signals send some.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("gptloom", deadline=None, derandomize=True)  # no test fails on a slow or busy machine
settings.load_profile("gptloom")


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_users(tmp_path_factory):
    """Store the tests' token files in a folder that pytest removes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path_factory.mktemp("cache")))
        yield
