"""Let the k-th disk operation of a save fail or end the process, or only record the operations in order."""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import safetensors.torch
from safetensors import SafetensorError

import gptloom.training.run  # noqa: F401  # so that all that saves is there to be patched

Kind = Literal["none", "full", "broken", "read-only", "crash", "exit"]
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS}
ONE_PATH = ("mkdir", "rmdir", "unlink", "remove")
TWO_PATHS = ("rename", "replace")


class Crash(BaseException):
    """The simulated end of the process; code that catches it must not use the disk."""


class Disk:
    """Intercepts the disk operations of a run within a with block.

    Args:
        run: the run folder; only its checkpoints and the pointers to them are watched.
        armed: returns whether operations count yet.
        at: the number of the operation that fails, from 0; a write stores half of its bytes.
        kind: the kind of failure. After "full", all later writes fail; after "read-only", all operations; after
            "crash", no operation reaches the disk.
    """

    def __init__(self, run: Path, armed: Callable[[], bool] = lambda: True, at: int = -1, kind: Kind = "none") -> None:
        self.run, self.armed, self.at, self.kind = run, armed, at, kind
        self.trace: list[tuple[str, ...]] = []
        self.hit = False
        self._paths: dict[int, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Disk":
        real = {name: getattr(os, name) for name in ("open", "fsync", *ONE_PATH, *TWO_PATHS)}
        self._open, self._file, self._save = real["open"], io.open, safetensors.torch.save_file
        self._patch(os, "open", self._os_open)
        self._patch(
            os,
            "fsync",
            lambda descriptor: self._request("fsync", self._named(descriptor), do=lambda: real["fsync"](descriptor)),
        )
        for name in ONE_PATH:
            self._patch(os, name, self._one_path(name, real[name]))
        for name in TWO_PATHS:
            self._patch(os, name, self._two_paths(name, real[name]))
        self._patch(io, "open", self._io_open)
        for module in [
            module
            for name, module in sys.modules.items()
            if name.startswith("gptloom") and getattr(module, "save_file", None) is self._save
        ]:
            self._patch(module, "save_file", self._save_file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _patch(self, owner: Any, name: str, new: Any) -> None:
        self._stack.enter_context(mock.patch.object(owner, name, new))

    def _request(
        self,
        name: str,
        *paths: str,
        do: Callable[[], Any],
        half: Callable[[], Any] = lambda: None,
        error: type[Exception] = OSError,
    ) -> Any:
        """Count one operation; if it fails, `half` is done and `error` is raised."""
        watched = all(self._is_watched(Path(path)) for path in paths)
        if watched and self.hit and (self.kind in ("crash", "read-only") or (self.kind == "full" and name == "write")):
            self._fail(error)
        if watched and self.armed():
            self.trace.append((name, *paths))
            if len(self.trace) - 1 == self.at:
                self.hit = True
                half()
                self._fail(error)
        return do()

    def _fail(self, error: type[Exception]) -> None:
        if self.kind == "exit":
            os._exit(9)
        if self.kind == "crash":
            raise Crash
        number = ERRORS[self.kind]
        if error is SafetensorError:  # as the library words it, without the error's number
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise OSError(number, os.strerror(number))

    def _is_watched(self, path: Path) -> bool:
        is_pointer = path.parent == self.run and ("latest" in path.name or "best" in path.name)
        return is_pointer or path == self.run or path.is_relative_to(self.run / "checkpoints")

    def _named(self, descriptor: int) -> str:
        return self._paths.get(descriptor, "")

    def _absolute(self, path: Any, dir_fd: int | None) -> str:
        if dir_fd is None:
            return os.fspath(path)
        return os.path.join(self._named(dir_fd), os.fspath(path))  # noqa: PTH118

    def _os_open(self, path: Any, mode: int, permissions: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = self._open(path, mode, permissions, dir_fd=dir_fd)
        self._paths[descriptor] = self._absolute(path, dir_fd)
        return descriptor

    def _one_path(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        return lambda path, *rest, dir_fd=None: self._request(
            name, self._absolute(path, dir_fd), do=lambda: real(path, *rest, dir_fd=dir_fd)
        )

    def _two_paths(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        return lambda old, new, **rest: self._request(
            name, os.fspath(old), os.fspath(new), do=lambda: real(old, new, **rest)
        )

    def _io_open(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        opened = self._file(file, mode, *rest, **named)
        self._paths[opened.fileno()] = str(file)
        return (
            _Writer(self, opened, str(file))
            if set(mode) & set("wxa+") and self._is_watched(Path(str(file)))
            else opened
        )

    def _save_file(self, tensors: Any, filename: Any, *rest: Any, **named: Any) -> None:
        def half() -> None:
            self._save(tensors, filename, *rest, **named)
            os.truncate(filename, Path(filename).stat().st_size // 2)

        self._request(
            "write",
            os.fspath(filename),
            do=lambda: self._save(tensors, filename, *rest, **named),
            half=half,
            error=SafetensorError,
        )


class _Writer:
    """A file whose writes are counted."""

    def __init__(self, disk: Disk, file: Any, path: str) -> None:
        self.disk, self.file, self.path = disk, file, path

    def write(self, content: Any) -> int:
        def half() -> None:
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        return self.disk._request("write", self.path, do=lambda: self.file.write(content), half=half)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def unsynced(trace: list[tuple[str, ...]], run: Path) -> list[str]:
    """List what a power failure could lose, judged by the order of the operations; empty if nothing.

    Before a rename, all files written below the old name must be synced, and also the old name if it is a folder. After
    the rename, the folder of the new name must be synced.
    """
    problems, dirty, renamed = [], set(), {}
    for name, *paths in trace:
        match name:
            case "write":
                dirty |= {paths[0], str(Path(paths[0]).parent)}
            case "fsync":
                dirty.discard(paths[0])
                renamed.pop(paths[0], None)
            case "rename" | "replace":
                old, new = map(Path, paths)
                problems += [
                    f"{Path(path).name} is not synced before the rename to {new.name}"
                    for path in dirty
                    if Path(path).is_relative_to(old)
                ]
                dirty = {path for path in dirty if not Path(path).is_relative_to(old)}
                if new.is_relative_to(run) and not new.name.startswith("."):
                    renamed[str(new.parent)] = new.name
    return problems + [
        f"{Path(folder).name}/ is not synced after {name} was put there" for folder, name in renamed.items()
    ]
