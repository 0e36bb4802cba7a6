"""The base class of tokenizers: text to ids and back, as a stream, and files with checked hashes."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Integer, UInt, UInt32

from gptloom.config.run import OnUnknown
from gptloom.data.readers import Piece
from gptloom.errors import InputError
from gptloom.files import read_bytes

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"
CURE = "copy the file again from its source, or train a new tokenizer (--data.tokenizer)"

Ids = UInt[np.ndarray, " tokens"]
Lengths = UInt32[np.ndarray, " tokens"]
AnyIds = Integer[np.ndarray, " tokens"] | Sequence[int]
Value = TypeVar("Value")

LONGEST_FILE = 1 << 26
"""Maximum bytes of a tokenizer's file; the largest in use have half of that."""

_STRETCH = 1 << 20  # ids per lookup, so that a memory-mapped text is not copied at once
_SURROGATE = re.compile("[\ud800-\udfff]")


class EncodedPiece(NamedTuple):
    """The ids of a part of one document.

    Attributes:
        ids: the ids.
        ends_document: whether it is the document's last part.
        lengths: UTF-8 bytes of the text that each id stands for; None: those of its spelling.
        lossless: whether the ids decode to the text.
    """

    ids: Ids
    ends_document: bool
    lengths: Lengths | None = None
    lossless: bool = True


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
            on_unknown: raise an error at unknown text, skip it, or replace it: by the tokenizer's unknown token, or, if
                it has none, each character by the nearest known one.

        Raises:
            InputError: there is unknown text, and `on_unknown` is "error", or nothing can replace it.
        """

    def encode_parts(self, parts: Sequence[str], on_unknown: OnUnknown = "error") -> list[Ids]:
        """Encode the parts of a text that something else divides, such as masks; only the first begins a text."""
        return [self.encode(part, on_unknown) for part in parts]

    @property
    def open_ended(self) -> Callable[[int], bool] | None:
        """Whether the text of an id may change with the ids after it; None: only of incomplete characters."""
        return None

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
