"""Bytes to characters: which encoding a file has, and its text as a stream in bounded memory."""

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gptloom.errors import ConfigError, InputError, nearest

PIECE = 1 << 20
"""Bytes read, and characters handed on, at a time."""

LINE_ENDS = "CRLF or CR line ends are read as LF"

_SAMPLE = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's mark, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LATIN = ["cp1252", "cp1250", "cp1254", "cp1257"]
_OTHER = ["cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "cp932", "euc_jp", "gb18030", "big5", "cp949"]
_NOT_CP1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
_HIGH = re.compile(rb"[\x80-\xff]+")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"


class BinaryFileError(InputError):
    """The file does not hold text."""


class EmptyFileError(InputError):
    """The file holds nothing."""


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading; InputError says why it cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=str(path), cure="check the path and its permissions"
        ) from None


def check_encoding(name: str) -> str:
    """Python's name of an encoding that the user gave; UTF-8 becomes the kind that drops a byte-order mark.

    Raises:
        ConfigError: there is no such text encoding.
    """
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name).close()
        known = codecs.lookup(name).name
    except LookupError:
        common = ["utf-8", "utf-16", "utf-32", "latin-1", "ascii", "shift_jis", *_LATIN, *_OTHER]
        cure = nearest(name, common) or "give a name that Python knows, such as utf-8, cp1252 or shift_jis"
        raise ConfigError(f"there is no text encoding {name!r}", where="--data.encoding", cure=cure) from None
    return "utf-8-sig" if known == "utf-8" else known


def find_encoding(path: Path) -> str:
    """The encoding of a file: what its byte-order mark says, UTF-8 where the whole file is UTF-8, else detected.

    Raises:
        BinaryFileError: it has NUL bytes or many control characters.
        InputError: it is damaged UTF-8, in an unknown encoding, or cannot be read.
    """
    with open_binary(path) as file:
        head = file.read(_SAMPLE)
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    if len(head) - len(head.translate(None, _CONTROLS)) > len(head) // 20:
        raise _binary(path)
    invalid = _first_invalid(path)
    return "utf-8" if invalid is None else _detect(path, invalid)


def decoded(path: Path, encoding: str, remarks: set[str]) -> Iterator[str]:
    """A file's text in strings of at most `PIECE` characters, line ends as LF; what was changed is added to `remarks`.

    Raises:
        UnicodeError: the file is not in this encoding; the message tells near which byte.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    start = 0
    with open_binary(path) as file:
        try:
            while block := file.read(PIECE):
                if text := decoder.decode(block):
                    yield text
                start += len(block)
            if text := decoder.decode(b"", final=True):
                yield text
        except UnicodeError as error:
            raise UnicodeError(
                f"near byte {start + getattr(error, 'start', 0):,}, {getattr(error, 'reason', error)}"
            ) from None
    if decoder.newlines not in (None, "\n"):
        remarks.add(LINE_ENDS)


def _binary(path: Path) -> BinaryFileError:
    cure = "give a text file; if it is UTF-16 without a byte-order mark, say --data.encoding utf-16-le"
    return BinaryFileError("is a binary file, not text", where=str(path), cure=cure)


def _first_invalid(path: Path) -> int | None:
    """Offset of the first byte that is not UTF-8, or None; a NUL anywhere makes the file binary."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    with open_binary(path) as file:
        while True:
            block = file.read(PIECE)
            if b"\0" in block:
                raise _binary(path)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return start - held + error.start
            if not block:
                return None
            start += len(block)


def _detect(path: Path, invalid: int) -> str:
    """The likeliest legacy encoding, judged around the first byte that is not UTF-8."""
    start = max(0, invalid - _SAMPLE // 2)
    with open_binary(path) as file:
        file.seek(start)
        sample = file.read(_SAMPLE)
    lenient = sample.decode("utf-8", errors="replace")
    if sum(char > "\x7f" for char in lenient) > 5 * lenient.count("\ufffd"):
        what = f"is UTF-8 but for the byte 0x{sample[invalid - start]:02x} at offset {invalid:,}"
        raise InputError(what, where=str(path), cure="correct that byte, or name the encoding (--data.encoding)")
    found = _likeliest(b"\n".join(line for line in sample.splitlines() if not line.isascii()))
    if found is None:
        raise InputError(
            "is neither UTF-8 nor in an encoding that can be told",
            where=str(path),
            cure="name its encoding (--data.encoding)",
        )
    return found


def _likeliest(sample: bytes) -> str | None:
    import charset_normalizer

    runs = _HIGH.findall(sample)
    # In Latin scripts accented letters stand alone between ASCII ones; in other scripts nearly every byte is high.
    latin = sum(map(len, runs)) < 2 * len(runs)
    matches = charset_normalizer.from_bytes(sample, cp_isolation=_LATIN if latin else _OTHER)
    best = matches.best()
    if best is None:
        return None
    # Several code pages often read a text alike; the commonest wins unless another looks more like a language.
    western = max((match.coherence for match in matches if "cp1252" in match.could_be_from_charset), default=0.0)
    if latin and best.coherence <= western + 0.01 and not _NOT_CP1252.intersection(sample):
        return "cp1252"
    return best.encoding
