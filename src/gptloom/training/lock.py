"""One run folder has one writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gptloom.errors import InputError, MachineError

NAME = ".lock"


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold the run folder's lock. The operating system holds it for the process, so that a killed writer leaves none behind.

    Raises:
        InputError: another process holds it.
        MachineError: the folder cannot be written, or its file system has no locks.
    """
    lock = FileLock(run / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError("another process is training this run", where=str(run), cure="wait until it has ended, or stop it") from None
    except (OSError, NotImplementedError) as error:
        what = f"the run folder cannot be locked: {getattr(error, 'strerror', None) or error}"
        raise MachineError(what, where=str(run), cure="choose another folder with --run") from None
    try:
        yield
    finally:
        lock.release()
