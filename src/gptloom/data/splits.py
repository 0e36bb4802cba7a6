"""A text as token ids: from the cache or newly made, and cut for validation."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt

from gptloom.config.run import DataConfig
from gptloom.data.corpus import Corpus
from gptloom.data.token_store import VERSION, TokenStore, cache_folder, open_store, replacing, write_store
from gptloom.data.tokenizers import Tokenizer
from gptloom.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """Part of a tokenized text.

    Attributes:
        ids: its token ids, a view of the memory map.
        document_starts: the index in `ids` of each document's first token; 0 comes first, even where a document was
            cut.
    """

    ids: UInt[np.ndarray, " tokens"]
    document_starts: Int64[np.ndarray, " documents"]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class Split:
    """What is trained on, and what is kept for validation."""

    train: Tokens
    val: Tokens


def store_path(config: DataConfig, text_sha256: str, tokenizer_fingerprint: str) -> Path:
    """Where the tokens of a text are kept, whether or not they are there yet."""
    key = hashlib.sha256(f"{VERSION} {text_sha256} {tokenizer_fingerprint} {config.on_unknown}".encode()).hexdigest()
    return cache_folder(config) / "tokens" / f"{key[:32]}.safetensors"


def prepare(corpus: Corpus, tokenizer: Tokenizer, config: DataConfig) -> TokenStore:
    """The tokens of a text, from the cache or newly written; memory does not grow with the text.

    Where there are several documents, the end of the text follows each of them, if the tokenizer has such an id.

    Args:
        corpus: the text; a note is added to it when a damaged file had to be replaced.
        tokenizer: makes the ids.
        config: `cache` and `on_unknown` are used.

    Raises:
        InputError: the text has unknown characters, or changed while it was read.
        MachineError: the file cannot be written.
    """
    path = store_path(config, corpus.sha256, tokenizer.fingerprint)
    if path.exists():
        try:
            store = open_store(path)
            if (store.text_sha256, store.tokenizer_fingerprint) == (corpus.sha256, tokenizer.fingerprint):
                return store
            reason = "is of another text"
        except InputError as error:
            reason = error.what
        corpus.notes.append(f"the token file {path} {reason}; it has been made again")
    with replacing(path) as file:
        write_store(file, corpus, tokenizer, config)
    return open_store(path)


def split(store: TokenStore, config: DataConfig, val_store: TokenStore | None = None) -> Split:
    """Cut off what validation reads.

    By position, the first int((1 - val_fraction) n) tokens train, or more where the rest would be longer than
    val_tokens; by document, that cut moves to the nearest document boundary.

    Args:
        store: the text.
        config: `val_fraction`, `val_tokens` and `split` are used.
        val_store: a text of its own for validation; then all of `store` trains.

    Raises:
        InputError: there is one document and the split is by document, or a part would have fewer than 2 tokens.
    """
    if val_store is not None:
        parts = Split(_part(store, 0, len(store.ids)), _part(val_store, 0, len(val_store.ids)))
    else:
        # Decimal, because 1 - val_fraction in binary can fall short of a whole token.
        cut = int((1 - Decimal(str(config.val_fraction))) * len(store.ids))
        cut = max(cut, len(store.ids) - config.val_tokens)
        if config.split == "document":
            cut = _nearest_boundary(store, cut)
        parts = Split(_part(store, 0, cut), _part(store, cut, len(store.ids)))
    for name, part in (("training", parts.train), ("validation", parts.val)):
        if len(part) < 2:
            what = f"the {name} part has {len(part)} token{'s' * (len(part) != 1)}, and at least 2 are needed"
            raise InputError(
                what, where=f"{len(store.ids)} tokens", cure="give a longer text, or change --data.val-fraction"
            )
    return parts


def _nearest_boundary(store: TokenStore, cut: int) -> int:
    boundaries = store.document_starts[1:].astype(np.int64)
    if not len(boundaries):
        raise InputError(
            "there is only one document, so it cannot be split between documents",
            where="--data.split",
            cure="use --data.split position",
        )
    return int(boundaries[np.abs(boundaries - cut).argmin()])


def _part(store: TokenStore, start: int, end: int) -> Tokens:
    first, last = np.searchsorted(store.document_starts, (start, end)).tolist()
    starts = store.document_starts[first:last].astype(np.int64) - start
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([np.zeros(1, np.int64), starts])
    return Tokens(store.ids[start:end], starts)
