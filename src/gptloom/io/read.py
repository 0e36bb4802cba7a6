"""Files from outside, read with a bound: whatever lies there, reading ends, in memory that its size bounds, with a value or an error."""

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from gptloom.errors import InputError

SMALL_FILE = 1 << 20
"""Bytes that a file of settings or facts may have. Ours have a few thousand."""

CURE = "check the path"


def regular_size(path: Path, *, cure: str = CURE) -> int:
    """The size in bytes of a regular file.

    A folder cannot be read, a pipe may never end and a device has no end, so none of them is opened.

    Raises:
        InputError: it is missing, cannot be looked at, or is no regular file.
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
    """A whole file of at most `limit` bytes.

    Raises:
        InputError: it cannot be read, is no regular file, or is larger.
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
    """A whole UTF-8 file of at most `limit` bytes; errors as `read_bytes`, and for bytes that are not UTF-8."""
    try:
        return read_bytes(path, limit=limit, cure=cure).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start:,})", where=str(path), cure=cure) from None


def read_json(path: Path, *, limit: int = SMALL_FILE, cure: str = CURE) -> dict[str, Any]:
    """The JSON object in a file; errors as `read_text`, and as `json_object`."""
    text = read_text(path, limit=limit, cure=cure)
    try:
        return json_object(text)
    except ValueError as error:
        raise InputError(f"is not a whole JSON object: {error}", where=str(path), cure=cure) from None


def json_object(text: str) -> dict[str, Any]:
    """A JSON object as RFC 8259 has it: without NaN and Infinity, and each key once.

    Raises:
        ValueError: it is something else, holds a number of thousands of digits, or is nested too deeply.
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
        raise ValueError(f"the key {key[:40]!r} is there twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number in JSON")
