"""What subword tokenizers share: they encode long texts in chunks, cut where no token would cross, many at a time."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gptloom.config.run import OnUnknown
from gptloom.data.readers import Piece
from gptloom.data.tokenizers.base import EncodedPiece, Ids, Tokenizer, well_formed

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
