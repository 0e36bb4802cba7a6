"""Decoding files: the encoding of a file, and its documents as a stream of strings in bounded memory.

A plain text file is one document. JSON Lines and CSV files have one document per line or row. A file of pairs has
lines of SOURCE<tab>TARGET, and each side is a document.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from gptloom.errors import ConfigError, InputError, nearest
from gptloom.files import denied

PIECE = 1 << 20
"""Maximum bytes per read, and maximum characters per piece."""

LINE_ENDS = "CRLF or CR line ends are read as LF"

_SAMPLE = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's mark, which is a prefix of it
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
    """The file is empty."""


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        return path.open("rb")
    except PermissionError as error:
        raise denied(path, error) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), cure="check the path") from None


def check_encoding(name: str) -> str:
    """Return Python's name of the user's encoding; UTF-8 becomes utf-8-sig, which drops a byte-order mark.

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
    """Find the encoding of a file: by its byte-order mark, else UTF-8 if all bytes are valid, else by detection.

    Raises:
        BinaryFileError: the file has NUL bytes or many control characters.
        InputError: the file is damaged UTF-8, has an unknown encoding, or cannot be read.
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
    """Yield a file's text in strings of at most `PIECE` characters, with LF line ends.

    Args:
        path: the file.
        encoding: Python's name of its encoding.
        remarks: a remark is added if line ends were changed.

    Raises:
        UnicodeError: the file is not in this encoding; the message names the byte offset.
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
    cure = "give a text file; if it is UTF-16 without a byte-order mark, use --data.encoding utf-16-le"
    return BinaryFileError("is a binary file, not text", where=str(path), cure=cure)


