"""A corpus: documents that can be streamed repeatedly, and the statistics of one pass."""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt32

from gptloom.data.readers import Piece, Source, together
from gptloom.errors import InputError

_CODE_POINTS = sys.maxunicode + 1


@dataclass(frozen=True)
class Scan:
    """The results of one pass over a corpus.

    Attributes:
        documents: number of documents.
        characters: number of characters (code points).
        bytes: length in UTF-8 bytes.
        sha256: hex hash of the UTF-8 text, with the byte 0xFF (never in UTF-8) between documents.
        alphabet: distinct code points, ascending.
        frequencies: number of occurrences of each code point.
    """

    documents: int
    characters: int
    bytes: int
    sha256: str
    alphabet: UInt32[np.ndarray, " size"]
    frequencies: Int64[np.ndarray, " size"]


class Corpus:
    """Documents that can be read several times in bounded memory (except that JSON lines and CSV rows are not split).

    Attributes:
        name: a short name, usable as the name of a run.
        sources: the labels of its files.
        notes: remarks on the reading, for the user.
    """

    def __init__(self, name: str, sources: Sequence[Source], text_field: str, notes: Iterable[str] = ()) -> None:
        """Store the files; reads nothing. `text_field` is the JSON key or CSV column of the text."""
        self.name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "text"
        self.sources = [source.label for source in sources]
        self.notes = list(notes)
        self._sources = list(sources)
        self._text_field = text_field
        self._note_remarks()

    def pieces(self) -> Iterator[Piece]:
        """Yield the text in pieces; a piece never spans two documents.

        Raises:
            InputError: a file is not in its format or encoding.
        """
        for source in self._sources:
            yield from source.pieces(self._text_field)

    @cached_property
    def scan(self) -> Scan:
        """The statistics of the text; the first use reads all of it.

        Raises:
            InputError: there is no text, or a file is not in its format or encoding.
        """
        digest, tally = hashlib.sha256(), _Tally()
        documents = size = 0
        separator = b""
        for group in together(self.pieces()):
            content = list[bytes]()
            for text, ends in group:
                encoded = text.encode()
                content += (separator, encoded)
                size += len(encoded)
                documents += ends
                separator = b"\xff" * ends
            digest.update(b"".join(content))
            tally.add("".join([piece.text for piece in group]))
        if not documents:
            raise InputError("is empty", where=", ".join(self.sources[:3]), cure="give a file with text in it")
        self._note_remarks()
        counts = tally.counts()
        alphabet = np.flatnonzero(counts)
        return Scan(
            documents, int(counts.sum()), size, digest.hexdigest(), alphabet.astype(np.uint32), counts[alphabet]
        )

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.scan.documents

    @property
    def several(self) -> bool:
        """Whether there is more than one document, so that an end-of-text token is needed."""
        return self.scan.documents > 1

    @property
    def characters(self) -> int:
        """Number of characters (code points)."""
        return self.scan.characters

    @property
    def bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return self.scan.bytes

    @property
    def sha256(self) -> str:
        """Hex hash of the text and its document boundaries; for a single document, the hash of its UTF-8 bytes."""
        return self.scan.sha256

    def _note_remarks(self) -> None:
        for remark in dict.fromkeys(remark for source in self._sources for remark in sorted(source.remarks)):
            self.notes.append(
                f"{remark}: {listed([source.label for source in self._sources if remark in source.remarks])}"
            )
        for source in self._sources:
            source.remarks.clear()


class _Tally:
    """Counter of code points. ASCII text is counted in pairs of characters, which halves the work."""

    def __init__(self) -> None:
        self._pairs, self._single = np.zeros(1 << 16, np.int64), np.zeros(_CODE_POINTS, np.int64)

    def add(self, text: str) -> None:
        """Count the characters of a text."""
        if text.isascii():
            codes = np.frombuffer(text.encode(), np.uint8)
            even = len(codes) & ~1
            np.add.at(self._pairs, codes[:even].view(np.uint16).astype(np.intp), 1)
            codes = codes[even:]
        else:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        np.add.at(self._single, codes.astype(np.intp), 1)

    def counts(self) -> Int64[np.ndarray, " code_points"]:
        """Return the count of each code point."""
        table, found = self._pairs.reshape(256, 256), self._single.copy()
        found[:256] += table.sum(axis=0) + table.sum(axis=1)
        return found


def listed(labels: Sequence[str]) -> str:
    """Join the first three labels, and add the number of the others."""
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
