"""Base classes of tokenizers: text to ids and back, as a stream, and files with checked hashes.

Subword tokenizers encode long texts in chunks that end where no token would cross, many chunks at a time.
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
from gptloom.data.readers import Piece
from gptloom.errors import InputError
from gptloom.files import read_bytes

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"
CURE = "copy the file again from its source, or train a new tokenizer (--data.tokenizer)"

Ids = UInt[np.ndarray, " tokens"]
AnyIds = Integer[np.ndarray, " tokens"] | Sequence[int]
Value = TypeVar("Value")

LONGEST_FILE = 1 << 26
"""Maximum bytes of a tokenizer's file; the largest in use have half of that."""

_STRETCH = 1 << 20  # ids per lookup, so that a memory-mapped text is not copied at once
_SURROGATE = re.compile("[\ud800-\udfff]")


class EncodedPiece(NamedTuple):
    """The ids of a part of one document."""

    ids: Ids
    ends_document: bool


class Tokenizer(ABC):
    """Base class of all tokenizers.

    Attributes:
        kind: name of the kind.
        vocab_size: number of ids.
        end_of_text: the id that ends a document, or None.
        dtype: the smallest unsigned dtype that holds every id.
    """

    kind: str

    def __init__(self, spellings: Sequence[bytes], end_of_text: int | None) -> None:
        """Store the text of each id.

        Args:
            spellings: the UTF-8 bytes of each id; they may be part of a character, and are empty for special ids.
            end_of_text: the id that ends a document, or None.
        """
        self.vocab_size = len(spellings)
        self.end_of_text = end_of_text
        self.dtype = id_dtype(self.vocab_size)
        self._spellings = list(spellings)
        self._lengths = np.array([len(spelling) for spelling in spellings], dtype=np.int64)

    @abstractmethod
    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """Encode a text.

        Args:
            text: any string; special tokens in it are encoded as plain text.
            on_unknown: raise an error at unknown characters, skip them, or replace them by the nearest known character.

        Raises:
            InputError: there is an unknown character and `on_unknown` is "error".
        """

    def padded(self, count: int) -> "Tokenizer":
        """Return the tokenizer with `count` more unused ids, for models with more embedding rows than tokens.

        Raises:
            InputError: tokenizers of this kind cannot be padded.
        """
        raise InputError(
            f"a tokenizer of the kind {self.kind} cannot be padded with {count} ids",
            where="tokenizer",
            cure="give a tokenizer that has all ids",
        )

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Return the files to save, {file name: content}. The same tokenizer gives the same bytes."""

    def decode(self, ids: AnyIds) -> str:
        """Decode ids; special ids are skipped, and invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self._spellings.__getitem__, np.asarray(ids, dtype=np.int64).tolist())).decode(
            errors="replace"
        )

    def token_text(self, token: int) -> str:
        r"""Return the text of one id for display; a part of a character is shown as `\xf0\x9f`."""
        return END_OF_TEXT if token == self.end_of_text else self._spellings[token].decode(errors="backslashreplace")

    def count_bytes(self, ids: AnyIds) -> int:
        """Count the UTF-8 bytes of the text of some ids; the end-of-text id counts 0."""
        ids = np.asarray(ids)
        return sum(
            int(self._lengths[ids[start : start + _STRETCH].astype(np.int64)].sum())
            for start in range(0, len(ids), _STRETCH)
        )

    def encode_pieces(self, pieces: Iterable[Piece], on_unknown: OnUnknown = "error") -> Iterator[EncodedPiece]:
        """Encode documents as a stream, in bounded memory; the ids do not depend on the borders of the pieces."""
        for text, ends_document in pieces:
            yield EncodedPiece(self.encode(text, on_unknown), ends_document)

    def save(self, folder: Path) -> None:
        """Write its files into an existing folder."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of its files; tokenizers with the same fingerprint give the same ids."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files().items()):
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()


def unused_names(first: int, count: int) -> list[str]:
    """Return names for `count` unused ids from `first`, for a tokenizer's file."""
    return [f"<|unused_{first + place}|>" for place in range(count)]


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint8, uint16 and uint32 that holds every id."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def well_formed(text: str, on_unknown: OnUnknown) -> str:
    """Remove lone surrogates, which UTF-8 cannot encode: dropped, replaced by U+FFFD, or an InputError."""
    try:
        text.encode()  # five times as fast as a search for surrogates
        return text
    except UnicodeEncodeError as error:
        found = text[error.start]
    if on_unknown == "error":
        raise InputError(
            f"the text has a lone surrogate, {found!r}, which is not a character",
            where="text",
            cure="use --on-unknown skip|replace",
        )
    return _SURROGATE.sub("" if on_unknown == "skip" else "\ufffd", text)


