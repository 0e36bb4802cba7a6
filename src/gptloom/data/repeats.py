"""Text that occurs twice: repeated lines and documents, and validation text that training has seen. Hashes of 64 bits stand for text."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from gptloom.data.documents import Piece
from gptloom.data.reading import PIECE

LINES = 5_000_000
"""Lines, and documents, that are compared at most."""

WINDOW = 50
"""Characters of a stretch of validation text that is looked for in the training text."""

SAMPLES = 20_000
"""Stretches of validation text that are looked for at most."""

_BASE = 0x9E3779B97F4A7C15 | 1
_BITS = 20


@dataclass(frozen=True)
class Repeats:
    """How much of a text repeats an earlier part of it.

    Attributes:
        lines: lines with a visible character.
        repeated_lines: those that are the same as an earlier one, up to white space at the ends.
        line_share: repeated_lines / lines.
        character_share: the characters in repeated lines, as a share of those in all lines.
        documents: number of documents.
        repeated_documents: those that are the same as an earlier one.
        complete: whether all of the text was compared, not its first `LINES` lines or documents.
    """

    lines: int
    repeated_lines: int
    line_share: float
    character_share: float
    documents: int
    repeated_documents: int
    complete: bool


def repeats(pieces: Iterable[Piece]) -> Repeats:
    """Count repeated lines and documents, in 12 bytes a line and 8 a document, up to `LINES` of each."""
    lines, lengths, documents = array("q"), array("I"), array("Q")
    document, held, complete = hashlib.blake2b(digest_size=8), "", True
    for text, ends_document in pieces:
        document.update(text.encode())
        *whole, held = (held + text).split("\n")
        if ends_document or len(held) > PIECE:  # a longer line counts as several
            whole.append(held)
            held = ""
        if ends_document:
            documents.append(int.from_bytes(document.digest()))
            document = hashlib.blake2b(digest_size=8)
        stripped = [line for line in map(str.strip, whole) if line]
        lines.extend(map(hash, stripped))
        lengths.extend(map(len, stripped))
        if max(len(lines), len(documents)) > LINES:
            complete = False
            break
    again = _repeated(np.frombuffer(lines, np.int64).view(np.uint64))
    sizes = np.frombuffer(lengths, np.uint32).astype(np.int64)
    return Repeats(
        lines=len(lines),
        repeated_lines=int(again.sum()),
        line_share=_share(int(again.sum()), len(lines)),
        character_share=_share(int(sizes[again].sum()), int(sizes.sum())),
        documents=len(documents),
        repeated_documents=int(_repeated(np.frombuffer(documents, np.uint64)).sum()),
        complete=complete,
    )


def leakage(train: Iterable[str], val: Iterable[str], val_characters: int) -> float:
    """The share of validation stretches of `WINDOW` characters that occur somewhere in the training text.

    Args:
        train: the training text, in strings.
        val: the validation text, in strings.
        val_characters: its length; about `SAMPLES` stretches are taken from it at an even stride.
    """
    stride = max(1, val_characters // SAMPLES)
    wanted, position = [], 0
    for hashes in _windows(val):
        wanted.append(hashes[-position % stride :: stride])
        position += len(hashes)
    samples = np.concatenate([np.empty(0, np.uint64), *wanted])
    looked_for = np.unique(samples)
    # A table of the highest bits lets almost all of the training text pass at the cost of one look.
    likely = np.zeros(1 << _BITS, bool)
    likely[looked_for >> np.uint64(64 - _BITS)] = True
    found = np.empty(0, np.uint64)
    for hashes in _windows(train):
        candidates = hashes[likely[hashes >> np.uint64(64 - _BITS)]]
        found = np.union1d(found, np.intersect1d(candidates, looked_for))
    return _share(int(np.isin(samples, found).sum()), len(samples))


def _windows(texts: Iterable[str]) -> Iterator[UInt64[np.ndarray, " windows"]]:
    """A hash of each stretch of `WINDOW` characters, those across two strings included."""
    held = ""
    for text in texts:
        held += text
        if len(held) >= WINDOW:
            yield _hashes(np.frombuffer(held.encode("utf-32-le"), np.uint32).astype(np.uint64))
            held = held[len(held) - WINDOW + 1 :]


def _hashes(codes: UInt64[np.ndarray, " characters"]) -> UInt64[np.ndarray, " windows"]:
    """Polynomials in the characters modulo 2**64, built from windows of 1, 2, 4, ... characters."""
    power, size = codes * np.uint64(_BASE) + np.uint64(_BASE >> 7), 1
    total, length = np.zeros(len(codes) + 1, np.uint64), 0
    factor = _BASE  # to the power of size
    while True:
        if WINDOW & size:
            end = len(codes) - length - size + 1
            total = total[:end] * np.uint64(factor) + power[length : length + end]
            length += size
        if length == WINDOW:
            return total ^ (total >> np.uint64(31))
        power = power[:-size] * np.uint64(factor) + power[size:]
        size *= 2
        factor = factor * factor % (1 << 64)


def _repeated(hashes: UInt64[np.ndarray, " items"]) -> np.ndarray:
    """Which items equal an earlier one."""
    again = np.ones(len(hashes), bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return again


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
