"""A report on a text before training: size, alphabet, tokens, repetitions, and leakage into the validation part.

Repetitions are found by comparing 64-bit hashes.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from gptloom.config.run import DataConfig
from gptloom.data.corpus import Corpus
from gptloom.data.readers import PIECE, Piece
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, make_tokenizer

LINES = 5_000_000
"""Maximum number of lines, and of documents, to compare."""

WINDOW = 50
"""Characters of each validation sample that is searched for in the training text."""

SAMPLES = 20_000
"""Maximum number of validation samples."""

_BASE = 0x9E3779B97F4A7C15 | 1
_BITS = 20


@dataclass(frozen=True)
class Repeats:
    """The repetitions in a text.

    Attributes:
        lines: lines with a visible character.
        repeated_lines: lines that equal an earlier line, ignoring white space at the ends.
        line_share: repeated_lines / lines.
        character_share: characters in repeated lines / characters in all lines.
        documents: number of documents.
        repeated_documents: documents that equal an earlier document.
        complete: whether the entire text was compared, not only its first `LINES` lines or documents.
    """

    lines: int
    repeated_lines: int
    line_share: float
    character_share: float
    documents: int
    repeated_documents: int
    complete: bool


def repeats(pieces: Iterable[Piece]) -> Repeats:
    """Count repeated lines and documents, up to `LINES` of each, with 12 bytes per line and 8 per document."""
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
    """Return the share of validation samples of `WINDOW` characters that also occur in the training text.

    Args:
        train: the training text, in strings.
        val: the validation text, in strings.
        val_characters: length of the validation text; about `SAMPLES` samples are taken from it at an even stride.
    """
    stride = max(1, val_characters // SAMPLES)
    wanted, position = [], 0
    for hashes in _windows(val):
        wanted.append(hashes[-position % stride :: stride])
        position += len(hashes)
    samples = np.concatenate([np.empty(0, np.uint64), *wanted])
    looked_for = np.unique(samples)
    # A table of the highest bits rejects almost all of the training text with one lookup.
    likely = np.zeros(1 << _BITS, bool)
    likely[looked_for >> np.uint64(64 - _BITS)] = True
    found = np.empty(0, np.uint64)
    for hashes in _windows(train):
        candidates = hashes[likely[hashes >> np.uint64(64 - _BITS)]]
        found = np.union1d(found, np.intersect1d(candidates, looked_for))
    return _share(int(np.isin(samples, found).sum()), len(samples))


def _windows(texts: Iterable[str]) -> Iterator[UInt64[np.ndarray, " windows"]]:
    """Yield hashes of all windows of `WINDOW` characters, including windows across two strings."""
    held = ""
    for text in texts:
        held += text
        if len(held) >= WINDOW:
            yield _hashes(np.frombuffer(held.encode("utf-32-le"), np.uint32).astype(np.uint64))
            held = held[len(held) - WINDOW + 1 :]


def _hashes(codes: UInt64[np.ndarray, " characters"]) -> UInt64[np.ndarray, " windows"]:
    """Hash every window: polynomials in the characters modulo 2**64, built from windows of 1, 2, 4, ... characters."""
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
    """Return a mask of the items that equal an earlier item."""
    again = np.ones(len(hashes), bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return again


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


SAMPLE = 4_000_000
"""Number of first characters on which subword tokenizers are compared."""

_SIZES = (1024, 4096)


@dataclass(frozen=True)
class Alphabet:
    """The characters of a text.

    Attributes:
        size: number of distinct characters.
        characters: the 256 most frequent characters and their counts, most frequent first.
    """

    size: int
    characters: list[tuple[str, int]]


@dataclass(frozen=True)
class TokenCount:
    """The size of a text under one tokenizer.

    Attributes:
        vocab_size: number of ids.
        tokens: number of tokens, without end-of-text ids.
        characters_per_token: characters / tokens.
        exact: whether the entire text was counted, not only its first `SAMPLE` characters.
    """

    vocab_size: int
    tokens: int
    characters_per_token: float
    exact: bool


@dataclass(frozen=True)
class Report:
    """Statistics of a text; `dataclasses.asdict` makes it JSON.

    Attributes:
        name: a short name of the text.
        sources: its files.
        documents: number of documents.
        characters: number of characters (code points).
        bytes: length as UTF-8.
        sha256: hash of the text.
        alphabet: its characters.
        tokens: token counts by tokenizer spec.
        repeats: repeated lines and documents.
        leakage: share of the validation samples of 50 characters that also occur in the training text.
        warnings: properties that may harm a model trained on it.
        notes: remarks on the reading, and on numbers that are estimates.
    """

    name: str
    sources: list[str]
    documents: int
    characters: int
    bytes: int
    sha256: str
    alphabet: Alphabet
    tokens: dict[str, TokenCount]
    repeats: Repeats
    leakage: float
    warnings: list[str]
    notes: list[str]


def describe(corpus: Corpus, config: DataConfig) -> Report:
    """Analyse a text in bounded memory; the text is read several times.

    Args:
        corpus: the text.
        config: `tokenizer` is counted in addition to the usual ones; `val_fraction`, `val_tokens` and `val_text`
            define the validation part.

    Raises:
        InputError: a file is not in its format or encoding.
        ConfigError: the tokenizer cannot be used.
        MachineError: the tokenizer could not be downloaded.
    """
    scan = corpus.scan
    order = np.argsort(-scan.frequencies, kind="stable")[:256]
    alphabet = Alphabet(
        len(scan.alphabet),
        [(chr(code), int(count)) for code, count in zip(scan.alphabet[order], scan.frequencies[order], strict=True)],
    )
    found = repeats(corpus.pieces())
    leaked = _leakage(corpus, config)
    notes = list(corpus.notes)
    tokens = _tokens(corpus, config)
    if not all(count.exact for count in tokens.values()):
        notes.append(f"subword tokens are estimated from the first {SAMPLE:,} characters")
    if not found.complete:
        notes.append(f"repetitions were counted in the first {LINES:,} lines")
    return Report(
        name=corpus.name,
        sources=corpus.sources,
        documents=scan.documents,
        characters=scan.characters,
        bytes=scan.bytes,
        sha256=scan.sha256,
        alphabet=alphabet,
        tokens=tokens,
        repeats=found,
        leakage=leaked,
        warnings=_warnings(alphabet, scan.characters, found, leaked),
        notes=notes,
    )


class _Beginning(Corpus):
    """The first `SAMPLE` characters of a corpus."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus.name, [], "")
        self._whole = corpus

    def pieces(self) -> Iterator[Piece]:
        left = SAMPLE
        for text, ends_document in self._whole.pieces():
            yield Piece(text[:left], ends_document or len(text) >= left)
            left -= len(text)
            if left <= 0:
                return


