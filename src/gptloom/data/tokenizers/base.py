"""What every tokenizer does: text to ids and back, in a stream, with a saved form that can be trusted.

What subword tokenizers share: they encode long texts in chunks, cut where no token would cross, many at a time.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Integer, UInt

from gptloom.config.run import OnUnknown
from gptloom.data.encodings import Piece
from gptloom.errors import InputError
from gptloom.files import read_bytes

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"
CURE = "copy it again from where it was made, or train a new one (--data.tokenizer)"

Ids = UInt[np.ndarray, " tokens"]
AnyIds = Integer[np.ndarray, " tokens"] | Sequence[int]
Value = TypeVar("Value")

LONGEST_FILE = 1 << 26
"""Bytes that a tokenizer's file may have; the largest in use have half of that."""

_STRETCH = 1 << 20  # ids that are looked up at once: a memory-mapped text must not be copied whole
_SURROGATE = re.compile("[\ud800-\udfff]")


class EncodedPiece(NamedTuple):
    """The ids of a stretch of one document."""

    ids: Ids
    ends_document: bool


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        kind: what sort it is, in a word.
        vocab_size: ids are below this.
        end_of_text: the id that ends a document, if there is one.
        dtype: the smallest unsigned integers that hold every id.
    """

    kind: str

    def __init__(self, spellings: Sequence[bytes], end_of_text: int | None) -> None:
        """Keep the table of what each id stands for.

        Args:
            spellings: the UTF-8 bytes of each id; a part of a character for some, nothing for special ones.
            end_of_text: the id that ends a document.
        """
        self.vocab_size = len(spellings)
        self.end_of_text = end_of_text
        self.dtype = id_dtype(self.vocab_size)
        self._spellings = list(spellings)
        self._lengths = np.array([len(spelling) for spelling in spellings], dtype=np.int64)

    @abstractmethod
    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """The ids of a text.

        Args:
            text: any string; what looks like a special token in it is text.
            on_unknown: refuse characters that the tokenizer does not have, leave them out, or take the nearest one.

        Raises:
            InputError: there is an unknown character and `on_unknown` is "error".
        """

    def padded(self, count: int) -> "Tokenizer":
        """The same tokenizer with `count` more ids, which stand for nothing, for models whose table is longer than their vocabulary.

        Raises:
            InputError: tokenizers of this kind cannot have such ids.
        """
        raise InputError(
            f"a tokenizer of the kind {self.kind} cannot be padded with {count} ids",
            where="tokenizer",
            cure="give one that has them all",
        )

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """All that is needed to load it again: file name to content. The same tokenizer gives the same bytes."""

    def decode(self, ids: AnyIds) -> str:
        """The text of some ids; special ids are left out, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self._spellings.__getitem__, np.asarray(ids, dtype=np.int64).tolist())).decode(
            errors="replace"
        )

    def token_text(self, token: int) -> str:
        r"""One id for display: its text, or `\xf0\x9f` where it is a part of a character."""
        return END_OF_TEXT if token == self.end_of_text else self._spellings[token].decode(errors="backslashreplace")

    def count_bytes(self, ids: AnyIds) -> int:
        """The UTF-8 bytes of text that some ids stand for; the end of a text counts 0."""
        ids = np.asarray(ids)
        return sum(
            int(self._lengths[ids[start : start + _STRETCH].astype(np.int64)].sum())
            for start in range(0, len(ids), _STRETCH)
        )

    def encode_pieces(self, pieces: Iterable[Piece], on_unknown: OnUnknown = "error") -> Iterator[EncodedPiece]:
        """Encode documents as a stream, in bounded memory; where the pieces were cut does not change the ids."""
        for text, ends_document in pieces:
            yield EncodedPiece(self.encode(text, on_unknown), ends_document)

    def save(self, folder: Path) -> None:
        """Write its files into an existing folder."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of its files: two tokenizers with the same fingerprint give the same ids."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files().items()):
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()


def unused_names(first: int, count: int) -> list[str]:
    """What ids that stand for nothing are called in a tokenizer's file."""
    return [f"<|unused_{first + place}|>" for place in range(count)]


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 that holds every id."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def well_formed(text: str, on_unknown: OnUnknown) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold: dropped, replaced by U+FFFD, or an InputError."""
    try:
        text.encode()  # five times as quick as looking for halves
        return text
    except UnicodeEncodeError as error:
        found = text[error.start]
    if on_unknown == "error":
        raise InputError(
            f"the text has half a surrogate pair, {found!r}, which is not a character",
            where="text",
            cure="use --on-unknown skip|replace",
        )
    return _SURROGATE.sub("" if on_unknown == "skip" else "\ufffd", text)


