"""Shared by the tests of the data package."""

from pathlib import Path

import numpy as np

from gptloom.config.run import DataConfig
from gptloom.data.corpus import Corpus
from gptloom.data.sources import open_corpus
from gptloom.data.tokens import Tokens, TokenStore

PROSE = "The quick brown fox doesn't jump over 13 lazy dogs; it sleeps, it dreams!\n\tAnd  then?\n\n" * 40
MIXED = "নমস্কার দুনিয়া 👋🏽 café naïve “quotes”\n" * 20


def corpus_of(folder: Path, *documents: str, **settings) -> Corpus:
    """A corpus of one text file for each document."""
    paths = []
    for number, text in enumerate(documents):
        path = folder / f"document{number:02}.txt"
        path.write_bytes(text.encode())
        paths.append(str(path))
    return open_corpus(paths, DataConfig(**settings))


def texts_of(corpus: Corpus) -> list[str]:
    """The whole documents of a corpus."""
    documents, held = [], ""
    for text, ends_document in corpus.pieces():
        held += text
        if ends_document:
            documents.append(held)
            held = ""
    assert not held
    return documents


def positions(n: int, starts: tuple[int, ...] = (0,)) -> Tokens:
    """Tokens whose ids are their positions, so that a batch shows its place in the text."""
    return Tokens(np.arange(n, dtype=np.uint32), np.array(starts, dtype=np.int64))


def store_of(n: int, starts: tuple[int, ...] = (0,)) -> TokenStore:
    tokens = positions(n, starts)
    return TokenStore(Path("x"), tokens.ids, tokens.document_starts.astype(np.uint64), "", "", n, n)