def _tokens(corpus: Corpus, config: DataConfig) -> dict[str, TokenCount]:
    counts = {
        "char": TokenCount(len(corpus.scan.alphabet) + corpus.several, corpus.characters, 1.0, True),
        "byte": TokenCount(256 + corpus.several, corpus.bytes, corpus.characters / corpus.bytes, True),
    }
    exact = corpus.characters <= SAMPLE
    beginning = _Beginning(corpus)
    for spec in dict.fromkeys([*(f"bpe:{size}" for size in _SIZES), config.tokenizer]):
        if spec not in counts:
            tokenizer = make_tokenizer(spec, beginning)
            counts[spec] = _count(tokenizer, beginning, corpus.characters, exact, config)
    return counts


def _count(tokenizer: Tokenizer, beginning: Corpus, characters: int, exact: bool, config: DataConfig) -> TokenCount:
    tokens = sum(len(piece.ids) for piece in tokenizer.encode_pieces(beginning.pieces(), config.on_unknown))
    per_token = beginning.characters / max(tokens, 1)
    return TokenCount(tokenizer.vocab_size, tokens if exact else round(characters / per_token), per_token, exact)


def _leakage(corpus: Corpus, config: DataConfig) -> float:
    """Measure leakage into the validation file, or between the parts of a split by position, in characters."""
    if config.val_text is not None:
        val = open_corpus([config.val_text], config)
        return leakage(
            (piece.text for piece in corpus.pieces()), (piece.text for piece in val.pieces()), val.characters
        )
    cut = max(round((1 - config.val_fraction) * corpus.characters), corpus.characters - config.val_tokens)
    return leakage(_slice(corpus, 0, cut), _slice(corpus, cut, corpus.characters), corpus.characters - cut)


def _slice(corpus: Corpus, start: int, end: int) -> Iterator[str]:
    position = 0
    for text, _ in corpus.pieces():
        if part := text[max(0, start - position) : max(0, end - position)]:
            yield part
        position += len(text)


def _warnings(alphabet: Alphabet, characters: int, found: Repeats, leaked: float) -> list[str]:
    most, count = alphabet.characters[0]
    checks = [
        (characters < 10_000, f"{characters:,} characters are few: a model will overfit them"),
        (
            characters > 1_000_000_000,
            f"{characters:,} characters are many: tokenizing takes minutes, and the token file as many bytes or more",
        ),
        (count > 0.4 * characters, f"{count / characters:.0%} of the characters are {most!r}"),
        (
            alphabet.size > 5_000,
            f"{alphabet.size:,} distinct characters make a large table: bpe:4096 suits this text better than char",
        ),
        (
            found.character_share > 0.2,
            f"{found.character_share:.0%} of the text is in lines that repeat an earlier one",
        ),
        (
            found.repeated_documents > 0,
            f"{found.repeated_documents:,} of {found.documents:,} documents repeat an earlier one",
        ),
        (
            leaked > 0.05,
            f"{leaked:.0%} of the validation text also occurs in the training text: "
            "the validation loss will be too optimistic",
        ),
    ]
    return [warning for applies, warning in checks if applies]
