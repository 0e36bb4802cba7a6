"""Crash-safe writes, and bounded reads of untrusted files.

A read returns a value or raises InputError, within bounded memory.
"""

import hashlib
import io
import json
import math
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptloom.errors import PERMISSIONS, DeniedError, InputError


class _Lasting(io.FileIO):
    """The file of a stream; what cannot be written to it is dropped."""

    def __init__(self, stream: io.TextIOWrapper, forgiven: type[OSError]) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._stream, self._forgiven = stream, forgiven  # the stream closes its file when nothing refers to it

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except self._forgiven:
            return memoryview(content).nbytes


def lasting(stream: Any, forgiven: type[OSError]) -> Any:
    """Return a stream to the same file whose writes do not fail, so that work continues without a reader of its lines.

    Args:
        stream: standard output or standard error; one of a notebook or a test, without a file, is returned unchanged.
        forgiven: the errors after which a text is dropped.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        file = _Lasting(stream, forgiven)
    except io.UnsupportedOperation:
        return stream
    buffer, by_line = io.BufferedWriter(file), stream.line_buffering
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=by_line)


def sync(path: Path) -> None:
    """Flush a file or folder to disk. Windows cannot sync folders, and does not need to."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file into a folder that is not published yet. `publish` syncs it."""
    path.write_text(text, encoding="utf-8")


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it has the old text or the new one."""
    temporary = path.with_name(f".{path.name}.writing")
    write_text(temporary, text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def publish(temporary: Path, final: Path) -> None:
    """Sync a folder and rename it to its final name; an existing folder of that name is replaced.

    A crash between the two renames leaves the old folder as .replaced-NAME. `recover` restores it.
    """
    for path in (*sorted(temporary.iterdir()), temporary):
        sync(path)
    aside = final.with_name(f".replaced-{final.name}")
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a published folder. It is renamed first, so a partly deleted folder never has its name."""
    going = folder.with_name(f".removing-{folder.name}")
    with suppress(OSError):  # a leftover folder only takes up space
        folder.rename(going)
        shutil.rmtree(going)


def set_aside(folder: Path, since: str) -> None:
    """Hide a published folder until a folder later than `since` is published. Names are numbered."""
    hidden = folder.with_name(f".aside-{since}")
    hidden.mkdir(exist_ok=True)
    folder.rename(hidden / folder.name)


def forget(folder: Path) -> None:
    """Remove everything that `set_aside` hid below a folder."""
    for path in folder.glob(".aside-*"):
        shutil.rmtree(path, ignore_errors=True)


def recover(folder: Path) -> None:
    """Clean up after a killed writer: remove partial folders, and restore hidden ones that are still needed."""
    for path in folder.glob(".replaced-*"):
        final = folder / path.name.removeprefix(".replaced-")
        if not final.exists():
            path.rename(final)
    newest = max((path.name for path in folder.glob("[!.]*")), key=_number, default="")
    for path in folder.glob(".aside-*"):
        if _number(newest) <= _number(path.name.removeprefix(".aside-")):
            # The newest comes first: if this is interrupted, the newest folder is restored.
            for name in sorted((hidden.name for hidden in path.iterdir()), key=_number, reverse=True):
                (path / name).rename(folder / name)
    for mark in (".replaced-", ".aside-", ".writing-", ".removing-"):
        for path in folder.glob(f"{mark}*"):
            shutil.rmtree(path, ignore_errors=True)


def _number(name: str) -> tuple[int, str]:
    """Sort key of numbered names with different numbers of digits."""
    return len(name), name


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """Return a value as JSON on one line. JSON has no NaN and no infinity (RFC 8259, section 6): they become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """A JSON Lines file.

    A line that could not be written is kept, and written before the next one.
    """

    def __init__(self, path: Path) -> None:
        """Append to this file; nothing is written yet."""
        self.path = path
        self.pending = ""

    def append(self, line: dict[str, Any]) -> None:
        """Write the pending lines and the object.

        Raises:
            OSError: nothing was written; the line is pending.
        """
        self.pending += to_json(line) + "\n"
        with self.path.open("ab", buffering=0) as file:
            size, content = file.tell(), self.pending.encode()
            try:
                written = file.write(content)
                if written != len(content):
                    raise OSError(None, "only a part of a line could be written", str(self.path))
            except OSError:
                os.truncate(self.path, size)
                raise
        self.pending = ""

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the wanted lines; lines that a crash truncated are removed."""
        self.pending = ""
        if self.path.exists():
            lines = [
                line
                for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines()
                if (found := _parse(line)) and wanted(found)
            ]
            replace_text(self.path, "".join(line + "\n" for line in lines))


def logged(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file. Lines that are not JSON objects are skipped."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from filter(None, map(_parse, file))


def _parse(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


SMALL_FILE = 1 << 20
"""Default maximum size in bytes. gptloom's settings files have a few thousand."""

CURE = "check the path"


def denied(path: Path, error: PermissionError) -> DeniedError:
    """Return the error of a file that this user may not read."""
    return DeniedError(f"cannot be read: {error.strerror}", where=str(path), cure=PERMISSIONS)


def regular_size(path: Path, *, cure: str = CURE) -> int:
    """Return the size of a regular file in bytes.

    Folders, pipes and devices are refused before they are opened; a pipe or device may have no end.

    Raises:
        DeniedError: this user may not read it.
        InputError: the path is missing, cannot be read or is not a regular file.
    """
    try:
        about = path.stat()
    except PermissionError as error:
        raise denied(path, error) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path), cure=cure
        ) from None
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe or a device"
        raise InputError(f"is {what}, not a file", where=str(path), cure=cure)
    return about.st_size


def read_bytes(path: Path, *, limit: int = SMALL_FILE, cure: str = CURE) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        InputError: it cannot be read, is not a regular file, or is larger.
    """
    size = regular_size(path, cure=cure)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except PermissionError as error:
        raise denied(path, error) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), cure=cure) from None
    if len(content) > limit:
        raise InputError(
            f"has {max(size, len(content)):,} bytes, and such a file has at most {limit:,}", where=str(path), cure=cure
        )
    return content


def read_text(path: Path, *, limit: int = SMALL_FILE, cure: str = CURE) -> str:
    """Read a UTF-8 file of at most `limit` bytes. Raises InputError as `read_bytes`, and if it is not UTF-8."""
    try:
        return read_bytes(path, limit=limit, cure=cure).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start:,})", where=str(path), cure=cure) from None


def read_json(path: Path, *, limit: int = SMALL_FILE, cure: str = CURE) -> dict[str, Any]:
    """Read a JSON object from a file. Raises InputError as `read_text`, and if it is not a JSON object."""
    text = read_text(path, limit=limit, cure=cure)
    try:
        return json_object(text)
    except ValueError as error:
        raise InputError(f"is not a valid JSON object: {error}", where=str(path), cure=cure) from None


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object (RFC 8259): no NaN or Infinity, no duplicate keys.

    Raises:
        ValueError: it is not such an object, has a number of thousands of digits, or is nested too deeply.
    """
    try:
        found = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__}")
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key[:40]!r} occurs twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a number in JSON")
