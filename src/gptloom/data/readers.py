"""Files to documents: plain text is one document, JSON Lines and CSV hold one on each line or row.

Pairs out of texts: a line holds a source and its target with a tab between, and each side is a document of its own.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from gptloom.data.encodings import LINE_ENDS, PIECE, decoded, open_binary
from gptloom.errors import InputError, nearest

SUFFIXES: dict[str, Literal["jsonl", "csv", "tsv"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOGETHER = 1 << 16  # characters


class Piece(NamedTuple):
    """A stretch of one document, at most `PIECE` characters."""

    text: str
    ends_document: bool


@dataclass
class Source:
    """One file of a corpus.

    Attributes:
        path: the file.
        label: what to call it.
        encoding: Python's name of its encoding.
        kind: how documents lie in it.
        remarks: what reading it had to change, for the user to know.
    """

    path: Path
    label: str
    encoding: str
    kind: Literal["text", "jsonl", "csv", "tsv"]
    remarks: set[str] = field(default_factory=set)

    def pieces(self, text_field: str) -> Iterator[Piece]:
        """The file's documents, in order, in pieces; documents without a character are left out.

        Args:
            text_field: the JSON key or CSV column that holds the text.

        Raises:
            InputError: the file is not in its encoding, or a line or the header is not as it should be.
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
            self.remarks.add("documents without text are left out")
        for start in range(0, len(text), PIECE):
            yield Piece(text[start : start + PIECE], start + PIECE >= len(text))

    def _clean(self, text: str) -> str:
        try:
            text.encode()  # five times as quick as looking for halves
        except UnicodeEncodeError:
            self.remarks.add("halves of surrogate pairs are read as U+FFFD")
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
                    cure = f"{nearest(text_field, header)} Say which column holds the text (--data.text-field)".strip()
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
    """Short pieces many at a time, for what has its price a call; long ones alone."""
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
    """The text in one line of JSON Lines."""
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
        cure = f"{nearest(text_field, record)} Say which key holds the text (--data.text-field)".strip()
        raise InputError(f"has no key {text_field!r}; its keys are {', '.join(record)}", where=where, cure=cure)
    text = record[text_field]
    if not isinstance(text, str):
        raise InputError(
            f"{text_field!r} is {type(text).__name__}, not a string",
            where=where,
            cure="name the key that holds the text (--data.text-field)",
        )
    return text


_SHAPE = "write each line as SOURCE<tab>TARGET"


@dataclass
class PairSource(Source):
    """A file of pairs: document 2i is the source of pair i, document 2i + 1 its target."""

    def pieces(self, text_field: str) -> Iterator[Piece]:
        """Both sides of each line, in order, in pieces; blank lines are left out.

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
    """The two sides of a line."""
    sides = line.split("\t")
    if len(sides) == 1:
        raise InputError("has no tab, so it is no pair", where=where, cure=_SHAPE)
    if len(sides) > 2:
        raise InputError(f"has {len(sides) - 1} tabs, and a pair has one", where=where, cure=_SHAPE)
    for name, side in zip(("source", "target"), sides, strict=True):
        if not side.strip():
            raise InputError(f"has an empty {name}", where=where, cure="fill it in, or delete the line")
    return sides[0], sides[1]
