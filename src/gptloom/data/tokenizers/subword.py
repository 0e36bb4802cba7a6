"""Subword tokenizers: long texts are encoded in windows that overlap, and are joined where their tokens agree."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from gptloom.config.run import OnUnknown
from gptloom.data.readers import Piece
from gptloom.data.tokenizers.base import EncodedPiece, Ids, Tokenizer, well_formed
from gptloom.errors import InputError

Ends = Int64[np.ndarray, " tokens"]

CHUNK = 1 << 16
"""Characters from one window to the next. A chunk for training ends at a safe place after as many, or twice as many."""

OVERLAP = 1 << 11
"""Characters that a window shares with the next. In the middle half of them, the tokens of both must agree."""

_TOGETHER = 32
_SHOWN = 40  # characters of unknown text in a message
_AGREEING = 8  # tokens; between two sequences that agree on so many, the tokens do not depend on what is far away
# The patterns of GPT-2, cl100k and o200k, and sentencepiece's rule, never join a visible character and the space after
# it, or a letter and the newline after it.
_SAFE = re.compile(r"(?<=\S)(?= )|(?<=[^\W_])(?=\n)")


class Encoded(NamedTuple):
    """The ids of a text, and its UTF-8 bytes up to the end of each; `ends` is None where the ids spell the text."""

    ids: Ids | Sequence[int]
    ends: Ends | None = None


@dataclass(frozen=True)
class _Window:
    """A part of a document with its tokens.

    Attributes:
        text: the part.
        ends_document: whether the document ends with it.
        ids: its ids.
        ends: bytes up to the end of each.
        exact: whether the ids spell the text.
        first: the first id that belongs to it, and not to the window before.
        size: characters that are encoded; the text may have more.
    """

    text: str
    ends_document: bool
    ids: np.ndarray
    ends: Ends
    exact: bool
    first: int
    size: int

    def meeting(self, after: "_Window") -> tuple[int, int] | None:
        """Return the index of the same token in both windows, in the middle of those that agree; None if none do."""
        if self.size < len(self.text):
            return None
        size = len(after.text[:OVERLAP].encode())
        start = len(self.text.encode()) - size
        edges = np.array([size // 4, size - size // 4])
        (a, b), (c, d) = np.searchsorted(self.ends, edges + start), np.searchsorted(after.ends, edges)
        agree = np.array_equal(self.ids[a:b], after.ids[c:d]) and np.array_equal(
            self.ends[a:b] - start, after.ends[c:d]
        )
        return (int(a + b) // 2, int(c + (b - a) // 2)) if agree and b - a >= _AGREEING else None


class SubwordTokenizer(Tokenizer):
    """A tokenizer whose tokens span characters.

    Attributes:
        unknown: the id of unknown text, or None. If it is `vocab_size`, the tokenizer itself has no such token.
    """

    unknown: int | None = None

    @abstractmethod
    def _encode_chunks(self, chunks: Sequence[str], on_unknown: OnUnknown) -> Sequence[Encoded]:
        """Encode each string separately; the strings have no lone surrogates."""

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """Encode a text; see `Tokenizer.encode`."""
        parts = [piece.ids for piece in self.encode_pieces([Piece(text, True)], on_unknown)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def encode_pieces(self, pieces: Iterable[Piece], on_unknown: OnUnknown = "error") -> Iterator[EncodedPiece]:
        """Encode documents as a stream; the ids are those of each whole document, encoded in one call.

        Windows of `CHUNK` characters that overlap are encoded, and joined where their tokens agree. Windows whose
        tokens do not agree, as in a document of one word, are encoded as one: memory is bounded for all other texts.
        """
        held: _Window | None = None
        for window in self._windows(pieces, on_unknown):
            if held is None:
                held = window
            elif meeting := held.meeting(window):
                yield self._piece(held, meeting[0], on_unknown)
                held = replace(window, first=meeting[1])
            else:
                held = replace(held, text=held.text + window.text[OVERLAP:], ends_document=window.ends_document)
                if held.ends_document or len(held.text) >= 2 * held.size:
                    whole = self._encode_together([Piece(held.text, held.ends_document)], on_unknown)
                    held = replace(whole[0], first=held.first)
            if held.ends_document:
                yield self._piece(held, len(held.ids), on_unknown)
                held = None

    def encode_parts(self, parts: Sequence[str], on_unknown: OnUnknown = "error") -> list[Ids]:
        """Encode the parts of a text; the later ones without what the tokenizer adds to the beginning of a text."""
        return [
            self.encode(part, on_unknown) if not n else self._continue(part, on_unknown) for n, part in enumerate(parts)
        ]

    def _continue(self, part: str, on_unknown: OnUnknown) -> Ids:
        """Encode a text as the continuation of a character whose tokens it leaves alone."""
        part = well_formed(part, on_unknown)
        for before in "\n.,a0" if part else "":
            alone, whole = self._encode_together([Piece(before, True), Piece(before + part, True)], on_unknown)
            count = len(alone.ids)
            if np.array_equal(whole.ids[:count], alone.ids) and whole.ends[count - 1 : count].tolist() == [1]:
                return self._piece(replace(whole, first=count), len(whole.ids), on_unknown).ids
        return self.encode(part, on_unknown)

    def _windows(self, pieces: Iterable[Piece], on_unknown: OnUnknown) -> Iterator[_Window]:
        together: list[Piece] = []
        for piece in windows(pieces):
            together.append(Piece(well_formed(piece.text, on_unknown), piece.ends_document))
            if len(together) == _TOGETHER:
                yield from self._encode_together(together, on_unknown)
                together = []
        if together:
            yield from self._encode_together(together, on_unknown)

    def _encode_together(self, pieces: Sequence[Piece], on_unknown: OnUnknown) -> list[_Window]:
        found = []
        for (ids, ends), (text, last) in zip(
            self._encode_chunks([piece.text for piece in pieces], on_unknown), pieces, strict=True
        ):
            known = np.asarray(ids, dtype=None if len(ids) else np.int64)
            places = np.cumsum(self._lengths[known]) if ends is None else ends
            found.append(_Window(text, last, known, places, ends is None, 0, len(text)))
        return found

    def _piece(self, window: _Window, last: int, on_unknown: OnUnknown) -> EncodedPiece:
        """Return the tokens of a window from its first up to `last`."""
        ids = window.ids[window.first : last]
        if window.exact:
            return EncodedPiece(ids.astype(self.dtype), window.ends_document)
        begin = int(window.ends[window.first - 1]) if window.first else 0
        ends = window.ends[window.first : last].copy()
        if last == len(window.ids) and len(ends):
            ends[-1] = len(window.text.encode())  # what the tokenizer drops at the end belongs to the last token
        unknown = ids == self.unknown
        if unknown.any():
            if on_unknown == "error" or (on_unknown == "replace" and self.unknown == self.vocab_size):
                start = int(ends[place - 1]) if (place := int(unknown.argmax())) else begin
                end = next((int(end) for end in ends[place:] if end > start), None)  # a part of a character has no text
                text = window.text.encode()[start:end].decode(errors="replace")
                raise self._unknown_text(text.strip() or text, on_unknown)
            if on_unknown == "skip":
                end, ids, ends = ends[-1], ids[~unknown], ends[~unknown]
                ends[-1:] = end
        lengths = np.diff(ends, prepend=begin).astype(np.uint32)
        read = self.decode(window.ids[window.ids < self.vocab_size])
        lossless = not unknown.any() and read.strip() == window.text.strip()
        return EncodedPiece(ids.astype(self.dtype), window.ends_document, lengths, lossless)

    def _unknown_text(self, text: str, on_unknown: OnUnknown) -> InputError:
        shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
        ways = "skip" if self.unknown == self.vocab_size and on_unknown == "replace" else "skip|replace"
        return InputError(
            f"{shown} is not among the {self.vocab_size} tokens of the tokenizer",
            where="text",
            cure=f"change the text, use --on-unknown {ways}, or another tokenizer",
        )


def byte_ends(text: str, ends: Ends) -> Ends:
    """Convert places in a text from characters to UTF-8 bytes."""
    if text.isascii():
        return ends
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000).astype(np.int64)
    places: Ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[ends]
    return places


def token_ends(offsets: Sequence[tuple[int, int]], text: str) -> Ends:
    """Return the bytes up to the end of each token, from the characters (start, end) that a library gives for each.

    Tokens of one character have the same place: its bytes belong to the last. The bytes of text that a library drops
    belong to the next token.
    """
    if not offsets:
        return np.zeros(0, np.int64)
    starts, ends = np.array(offsets, dtype=np.int64).T
    ends[:-1] = np.minimum(ends[:-1], starts[1:])
    return byte_ends(text, np.maximum.accumulate(ends))


def windows(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the documents in windows that begin every `CHUNK` characters and share `OVERLAP` with the next."""
    held = ""
    for text, ends_document in pieces:
        held += text
        start = 0
        while len(held) - start > CHUNK + OVERLAP:
            yield Piece(held[start : start + CHUNK + OVERLAP], False)
            start += CHUNK
        held = held[start:]
        if ends_document:
            yield Piece(held, True)
            held = ""


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
