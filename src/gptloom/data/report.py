"""What a text is like, before a model is trained on it: its size, alphabet, tokens, repetitions and leaks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptloom.config import DataConfig
from gptloom.data.corpus import Corpus
from gptloom.data.documents import Piece
from gptloom.data.repeats import LINES, Repeats, leakage, repeats
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, make_tokenizer

SAMPLE = 4_000_000
"""Characters, from the beginning of the text, that subword tokenizers are compared on."""

_SIZES = (1024, 4096)


@dataclass(frozen=True)
class Alphabet:
    """The characters of a text.

    Attributes:
        size: number of distinct characters.
        characters: each of the most frequent 256 and how often it occurs, most frequent first.
    """

    size: int
    characters: list[tuple[str, int]]


@dataclass(frozen=True)
class TokenCount:
    """A text in the eyes of one tokenizer.

    Attributes:
        vocab_size: number of ids.
        tokens: number of tokens, without ends of texts.
        characters_per_token: characters / tokens.
        exact: whether all of the text was counted, not its first `SAMPLE` characters.
    """

    vocab_size: int
    tokens: int
    characters_per_token: float
    exact: bool


@dataclass(frozen=True)
class Report:
    """What is worth knowing about a text; `dataclasses.asdict` makes it JSON.

    Attributes:
        name: a short word for the text.
        sources: the files it was read from.
        documents: number of documents.
        characters: number of characters (code points).
        bytes: length as UTF-8.
        sha256: hash of the text.
        alphabet: its characters.
        tokens: what each tokenizer, by its spec, makes of it.
        repeats: lines and documents that occur again.
        leakage: share of the validation text's stretches of 50 characters that the training text has too.
        warnings: what may spoil a model trained on it.
        notes: how it was read, and what was only sampled.
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
    """Examine a text, in bounded memory; it is read several times.

    Args:
        corpus: the text.
        config: `tokenizer` is counted beside the usual ones; `val_fraction` and `val_text` tell what is validated on.

    Raises:
        InputError: a file turns out not to be what it seemed.
        ConfigError: the tokenizer cannot be used.
        MachineError: the tokenizer could not be downloaded.
    """
    scan = corpus.scan
    order = np.argsort(-scan.frequencies, kind="stable")[:256]
    alphabet = Alphabet(len(scan.alphabet), [(chr(code), int(count)) for code, count in zip(scan.alphabet[order], scan.frequencies[order], strict=True)])
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
    """Leakage between the parts that a split by position makes, measured in characters, or into the validation file."""
    if config.val_text is not None:
        val = open_corpus([config.val_text], config)
        return leakage((piece.text for piece in corpus.pieces()), (piece.text for piece in val.pieces()), val.characters)
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
        (characters < 10_000, f"{characters:,} characters are few: a model will learn them by heart"),
        (characters > 1_000_000_000, f"{characters:,} characters are many: tokenizing takes minutes, and the token file as many bytes or more"),
        (count > 0.4 * characters, f"{count / characters:.0%} of the characters are {most!r}"),
        (alphabet.size > 5_000, f"{alphabet.size:,} distinct characters make a large table: bpe:4096 suits this text better than char"),
        (found.character_share > 0.2, f"{found.character_share:.0%} of the text is in lines that repeat an earlier one"),
        (found.repeated_documents > 0, f"{found.repeated_documents:,} of {found.documents:,} documents repeat an earlier one"),
        (leaked > 0.05, f"{leaked:.0%} of the validation text occurs in the training text too: the validation loss will look too good"),
    ]
    return [warning for applies, warning in checks if applies]
