"""Bounded reads of untrusted files: they end with a value or an InputError, within bounded memory."""

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from gptloom.errors import InputError

SMALL_FILE = 1 << 20
"""Default maximum size in bytes. Our own settings files have a few thousand."""

CURE = "check the path"


def regular_size(path: Path, *, cure: str = CURE) -> int:
    """Return the size of a regular file in bytes.

    Folders, pipes and devices are refused before they are opened; a pipe or device may have no end.

    Raises:
        InputError: the path is missing, cannot be read or is not a regular file.
    """
    try:
        about = path.stat()
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
        raise InputError(f"is not a whole JSON object: {error}", where=str(path), cure=cure) from None


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