def _first_invalid(path: Path) -> int | None:
    """Return the offset of the first byte that is not UTF-8, or None; raises BinaryFileError at a NUL byte."""
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
    """Detect a legacy encoding from the bytes around the first byte that is not UTF-8."""
    start = max(0, invalid - _SAMPLE // 2)
    with open_binary(path) as file:
        file.seek(start)
        sample = file.read(_SAMPLE)
    lenient = sample.decode("utf-8", errors="replace")
    if sum(char > "\x7f" for char in lenient) > 5 * lenient.count("\ufffd"):
        what = f"is UTF-8 except for the byte 0x{sample[invalid - start]:02x} at offset {invalid:,}"
        raise InputError(what, where=str(path), cure="correct that byte, or name the encoding (--data.encoding)")
    found = _most_likely(b"\n".join(line for line in sample.splitlines() if not line.isascii()))
    if found is None:
        raise InputError(
            "is neither UTF-8 nor in an encoding that can be detected",
            where=str(path),
            cure="name its encoding (--data.encoding)",
        )
    return found


def _most_likely(sample: bytes) -> str | None:
    import charset_normalizer

    runs = _HIGH.findall(sample)
    # In Latin scripts, single accented letters occur between ASCII letters; in others, nearly every byte is above 0x7F.
    latin = sum(map(len, runs)) < 2 * len(runs)
    matches = charset_normalizer.from_bytes(sample, cp_isolation=_LATIN if latin else _OTHER)
    best = matches.best()
    if best is None:
        return None
    # Several code pages often decode a text identically; prefer cp1252 unless another one is more coherent.
    western = max((match.coherence for match in matches if "cp1252" in match.could_be_from_charset), default=0.0)
    if latin and best.coherence <= western + 0.01 and not _NOT_CP1252.intersection(sample):
        return "cp1252"
    return best.encoding


SUFFIXES: dict[str, Literal["jsonl", "csv", "tsv"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOGETHER = 1 << 16  # characters


class Piece(NamedTuple):
    """Part of one document, at most `PIECE` characters."""

    text: str
    ends_document: bool


@dataclass
class Source:
    """One file of a corpus.

    Attributes:
        path: the file.
        label: its name in messages.
        encoding: Python's name of its encoding.
        kind: its format.
        remarks: changes made while reading, for the user.
    """

    path: Path
    label: str
    encoding: str
    kind: Literal["text", "jsonl", "csv", "tsv"]
    remarks: set[str] = field(default_factory=set)

    def pieces(self, text_field: str) -> Iterator[Piece]:
        """Yield the file's documents in order, in pieces; empty documents are omitted.

        Args:
            text_field: the JSON key or CSV column of the text.

        Raises:
            InputError: the file is not in its encoding, or a line or the header is invalid.
        """
        try:
            if self.kind == "text":
                yield from self._whole()
            else:
                for text in self._json_lines(text_field) if self.kind == "jsonl" else self._rows(text_field):
                    yield from self._cut(text)
        except UnicodeError as error:
            raise InputError(
                f"is not {self.encoding} text: {error}", where=self.label, cure="name its encoding (--data.encoding)"
            ) from None

    def _whole(self) -> Iterator[Piece]:
        held = ""
        for text in decoded(self.path, self.encoding, self.remarks):
            if held:
                yield Piece(held, False)
            held = self._clean(text)
        if held:
            yield Piece(held, True)

    def _cut(self, text: str) -> Iterator[Piece]:
        if "\r" in text:
            self.remarks.add(LINE_ENDS)
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = self._clean(text)
        if not text:
            self.remarks.add("documents without text are omitted")
        for start in range(0, len(text), PIECE):
            yield Piece(text[start : start + PIECE], start + PIECE >= len(text))

    def _clean(self, text: str) -> str:
        try:
            text.encode()  # five times as fast as a search for surrogates
        except UnicodeEncodeError:
            self.remarks.add("lone surrogates are read as U+FFFD")
            return _SURROGATE.sub("\ufffd", text)
        return text

    def _json_lines(self, text_field: str) -> Iterator[str]:
        with io.TextIOWrapper(open_binary(self.path), encoding=self.encoding) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, text_field, f"{self.label}:{number}")

    def _rows(self, text_field: str) -> Iterator[str]:
        csv.field_size_limit(2**31 - 1)
        with io.TextIOWrapper(open_binary(self.path), encoding=self.encoding, newline="") as lines:
            rows = csv.reader(lines, delimiter="\t" if self.kind == "tsv" else ",")
            try:
                header = next(rows, [])
                if text_field not in header:
                    there = f"; its columns are {', '.join(header)}" if header else ""
                    cure = f"{nearest(text_field, header)} Name the column of the text (--data.text-field)".strip()
                    raise InputError(f"has no column {text_field!r}{there}", where=self.label, cure=cure)
                column = header.index(text_field)
                for row in rows:
                    if len(row) > column:
                        yield row[column]
                    elif row:
                        cure = "correct that row"
                        raise InputError(
                            f"has {len(row)} of {len(header)} columns, without {text_field!r}",
                            where=f"{self.label}:{rows.line_num}",
                            cure=cure,
                        )
            except csv.Error as error:
                raise InputError(
                    f"is not valid CSV: {error}", where=f"{self.label}:{rows.line_num}", cure="correct that row"
                ) from None


def together(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group short pieces (up to 65,536 characters), to amortise the cost of a call."""
    group, size = list[Piece](), 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text)
        if size >= _TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _text_of(line: str, text_field: str, where: str) -> str:
    """Return the text in one line of JSON Lines."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"is not JSON: {error}", where=where, cure="correct that line; each line must be one JSON object"
        ) from None
    if not isinstance(record, dict):
        raise InputError(
            f"is a JSON {type(record).__name__}, not an object",
            where=where,
            cure=f'write each line as {{"{text_field}": "..."}}',
        )
    if text_field not in record:
        cure = f"{nearest(text_field, record)} Name the key of the text (--data.text-field)".strip()
        raise InputError(f"has no key {text_field!r}; its keys are {', '.join(record)}", where=where, cure=cure)
    text = record[text_field]
    if not isinstance(text, str):
        raise InputError(
            f"{text_field!r} is {type(text).__name__}, not a string",
            where=where,
            cure="name the key of the text (--data.text-field)",
        )
    return text


_SHAPE = "write each line as SOURCE<tab>TARGET"


@dataclass
class PairSource(Source):
    """A file of pairs: document 2i is the source of pair i, and document 2i + 1 is its target."""

    def pieces(self, text_field: str) -> Iterator[Piece]:
        """Yield both sides of each line in order, in pieces; blank lines are skipped.

        Args:
            text_field: not used; a file of pairs has no header.

        Raises:
            InputError: the file is not in its encoding, or a line is not a pair.
        """
        try:
            for source, target in self._pairs():
                yield from self._cut(source)
                yield from self._cut(target)
        except UnicodeError as error:
            raise InputError(
                f"is not {self.encoding} text: {error}", where=self.label, cure="name its encoding (--data.encoding)"
            ) from None

    def _pairs(self) -> Iterator[tuple[str, str]]:
        found = False
        with io.TextIOWrapper(open_binary(self.path), encoding=self.encoding) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip(" \n"):
                    yield _sides(line.removesuffix("\n"), f"{self.label}:{number}")
                    found = True
            if lines.newlines not in (None, "\n"):
                self.remarks.add(LINE_ENDS)
        if not found:
            raise InputError("has no pair, only blank lines", where=self.label, cure=_SHAPE)


def _sides(line: str, where: str) -> tuple[str, str]:
    """Split a line into source and target."""
    sides = line.split("\t")
    if len(sides) == 1:
        raise InputError("has no tab, so it is not a pair", where=where, cure=_SHAPE)
    if len(sides) > 2:
        raise InputError(f"has {len(sides) - 1} tabs, and a pair has one", where=where, cure=_SHAPE)
    for name, side in zip(("source", "target"), sides, strict=True):
        if not side.strip():
            raise InputError(f"has an empty {name}", where=where, cure="add the text, or delete the line")
    return sides[0], sides[1]