def check_ids(ids: Collection[int], where: str) -> None:
    """Check that a table indexed by these ids has few gaps.

    Raises:
        InputError: there are no ids, an id is negative, or the gaps are large.
    """
    if not ids or min(ids) < 0 or max(ids) > 2 * len(ids) + (1 << 16):
        raise InputError("its ids must be integers from 0, without large gaps", where=where, cure=CURE)


def spelling_table(spellings: Mapping[int, bytes]) -> list[bytes]:
    """Return the bytes of each id from 0; unused ids have none. `check_ids` has checked the ids."""
    return [spellings.get(index, b"") for index in range(max(spellings) + 1)]


def to_json(content: Mapping[str, Any]) -> bytes:
    """Encode a tokenizer's JSON file; the bytes are deterministic."""
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def entry(content: Mapping[str, Any], key: str, kind: type[Value], where: Path) -> Value:
    """Return a value of a tokenizer's JSON file; raises InputError if it is missing or has another type."""
    value = content.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = f"{key!r} is {type(value).__name__}, not {kind.__name__}" if key in content else f"has no {key!r}"
        raise InputError(f"is not a valid tokenizer: {what}", where=str(where), cure=CURE)
    return value


def read_side_file(path: Path, sha256: str | None) -> bytes:
    """Read a file of a tokenizer; raises InputError if it is missing or its hash is not `sha256` (None: any)."""
    content = read_bytes(path, limit=LONGEST_FILE, cure=CURE)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError("is damaged: its hash is not the one in the tokenizer's JSON", where=str(path), cure=CURE)
    return content


CHUNK = 1 << 16
"""Characters after which a chunk ends at the next safe position; it ends at 2 `CHUNK` at the latest."""

_TOGETHER = 32
# The patterns of GPT-2, cl100k and o200k, and sentencepiece's rule, never join a visible character and the space after
# it, or a letter and the newline after it.
_SAFE = re.compile(r"(?<=\S)(?= )|(?<=[^\W_])(?=\n)")


class SubwordTokenizer(Tokenizer):
    """A tokenizer whose tokens span characters."""

    @abstractmethod
    def _encode_chunks(self, chunks: Sequence[str]) -> Sequence[Ids | Sequence[int]]:
        """Return the ids of each string; the strings have no lone surrogates."""

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """Encode a text in the chunks of `encode_pieces`; see `Tokenizer.encode`. Only lone surrogates are unknown."""
        parts = [piece.ids for piece in self.encode_pieces([Piece(text, True)], on_unknown)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def encode_pieces(self, pieces: Iterable[Piece], on_unknown: OnUnknown = "error") -> Iterator[EncodedPiece]:
        """Encode documents as a stream, in bounded memory; the ids do not depend on the borders of the pieces.

        A document is encoded in chunks of `CHUNK` characters or a little more. A chunk ends before a space that follows
        a visible character, or before a newline that follows a letter or digit: no token of the known patterns crosses
        these positions. If there is none within 2 `CHUNK` characters, the chunk ends there, and the tokens at that
        border may differ from those of the document encoded in one call.
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
    """Yield the documents in chunks that end at safe positions and depend only on the text."""
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
    """Yield the chunks of the first `characters` characters, for training a vocabulary."""
    for text, _ in rechunk(pieces):
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)