def check_ids(ids: Collection[int], where: str) -> None:
    """See that a table of these ids is not far longer than the ids are many.

    Raises:
        InputError: there is none, or they are negative, or far apart.
    """
    if not ids or min(ids) < 0 or max(ids) > 2 * len(ids) + (1 << 16):
        raise InputError("its ids must be whole numbers from 0 on, without large gaps", where=where, cure=CURE)


def spelling_table(spellings: Mapping[int, bytes]) -> list[bytes]:
    """What each id stands for, from 0 on; numbers without a token stand for nothing. The ids have been checked."""
    return [spellings.get(index, b"") for index in range(max(spellings) + 1)]


def to_json(content: Mapping[str, Any]) -> bytes:
    """A tokenizer's own JSON file, the same bytes each time."""
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def entry(content: Mapping[str, Any], key: str, kind: type[Value], where: Path) -> Value:
    """A value of a tokenizer's JSON file; InputError when it is missing or of another type."""
    value = content.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = f"{key!r} is {type(value).__name__}, not {kind.__name__}" if key in content else f"has no {key!r}"
        raise InputError(f"is not a whole tokenizer: {what}", where=str(where), cure=CURE)
    return value


def read_side_file(path: Path, sha256: str | None) -> bytes:
    """A file that belongs to a tokenizer; InputError when it is missing or is not the one with this hash (None: any)."""
    content = read_bytes(path, limit=LONGEST_FILE, cure=CURE)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError("is damaged: its hash is not the one that the tokenizer names", where=str(path), cure=CURE)
    return content


CHUNK = 1 << 16
"""Characters after which a chunk ends at the next safe place, and at twice as many in any case."""

_TOGETHER = 32
# GPT-2's, cl100k's and o200k's patterns, and sentencepiece's rule, never join a character to a space or a letter to a
# newline that follows.
_SAFE = re.compile(r"(?<=\S)(?= )|(?<=[^\W_])(?=\n)")


class SubwordTokenizer(Tokenizer):
    """A tokenizer whose tokens span characters."""

    @abstractmethod
    def _encode_chunks(self, chunks: Sequence[str]) -> Sequence[Ids | Sequence[int]]:
        """The ids of each of some well-formed strings."""

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """The ids of a text, cut as in `encode_pieces`; see `Tokenizer.encode`. Only lone surrogates are unknown."""
        parts = [piece.ids for piece in self.encode_pieces([Piece(text, True)], on_unknown)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def encode_pieces(self, pieces: Iterable[Piece], on_unknown: OnUnknown = "error") -> Iterator[EncodedPiece]:
        """Encode documents as a stream, in bounded memory; where the pieces were cut does not change the ids.

        A document is encoded in chunks of `CHUNK` characters or a little more. A chunk ends before a space that follows
        a visible character, or before a newline that follows a letter or digit: no token of the known patterns crosses
        these. Where there is no such place in 2 `CHUNK` characters the cut is made there, and a token may differ at
        that point from what the whole document in one call would give.
        """
        together: list[Piece] = []
        for chunk in rechunk(pieces):
            together.append(Piece(well_formed(chunk.text, on_unknown), chunk.ends_document))
            if len(together) == _TOGETHER:
                yield from self._encode_together(together)
                together = []
        if together:
            yield from self._encode_together(together)

    def _encode_together(self, chunks: Sequence[Piece]) -> Iterator[EncodedPiece]:
        encoded = self._encode_chunks([chunk.text for chunk in chunks])
        for ids, chunk in zip(encoded, chunks, strict=True):
            yield EncodedPiece(np.array(ids, dtype=self.dtype), chunk.ends_document)


def rechunk(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same documents in chunks that end at safe places and depend on the text alone."""
    held = ""
    for text, ends_document in pieces:
        held += text
        start = 0
        while len(held) - start > 2 * CHUNK:
            found = _SAFE.search(held, start + CHUNK, start + 2 * CHUNK)
            end = found.start() if found else start + 2 * CHUNK
            yield Piece(held[start:end], False)
            start = end
        held = held[start:]
        if ends_document:
            yield Piece(held, True)
            held = ""


def limited(pieces: Iterable[Piece], characters: int) -> Iterator[str]:
    """The chunks of the first so many characters, to learn from."""
    for text, _ in rechunk(pieces):
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)
