"""The cache folder, and files that exist whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gptloom.config import DataConfig
from gptloom.errors import MachineError

_CURE = "free some disk space, or name another folder (--data.cache)"


def cache_folder(config: DataConfig) -> Path:
    """The folder for token files and data sets: `config.cache`, else the user's cache folder. It need not exist yet."""
    if config.cache is not None:
        return Path(config.cache)
    import platformdirs

    return Path(platformdirs.user_cache_dir("gptloom", appauthor=False))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write `path` under a temporary name; it is synced and takes its place only when the block ends well.

    Raises:
        MachineError: the folder or the file cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            yield file  # type: ignore[misc]  # the wrapper is a BinaryIO in all but name
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise MachineError(f"cannot be written: {error.strerror or error}", where=str(path), cure=_CURE) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
