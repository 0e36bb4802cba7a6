"""Tokenizers with one id per character or per byte."""

import itertools
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptloom.config.run import OnUnknown
from gptloom.data.readers import Piece, together
from gptloom.data.tokenizers.base import CURE, FILE, AnyIds, EncodedPiece, Ids, Tokenizer, entry, to_json, well_formed
from gptloom.errors import InputError

_BYTES = np.arange(256, dtype=np.uint8)
_PLAIN = dict(zip("‘’‚“”„–—−", "''," + '"""' + "---", strict=True))


def nearest(char: str, alphabet: str) -> Iterator[str]:
    """Yield the characters of an alphabet as replacements of `char`, best first.

    The other case, plain punctuation and the letter without accents (NFKD) come first, then near code points.
    """
    plain = _PLAIN.get(char, "") + "".join(
        part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part)
    )
    for candidate in dict.fromkeys(char.swapcase() + plain + plain.swapcase()):
        if candidate in alphabet:
            yield candidate
    yield from sorted(alphabet, key=lambda other: (abs(ord(other) - ord(char)), other))


class UnitTokenizer(Tokenizer):
    """Base class of tokenizers with one id per unit: a document has as many ids as units."""

    @abstractmethod
    def _units(self, text: str) -> int:
        """Count the units of a text."""

    def _numbers(self, table: np.ndarray, ids: AnyIds) -> np.ndarray:
        """Look up each id except end-of-text ids in a table; raises IndexError for an invalid id."""
        ids = np.asarray(ids, dtype=None if len(ids) else np.intp)
        return table.take(ids if self.end_of_text is None else ids[ids != self.end_of_text])

    def encode_pieces(self, pieces: Iterable[Piece], on_unknown: OnUnknown = "error") -> Iterator[EncodedPiece]:
        """Encode as `Tokenizer.encode_pieces` does; short documents are encoded together and split by their units."""
        for group in together(pieces):
            ids = self.encode("".join([piece.text for piece in group]), on_unknown)
            ends = list(itertools.accumulate(self._units(piece.text) for piece in group))
            if ends[-1] == len(ids):
                for start, end, piece in zip([0, *ends], ends, group, strict=False):
                    yield EncodedPiece(ids[start:end], piece.ends_document)
            else:  # unknown units were skipped
                yield from super().encode_pieces(group, on_unknown)


class CharTokenizer(UnitTokenizer):
    """One id per character of an alphabet, in code point order; the end-of-text id, if there is one, is the last."""

    kind = "char"

    def __init__(self, alphabet: str, *, ends: bool) -> None:
        """Assign ids to the characters.

        Args:
            alphabet: distinct characters.
            ends: whether there is an end-of-text id.
        """
        self.alphabet = "".join(sorted(alphabet))
        super().__init__([char.encode() for char in self.alphabet] + [b""] * ends, len(alphabet) if ends else None)
        self._codes = np.frombuffer(self.alphabet.encode("utf-32-le"), np.uint32).astype(np.int64)
        # One entry more than the highest code point: higher code points are clipped to it and are missing.
        self._missing = self.vocab_size
        self._table = np.full(max(int(self._codes[-1]), 0x7F) + 2, self._missing, np.uint32)
        self._table[self._codes] = np.arange(len(self._codes))
        self._characters = self._codes.astype("<u4")

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """Return the id of each character; see `Tokenizer.encode`."""
        wide = not text.isascii()
        codes: Ids = np.frombuffer(
            text.encode("utf-32-le", "surrogatepass") if wide else text.encode(), np.uint32 if wide else np.uint8
        )
        ids: Ids = self._table.take(codes, mode="clip")
        unknown = ids == self._missing
        if unknown.any():
            if on_unknown == "error":
                raise self._unknown(chr(codes[unknown][0]))
            if on_unknown == "skip":
                ids = ids[~unknown]
            else:
                new, places = np.unique(codes[unknown], return_inverse=True)
                ids[unknown] = self._table[[ord(next(nearest(chr(code), self.alphabet))) for code in new]][places]
        return ids.astype(self.dtype)

    def decode(self, ids: AnyIds) -> str:
        """Return the characters; see `Tokenizer.decode`."""
        text: str = self._numbers(self._characters, ids).tobytes().decode("utf-32-le")
        return text

    def _units(self, text: str) -> int:
        return len(text)

    def _unknown(self, char: str) -> InputError:
        close = ", ".join(repr(other) for other in itertools.islice(nearest(char, self.alphabet), 2))
        name = unicodedata.name(char, "unnamed")
        return InputError(
            f"the character {char!r} (U+{ord(char):04X}, {name}) is not among the {len(self.alphabet)} that the "
            "tokenizer knows",
            where="text",
            cure=f"the nearest are {close}; change the text, or use --on-unknown skip|replace",
        )

    def files(self) -> dict[str, bytes]:
        """Return the alphabet as JSON."""
        return {
            FILE: to_json({"kind": self.kind, "alphabet": self.alphabet, "end_of_text": self.end_of_text is not None})
        }

    @classmethod
    def load(cls, path: Path, content: Mapping[str, Any]) -> "CharTokenizer":
        """Load a JSON file; raises InputError if the alphabet is empty, or has a duplicate or a lone surrogate."""
        alphabet = entry(content, "alphabet", str, path)
        if (
            not alphabet
            or len(set(alphabet)) != len(alphabet)
            or any("\ud800" <= char <= "\udfff" for char in alphabet)
        ):
            raise InputError("its alphabet must be distinct characters, at least one", where=str(path), cure=CURE)
        return cls(alphabet, ends=entry(content, "end_of_text", bool, path))


class ByteTokenizer(UnitTokenizer):
    """One id per UTF-8 byte; the end-of-text id, if there is one, is 256."""

    kind = "byte"

    def __init__(self, *, ends: bool) -> None:
        """Build the table of bytes; `ends` adds an end-of-text id."""
        super().__init__([bytes([value]) for value in range(256)] + [b""] * ends, 256 if ends else None)

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> Ids:
        """Return the bytes; see `Tokenizer.encode`. Only lone surrogates are unknown."""
        return np.frombuffer(well_formed(text, on_unknown).encode(), np.uint8).astype(self.dtype)

    def decode(self, ids: AnyIds) -> str:
        """Decode the bytes; see `Tokenizer.decode`."""
        text: str = self._numbers(_BYTES, ids).tobytes().decode(errors="replace")
        return text

    def _units(self, text: str) -> int:
        return len(text) if text.isascii() else len(text.encode(errors="replace"))

    def files(self) -> dict[str, bytes]:
        """Return the kind, and whether there is an end-of-text id, as JSON."""
        return {FILE: to_json({"kind": self.kind, "end_of_text": self.end_of_text is not None})}

    @classmethod
    def load(cls, path: Path, content: Mapping[str, Any]) -> "ByteTokenizer":
        """Load a JSON file."""
        return cls(ends=entry(content, "end_of_text", bool, path))
